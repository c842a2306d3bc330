"""Builds small stand-ins for benchmarks that have to be asked for, in their official layouts.

  python tools/make_stand_ins.py --lfw lfw.tar --distractors unpaired.tar --ar ar10p.mat --out stand_ins

writes stand_ins/tinyface (LFW people with two or more images, shrunk to 14-28 pixels; people without a pair as
distractors), stand_ins/uccs (LFW people with ten or more images, every fourth for testing) and stand_ins/ar (the
130 faces of 10 people of AR10P, enlarged from 60x40 grey pixels and placed on InsightFace's template). They prove
that the protocols run and show what to expect; their figures are not those of the benchmarks, and everything that
is made from them says so (STAND_IN.txt).
"""

import argparse
import shutil
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import scipy.io
from tqdm import tqdm

from gdrd_jax.command_line import guarded
from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degrade import resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import is_image
from gdrd_jax.data.formats import STAND_IN, list_files
from gdrd_jax.errors import GdrdError
from gdrd_jax.files import user_path, write_text
from gdrd_jax.outputs import claim_folder

MANY, EVERY = 10, 4  # images of a person of the closed set; every so many is tested
TINY = (14, 28)
AR_SHAPE, AR_IMAGES = (60, 40), 13
# Eyes and middle of the mouth in AR10P's mean face, measured by eye, and where the template has them.
AR_POINTS = np.float32([[10.4, 23.2], [29.7, 23.2], [20.0, 43.0]])
TEMPLATE_POINTS = np.float32([[38.3, 51.7], [73.5, 51.5], [56.1, 92.3]])


def by_person(faces: Faces) -> dict[str, list[int]]:
    """Rows of each person's images, by the name of their folder."""
    people = defaultdict(list)
    for row, name in enumerate(faces.names):
        if is_image(faces, row):
            people[PurePosixPath(name).parent.name].append(row)
    return people


def save(path: Path, image: np.ndarray) -> None:
    """Writes RGB, as JPEG or PNG after its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])


def begin(folder: Path, text: str) -> None:
    """Makes the folder, in the place of an older stand-in; says what it is, which `evaluate` repeats."""
    claim_folder(folder, "a stand-in", "--out")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(folder / STAND_IN, f"{text} The figures are not those of the benchmark.\n")


def tinyface(lfw: Faces, distractors: Faces, out: Path) -> None:
    """Half of each person's images are probes, the others their mates; the lists are TinyFace's .mat files."""
    begin(out, "TinyFace stand-in: LFW faces shrunk to 14-28 pixels, LFW people without a pair as distractors.")
    root, random = out / "Testing_Set", np.random.default_rng(0)
    lists = {"Probe": [], "Gallery_Match": []}

    def shrunk(image: np.ndarray) -> np.ndarray:
        return resize(image, int(random.integers(TINY[0], TINY[1] + 1)), "area")

    people = [(name, rows) for name, rows in by_person(lfw).items() if len(rows) > 1]
    for number, (_, rows) in enumerate(tqdm(people, desc="tinyface", unit="person"), 1):
        for i, row in enumerate(rows[:8], 1):
            kind, name = ("Probe", "Gallery_Match")[i % 2], f"{number}_{i}.jpg"
            save(root / kind / name, shrunk(lfw[row]))
            lists[kind].append((name, number))
    for number, row in enumerate(row for rows in by_person(distractors).values() for row in rows):
        save(root / "Gallery_Distractor" / f"{number}.jpg", shrunk(distractors[row]))
    for kind, file, key in (("Probe", "probe", "probe"), ("Gallery_Match", "gallery_match", "gallery")):
        cells = np.array([[name] for name, _ in lists[kind]], dtype=object)
        ids = np.array([[number] for _, number in lists[kind]])
        scipy.io.savemat(root / f"{file}_img_ID_pairs.mat", {f"{key}_set": cells, f"{key}_ids": ids})


def uccs(lfw: Faces, out: Path) -> None:
    """A closed set of the people with many images."""
    begin(out, f"UCCS stand-in: LFW people with {MANY} or more images, every {EVERY}th of them for testing.")
    for name, rows in tqdm(by_person(lfw).items(), desc="uccs", unit="person"):
        if len(rows) >= MANY:
            for i, row in enumerate(rows):
                path = out / ("test" if i % EVERY == EVERY - 1 else "train") / name / PurePosixPath(lfw.names[row]).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(lfw.read(row))


def ar10p(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """AR10P's pictures, uint8 `[N, 60, 40]`, and whose they are.

    Raises:
      GdrdError: the file is not AR10P.
    """
    try:
        content = scipy.io.loadmat(path)
        pictures = content["fea"].reshape(-1, *AR_SHAPE[::-1]).transpose(0, 2, 1).astype(np.uint8)
        people = content["gnd"].ravel()
    except Exception as error:  # scipy raises whatever its parser met
        raise GdrdError(f"{path} is not AR10P ({error})") from error
    for person, count in zip(*np.unique(people, return_counts=True)):
        if count != AR_IMAGES:
            raise GdrdError(f"{path}: person {person} has {count} pictures, AR10P has {AR_IMAGES} of each")
    return pictures, people


def ar(pictures: np.ndarray, people: np.ndarray, out: Path) -> None:
    """AR10P's rows, each a grey picture column by column, under AR's names (all "m": it does not say who is who)."""
    begin(out, "AR stand-in: AR10P, 10 people of session 1 only, grey, enlarged from 60x40 pixels.")
    placed, _ = cv2.estimateAffinePartial2D(AR_POINTS, TEMPLATE_POINTS, method=cv2.LMEDS)
    for person in np.unique(people):
        for number, row in enumerate(np.flatnonzero(people == person), 1):
            face = cv2.warpAffine(
                pictures[row], placed, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
            save(out / f"m-{person:03d}-{number:02d}.png", cv2.cvtColor(face, cv2.COLOR_GRAY2RGB))


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=user_path, required=True, help="aligned LFW: folder or tar")
    parser.add_argument(
        "--distractors", type=user_path, required=True, help="aligned faces of other people: folder or tar"
    )
    parser.add_argument("--ar", type=user_path, required=True, help="ar10p.mat")
    parser.add_argument("--out", type=user_path, required=True)

    def work() -> None:
        given = parser.parse_args(argv)
        for name in ("tinyface", "uccs", "ar"):
            claim_folder(given.out / name, "a stand-in", "--out")
        pictures, people = ar10p(given.ar)
        lfw, distractors = list_files(given.lfw), list_files(given.distractors)
        tinyface(lfw, distractors, given.out / "tinyface")
        uccs(lfw, given.out / "uccs")
        ar(pictures, people, given.out / "ar")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Builds small stand-ins for benchmarks that have to be asked for, in their official layouts.

  python tools/make_stand_ins.py --lfw lfw.tar --distractors unpaired.tar --ar ar10p.mat --out stand_ins

writes stand_ins/tinyface (LFW people with two or more images, shrunk to 14-28 pixels; people without a pair as
distractors), stand_ins/uccs (LFW people with ten or more images, every fourth for testing), stand_ins/QMUL-SurvFace
(LFW faces shrunk as for TinyFace; the gallery has every other person), stand_ins/SCface_database (LFW faces as large
as SCface's at its three distances, with landmarks), stand_ins/IJBC (LFW faces turned and scaled inside larger images,
with landmarks and all lists) and stand_ins/ar (the faces of AR10P, 10 people, or of ar_ii.mat, 99 people, enlarged and
placed on InsightFace's template). They prove that the protocols run and show what to expect; their figures are not
those of the benchmarks, and everything that is made from them says so (STAND_IN.txt).
"""

import argparse
import dataclasses
import shutil
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import scipy.io
from tqdm import tqdm

from gdrd_jax.cli.common import guarded
from gdrd_jax.data.align import FACE_SIZE, MIDDLE_TEMPLATE, TEMPLATE
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import is_image
from gdrd_jax.data.readers import STAND_IN, list_files
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path, write_text
from gdrd_jax.utils.outputs import claim_folder

MANY, EVERY = 10, 4  # images of a person of the closed set; every so many is tested
TINY = (14, 28)
DISTANT = {1: 34, 2: 57, 3: 105}  # medians of SCface's landmarks: pixels of an aligned face at each distance
SCFACE_PEOPLE = 130
# Eyes and middle of the mouth in the mean face of either file, measured by eye, and where the template has them.
AR10P_POINTS = np.float32([[10.4, 23.2], [29.7, 23.2], [20.0, 43.0]])
AR_II_POINTS = np.float32([[10.7, 23.0], [32.0, 23.0], [21.5, 44.7]])
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
    people = [(name, rows) for name, rows in by_person(lfw).items() if len(rows) > 1]
    for number, (_, rows) in enumerate(tqdm(people, desc="tinyface", unit="person"), 1):
        for i, row in enumerate(rows[:8], 1):
            kind, name = ("Probe", "Gallery_Match")[i % 2], f"{number}_{i}.jpg"
            save(root / kind / name, shrunk(lfw[row], random))
            lists[kind].append((name, number))
    for number, row in enumerate(row for rows in by_person(distractors).values() for row in rows):
        save(root / "Gallery_Distractor" / f"{number}.jpg", shrunk(distractors[row], random))
    for kind, file, key in (("Probe", "probe", "probe"), ("Gallery_Match", "gallery_match", "gallery")):
        save_identities(root / f"{file}_img_ID_pairs.mat", key, lists[kind])


def shrunk(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A face of 14 to 28 pixels."""
    return resize(image, int(random.integers(TINY[0], TINY[1] + 1)), "area")


def save_identities(path: Path, key: str, listed: list[tuple[str, int]]) -> None:
    """Writes names and identities as the .mat files of TinyFace and SurvFace have them."""
    cells = np.array([[name] for name, _ in listed], dtype=object)
    scipy.io.savemat(path, {f"{key}_set": cells, f"{key}_ids": np.array([[number] for _, number in listed])})


def survface(lfw: Faces, out: Path) -> None:
    """Pairs of each person's first two images, and of neighbors; every other person is in the gallery."""
    begin(out, "QMUL-SurvFace stand-in: LFW faces shrunk to 14-28 pixels.")
    random, verification = np.random.default_rng(0), out / "Face_Verification_Test_Set"
    identification, lists = out / "Face_Identification_Test_Set", {"gallery": [], "mated_probe": []}
    people = [rows for rows in by_person(lfw).values() if len(rows) > 1]
    for number, rows in enumerate(tqdm(people, desc="survface", unit="person"), 1):
        for camera, row in enumerate(rows[:8], 1):
            name = f"{number}_cam{camera}_1.jpg"
            if camera < 3:
                save(verification / "verification_images" / name, shrunk(lfw[row], random))
            kind = ("gallery", "mated_probe")[camera % 2] if number % 2 else "unmated_probe"
            save(identification / kind / name, shrunk(lfw[row], random))
            if number % 2:
                lists[kind].append((name, number))
    for kind, listed in lists.items():
        save_identities(identification / f"{kind}_img_ID_pairs.mat", kind, listed)
    count = len(people)
    for kind, other in (("positive", 0), ("negative", 1)):
        cells = np.empty((count, 2), object)
        for number in range(count):
            cells[number] = [f"{number + 1}_cam1_1.jpg", f"{(number + other) % count + 1}_cam2_1.jpg"]
        scipy.io.savemat(verification / f"{kind}_pairs_names.mat", {f"{kind}_pairs_names": cells})


def scface(lfw: Faces, out: Path) -> None:
    """The people with the most images: the first is the mugshot, the others are seen by cameras in turn."""
    begin(out, "SCface stand-in: LFW faces of 34, 57 and 105 pixels, the medians of SCface at its three distances.")
    people = sorted(by_person(lfw).values(), key=len, reverse=True)[:SCFACE_PEOPLE]
    lines = []
    for number, rows in enumerate(tqdm(people, desc="scface", unit="person"), 1):
        places = [(f"cam{camera}", distance) for camera in range(1, 6) for distance in DISTANT]
        for row, (camera, distance) in zip(rows, [("frontal", 0), *places]):
            side = DISTANT.get(distance, FACE_SIZE)
            name = f"{number:03d}_{camera}" + (f"_{distance}" if distance else "")
            folder = f"surveillance_cameras_distance_{distance}/cam_{camera[-1]}"
            path = out / (folder if distance else "mugshot_frontal_cropped_all") / f"{name}.jpg"
            save(path, resize(lfw[row], side, "area"))
            points = (MIDDLE_TEMPLATE + 0.5) * side / FACE_SIZE - 0.5
            lines.append("\t".join([name, *(f"{value:.2f}" for value in points.ravel())]))
    write_text(out / "landmarks.txt", "\n".join(lines) + "\n")


def ijb(lfw: Faces, out: Path) -> None:
    """Half of each person's images are the enrolled template, the others the probe; both galleries share the people."""
    begin(
        out, "IJB-C stand-in: LFW faces, turned and scaled inside larger images, one template of either kind a person."
    )
    random, number = np.random.default_rng(0), 0
    media, points, templates = [], [], ([], [])
    people = [rows for rows in by_person(lfw).values() if len(rows) > 1]
    for person, rows in enumerate(tqdm(people, desc="ijb", unit="person"), 1):
        for kind, part in enumerate((rows[::2], rows[1::2])):
            template = 2 * person + kind
            templates[kind].append((template, person))
            for row in part:
                number += 1
                angle, scale = random.uniform(-0.5, 0.5), random.uniform(0.7, 1.6)
                turned = cv2.getRotationMatrix2D((FACE_SIZE / 2, FACE_SIZE / 2), np.degrees(angle), scale) + [0, 0, 60]
                save(out / "loose_crop" / f"{number}.jpg", cv2.warpAffine(lfw[row], turned, (240, 240)))
                where = TEMPLATE @ turned[:, :2].T + turned[:, 2]
                media.append(f"{number}.jpg {template} {number}")
                points.append(f"{number}.jpg {' '.join(f'{value:.3f}' for value in where.ravel())} 0.99")
    pairs = [f"{a} {b} {int(p == q)}" for a, p in templates[0] for b, q in templates[1]]
    header, half = "TEMPLATE_ID,SUBJECT_ID", len(people) // 2
    lists = {"1N_gallery_G1": templates[0][:half], "1N_gallery_G2": templates[0][half:], "1N_probe_mixed": templates[1]}
    (out / "meta").mkdir()
    for name, listed in lists.items():
        lines = [header, *(f"{template},{person}" for template, person in listed)]
        write_text(out / "meta" / f"ijbc_{name}.csv", "\n".join(lines) + "\n")
    for name, lines in (("face_tid_mid", media), ("name_5pts_score", points), ("template_pair_label", pairs)):
        write_text(out / "meta" / f"ijbc_{name}.txt", "\n".join(lines) + "\n")


def uccs(lfw: Faces, out: Path) -> None:
    """A closed set of the people with many images."""
    begin(out, f"UCCS stand-in: LFW people with {MANY} or more images, every {EVERY}th of them for testing.")
    for name, rows in tqdm(by_person(lfw).items(), desc="uccs", unit="person"):
        if len(rows) >= MANY:
            for i, row in enumerate(rows):
                path = out / ("test" if i % EVERY == EVERY - 1 else "train") / name / PurePosixPath(lfw.names[row]).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(lfw.read(row))


@dataclasses.dataclass(frozen=True)
class ArPictures:
    """Pictures of AR from a .mat file.

    Attributes:
      pictures: gray, uint8 `[N, H, W]`.
      people: int `[N]`.
      numbers: of the condition, AR's 1 to 26, of each picture of a person in turn.
      points: of the template, float32 `[3, 2]`, in these pictures.
      about: what they are.
    """

    pictures: np.ndarray
    people: np.ndarray
    numbers: tuple[int, ...]
    points: np.ndarray
    about: str


def ar_pictures(path: Path) -> ArPictures:
    """Reads AR10P (10 people, session 1) or AR II (99 people, both sessions without what covers the face).

    Raises:
      GdrdError: the file is neither.
    """
    try:
        content = scipy.io.loadmat(path)
        if "fea" in content:
            pictures, people = content["fea"].reshape(-1, 40, 60).transpose(0, 2, 1), content["gnd"].ravel()
            about = "AR10P, 10 people of session 1 only, gray, enlarged from 60x40 pixels"
            numbers, points = (*range(1, 14),), AR10P_POINTS
        else:
            pictures, people = content["x"].transpose(2, 0, 1), content["label"].ravel()
            about = "99 people of both sessions, expressions and illumination only, gray, enlarged from 60x43 pixels"
            numbers, points = (*range(1, 8), *range(14, 21)), AR_II_POINTS
    except Exception as error:  # scipy raises whatever its parser met
        raise GdrdError(f"{path} is neither AR10P nor AR II ({error})", "stand-in-source") from error
    for person, count in zip(*np.unique(people, return_counts=True)):
        if count != len(numbers):
            raise GdrdError(
                f"{path}: person {person} has {count} pictures, instead of {len(numbers)}", "stand-in-source"
            )
    return ArPictures(pictures.astype(np.uint8), people.astype(int), numbers, points, about)


def ar(found: ArPictures, out: Path) -> None:
    """Writes them under AR's names (all "m": the files do not say who is a man)."""
    begin(out, f"AR stand-in: {found.about}.")
    # Not `data.align.estimate_similarity`, which shifts these faces by up to 3 pixels: the figures of the stand-ins in
    # docs/studies/stand_ins.md and docs/results.md were measured on faces that were placed like this.
    placed, _ = cv2.estimateAffinePartial2D(found.points, TEMPLATE_POINTS, method=cv2.LMEDS)
    for person in np.unique(found.people):
        for number, row in zip(found.numbers, np.flatnonzero(found.people == person)):
            face = cv2.warpAffine(
                found.pictures[row], placed, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REPLICATE,
            )  # fmt: skip
            save(out / f"m-{person:03d}-{number:02d}.png", cv2.cvtColor(face, cv2.COLOR_GRAY2RGB))


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=user_path, required=True, help="aligned LFW: folder or tar")
    parser.add_argument(
        "--distractors", type=user_path, required=True, help="aligned faces of other people: folder or tar"
    )
    parser.add_argument("--ar", type=user_path, required=True, help="ar10p.mat or ar_ii.mat")
    parser.add_argument("--out", type=user_path, required=True)

    def work() -> None:
        given = parser.parse_args(argv)
        for name in ("tinyface", "uccs", "ar", "QMUL-SurvFace", "SCface_database", "IJBC"):
            claim_folder(given.out / name, "a stand-in", "--out")
        pictures = ar_pictures(given.ar)
        lfw, distractors = list_files(given.lfw), list_files(given.distractors)
        tinyface(lfw, distractors, given.out / "tinyface")
        uccs(lfw, given.out / "uccs")
        ar(pictures, given.out / "ar")
        survface(lfw, given.out / "QMUL-SurvFace")
        scface(lfw, given.out / "SCface_database")
        ijb(lfw, given.out / "IJBC")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

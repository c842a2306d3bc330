"""The lists of IJB-B and IJB-C as InsightFace hands them out (IJB_release: IJBB/meta and IJBC/meta).

Fields are separated by blanks, and all lists but the last are without a header
(https://github.com/deepinsight/insightface, recognition/_evaluation_/ijb):

    ijbc_face_tid_mid.txt          IMAGE TEMPLATE MEDIUM
    ijbc_name_5pts_score.txt       IMAGE X Y X Y X Y X Y X Y SCORE    in the same order: landmarks, the detector's score
    ijbc_template_pair_label.txt   TEMPLATE TEMPLATE LABEL            1:1; 1 is one subject
    ijbc_1N_gallery_G1.csv, ..._G2.csv, ijbc_1N_probe_mixed.csv       1:N; TEMPLATE_ID,SUBJECT_ID,...

IJB-B's are called ijbb_..., and its galleries S1 and S2.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from scipy.sparse import coo_array, csgraph

from gdrd_jax.evaluation.pair_files import image_name
from gdrd_jax.evaluation.template_files import TemplateList
from gdrd_jax.utils.errors import GdrdError

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
POINTS = 5


@dataclasses.dataclass(frozen=True)
class Release:
    """A folder IJBB or IJBC.

    Attributes:
      folder: with meta/ and loose_crop/.
      kind: "ijbb" or "ijbc".
    """

    folder: Path
    kind: str

    @classmethod
    def find(cls, folder: Path) -> "Release":
        """The release in a folder.

        Raises:
          GdrdError: the folder is none of a release.
        """
        kinds = [kind for kind in GALLERIES if (folder / "meta" / f"{kind}_face_tid_mid.txt").is_file()]
        if len(kinds) != 1 or not (folder / "loose_crop").is_dir():
            raise GdrdError(
                f"{folder} is not IJBB or IJBC of InsightFace's IJB_release, a folder with loose_crop/ and "
                "meta/ijbc_face_tid_mid.txt (or ijbb_...)",
                "ijb-folder",
            )
        return cls(folder, kinds[0])

    def list(self, name: str) -> Path:
        """Path of a list, such as "face_tid_mid.txt"."""
        return self.folder / "meta" / f"{self.kind}_{name}"

    @functools.cached_property
    def galleries(self) -> tuple[dict[int, int], dict[int, int]]:
        """Template to subject, of both galleries."""
        first, second = (read_subjects(self.list(f"1N_gallery_{name}.csv")) for name in GALLERIES[self.kind])
        return first, second

    @functools.cached_property
    def probes(self) -> dict[int, int]:
        """Template to subject."""
        return read_subjects(self.list("1N_probe_mixed.csv"))

    def templates(
        self, subjects: dict[int, int], *, detector_score: bool
    ) -> tuple[TemplateList, dict[str, np.ndarray]]:
        """The images of templates, and the landmarks of each image, float `[5, 2]`, by its name.

        Args:
          subjects: the subject of each template that is wanted; others are left out.
          detector_score: weight images by it.

        Raises:
          GdrdError: a list is missing, malformed or contradicts another (with the number of the line), or a template
            has no image.
        """
        path, beside = self.list("face_tid_mid.txt"), self.list("name_5pts_score.txt")
        lines, points = _fields(path, 3, "IMAGE TEMPLATE MEDIUM"), _fields(beside, 12, "IMAGE X Y (five times) SCORE")
        number: dict[int, int] = {}
        images, templates, media, weights = [], [], [], []
        landmarks: dict[str, np.ndarray] = {}
        for line, fields in lines:
            described = next(points, (line, ["nothing"]))[1]
            if fields[0] != described[0]:
                raise GdrdError(
                    f"{beside}, line {line}: {described[0]} is described where {path.name} has {fields[0]}; both lists "
                    "must have the same order",
                    "ijb-order",
                )
            try:
                template, medium = int(fields[1]), int(fields[2])
                place = np.array(described[1:], np.float64)
            except ValueError as error:
                raise GdrdError(
                    f"{path} or {beside}, line {line}: a field is no number: {error}", "ijb-line"
                ) from error
            if template not in subjects:
                continue
            name = image_name(fields[0])
            landmarks[name] = place[:-1].reshape(POINTS, 2)
            images.append(name)
            templates.append(number.setdefault(template, len(number)))
            media.append(medium)
            weights.append(place[-1])
        if absent := sorted(subjects.keys() - number.keys()):
            raise GdrdError(f"{path} has no image of template {absent[0]}, which another list names", "template-empty")
        listed = TemplateList(
            tuple(map(str, number)), tuple(str(subjects[template]) for template in number), tuple(images),
            np.array(templates, np.int32), np.unique(media, return_inverse=True)[1].astype(np.int32),
            np.array(weights, np.float32) if detector_score else None,
        )  # fmt: skip
        return listed, landmarks

    def pairs(self) -> np.ndarray:
        """Templates and labels of the 1:1 protocol, int32 `[P, 3]`; raises GdrdError as `templates`."""
        return read_numbers(self.list("template_pair_label.txt"), 3, "TEMPLATE TEMPLATE LABEL")

    def subjects_of(self, pairs: np.ndarray) -> dict[int, int]:
        """Subjects of the templates in pairs: those of the 1:N lists or, without these, templates of genuine pairs.

        Raises:
          GdrdError: a label contradicts the subjects.
        """
        names, rows = np.unique(pairs[:, :2], return_inverse=True)
        first, second = rows.reshape(-1, 2).T
        same = pairs[:, 2] == 1
        known: dict[int, int] = {}
        if self.list("1N_probe_mixed.csv").is_file():
            known = {**self.galleries[0], **self.galleries[1], **self.probes}
        if all(name in known for name in names.tolist()):
            subjects = np.array([known[name] for name in names.tolist()])
        else:
            joined = coo_array((np.ones(same.sum()), (first[same], second[same])), shape=(len(names), len(names)))
            subjects = csgraph.connected_components(joined, directed=False)[1]
        wrong = np.flatnonzero((subjects[first] == subjects[second]) != same)
        if len(wrong):
            raise GdrdError(
                f"{self.list('template_pair_label.txt')}, line {wrong[0] + 1}: the label {pairs[wrong[0], 2]} "
                "contradicts the other lists, or other pairs",
                "ijb-label",
            )
        return dict(zip(names.tolist(), subjects.tolist()))


def read_subjects(path: Path) -> dict[int, int]:
    """Template to subject, of a list `TEMPLATE_ID,SUBJECT_ID,...` with a header and a line for each image.

    Raises:
      GdrdError: missing, malformed, or a template of two subjects.
    """
    found: dict[int, int] = {}
    with _opened(path) as file:
        lines = file.readlines()
    for number, line in enumerate(lines[1:], 2):
        fields = line.strip().split(",")
        if fields == [""]:
            continue
        if len(fields) < 2 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise GdrdError(f"{path}, line {number}: {line.strip()!r} is not `TEMPLATE_ID,SUBJECT_ID,...`", "ijb-line")
        template, subject = int(fields[0]), int(fields[1])
        if found.setdefault(template, subject) != subject:
            raise GdrdError(
                f"{path}, line {number}: template {template} is of subject {subject} here and of {found[template]} "
                "before",
                "template-two-subjects",
            )
    if not found:
        raise GdrdError(f"{path} lists nothing; lines are `TEMPLATE_ID,SUBJECT_ID,...`", "template-list-empty")
    return found


def read_numbers(path: Path, columns: int, form: str) -> np.ndarray:
    """A list of whole numbers, such as millions of pairs, int32 `[N, columns]`.

    Raises:
      GdrdError: missing or malformed.
    """
    try:
        with _opened(path) as file, warnings.catch_warnings(action="ignore"):  # of an empty file
            values = np.loadtxt(file, np.int32, comments=None, ndmin=2)
        if values.shape[1:] == (columns,) and len(values):
            return values
    except ValueError:  # the line is looked for below
        pass
    for number, fields in _fields(path, columns, form):
        try:
            np.array([int(field) for field in fields], np.int32)
        except (ValueError, OverflowError):
            raise GdrdError(f"{path}, line {number}: {' '.join(fields)!r} is not `{form}`", "ijb-line") from None
    raise GdrdError(f"{path} lists nothing; lines are `{form}`", "template-list-empty")


def _fields(path: Path, count: int, form: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != count:
                raise GdrdError(f"{path}, line {number}: {line.strip()!r} is not `{form}`", "ijb-line")
            yield number, fields


def _opened(path: Path) -> TextIO:
    if not path.is_file():
        raise GdrdError(f"there is no list {str(path)!r}", "template-list-missing")
    return path.open(encoding="utf-8", errors="backslashreplace")  # so that other bytes are shown with their line

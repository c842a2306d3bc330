"""Compares two faces at 8, 16 and 32 pixels, for the page of `gdrd demo`."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import resize
from gdrd_jax.data.task import FACES
from gdrd_jax.galleries import enroll
from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.checks import missing
from gdrd_jax.galleries.gallery import Gallery, Match, is_gallery
from gdrd_jax.inference import preprocess
from gdrd_jax.inference.embedders import Embedder, open_model
from gdrd_jax.inference.recognizer import FAR, Recognizer
from gdrd_jax.utils.errors import GdrdError

RESOLUTIONS = (8, 16, 32)
SEARCHES = 16  # resolution of the student that searches the gallery, if there is one
MATCHES = 5
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
    """Two faces at one size, and their similarities.

    Attributes:
      resolution: side in pixels; None for the faces in their own sizes.
      faces: the two faces, uint8 RGB `[resolution, resolution, 3]`, or `[S, S, 3]` of any two sizes.
      student: similarity by the student, -1 to 1; None if there is no student of that resolution.
      same: decision of the student; None if it has no threshold.
      remark: the threshold, or why there is none.
      teacher: similarity by the teacher, fed with the enlarged faces; None without a teacher.
      qualities: how recognizable either face is to the student, 0 to 1; None if it has no quality score.
    """

    resolution: int | None
    faces: tuple[np.ndarray, np.ndarray]
    student: float | None = None
    same: bool | None = None
    remark: str = ""
    teacher: float | None = None
    qualities: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Demo:
    """The models behind the page.

    Attributes:
      students: students by resolution, at least one.
      teacher: recognizer to compare the students with.
      gallery: known people, embedded by the student `searcher`.
      align: pictures are photographs of one person each.
      far: false accept rate of the students' decisions.
    """

    students: dict[int, Recognizer]
    teacher: Embedder | None = None
    gallery: Gallery | None = None
    align: bool = False
    far: float = FAR

    @classmethod
    def load(
        cls, models: Sequence[Path], teacher: str | None, gallery: Address | None, *, align: bool, far: float
    ) -> "Demo":
        """Loads the models and the gallery.

        Args:
          models: arguments of `Recognizer.load`, at least one, of different resolutions.
          teacher: `PATH[:PREPROCESSING[:SIZE]]`, see `inference.embedders.open_model`.
          gallery: a folder PERSON/IMAGE, which is enrolled in memory, or a saved gallery.
          align, far: see above.

        Raises:
          GdrdError: one cannot be loaded, two students have the same resolution, or the gallery is another student's.
        """
        students: dict[int, Recognizer] = {}
        for path in models:
            recognizer = Recognizer.load(path)
            if recognizer.task != FACES:
                raise GdrdError(f"{path} is not a student of RGB faces, which the demo is for", "task-demo")
            if recognizer.resolution in students:
                raise GdrdError(
                    f"--model {path}: there is another student of {recognizer.resolution} pixels; give only one",
                    "resolution-twice",
                )
            students[recognizer.resolution] = recognizer
        demo = cls(students, _teacher(teacher) if teacher else None, None, align, far)
        return dataclasses.replace(demo, gallery=_gallery(demo.searcher, gallery, align)) if gallery else demo

    @property
    def searcher(self) -> Recognizer:
        """The student that searches the gallery."""
        return self.students.get(SEARCHES) or self.students[max(self.students)]

    def face(self, path: str | os.PathLike | None, which: str) -> np.ndarray:
        """The face of a picture, uint8 RGB `[S, S, 3]`.

        Args:
          path: its file, if there is one.
          which: its name in errors.

        Raises:
          GdrdError: the picture cannot be read, has no face or several faces, is not square, or is too small.
        """
        if path is None:
            raise GdrdError(f"{which} is missing; add one", "picture-missing")
        try:
            face = self.searcher.face(path, align=self.align)
        except GdrdError as error:
            raise GdrdError(str(error).replace(os.fspath(path), which), error.code) from error
        side, largest = len(face), max(self.students)
        if side < preprocess.LEAST * largest:
            raise preprocess.too_small(which, side, largest)
        return face

    def compare(self, first: np.ndarray, second: np.ndarray) -> list[Row]:
        """A row for each resolution, and with a teacher one for the faces in their own sizes; faces as from `face`."""
        rows = [self._row(resolution, (first, second)) for resolution in sorted({*RESOLUTIONS, *self.students})]
        if self.teacher is None:
            return rows
        return [*rows, Row(None, (first, second), teacher=self._taught((first, second), self.teacher.kernel))]

    def _row(self, resolution: int, faces: tuple[np.ndarray, np.ndarray]) -> Row:
        student = self.students.get(resolution)
        kernel = (student or self.searcher).kernel
        low = tuple(resize(face, resolution, kernel) for face in faces)
        taught = self._taught(low, kernel) if self.teacher else None
        if student is None:
            return Row(resolution, low, teacher=taught)
        (one, other), lengths = student.embed_with_lengths(np.stack(low))
        similarity, qualities = float(one @ other), None
        if student.quality:
            qualities = tuple(map(float, student.quality(lengths)))
        return Row(resolution, low, similarity, *self._decide(student, similarity), taught, qualities)

    def _taught(self, faces: tuple[np.ndarray, np.ndarray], kernel: str) -> float:
        first, second = self.teacher.embed(np.stack([resize(face, self.teacher.input_size, kernel) for face in faces]))
        return float(first @ second)

    def _decide(self, student: Recognizer, similarity: float) -> tuple[bool | None, str]:
        try:
            threshold = student.threshold(self.far)
        except GdrdError as error:
            return None, f"no decision: {error}"
        return similarity >= threshold, f"threshold {threshold:.3f}"

    def matches(self, face: np.ndarray) -> list[tuple[np.ndarray | None, Match]]:
        """The faces of the gallery that are most similar to `face`: uint8 RGB, None if the file is gone."""
        found = self.gallery.search(self.searcher.embed(face), MATCHES)[0]
        return [(enroll.enrolled(self.searcher, match), match) for match in found]


def _teacher(text: str) -> Embedder:
    model = open_model(text, option="--teacher")
    if model.is_student:
        raise GdrdError(f"--teacher {text}: this is a student; give it as --model", "teacher-is-student")
    return model


def _gallery(recognizer: Recognizer, path: Address, align: bool) -> Gallery:
    if is_gallery(path):
        return Gallery.load(path, recognizer.fingerprint())
    if not isinstance(path, Path):
        raise missing(path)
    gallery = Gallery(recognizer.dim, recognizer.fingerprint())
    found = enroll.add_people(gallery, recognizer, path, align=align)
    if found.bad:
        LOG.warning("left out %d pictures of %s; the first: %s", len(found.bad), path, found.bad[0][1])
    return gallery

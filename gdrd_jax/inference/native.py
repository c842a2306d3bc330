"""Full-size faces, embedded by a student's teacher: galleries that probes of few pixels are compared with."""

import dataclasses

import numpy as np

from gdrd_jax.data.align import Aligner
from gdrd_jax.data.task import FACES
from gdrd_jax.inference import preprocess
from gdrd_jax.inference.embedders import Embedder, open_model
from gdrd_jax.inference.preprocess import Image
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils.errors import GdrdError


@dataclasses.dataclass(frozen=True)
class NativeRecognizer:
    """A recognizer of full-size faces, with the methods of `Recognizer` that galleries need.

    Attributes:
      model: see `inference.embedders.open_model`.
      student: whose probes are compared with the gallery.
    """

    model: Embedder
    student: Recognizer

    @classmethod
    def load(cls, text: str, student: Recognizer, *, option: str) -> "NativeRecognizer":
        """Loads the teacher of a student.

        Args:
          text: `PATH[:PREPROCESSING[:SIZE]]`, see `inference.embedders.open_model`.
          student: whose probes are to be compared with the gallery; its detector finds the faces, too.
          option: of the command line that the text was given with, for errors.

        Raises:
          GdrdError: it cannot be loaded, or is not this student's teacher, or the student is not one of faces.
        """
        if student.task != FACES:
            raise GdrdError(
                f"{option}: galleries of a teacher are of RGB faces with {FACES.image_size} pixels, and this student "
                f"takes other {student.task.images}; leave {option} out",
                "task-native",
            )
        model = open_model(text, option=option)
        if model.fingerprint not in student.comparable()[1:]:
            teacher = student.teacher
            wanted = f"its teacher is {teacher['name']} ({teacher['fingerprint'][:12]})" if teacher else "it names none"
            raise GdrdError(
                f"{text} ({model.fingerprint[:12]}) is not the teacher of this student, so their "
                f"embeddings cannot be compared: {wanted}",
                "teacher-of-another",
            )
        return cls(model, student)

    @property
    def dim(self) -> int:
        """D."""
        return self.embed(np.zeros((1, self.model.input_size, self.model.input_size, 3), np.uint8)).shape[1]

    def fingerprint(self) -> str:
        """Of the network and its preprocessing."""
        return self.model.fingerprint

    def preprocess(self, image: Image, *, align: bool = False) -> np.ndarray:
        """The network's input for a picture: uint8 RGB `[S, S, 3]`; see `inference.preprocess.model_input`."""
        aligner = self.require_aligner() if align else None
        return preprocess.model_input(image, self.model.input_size, self.model.kernel, aligner)

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, S, S, 3]` -> float32 `[N, D]`, unit length, summed over mirror images."""
        return self.model.embed(faces)

    def require_aligner(self) -> Aligner:
        """The student's detector; raises GdrdError where it is missing."""
        return self.student.require_aligner()

"""Faces of people whose identity the student was not trained on, on which thresholds are learned."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.config import of_workdir
from gdrd_jax.data.degradation import resize_all
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import threshold_check
from gdrd_jax.export import formats
from gdrd_jax.inference import bundle, quality
from gdrd_jax.inference.embedders import BATCH
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.quality import Quality
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.template_scores import TemplateScores
from gdrd_jax.inference.thresholds import LEAST_PEOPLE, Thresholds, compared
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import sha256

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Faces of people whose identity the student was not trained on.

    Attributes:
      name: name of the faces.
      faces: the faces at full size.
      low: the student's inputs, uint8 RGB `[N, R, R, 3]`.
    """

    name: str
    faces: Faces
    low: np.ndarray

    def some(self, count: int) -> np.ndarray:
        """At most so many of the faces at full size, drawn at random: uint8 `[N, S, S, C]`."""
        rows = np.random.default_rng(0).permutation(len(self.faces))[:count]
        return np.stack(list(in_parallel(lambda row: self.faces[row], list(rows))))

    def learn(
        self, recognizer: Recognizer, teacher: NativeRecognizer | None
    ) -> tuple[Recognizer, dict[str, list[dict[str, float]]]]:
        """The recognizer with thresholds, also for galleries of its teacher if that is given, and with quality.

        Returns:
          The recognizer; and by "thresholds" and "native_thresholds" what `threshold_check.held_out` has of either.
        """
        embeddings = recognizer.embed(self.low)
        own, scores, held_out = self._learned(embeddings, None)
        found = {"thresholds": held_out}
        native, native_scores = None, None
        if teacher:
            full = []
            with tqdm(total=len(self.faces), desc=f"{teacher.model.name} at full size", unit="face") as progress:
                for start in range(0, len(self.faces), BATCH):
                    faces = [self.faces[row] for row in range(start, min(start + BATCH, len(self.faces)))]
                    full.append(teacher.embed(np.stack(faces)))
                    progress.update(len(faces))
            native, native_scores, found["native_thresholds"] = self._learned(embeddings, np.concatenate(full))
        recognizer = dataclasses.replace(
            recognizer, thresholds=own, template_scores=scores, native_thresholds=native,
            native_template_scores=native_scores, quality=self._quality(recognizer, own),
        )  # fmt: skip
        return recognizer, found

    def _learned(
        self, embeddings: np.ndarray, gallery: np.ndarray | None
    ) -> tuple[Thresholds, TemplateScores | None, list[dict[str, float]]]:
        labels, rows = self.faces.labels, compared(self.faces.labels)
        few = labels[rows], self.name, None if gallery is None else gallery[rows]
        return (
            Thresholds.learn(embeddings, labels, self.name, gallery), TemplateScores.learn(embeddings[rows], *few),
            threshold_check.held_out(embeddings, labels, gallery),
        )  # fmt: skip

    def _quality(self, recognizer: Recognizer, thresholds: Thresholds) -> Quality | None:
        far = max(quality.FAR, thresholds.finest())
        found = quality.learn(
            recognizer.embed_with_lengths, self.faces, recognizer.resolution, recognizer.kernel, thresholds.at(far),
            far, self.name,
        )  # fmt: skip
        if found is None:
            LOG.warning("no quality score was learned: %s has too few faces of a person that are recognized", self.name)
        return found


def find(given: Path | None, student: str, source: Path, recognizer: Recognizer) -> Calibration | None:
    """What thresholds are learned on; None where an exported student brings them.

    Args:
      given: the user's faces; None takes those that the run kept.
      student: as of `exporter.Settings`.
      source: folder of the student.
      recognizer: the student.

    Raises:
      GdrdError: there are no faces.
    """
    low = lambda faces: resize_all(faces, recognizer.resolution, recognizer.kernel)  # noqa: E731
    if given:
        found = open_faces(given, task=recognizer.task)
        found = checked(found.take(compared(found.labels)))
        return Calibration(given.resolve().name, found, low(found))
    if (source / bundle.MANIFEST).exists() and bundle.is_exported(bundle.described_by(source)):
        return None
    workdir = Path(student)
    data = of_workdir(workdir).get("data", {})
    if data.get("test_images") and (workdir / "faces" / "test.json").exists():
        found = Faces.load(workdir / "faces" / "test.json")
        return Calibration("the run's test images", found, low(found))
    people = data.get("calibration_people", 0)
    known = workdir / "faces" / "train.json"
    if people < LEAST_PEOPLE or not known.exists():
        raise GdrdError(
            f"there are no faces to learn thresholds on: the run kept {people} calibration people; give --calibration "
            "FACES, aligned faces of people whose identity the student was not trained on",
            "calibration-missing",
        )
    found = Faces.load(known)
    found = found.take(found.rows_of_last_identities(people, max(np.bincount(found.labels))))
    found = found.take(compared(found.labels))
    return Calibration(f"the run's {people} calibration people", found, low(found))


def describe_apart(path: Path, calibration: Calibration) -> None:
    """Gives a file whose embeddings differ from the student's its own thresholds and fingerprint."""
    onnx = require("onnx", "export")
    embed, starts = formats.session(path), range(0, len(calibration.low), BATCH)
    embeddings = np.concatenate([embed(calibration.low[i : i + BATCH]) for i in starts])
    thresholds = Thresholds.learn(embeddings, calibration.faces.labels, calibration.name)
    model = onnx.load(path)
    remarks = {entry.key: entry.value for entry in model.metadata_props}
    own = {"fingerprint": sha256(path), "thresholds": json.dumps(dataclasses.asdict(thresholds))}
    onnx.helper.set_model_props(model, remarks | own)
    path.write_bytes(model.SerializeToString())

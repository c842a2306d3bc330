"""Step `faces`: every face is read once and aligned if needed, people are split, mixup images are planned."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.align import Aligner, aligner_fingerprint
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked, log_skipped, prepare
from gdrd_jax.data.task import FACES, READ_AS
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import REAL, Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import write_json


def check(config: ConfigDict) -> None:
    """Refuses a face detector that does not exist."""
    if config.data.align and not inputs.detector(config).is_file():
        raise GdrdError(
            f"config.data.detector: there is no file {config.data.detector!r}; give a YuNet ONNX file", "detector-none"
        )


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of the face lists, and of the detector where faces are aligned."""
    faces = inputs.opened(config)
    found = {"data.path": faces.signature()}
    if unlabeled := inputs.unlabeled(config):
        found["data.unlabeled"] = unlabeled.signature()
    if config.data.mixup_per_face:
        found["data.mixup_per_face"] = (
            f"{config.data.mixup_per_face:g} of all but {config.data.calibration_people}, {config.views.seed}"
        )
    if not config.data.align:  # the faces stay where they are
        folders = [*(faces.roots or [faces.root]), *((unlabeled.roots or [unlabeled.root]) if unlabeled else [])]
        found["folder"] = " ".join(map(str, folders))
    else:
        found["data.detector"] = aligner_fingerprint(inputs.detector(config))
    return found


def run(run: Run) -> str:
    """Writes a list of faces for each split.

    Returns:
      A fingerprint of the faces' contents: a face that was only touched or moved redoes no later step.
    """
    config, folder = run.config, run.folder("faces")

    def read(faces: Faces, name: str) -> Faces:
        if not config.data.align:
            return checked(faces)
        return prepare(faces, folder / name, aligner=Aligner(inputs.detector(config)))

    labeled, unlabeled, data = read(inputs.opened(config), "aligned"), inputs.unlabeled(config), config.data
    unlabeled = read(unlabeled, "aligned_unlabeled") if unlabeled else labeled.take([])
    unlabeled = dataclasses.replace(unlabeled, labels=np.full(len(unlabeled), -1, np.int32), identities=())
    divided = labeled.split_each(data.test_images) if data.test_images else labeled.split(data.test_people)
    for split, faces in zip(REAL, (*divided, unlabeled)):
        faces.save(folder / f"{split}.json")
    log_skipped(labeled, folder / "train.json")
    log_skipped(unlabeled, folder / "unlabeled.json")
    tested = f"{data.test_images} of each" if data.test_images else data.test_people
    fingerprint = f"{labeled.fingerprint}:{tested}:{unlabeled.fingerprint}"
    if not config.data.mixup_per_face:
        return fingerprint
    settings = {
        "each": config.data.mixup_per_face,
        "seed": config.views.seed,
        # The people who choose thresholds must be strangers to the student.
        "without_last": config.data.calibration_people,
    }
    write_json(folder / "mixup.json", settings)
    return f"{fingerprint}:{run.faces('mixup').fingerprint}"


def _adjust(config: ConfigDict, settings: dict) -> None:
    task = inputs.task(config)
    read_as = {name: getattr(task, name) for name in READ_AS}
    settings |= {"task": read_as} if read_as != {name: getattr(FACES, name) for name in READ_AS} else {}


STEP = Step(
    "faces", run, ("data.align", "data.test_people", "data.test_images"), files=files, check=check,
    neutral={"data.test_images": 0}, adjust=_adjust,
)  # fmt: skip

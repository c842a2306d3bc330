"""What a stage of training learns from: faces, labels, and the stores of targets."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data import packed, packed_mixup
from gdrd_jax.data.feature_store import FeatureStore, feature_statistics
from gdrd_jax.data.input_pipeline import Dataset, Subset
from gdrd_jax.pipeline import stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.targets import teacher_of
from gdrd_jax.registry import selections
from gdrd_jax.training.stages import class_centers
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.files import listed_paths

LOG = logging.getLogger(__name__)
EMBEDDING_DIM = 512  # of a student without T_d, as of ArcFace's networks


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What stage dis learns from.

    Attributes:
      dataset: images, labels and targets.
      identities: their number.
      centers, center_lengths: see `DataInfo`; None if no loss reads T_d's embeddings.
      teacher: `name` and `fingerprint` of T_d, or None.
    """

    dataset: Dataset
    identities: int
    centers: np.ndarray | None = None
    center_lengths: np.ndarray | None = None
    teacher: dict | None = None

    @property
    def embedding_dim(self) -> int:
        """Dimension of the student's embedding: that of T_d's, or the usual one."""
        return EMBEDDING_DIM if self.centers is None else self.centers.shape[1]


def of_stage(run: Run, config: ConfigDict, name: str) -> TrainingSet:
    """The training set of stage dis, or of a stage before it: packed faces, or those of the run's steps.

    Args:
      run: the run.
      config: of the stage, see `stages.stage_config`.
      name: of the stage.
    """
    return _packed(config) if config.data.packed else _of_steps(run, config, name)


def _of_steps(run: Run, config: ConfigDict, name: str) -> TrainingSet:
    labels, identities = _labels(run)
    steps, extra_splits = stages.stores(config), stages.unlabeled_splits(config)
    dataset = dataset_of(run, labels, extra_splits, **steps)
    if config.dis.selection:
        for subset, split in zip(dataset.subsets, _rows(run, labels, extra_splits)):
            selected = np.load(run.folder(stages.selection_step(name)) / f"{split}.npy", allow_pickle=False)
            subset.stores["selected"] = packed.Stored(selected[:, None])
    if "discriminative" not in steps:
        return TrainingSet(dataset, identities)
    targets, rows = run.store(steps["discriminative"], "train"), np.flatnonzero(labels >= 0)
    centers, lengths = class_centers(targets.read(0, rows), labels[rows], identities)
    return TrainingSet(dataset, identities, centers, lengths, teacher_of(config, targets))


def _labels(run: Run) -> tuple[np.ndarray, int]:
    """Labels of the training people's faces, -1 for those who choose thresholds; and the number of identities left."""
    faces = run.faces("train")
    identities = len(faces.identities) - run.config.data.calibration_people
    return np.where(faces.labels < identities, faces.labels, -1), identities


def select(run: Run, name: str) -> None:
    """Makes the selection of a stage: `SPLIT.npy`, a weight for each face of a split, 0 for those not trained on."""
    config, folder = stages.stage_config(run.config, name), run.folder(stages.selection_step(name))
    labels, extra_splits = _labels(run)[0], stages.unlabeled_splits(config)
    dataset = dataset_of(run, labels, extra_splits, targets=stages.stores(config)["discriminative"])
    embeddings = np.concatenate([s.stores["targets"].read(0, s.rows).astype(np.float32) for s in dataset.subsets])
    selection, settings = stages.entry(config.dis.selection)
    make = selections[selection](selections.settings(selection, settings))
    weights = np.float32(make(unit(embeddings), dataset.labels))
    LOG.info("%s: %d of %d faces have a weight", selection, np.count_nonzero(weights), len(weights))
    starts = np.cumsum([0, *(len(subset.rows) for subset in dataset.subsets)])
    for subset, split, start in zip(dataset.subsets, _rows(run, labels, extra_splits), starts):
        everyone = np.zeros(len(run.faces(split)), np.float32)
        everyone[subset.rows] = weights[start : start + len(subset.rows)]
        np.save(folder / f"{split}.npy", everyone)


def _packed(config: ConfigDict) -> TrainingSet:
    faces, mixup = packed_mixup.divided(listed_paths(config.data.packed))
    found = packed.load(faces)
    known = np.flatnonzero(found.labels >= 0)
    identities = int(found.labels.max()) + 1
    centers, lengths = class_centers(found.targets.read(0, known), found.labels[known], identities)
    stores = {"small": found.small, "discriminative": found.targets}
    for path in mixup:
        stores |= packed_mixup.load(path, found)
    dataset = Dataset(Subset(found.labels, stores, np.arange(len(found.labels))))
    teacher = {name: found.about[name] for name in ("name", "fingerprint")}
    return TrainingSet(dataset, identities, centers, lengths, teacher)


def generative_info(run: Run) -> dict:
    """What `DataInfo` says of T_g's features."""
    targets = run.store("generative", "train")
    return {"target_shape": tuple(targets.manifest["shape"]), "target_statistics": lambda: statistics(targets)}


def target_info(run: Run, config: ConfigDict) -> dict:
    """What `DataInfo` says of the stores that the losses of a stage read."""
    found = generative_info(run) if stages.losses_need(config, "generative") else {}
    if stages.losses_need(config, "hr_features"):
        maps = run.store("hr_features", "train")
        found |= {"hr_shape": tuple(maps.manifest["shape"]), "hr_statistics": lambda: statistics(maps)}
    if stages.losses_need(config, "hr_small"):
        found["hr_small_shape"] = tuple(run.store("hr_small", "train").manifest["shape"])
    return found


def dataset_of(run: Run, labels: np.ndarray, extra_splits: Sequence[str], **steps: str) -> Dataset:
    """The training people but those of label -1, then the extra splits, with the stores of these steps."""
    subsets = []
    for split, chosen in _rows(run, labels, extra_splits).items():
        stores = {name: run.store(step, split) for name, step in steps.items()}
        known = labels[chosen] if split == "train" else np.full(len(chosen), -1, np.int32)
        subsets.append(Subset(known, stores, chosen))
    return Dataset(*subsets)


def _rows(run: Run, labels: np.ndarray, extra_splits: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each subset of `dataset_of` by its split; splits without faces have no subset."""
    rows = {"train": np.flatnonzero(labels >= 0), **{s: np.arange(len(run.faces(s))) for s in extra_splits}}
    return {split: chosen for split, chosen in rows.items() if len(chosen)}


def statistics(targets: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """`feature_statistics`, but no standard deviation is below 1e-4."""
    mean, std = feature_statistics(targets)
    return mean, np.maximum(std, 1e-4)

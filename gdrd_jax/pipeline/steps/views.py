"""Steps `views`, `small_faces` and `hr_small`: the small images that students see.

A view is a face augmented in a fixed way: as it is, mirrored, or moved a little; see `data.degradation.Views`.
"""

import dataclasses

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import Extraction, extract, view_loader
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

SMALL = 3  # times the low resolution, at which blur, crop and reduction lose nearly nothing to the full size


def run(run: Run) -> None:
    """Reduces every view of every face to the low resolution."""
    for split in inputs.splits(run.config):
        count = inputs.view_count(split, run.config.views.count)
        _store(run, "views", split, inputs.views(run.config), count, "low-resolution views")


def run_small(run: Run) -> None:
    """Reduces the faces that are degraded in the training step to a few times the low resolution."""
    views = Views.plain(SMALL * run.config.views.resolution, "area")
    for split in ("train", "unlabeled"):
        _store(run, "small_faces", split, views, 1, "small faces")


def run_hr(run: Run) -> None:
    """Reduces every view of every face, not degraded, to twice the low resolution."""
    views = inputs.hr_views(run.config)
    for split in inputs.splits(run.config):
        if split != "test":
            _store(run, "hr_small", split, views, views.count, "faces at twice the resolution")


def _adjust_hr(config: ConfigDict, settings: dict) -> None:
    settings["views.count"] = inputs.target_views(config)


def _store(run: Run, step: str, split: str, views: Views, count: int, what: str) -> None:
    """Stores the first `count` reduced views of every face of a split; `what` names them beside the progress bar."""
    source = run.faces(split)
    store = FeatureStore.create(
        run.path(step, split), rows=len(source), views=count, shape=(views.resolution, views.resolution, 3),
        dtype="uint8", provenance={"faces": source.fingerprint}, about=dataclasses.asdict(views),
        arrays=inputs.array_url(run.config, step, split, views),
    )  # fmt: skip
    extract(Extraction(store, view_loader(source, views, low=True), None, f"{what}, {split}"), run.process)


VIEWS = Step("views", run, ("views",), after=lambda config: ("faces",), shared=True)
SMALL_FACES = Step("small_faces", run_small, ("views.resolution",), after=lambda config: ("faces",), shared=True)
HR_SMALL = Step(
    "hr_small", run_hr, ("views.resolution", "views.kernel", *inputs.MOVED), after=lambda config: ("faces",),
    adjust=_adjust_hr, shared=True,
)  # fmt: skip

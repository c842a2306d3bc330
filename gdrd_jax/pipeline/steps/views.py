"""Steps `views`, `small_faces` and `hr_small`: the small images that students see.

A view is a face augmented in a fixed way: as it is, mirrored, or moved a little; see `data.degradation.Views`.
"""

import dataclasses

from ml_collections import ConfigDict

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import Extraction, view_loader
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

SMALL = 3  # times the low resolution, at which blur, crop and reduction lose nearly nothing to the full size


def low_resolution_views(run: Run) -> dict[str, Extraction]:
    """Every view of every face at low resolution."""
    views, count = inputs.views(run.config), run.config.views.count
    return {
        split: _reduced(run, "views", split, views, inputs.view_count(split, count), "low-resolution views")
        for split in inputs.splits(run.config)
    }


def small_faces(run: Run) -> dict[str, Extraction]:
    """The faces that are degraded in the training step, at a few times the low resolution."""
    views = Views.plain(min(SMALL * run.config.views.resolution, FACE_SIZE), "area")
    return {split: _reduced(run, "small_faces", split, views, 1, "small faces") for split in ("train", "unlabeled")}


def hr_faces(run: Run) -> dict[str, Extraction]:
    """Every view of every face, not degraded, at twice the low resolution."""
    views = inputs.hr_views(run.config)
    return {
        split: _reduced(run, "hr_small", split, views, views.count, "faces at twice the resolution")
        for split in inputs.splits(run.config)
        if split != "test"
    }


def _adjust_hr(config: ConfigDict, settings: dict) -> None:
    settings["views.count"] = inputs.target_views(config)


def _reduced(run: Run, step: str, split: str, views: Views, count: int, what: str) -> Extraction:
    """The first `count` reduced views of every face of a split; `what` names them beside the progress bar."""
    faces = run.faces(split)
    store = FeatureStore.create(
        run.path(step, split), rows=len(faces), views=count, shape=(views.resolution, views.resolution, 3),
        dtype="uint8", provenance={"faces": faces.fingerprint}, about=dataclasses.asdict(views),
        arrays=inputs.array_url(run.config, step, split, views),
    )  # fmt: skip
    return Extraction(store, view_loader(run.reader(split), views, low=True), None, f"{what}, {split}")


VIEWS = Step("views", None, ("views",), after=lambda config: ("faces",), extractions=low_resolution_views, shared=True)
SMALL_FACES = Step(
    "small_faces", None, ("views.resolution",), after=lambda config: ("faces",), extractions=small_faces, shared=True
)
HR_SMALL = Step(
    "hr_small", None, ("views.resolution", "views.kernel", *inputs.MOVED), after=lambda config: ("faces",),
    adjust=_adjust_hr, extractions=hr_faces, shared=True,
)  # fmt: skip

"""Steps `views`, `small_faces` and `hr_small`: the small images that students see.

A view is a face augmented in a fixed way: as it is, mirrored, or moved a little; see `data.degradation.Views`.
"""

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import Extraction, view_loader
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.pipeline import inputs, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

SMALL = 3  # times the low resolution, at which blur, crop and reduction lose nearly nothing to the full size


def low_resolution_views(run: Run) -> dict[str, Extraction]:
    """Every view of every image at low resolution."""
    views = view_settings.views(run.config)
    count = lambda split: view_settings.view_count(split, views.count, views.exact)  # noqa: E731
    return {
        split: _reduced(run, "views", split, views, count(split), "low-resolution views")
        for split in view_settings.splits(run.config)
    }


def small_faces(run: Run) -> dict[str, Extraction]:
    """The images that are degraded in the training step, at a few times the low resolution."""
    task = inputs.task(run.config)
    # Enlarged images would hold nothing more.
    views = Views.plain(min(SMALL * run.config.views.resolution, task.image_size), "area")
    return {
        split: _reduced(run, "small_faces", split, views, 1, f"small {task.images}") for split in ("train", "unlabeled")
    }


def hr_faces(run: Run) -> dict[str, Extraction]:
    """Every view of every face, not degraded, at twice the low resolution."""
    views = view_settings.hr_views(run.config)
    return {
        split: _reduced(run, "hr_small", split, views, views.count, "faces at twice the resolution")
        for split in view_settings.splits(run.config)
        if split != "test"
    }


def _reduced(run: Run, step: str, split: str, views: Views, count: int, what: str) -> Extraction:
    """The first `count` reduced views of every image of a split; `what` names them beside the progress bar."""
    faces, channels = run.faces(split), inputs.task(run.config).channels
    store = FeatureStore.create(
        run.path(step, split), rows=len(faces), views=count, shape=(views.resolution, views.resolution, channels),
        dtype="uint8", provenance={"faces": faces.fingerprint}, about=views.settings(),
        arrays=view_settings.array_url(run.config, step, split, views),
    )  # fmt: skip
    return Extraction(store, view_loader(run.reader(split), views, low=True), None, f"{what}, {split}")


def _adjust(config: ConfigDict, settings: dict) -> None:
    settings |= view_settings.mirror_settings(config)


VIEWS = Step(
    "views", None, ("views",), after=lambda config: ("faces",), adjust=_adjust, extractions=low_resolution_views,
    shared=True,
)  # fmt: skip
SMALL_FACES = Step(
    "small_faces", None, ("views.resolution",), after=lambda config: ("faces",), extractions=small_faces, shared=True
)
HR_SMALL = Step(
    "hr_small", None, ("views.resolution", "views.kernel", *view_settings.MOVED), after=lambda config: ("faces",),
    adjust=view_settings.adjust_views(view_settings.map_views), extractions=hr_faces, shared=True,
)  # fmt: skip

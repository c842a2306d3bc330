"""Step `discriminative`: T_d's embedding of every view at full size."""

from ml_collections import ConfigDict

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import resize_all
from gdrd_jax.data.extract import Extraction, view_loader
from gdrd_jax.pipeline import teacher_options, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.targets import target_extraction
from gdrd_jax.registry import discriminative_teachers
from gdrd_jax.teachers import DiscriminativeTeacher
from gdrd_jax.teachers.preprocessing import IN_GRAPH_BEFORE
from gdrd_jax.utils.arrays import to_rgb

BY_CONTENT = ("onnx", "iresnet")  # kinds that the file shows


def check(config: ConfigDict) -> None:
    """Refuses a T_d that cannot be read, or whose packages are not installed."""
    options = teacher_options.discriminative(config)
    teacher_options.require_packages(discriminative_teachers[options.kind].packages)
    discriminative_teachers[options.kind].check(options)


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of T_d's file, and settings that earlier versions did not have, where they change something."""
    options = teacher_options.discriminative(config)
    found = {"path": discriminative_teachers[options.kind].fingerprint_of(options)}
    if options.output:
        found["output"] = options.output
    if options.input_size and (options.input_size != FACE_SIZE or options.kind not in BY_CONTENT):
        # Version 0.4 had only networks of that size, and only these kinds.
        found["input_size"] = str(options.input_size)
    if options.kind not in BY_CONTENT:
        own = discriminative_teachers[options.kind].recorded(options.config)
        found |= {"kind": options.kind} | {f"settings.{name}": str(value) for name, value in own.items()}
    return {f"discriminative.{name}": value for name, value in found.items()}


def extractions(run: Run) -> dict[str, Extraction]:
    """T_d's embeddings of every view at full size."""
    network, views = load(run.config), view_settings.views(run.config)
    return {
        split: target_extraction(
            run, "discriminative", split, (network.dim,), view_settings.target_views(run.config), network,
            view_loader(run.reader(split), views, low=False),
            lambda images: network.embed(resize_all(to_rgb(images), network.input_size)),
        )
        for split in view_settings.splits(run.config) if len(run.faces(split))
    }  # fmt: skip


def load(config: ConfigDict) -> DiscriminativeTeacher:
    """T_d."""
    options = teacher_options.discriminative(config)
    return discriminative_teachers[options.kind].load(options)


def _adjust(config: ConfigDict, settings: dict) -> None:
    view_settings.adjust_views(view_settings.target_views)(config, settings)
    if settings["discriminative.preprocessing"] == "in_graph":
        settings["discriminative.preprocessing"] = IN_GRAPH_BEFORE  # as the output of earlier versions recorded it


STEP = Step(
    "discriminative", None, ("discriminative.preprocessing", "discriminative.precision", *view_settings.MOVED),
    after=lambda config: ("faces",), files=files, check=check, adjust=_adjust,
    extractions=extractions, shared=True,
)  # fmt: skip

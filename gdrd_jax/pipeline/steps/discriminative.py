"""Step `discriminative`: T_d's embedding of every view at full size."""

from ml_collections import ConfigDict

from gdrd_jax.data.extract import Extraction, view_loader
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.targets import target_extraction
from gdrd_jax.teachers import load_discriminative
from gdrd_jax.teachers.arcface import IN_GRAPH_BEFORE, check_file, parse_preprocessing
from gdrd_jax.teachers.checkpoint import check_weights
from gdrd_jax.teachers.file_kind import ONNX, file_kind
from gdrd_jax.teachers.onnx_files import onnx_sha256
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256


def check(config: ConfigDict) -> None:
    """Refuses a T_d that cannot be read, or whose packages are not installed."""
    path = inputs.recognizer(config)
    check_file(path)
    parse_preprocessing(config.discriminative.preprocessing)
    if file_kind(path) == ONNX:
        inputs.require_packages(("onnx", "onnxruntime"))
        return
    check_weights(path)
    inputs.require_packages(("torch",))
    if config.discriminative.output:
        raise GdrdError(
            "config.discriminative.output is set, but config.discriminative.path is no ONNX file", "output-without-onnx"
        )


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of T_d's file."""
    path, output = inputs.recognizer(config), config.discriminative.output
    fingerprint = onnx_sha256(path) if file_kind(path) == ONNX else sha256(path)
    return {"discriminative.path": fingerprint} | ({"discriminative.output": output} if output else {})


def extractions(run: Run) -> dict[str, Extraction]:
    """T_d's embeddings of every view at full size."""
    network, views = load(run.config), inputs.views(run.config)
    return {
        split: target_extraction(
            run, "discriminative", split, (network.dim,), network, view_loader(run.reader(split), views, low=False),
            network.embed,
        )
        for split in inputs.splits(run.config) if len(run.faces(split))
    }  # fmt: skip


def load(config: ConfigDict):
    """T_d."""
    settings = config.discriminative
    return load_discriminative(
        inputs.recognizer(config), preprocessing=settings.preprocessing, precision=settings.precision,
        output=settings.output,
    )  # fmt: skip


def _adjust(config: ConfigDict, settings: dict) -> None:
    settings["views.count"] = inputs.target_views(config)
    if settings["discriminative.preprocessing"] == "in_graph":
        settings["discriminative.preprocessing"] = IN_GRAPH_BEFORE  # as the output of earlier versions recorded it


STEP = Step(
    "discriminative", None, ("discriminative.preprocessing", "discriminative.precision", *inputs.MOVED),
    after=lambda config: ("faces",), files=files, check=check, adjust=_adjust,
    extractions=extractions, shared=True,
)  # fmt: skip

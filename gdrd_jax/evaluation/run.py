"""Evaluates recognizers under a protocol and writes a report: the library behind `gdrd evaluate`."""

import logging
from pathlib import Path

from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import run_report
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.interface import ReportedProtocol
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.settings import Settings, check_resolution
from gdrd_jax.inference.embedders import Embedder, open_model, parse_model
from gdrd_jax.registry import protocols
from gdrd_jax.teachers import load_super_resolver
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import locked
from gdrd_jax.utils.outputs import claim_folder

LOG = logging.getLogger(__name__)


def open_protocol(settings: Settings) -> ReportedProtocol:
    """Reads and checks the data; see the protocol's `open`."""
    config = protocols.settings(settings.protocol, settings.protocol_settings)
    return protocols[settings.protocol].open(
        settings.data, config, stretch=settings.stretch, skip_bad=settings.skip_bad
    )


def evaluate_and_report(settings: Settings, out: Path) -> dict[str, Result]:
    """Writes metrics.json, scores.npz, report.html and the protocol's figures into `out`.

    Embeddings are cached in `out/embeddings`: an interrupted call can be continued, and a repeated one is quick.

    Args:
      settings: settings of the evaluation.
      out: output folder, which is created if it is missing.

    Returns:
      A dict from the name of each row (model_resolution) to its result.

    Raises:
      GdrdError: the settings or the data have a mistake, or `out` is something other than an earlier evaluation. All
        mistakes except damaged faces are found before any face is embedded.
    """
    claim_folder(out, "an evaluation", "--out")
    protocols.settings(settings.protocol, settings.protocol_settings)
    for resolution in settings.resolutions:
        check_resolution(resolution)
        settings.degradation(resolution)
    models = open_models(settings)  # before the faces, because decoding all of them takes longer
    rows, remarks = _rows(settings, models)
    protocol = open_protocol(settings)
    for model in models:
        _check_channels(model, protocol)
    LOG.info("\n".join(remarks))
    with locked(out):
        for name in (*run_report.FILES, *(name for known in protocols.names() for name in protocols[known].files)):
            (out / name).unlink(missing_ok=True)  # of an earlier run with other settings
        results = evaluate([row for row, _ in rows], protocol, seed=settings.seed, cache=out / "embeddings")
        run_report.write(settings, out, protocol, models, rows, results)
        return results


def open_models(settings: Settings) -> list[Embedder]:
    """The models of the settings, and the networks among them once more after super-resolution.

    Raises:
      GdrdError: two have one name, or one cannot be loaded.
    """
    names = [parse_model(text)[0] for text in settings.models]
    if len(set(names)) < len(names):
        raise GdrdError(
            f"two models are called {max(names, key=names.count)!r}; name them: --model NAME=PATH", "model-twice"
        )
    models = [open_model(text, settings.output, mirror=settings.mirror) for text in settings.models]
    if not settings.super_resolver:
        return models
    if all(model.is_student for model in models):
        raise GdrdError(
            "--super-resolve: all models are students, which take small faces as they are; give a recognizer of "
            "full-size faces as --model",
            "super-resolver",
        )
    drawn, networks = load_super_resolver(settings.super_resolver), zip(settings.models, models)
    again = [
        open_model(text, settings.output, mirror=settings.mirror, super_resolver=drawn)
        for text, model in networks if not model.is_student
    ]  # fmt: skip
    return [*models, *again]


def _rows(settings: Settings, models: list[Embedder]) -> tuple[list[tuple[Row, str]], list[str]]:
    """What is evaluated, each with its resolution; and remarks on the models and on rows that are left out.

    Raises:
      GdrdError: a model has no row, or a gallery is needed that no model embeds.
    """
    rows, remarks = [], []
    for model in models:
        remarks.append(run_report.described(model))
        if all(_is_foreign(model, resolution) for resolution in settings.resolutions):
            raise GdrdError(
                f"{model.name} takes {model.input_size}x{model.input_size} pixels, so there is no row for it at "
                f"{', '.join(settings.resolutions)}; add --resolution {model.input_size}",
                "model-without-row",
            )
        for resolution in settings.resolutions:
            if _is_foreign(model, resolution):
                remarks.append(f"{model.name} takes {model.input_size} pixels: no row at {resolution}")
                continue
            if _repeats(model, resolution, settings):
                remarks.append(f"{model.name} at native size is {model.name} at {model.input_size} pixels: one row")
                continue
            gallery = None
            if ":" in resolution:
                gallery = _gallery_model(model, models), settings.gallery_degradation(resolution)
            row = Row(f"{model.name}_{resolution}", model, settings.degradation(resolution), gallery)
            rows.append((row, resolution))
    return rows, remarks


def _check_channels(model: Embedder, protocol: ReportedProtocol) -> None:
    channels = getattr(protocol.faces, "task", FACES).channels
    if model.channels not in (None, channels):
        raise GdrdError(
            f"{model.name} takes images with {model.channels} channels, and these have {channels}; give --channels "
            f"{model.channels} with --protocol classification, or another student",
            "model-channels",
        )


def _gallery_model(model: Embedder, models: list[Embedder]) -> Embedder:
    """Who embeds the gallery for the probes of `model`: a student's teacher, or a recognizer without its SR network.

    Raises:
      GdrdError: its teacher is not among `models`.
    """
    if not model.is_for_small:
        return model
    found = next((other for other in models if not other.is_for_small and other.fingerprint == model.space), None)
    if found is None:
        teacher = model.settings["teacher"]
        name = f", {teacher['name']} ({teacher['fingerprint'][:12]})," if teacher else ""
        raise GdrdError(
            f"{model.name} is a student, whose probes are compared with a gallery that its teacher{name} embeds; "
            "give that file as another --model"
            + ("" if teacher else ". Which one it is this student does not say: version 0.4.0 trained it"),
            "gallery-without-teacher",
        )
    return found


def _is_foreign(model: Embedder, resolution: str) -> bool:
    """Whether probes are larger than those that a model is made for, to which it would reduce them a second time."""
    probe = resolution.partition(":")[0]
    return probe != "native" and model.reduces(int(probe))


def _repeats(model: Embedder, resolution: str, settings: Settings) -> bool:
    """Whether a model that reduces native faces itself gets the same faces at its input's size, where it has a row."""
    own = str(model.input_size) in settings.resolutions and model.kernel == settings.kernel
    return model.is_for_small and resolution == "native" and own and not settings.degraded

"""Evaluates recognizers under a protocol and writes a report: the library behind `gdrd evaluate`."""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.data import readers
from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import STRENGTHS, Degradation
from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import paper_tables, report
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.interface import Figure, NativeFloor, ReportedProtocol
from gdrd_jax.evaluation.result import Result
from gdrd_jax.inference.embedders import Embedder, open_model, parse_model
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.registry import protocols
from gdrd_jax.utils import pictures
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import locked
from gdrd_jax.utils.outputs import claim_folder
from gdrd_jax.utils.texts import counted
from gdrd_jax.version import __version__

LOG = logging.getLogger(__name__)
FILES = ("metrics.json", "roc.csv", "roc.png", "scores.npz", "report.html", "sweep.png")  # of any protocol
SIDES = ("native", *(str(side) for side in reversed(RESOLUTIONS)))
PAPER, PAPER_COLUMN = "paper", "paper's GDRD"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes the numbers.

    Attributes:
      protocol: a name in `registry.protocols`.
      data: see the protocol.
      models: see `inference.embedders.open_model`.
      resolutions: of `SIDES`, or "PROBE:GALLERY", two of them. Probes are compared with a gallery
        of the same faces, embedded by the same model, or for a student by its teacher, one of `models`.
      kernel, blur, motion, noise, jpeg: see `data.degradation.Degradation`; "native" is degraded, not reduced. Those
        in a gallery of another resolution are reduced alone.
      stretch: take faces that are not 112x112, stretched; TinyFace's always are.
      skip_bad: leave bad input out, counted and listed, instead of stopping.
      seed: of noise, directions and bootstrap.
      output: name of the ONNX models' output that is the embedding; "" is the only one that can be.
      mirror: whether networks embed the mirror image, too; a student knows it by itself.
      protocol_settings: the protocol's own, see its `Config`; others have their defaults.
    """

    protocol: str
    data: Path
    models: tuple[str, ...]
    resolutions: tuple[str, ...]
    kernel: str = "area"
    blur: float = 0.0
    motion: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    stretch: bool = False
    skip_bad: bool = False
    seed: int = 0
    output: str = ""
    mirror: bool = True
    protocol_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def degradation(self, resolution: str) -> Degradation | None:
        """What a probe goes through at one of `resolutions`."""
        resolution = resolution.partition(":")[0]
        if resolution == "native" and not self.degraded:
            return None
        own = protocols.settings(self.protocol, self.protocol_settings)
        side = getattr(own, "image_size", FACE_SIZE) if resolution == "native" else int(resolution)
        return Degradation(side, self.kernel, self.blur, self.motion, self.noise, self.jpeg)

    def gallery_degradation(self, resolution: str) -> Degradation | None:
        """What a face of the gallery goes through where `resolution` names the gallery's, too."""
        gallery = resolution.partition(":")[2]
        return None if gallery == "native" else Degradation(int(gallery), self.kernel)

    @property
    def degraded(self) -> dict[str, float]:
        """Which strengths are above 0."""
        strengths = {name: getattr(self, name) for name in STRENGTHS}
        return {name: value for name, value in strengths.items() if value}


def open_protocol(settings: Settings) -> ReportedProtocol:
    """Reads and checks the data; see the protocol's `open`."""
    config = protocols.settings(settings.protocol, settings.protocol_settings)
    return protocols[settings.protocol].open(
        settings.data, config, stretch=settings.stretch, skip_bad=settings.skip_bad
    )


def evaluate_and_report(settings: Settings, out: Path) -> dict[str, Result]:
    """Writes metrics.json, scores.npz, report.html and the protocol's figures into `out`.

    Embeddings are kept in `out/embeddings`: an interrupted call goes on, a repeated one is quick.

    Args:
      settings: what to do.
      out: made if it is missing.

    Returns:
      Row (model_resolution) to results.

    Raises:
      GdrdError: a mistake of the user's, `out` being something else than an earlier evaluation among them; all but
        damaged faces are found before any is embedded.
    """
    claim_folder(out, "an evaluation", "--out")
    protocols.settings(settings.protocol, settings.protocol_settings)
    for resolution in settings.resolutions:
        check_resolution(resolution)
        settings.degradation(resolution)
    names = [parse_model(text)[0] for text in settings.models]
    if len(set(names)) < len(names):
        raise GdrdError(
            f"two models are called {max(names, key=names.count)!r}; name them: --model NAME=PATH", "model-twice"
        )
    # Before the faces, because decoding all of them takes longer.
    models = [open_model(text, settings.output, mirror=settings.mirror) for text in settings.models]
    rows, remarks = _rows(settings, models)
    protocol = open_protocol(settings)
    for model in models:
        _check_channels(model, protocol)
    LOG.info("\n".join(remarks))
    with locked(out):
        for name in (*FILES, *(name for known in protocols.names() for name in protocols[known].files)):
            (out / name).unlink(missing_ok=True)  # of an earlier run with other settings
        results = evaluate([row for row, _ in rows], protocol, seed=settings.seed, cache=out / "embeddings")
        _report(settings, out, protocol, models, rows, results)
        return results


def _rows(settings: Settings, models: list[Embedder]) -> tuple[list[tuple[Row, str]], list[str]]:
    """What is evaluated, each with its resolution; and remarks on the models and on rows that are left out.

    Raises:
      GdrdError: a model has no row, or a gallery is needed that no model embeds.
    """
    rows, remarks = [], []
    for model in models:
        remarks.append(_described(model))
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


def _other_size(model: Embedder, protocol: ReportedProtocol) -> list[str]:
    """A warning where a student gets images that are reduced from another size than those of its training."""
    size = getattr(protocol.faces, "task", FACES).image_size
    if model.image_size in (None, size):
        return []
    warning = (
        f"{model.name} was trained on images of {model.image_size} pixels, and these are brought to {size} before they "
        f"are reduced; --protocol classification takes --image-size {model.image_size}"
    )
    LOG.warning(warning)
    return [warning]


def _report(
    settings: Settings, out: Path, protocol: ReportedProtocol, models: list[Embedder], rows: list[tuple[Row, str]],
    results: dict[str, Result],
) -> None:  # fmt: skip
    examples = []
    lines: dict[str, dict[str, tuple[float, tuple[float, float]]]] = {}
    warnings = [warning for model in models for warning in model.settings.get("warnings", ())]
    warnings += [warning for model in models for warning in _other_size(model, protocol)]
    for row, resolution in rows:
        result, model = results[row.name], row.embedder
        comparable = model.is_student and not settings.degraded
        reported = paper_tables.figures(settings.protocol, resolution=_side(resolution)) if comparable else {}
        paper = {PAPER: reported.get(protocol.main)}
        paper |= {f"{PAPER}_{metric}": value for metric, value in reported.items() if metric != protocol.main}
        results[row.name] = dataclasses.replace(result, metrics={**result.metrics, **paper})
        figure, floor = result.figure(protocol.main), protocol.native_floor
        if row.degradation is None and not model.is_student and floor and figure is not None:
            if figure < floor.percent:
                warnings.append(_too_low(model, figure, floor))
                LOG.warning(warnings[-1])
        if figure is not None and row.gallery is None:
            lines.setdefault(model.name, {})[resolution] = (
                figure,
                result.intervals.get(protocol.main, (figure, figure)),
            )
        render = functools.partial(_input_of, row, protocol, settings.seed)
        image, caption = protocol.picture(result, render)
        examples.append((pictures.png(image), f"{row.name}. {caption}"))
    _write(settings, out, protocol, models, results, lines, examples, warnings)


def _side(resolution: str) -> int:
    """The side of probes in pixels; 0 of native ones."""
    probe = resolution.partition(":")[0]
    return 0 if ":" in resolution or probe == "native" else int(probe)


def _input_of(row: Row, protocol: ReportedProtocol, seed: int, number: int) -> np.ndarray:
    return row.embedder.input_of(protocol.faces, number, row.degradation, seed)


def check_resolution(text: str) -> None:
    """Raises GdrdError unless a text is one of `SIDES`, or two of them, "PROBE:GALLERY"."""
    sides = text.split(":")
    if len(sides) > 2 or not set(sides) <= set(SIDES):
        raise GdrdError(
            f"the resolution {text!r} is not known; it can be {', '.join(SIDES)}, or PROBE:GALLERY such as 16:native",
            "resolution-unknown",
        )


def _gallery_model(model: Embedder, models: list[Embedder]) -> Embedder:
    """Who embeds the gallery that the probes of `model` are compared with: its teacher, or itself if it is no student.

    Raises:
      GdrdError: its teacher is not among `models`.
    """
    if not model.is_student:
        return model
    found = next((other for other in models if not other.is_student and other.fingerprint == model.space), None)
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


def _described(model: Embedder) -> str:
    how = f"reduced by {model.kernel} in training" if model.is_student else model.settings["preprocessing"]
    return f"{model.name} sees {model.input_size}x{model.input_size} pixels ({how})"


def _too_low(model: Embedder, figure: float, floor: NativeFloor) -> str:
    return (
        f"{model.name} has {figure:.1f} % at native size; {floor.why}. The network is most likely not fed as in its "
        f"training: look at its preprocessing ({model.settings['preprocessing']}), at the order of its colors (it is "
        "given RGB), and at how the faces are aligned"
    )


def _is_foreign(model: Embedder, resolution: str) -> bool:
    """Whether probes are larger than a student's input, to which it would reduce them a second time."""
    probe = resolution.partition(":")[0]
    return model.is_student and probe != "native" and int(probe) > model.input_size


def _repeats(model: Embedder, resolution: str, settings: Settings) -> bool:
    """A student reduces native faces itself: if that is all that happens to them, to the same faces as at its size."""
    own = str(model.input_size) in settings.resolutions and model.kernel == settings.kernel
    return model.is_student and resolution == "native" and own and not settings.degraded


def _write(
    settings: Settings,
    out: Path,
    protocol: ReportedProtocol,
    models: list[Embedder],
    results: dict[str, Result],
    lines: dict[str, dict[str, tuple[float, tuple[float, float]]]],
    examples: list[tuple[bytes, str]],
    warnings: list[str],
) -> None:
    stand_in = readers.stand_in(settings.data)
    described = dataclasses.asdict(settings) | {"data": str(settings.data)}
    own = dataclasses.asdict(protocols.settings(settings.protocol, described.pop("protocol_settings")))
    packages = ("numpy", "opencv-python-headless", "pillow", "onnxruntime", "jax", "scikit-learn")
    document: dict[str, Any] = {
        "protocol": settings.protocol,
        "stand_in": stand_in,
        "units": "percent; intervals hold 95 %, from a bootstrap",
        "settings": {
            **described, "protocol_settings": own, "models": {model.name: model.settings for model in models},
            "faces": {"count": len(protocol.faces), "fingerprint": protocol.faces.fingerprint},
            "versions": {"gdrd_jax": __version__, **{name: _version(name) for name in packages}},
        },
        "data": protocol.about,
        "warnings": warnings,
    }  # fmt: skip
    columns = dict(protocol.columns)
    trained_on = "WebFace, the real benchmark" if stand_in else "WebFace"
    for metric, heading in protocol.columns.items():
        key = PAPER if metric == protocol.main else f"{PAPER}_{metric}"
        if any(result.metrics.get(key) for result in results.values()):
            columns[key] = f"{PAPER_COLUMN} {heading} ({trained_on})"
    figures = protocol.figures(results)
    if any(len(line) > 1 for line in lines.values()):
        caption = "The same faces at falling resolution, with 95 % intervals."
        figures.append(Figure("sweep.png", report.draw_sweep(lines, y=protocol.columns[protocol.main]), caption))
    for figure in figures:
        if figure.name not in (*FILES, *protocol.files):
            raise ValueError(f"the protocol {settings.protocol!r} has no {figure.name!r} among its `files`")
        (out / figure.name).write_bytes(figure.png)
    arrays: dict[str, Any] = dict(protocol.shared_arrays())
    arrays |= {f"{row}/{key}": value for row, result in results.items() for key, value in result.arrays.items()}
    np.savez_compressed(out / "scores.npz", **arrays)
    report.write(
        out, results, columns=columns, curves=protocol.curves(results), title=_title(settings, protocol, stand_in),
        summary=_summary(settings, protocol, models), legend=protocol.legend,
        figures=[(figure.png, figure.caption) for figure in figures] + examples, settings=document["settings"],
        document=document, warning=". ".join(filter(None, [stand_in, *warnings])),
    )  # fmt: skip
    LOG.info("report: %s\n%s", out / "report.html", report.text_table(results, columns))
    if stand_in:
        LOG.info("STAND-IN: %s", stand_in)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _title(settings: Settings, protocol: ReportedProtocol, stand_in: str | None) -> str:
    return f"{protocol.title}{' stand-in' if stand_in else ''}: {', '.join(map(_written, settings.resolutions))}"


def _written(resolution: str) -> str:
    sides = [side if side == "native" else f"{side}x{side}" for side in resolution.split(":")]
    return " against ".join(sides)


def _summary(settings: Settings, protocol: ReportedProtocol, models: list[Embedder]) -> str:
    about, reduced = protocol.about, any(r != "native" for r in settings.resolutions)
    degraded = ", ".join(f"{name} {value:g}" for name, value in settings.degraded.items())
    left_out = "; ".join(reason for _, reason in about.get("skipped", ())[:3])
    sentences = [
        counted(len(protocol.faces), "face")
        + (f", reduced by the {settings.kernel} kernel" if reduced else "")
        + (f", degraded by {degraded}" if degraded else ""),
        *map(_described, models),
        f"Left out: {about['n_skipped']}" + (f" ({left_out}; all in metrics.json)" if left_out else ""),
        f"Intervals hold 95 %, from a bootstrap that draws {about.get('drawn', 'people')}",
        about.get("remark", "").rstrip("."),
    ]
    return ". ".join(filter(None, sentences)) + "."

"""The files of an evaluation: metrics.json, scores.npz, the figures and report.html."""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.data import readers
from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import paper_tables, report
from gdrd_jax.evaluation.evaluate import Row
from gdrd_jax.evaluation.interface import Figure, NativeFloor, ReportedProtocol
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.registry import protocols
from gdrd_jax.utils import pictures
from gdrd_jax.utils.texts import counted
from gdrd_jax.version import __version__

LOG = logging.getLogger(__name__)
FILES = ("metrics.json", "roc.csv", "roc.png", "scores.npz", "report.html", "sweep.png")  # of any protocol
PAPER, PAPER_COLUMN = "paper", "paper's GDRD"
QUOTED = (
    "Figures in italics are not of this evaluation: GDRD's paper (arXiv 2409.06371) reports them of its own student, "
    "trained on the 494,414 faces of WebFace."
)
LEAST_AUC = 60.0  # percent; 50 is chance


def write(
    settings: Settings, out: Path, protocol: ReportedProtocol, models: list[Embedder], rows: list[tuple[Row, str]],
    results: dict[str, Result],
) -> None:  # fmt: skip
    """Writes all files of an evaluation; `rows` come with their resolutions, `results` get the paper's figures."""
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
        figure, floor, area = result.figure(protocol.main), protocol.native_floor, result.figure("auc")
        native = row.degradation is None and not model.is_for_small
        if native and floor and figure is not None and figure < floor.percent:
            warnings.append(_too_low(model, figure, floor))
            LOG.warning(warnings[-1])
        elif area is not None and area < LEAST_AUC:
            warnings.append(_near_chance(row, area))
            LOG.warning(warnings[-1])
        if figure is not None and row.gallery is None:
            lines.setdefault(model.name, {})[resolution] = (
                figure,
                result.intervals.get(protocol.main, (figure, figure)),
            )
        render = functools.partial(_input_of, row, protocol, settings.seed)
        image, caption = protocol.picture(result, render)
        examples.append((pictures.png(image), f"{row.name}. {caption} {alignment(settings, protocol)}."))
    _write_files(settings, out, protocol, models, rows, results, lines, examples, warnings)


def _write_files(
    settings: Settings,
    out: Path,
    protocol: ReportedProtocol,
    models: list[Embedder],
    rows: list[tuple[Row, str]],
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
        "data": {"alignment": alignment(settings, protocol), **protocol.about},
        "warnings": warnings,
    }  # fmt: skip
    columns, quoted, legend = dict(protocol.columns), {}, protocol.legend
    trained_on = "WebFace, the real benchmark" if stand_in else "WebFace"
    for metric, heading in protocol.columns.items():
        key = PAPER if metric == protocol.main else f"{PAPER}_{metric}"
        if any(result.metrics.get(key) for result in results.values()):
            columns[key], quoted[key] = f"{PAPER_COLUMN} {heading} ({trained_on})", "other training set"
    if quoted:
        legend = f"{legend} {QUOTED}"
    labels = {row.name: f"{row.embedder.name} @ {_written(resolution)}" for row, resolution in rows}
    figures = protocol.figures(results)
    if any(len(line) > 1 for line in lines.values()):
        caption = "The same faces at falling resolution, with 95 % intervals."
        figures.append(Figure("sweep.png", report.draw_sweep(lines, y=protocol.columns[protocol.main]), caption))
    for figure in figures:
        if figure.name not in (*FILES, *protocol.files):
            raise ValueError(f"the protocol {settings.protocol!r} has no {figure.name!r} among its `files`")
        (out / figure.name).write_bytes(pictures.with_line(figure.png, alignment(settings, protocol)))
    arrays: dict[str, Any] = dict(protocol.shared_arrays())
    arrays |= {f"{row}/{key}": value for row, result in results.items() for key, value in result.arrays.items()}
    np.savez_compressed(out / "scores.npz", **arrays)
    report.write(
        out, results, columns=columns, curves=protocol.curves(results), title=_title(settings, protocol, stand_in),
        summary=_summary(settings, protocol, models, results), legend=legend,
        figures=[((out / figure.name).read_bytes(), figure.caption) for figure in figures] + examples,
        settings=document["settings"], note=alignment(settings, protocol),
        document=document, warning=". ".join(filter(None, [stand_in, *warnings])), labels=labels, quoted=quoted,
    )  # fmt: skip
    table = report.text_table(results, columns)
    LOG.info("report: %s, with 95 %% intervals\n%s\n%s", out / "report.html", table, legend)
    if stand_in:
        LOG.info("STAND-IN: %s", stand_in)


def alignment(settings: Settings, protocol: ReportedProtocol) -> str:
    """How the faces came to the model's input, for every figure: aligned or stretched, and by what."""
    task = getattr(protocol.faces, "task", FACES)
    if found := protocol.about.get("alignment"):
        return found
    if not task.aligned:
        return f"{task.images.capitalize()}: middle squares, brought to {task.image_size}x{task.image_size}"
    if settings.stretch:
        return "Faces as they are, other sizes than 112x112 stretched to the model's input (--stretch)"
    return "Faces of 112x112, aligned before the evaluation"


def described(model: Embedder) -> str:
    """How a model is fed, as part of a sentence."""
    preprocessing = model.settings.get("preprocessing")
    how = f"reduced by {model.kernel} in training" if model.is_student else f"preprocessing: {preprocessing}"
    return f"{model.name} sees {model.input_size}x{model.input_size} pixels ({how})"


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


def _too_low(model: Embedder, figure: float, floor: NativeFloor) -> str:
    return (
        f"{model.name} has {figure:.1f} % at native size; {floor.why}. The network is most likely not fed as in its "
        f"training: look at its preprocessing ({model.settings['preprocessing']}), at the order of its colors (it is "
        "given RGB), and at how the faces are aligned"
    )


def _near_chance(row: Row, area: float) -> str:
    return (
        f"{row.name} has an AUC of {area:.1f} %, near the 50 % of chance: its embeddings hardly depend on the person. "
        "Look at whether the model is a face recognizer, and at how the faces are aligned"
    )


def _side(resolution: str) -> int:
    """The side of probes in pixels; 0 of native ones."""
    probe = resolution.partition(":")[0]
    return 0 if ":" in resolution or probe == "native" else int(probe)


def _input_of(row: Row, protocol: ReportedProtocol, seed: int, number: int) -> np.ndarray:
    return row.embedder.input_of(protocol.faces, number, row.degradation, seed)


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


def _summary(settings: Settings, protocol: ReportedProtocol, models: list[Embedder], results: dict[str, Result]) -> str:
    about, reduced = protocol.about, any(r != "native" for r in settings.resolutions)
    degraded = ", ".join(f"{name} {value:g}" for name, value in settings.degraded.items())
    left_out = "; ".join(reason for _, reason in about.get("skipped", ())[:3])
    metrics = next(iter(results.values())).metrics
    pairs = f", {metrics['n_pairs']:,} pairs" if "n_pairs" in metrics else ""
    by_fold = metrics.get("accuracy_by_fold")
    folds = f" in {len(by_fold)} folds" if isinstance(by_fold, Sequence) else ""
    sentences = [
        counted(len(protocol.faces), "face")
        + pairs
        + folds
        + (f", reduced by the {settings.kernel} kernel" if reduced else "")
        + (f", degraded by {degraded}" if degraded else ""),
        *map(described, models),
        alignment(settings, protocol),
        f"Left out: {about['n_skipped']}" + (f" ({left_out}; all in metrics.json)" if left_out else ""),
        f"Intervals hold 95 %, from a bootstrap that draws {about.get('drawn', 'people')}",
        about.get("remark", "").rstrip("."),
    ]
    return ". ".join(filter(None, sentences)) + "."

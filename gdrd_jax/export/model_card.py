"""The model card that goes with an exported student."""

import json
from pathlib import Path

from gdrd_jax.config import used_losses, with_current_names
from gdrd_jax.data.degradation import STRENGTHS
from gdrd_jax.data.task import FACES, Task
from gdrd_jax.evaluation.result import figure
from gdrd_jax.evaluation.threshold_check import FOLDS
from gdrd_jax.export import verify
from gdrd_jax.inference import bundle
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.models.arguments import DEFAULT
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import markdown_table

OTHER_FACES = (
    "**These rates hold for faces such as these**, aligned and reduced without other degradation. Relatives, children, "
    "other crops and other cameras can raise the false accept rate many times over, and degradation raises the false "
    "reject rate. Learn thresholds on faces of your own: `gdrd export STUDENT OUT --calibration FACES`."
)
OTHER_IMAGES = (
    "These rates hold for images such as these, reduced without other degradation. Learn thresholds on images of your "
    "own: `gdrd export STUDENT OUT --calibration FOLDER`."
)
LICENSE = "inherits the terms of the faces and of the teachers it learned from"
RATES = (0.1, 0.01, 1e-3, 1e-4, 1e-5)


def text(manifest: dict) -> str:
    """Markdown, of what a manifest of `bundle` says."""
    size, task = manifest["student"]["resolution"], _task(manifest)
    sections = {
        f"{task.image.capitalize()} recognizer for {size}x{size} pixels (GDRD)": _what(manifest),
        "What it is for, and what not": _use(size) if task.aligned else _use_of_images(size, task),
        "What it learned from": _training(manifest),
        "What it reaches": _figures(manifest["proof"], _task(manifest)) + _evaluations(manifest["evaluations"]),
        "Error rates": _errors(manifest),
        "Files": _files(manifest),
    }
    (title, first), *rest = sections.items()
    return "\n\n".join([f"# {title}\n\n{first}", *(f"## {name}\n\n{body}" for name, body in rest)]) + "\n"


def evaluation(folder: Path, fingerprint: str) -> dict:
    """The part of an evaluation that the model card shows.

    Raises:
      GdrdError: the folder holds no evaluation, or not one of this student.
    """
    try:
        document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        settings, results = document["settings"], document["results"]
        models = [model["fingerprint"] for model in settings["models"].values()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"--evaluation: {folder} holds no metrics.json of gdrd evaluate", "evaluation-missing"
        ) from error
    if fingerprint not in models:
        raise GdrdError(
            f"--evaluation: {folder} is not an evaluation of this student ({fingerprint[:12]}); run gdrd evaluate on "
            "the exported folder, then export again",
            "evaluation-other-student",
        )
    strengths = ", ".join(f"{name} {settings[name]:g}" for name in STRENGTHS if settings[name])
    data = Path(settings.get("protocol_settings", settings).get("pairs") or settings["data"]).name
    protocol = document["protocol"]
    columns = protocols[protocol].columns if protocol in protocols.names() else {}
    rows = [
        {
            "row": row,
            **{
                name: [figure(found, name), *ends] for name, ends in found["intervals"].items()
                if name in found or name in columns  # of figures by rate, those of the report's table
            },
        }
        for row, found in results.items()
    ]  # fmt: skip
    return {
        "protocol": protocol, "data": data, "kernel": settings["kernel"], "degraded": strengths,
        "stand_in": document["stand_in"], "rows": rows,
    }  # fmt: skip


def _task(manifest: dict) -> Task:
    return Task(**manifest["task"]) if "task" in manifest else FACES


def _what(manifest: dict) -> str:
    student, task = manifest["student"], _task(manifest)
    given = f"an aligned {task.image}" if task.aligned else f"the middle square of an {task.image}"
    network, own = student.get("name", DEFAULT), ", ".join(f"{k} {v}" for k, v in student.get("settings", {}).items())
    network = "" if network == DEFAULT else f" Network `{network}`{own and f', {own}'}."
    width = f" Width {student['width']:g}." if "width" in student else ""
    return (
        f"A student of GDRD (arXiv 2409.06371), made by gdrd_jax {manifest['version']}: {given}, reduced to "
        f"{student['resolution']}x{student['resolution']} pixels by the `{manifest['kernel']}` kernel, to an embedding "
        f"of {student['embedding_dim']} numbers and unit length; the dot product of two is their "
        f"similarity.{network}{width} Fingerprint `{manifest['fingerprint']}`. License: {manifest['license']}."
    )


def _use(size: int) -> str:
    return (
        f"For research, and for ranking candidates whom a person then looks at. **A face of {size}x{size} pixels does "
        "not hold enough of a person to prove who it is**: the error rates below are high, they were measured on "
        "photographs reduced by a computer, and blur, noise, compression, angle, light and age make them worse in a "
        "real camera. They also differ between groups of people, which was not measured here. Not for decisions about "
        "anybody without a person and other evidence, and not for finding people without a legal ground."
    )


def _use_of_images(size: int, task: Task) -> str:
    return (
        f"For research on the recognition of {task.labels} in {task.images} of {size}x{size} pixels. Its figures "
        f"were measured on {task.images} reduced by a computer; blur, noise and compression of a real camera make them "
        "worse."
    )


def _training(manifest: dict) -> str:
    images = _task(manifest).images
    config, step = with_current_names(manifest["training"] or {}), manifest["best_at_step"]
    if not config:
        return "Not known: it was exported from weights without the run's config."
    best = "" if step is None else f", taken at step {step:,}, where it was best on the dev set"
    data, dis = config["data"], config["dis"]
    loss = ", ".join(f"{name} {settings['weight']:g}" for name, settings in used_losses(dis["losses"]).items())
    more = f", without names `{data['unlabeled']}`" if data["unlabeled"] else ""
    own = f"an SR diffusion network trained on the {images}"
    generative = f"`{config['generative']['path']}`" if config["generative"]["path"] else own
    teacher = config["discriminative"]["path"] or (manifest["teacher"] or {}).get("name")
    lines = [
        f"{images.capitalize()}: `{data['path'] or data.get('packed', '')}`{more}",
        f"Discriminative teacher: `{teacher}`" if teacher else "No discriminative teacher",
    ]
    initial = f"the weights of `{config['student']['init']}`" if config["student"].get("init") else "random weights"
    if dis["init"] == "random":
        lines.append(f"No generative teacher: backbone and head were trained together, from {initial}")
    else:
        gen = f"stage gen {config['gen']['steps']:,} steps; backbone {'frozen' if dis['freeze'] else 'trained further'}"
        lines.append(f"Generative teacher: {generative}; {gen}; started from {initial}")
    lines.append(
        f"Stage dis: {dis['steps']:,} steps of {dis['batch']} {images}{best}; loss: {loss}; "
        f"{config['student']['dtype']}; seed {config['seed']}"
    )
    if dis.get("mixup"):
        lines.append(f"Mixup of {100 * dis['mixup']:.0f} % of the {images}")
    strengths = config.get("degradation", {"random": False})
    if strengths["random"]:
        drawn = ", ".join(f"{name} {value:g}" for name, value in strengths.items() if name != "random")
        lines.append(f"Degradation of its input, drawn at each use (gdrd_jax/data/random_degradation.py): {drawn}")
    return "\n".join(f"- {line}" for line in lines)


def _figures(found: dict, task: Task) -> str:
    reference = found["rows"][0]
    lines = []
    if "accuracy" in reference:
        low, high = reference["interval"]
        lines.append(
            f"{found['pairs_of']}, {reference['pairs']:,} pairs, reduced to its resolution: "
            f"**{reference['accuracy']:.2f} %** (95 % interval {low:.1f} to {high:.1f})."
        )
    others = " but the int8 one" if any(row["name"] == "int8" for row in found["rows"]) else ""
    lines += [
        f"The same embeddings from every file{others}, on {found['faces']:,} {task.images} of {found['of']}; speeds on "
        f"{found['machine']}, {found['date']}: batches of {verify.BATCH}, and single {task.images}, medians.",
        verify.table(found["rows"]).rstrip(),
    ]
    return "\n\n".join(lines)


def _evaluations(found: list[dict]) -> str:
    """A table an evaluation."""
    parts = []
    for one in found:
        how = f"reduced by the {one['kernel']} kernel" + (f", degraded by {one['degraded']}" if one["degraded"] else "")
        stand_in = f" ({one['stand_in']})" if one["stand_in"] else ""
        names = list(dict.fromkeys(name for row in one["rows"] for name in row if name != "row"))
        lines = [[row["row"], *(_with_interval(row.get(name)) for name in names)] for row in one["rows"]]
        table = markdown_table([["row (model, pixels)", *names], *lines]).rstrip()
        what = f"Protocol `{one['protocol']}` on {one['data']}{stand_in}, {how}; percent, 95 % intervals:"
        parts.append(f"\n\n{what}\n\n{table}")
    return "".join(parts)


def _with_interval(ends: list[float] | None) -> str:
    return "" if ends is None or ends[0] is None else "{:.1f} ({:.1f}-{:.1f})".format(*ends)


def _errors(manifest: dict) -> str:
    found, native = bundle.thresholds(manifest), bundle.thresholds(manifest, "native_thresholds")
    if not found:
        return "Not measured: it was exported without faces to learn thresholds on."
    task, held_out = _task(manifest), manifest.get("held_out", {})
    text = _rates(found, task, held_out.get("thresholds", []))
    if native:
        teacher = manifest["teacher"]["name"]
        text += f"\n\nProbes against a gallery that its teacher, {teacher}, embeds at full size:\n\n" + _rates(
            native, task, held_out.get("native_thresholds", [])
        )
    return f"{text}\n\n{OTHER_FACES if task.aligned else OTHER_IMAGES}"


def _rates(found: Thresholds, task: Task, held_out: list[dict[str, float]]) -> str:
    others = {one["far"]: "{:.2g} ({:.2g} to {:.2g})".format(one["mean"], one["low"], one["high"]) for one in held_out}
    lines = [["false accept rate", "threshold", "false reject rate, %", "of people held out"]]
    for far in filter(found.supports, RATES):
        lines.append([f"{far:g}", f"{found.at(far):.4f}", f"{100 * (1 - found.tar(far)):.1f}", others.get(far, "")])
    table = [line if others else line[:-1] for line in lines]
    text = (
        f"Of {found.name}: {found.faces:,} {task.images} of {found.people:,} {task.labels}, {found.between:,} "
        f"pairs of different {task.labels}, {found.genuine:,} pairs of {task.images} of one; no rate finer than "
        f"{found.finest():.2g} can be estimated from them. Thresholds were learned on the {task.images} that they "
        "are judged on here."
    )
    if others:
        text += (
            f" The last column has the false accept rate of thresholds learned on {FOLDS - 1} of {FOLDS} folds of "
            f"{task.labels} and judged on the other: mean of the folds (lowest to highest)."
        )
    return f"{text}\n\n{markdown_table(table).rstrip()}"


def _files(manifest: dict) -> str:
    size, channels = manifest["student"]["resolution"], manifest["student"].get("channels", 3)
    shown = "RGB " if channels == 3 else ""
    inside = "mirror image, sum and unit length are" if manifest["student"].get("mirror", True) else "unit length is"
    about = {
        "student.safetensors": "the weights, for `gdrd_jax.Recognizer.load(FOLDER)`",
        "student.onnx": f"input uint8 {shown}[N, {size}, {size}, {channels}]; {inside} inside",
        "student.nchw.onnx": f"the same, input float32 {shown}[N, {channels}, {size}, {size}], (x - 127.5) / 127.5 "
        "(InsightFace's)",
        "student.112.onnx": "the same, input float32 RGB [N, 3, 112, 112], (x - 127.5) / 127.5, reduced inside: takes "
        "the place of InsightFace's recognizers",
        "student.112.bgr.onnx": "the same for BGR faces, as Frigate feeds them",
        "student.quality.onnx": "as student.onnx, and a second output, `quality`: how recognizable a face is, 0 to 1",
        "student.int8.onnx": "as student.onnx, 8-bit weights and activations: other embeddings, with a fingerprint and "
        "thresholds of their own in the file's metadata",
        "student.stablehlo": f"`jax.export` of a function of uint8 {shown}[N, {size}, {size}, {channels}]",
    }
    return "\n".join(f"- `{name}`: {about[name]}. sha256 `{sha}`" for name, sha in manifest["files"].items())

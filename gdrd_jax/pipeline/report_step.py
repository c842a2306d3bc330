"""The last step: the student beside its teacher and raw pixels, as tables, curves and pictures."""

import json
import logging

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import report as reporting
from gdrd_jax.evaluation.closed_set import ClosedSet
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.held_out import HeldOutPeople
from gdrd_jax.evaluation.identification import first_of_each, nearest
from gdrd_jax.evaluation.report import GREEN, RED
from gdrd_jax.inference.embedders import add_flips, network_embedder, pixel_embedder, student_embedder
from gdrd_jax.inference.pretrained import describe_student, find_student, list_pretrained
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import inputs, teacher_options, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import discriminative, generative
from gdrd_jax.teachers import SuperResolver
from gdrd_jax.utils import pictures
from gdrd_jax.utils.arrays import to_rgb

LOG = logging.getLogger(__name__)
SHOWN = 12  # faces in a picture


def report(run: Run) -> None:
    """Compares the student on the test people with its teacher and with raw pixels."""
    config, task = run.config, inputs.task(run.config)
    network = discriminative.load(config)
    faces = {split: run.faces(split) for split in ("test", "train")}
    rows = _rows(config, faces)
    labels = {split: faces[split].labels[rows[split]] for split in rows}
    lr = {split: run.store("views", split).read(0)[rows[split]] for split in rows}
    images, known = np.concatenate(list(lr.values())), np.concatenate(list(labels.values()))
    tested = len(labels["test"])
    protocol: HeldOutPeople | ClosedSet = HeldOutPeople(images, known, tested)
    if config.data.test_images:
        protocol = ClosedSet(images, known, train=np.arange(tested, len(known)), test=np.arange(tested))
    teacher_name, resolution = teacher_options.discriminative_name(config), config.views.resolution
    student = student_embedder("student", Recognizer.load(run.folder("dis") / "student"))
    pretrained = list_pretrained() if task == FACES else ()
    sizes = {name: describe_student(find_student(name))["student"]["resolution"] for name in pretrained}
    names = [name for name in sizes if sizes[name] == resolution]
    students = [student, *(student_embedder(name, Recognizer.load(name)) for name in names)]
    enlarged = network_embedder(f"{teacher_name}_{resolution}", network, mirror=task.mirror)
    baselines = [enlarged, pixel_embedder(f"pixels_{resolution}", resolution, mirror=task.mirror)]
    results = evaluate([Row(embedder.name, embedder) for embedder in students], protocol)
    results[f"{teacher_name}_native"] = protocol.evaluate(_native_embeddings(run, rows))
    results |= evaluate([Row(embedder.name, embedder) for embedder in baselines], protocol)
    examples = [
        _inputs_picture(run, faces["test"], lr["test"], rows["test"]),
        _neighbors_picture(faces["test"], rows["test"], labels["test"], lr["test"], student.embed(lr["test"])),
    ]
    explained = ""
    if "gen" in run.folders:
        of_gen = run.folder("gen") / "metrics.json"
        r2 = json.loads(of_gen.read_text(encoding="utf-8"))["held_out_r2"]
        explained = (
            f" Stage gen explains {100 * r2:.1f} % of the variance of the "
            "generative teacher's features on these people (R\u00b2)."
        )
    if isinstance(protocol, ClosedSet):
        about = (
            f"{len(known) - tested} training images and {tested} test images of {len(faces['train'].identities)} "
            f"{task.labels} ({protocol.remark})"
        )
    else:
        same = results["student"].arrays["same"]
        about = (
            f"{config.data.test_people} {task.labels} {'who' if task == FACES else 'that'} were not trained on, "
            f"{tested} {task.images}, {same.sum()} genuine and {(~same).sum()} impostor pairs"
        )
    summary = (
        f"{about}; {task.images} reduced to {resolution}x{resolution} pixels by the {config.views.kernel} kernel."
        f"{explained}"
    )
    title = f"GDRD at {resolution}x{resolution} pixels: {config.name}"
    reporting.write(
        run.folder("report"), results, columns=protocol.columns, curves=protocol.curves(results), title=title,
        summary=summary, legend=protocol.legend,
        figures=[(pictures.png(image), caption) for image, caption in examples],
        settings=json.loads(config.to_json()),
        document={
            "protocol": "held_out" if isinstance(protocol, HeldOutPeople) else "classification",
            "units": "percent", "warnings": list(network.warnings),
        },
        warning=". ".join(network.warnings),
    )  # fmt: skip
    LOG.info("report: %s\n%s", run.workdir / "report.html", reporting.text_table(results, protocol.columns))


def _rows(config: ConfigDict, faces: dict[str, Faces]) -> dict[str, np.ndarray]:
    """Rows of the test split and of the training split that are compared."""
    data, most = config.data, config.evaluation
    if data.test_images:
        train = faces["train"].rows_of_last_identities(len(faces["train"].identities), most.train_images)
        return {"test": np.arange(len(faces["test"])), "train": train}
    people = {"test": data.test_people, "train": data.calibration_people}
    return {split: faces[split].rows_of_last_identities(people[split], most.images_per_person) for split in people}


def _native_embeddings(run: Run, rows: dict[str, np.ndarray]) -> np.ndarray:
    """The teacher's stored embeddings of the faces at full size, which are not computed again: `[N, D]`."""
    embeddings, exact = [], view_settings.views(run.config).exact
    for split, chosen in rows.items():
        stored = run.store("discriminative", split).read_all()[chosen, :exact].astype(np.float32)
        # One view of a training face may be all there is.
        embeddings.append(add_flips(stored[:, 0], stored[:, -1]))
    return np.concatenate(embeddings)


def _inputs_picture(run: Run, faces: Faces, lr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, str]:
    shown = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    originals = [faces[rows[i]] for i in shown]
    lines, caption = [list(lr[shown]), originals], "What the student sees; the original face."
    network = generative.load(run) if "generative" in run.folders else None
    if isinstance(network, SuperResolver):
        lines.insert(1, list(network.super_resolve(to_rgb(lr[shown]), run.config.seed)))
        caption = "What the student sees; the SR teacher's reconstruction, drawn from that alone; the original face."
    return pictures.grid(lines), caption


def _neighbors_picture(
    faces: Faces, rows: np.ndarray, labels: np.ndarray, lr: np.ndarray, embeddings: np.ndarray
) -> tuple[np.ndarray, str]:
    gallery = first_of_each(labels)
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    probes = probes[np.linspace(0, len(probes) - 1, SHOWN // 2).astype(int)]
    order = gallery[nearest(embeddings[probes], embeddings[gallery])[:, :5]]
    lines = [[lr[p], faces[rows[p]], *(faces[rows[g]] for g in found)] for p, found in zip(probes, order)]
    frames = [
        [None, None, *((GREEN if labels[g] == labels[p] else RED) for g in found)] for p, found in zip(probes, order)
    ]
    caption = (
        "Probe at low resolution, its original, and the five nearest gallery faces by the student, nearest first; "
        "green is the right person, red another."
    )
    return pictures.grid(lines, frames), caption

"""The last step: the student beside its teacher and raw pixels, as tables, curves and pictures."""

import json
import logging

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.evaluation import held_out
from gdrd_jax.evaluation import report as reporting
from gdrd_jax.evaluation.identification import first_of_each, nearest
from gdrd_jax.evaluation.report import GREEN, RED
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.embedders import embed_both
from gdrd_jax.inference.pretrained import list_pretrained
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline.inputs import recognizer_name
from gdrd_jax.pipeline.run import SPLITS, Run
from gdrd_jax.pipeline.steps import discriminative, generative
from gdrd_jax.utils import pictures
from gdrd_jax.utils.arrays import unit

LOG = logging.getLogger(__name__)
SHOWN = 12  # faces in a picture


def report(run: Run) -> None:
    """Compares the student on the test people with its teacher and with raw pixels."""
    config = run.config
    recognizer, network = Recognizer.load(run.folder("dis") / "student"), discriminative.load(config)
    people = {"train": config.data.calibration_people, "test": config.data.test_people}
    images = config.evaluation.images_per_person
    faces = {split: run.faces(split) for split in SPLITS}
    rows = {split: faces[split].rows_of_last_identities(people[split], images) for split in SPLITS}
    labels = {split: faces[split].labels[rows[split]] for split in SPLITS}
    lr = {split: run.store("views", split).read(0)[rows[split]] for split in SPLITS}
    native = {split: run.store("discriminative", split).read_all()[rows[split], :2] for split in SPLITS}

    teacher_name, resolution = recognizer_name(config), config.views.resolution
    ready = {name: one for name in list_pretrained() if (one := Recognizer.load(name)).resolution == resolution}
    models = {
        "student": lambda split: recognizer.embed(lr[split]),
        **{name: lambda split, one=one: one.embed(lr[split]) for name, one in ready.items()},
        f"{teacher_name}_native": lambda split: unit(native[split].astype(np.float32).sum(axis=1)),
        f"{teacher_name}_{resolution}": lambda split: embed_enlarged(network, lr[split]),
        f"pixels_{resolution}": lambda split: unit(lr[split].astype(np.float32) + lr[split][:, :, ::-1]),
    }
    embeddings, results = {}, {}
    for name, model in tqdm(models.items(), desc="evaluating", unit="model"):
        embeddings[name] = model("test")
        results[name] = held_out.evaluate(embeddings[name], labels["test"], model("train"), labels["train"])
    examples = [
        _inputs_picture(run, faces["test"], lr["test"], rows["test"]),
        _neighbors_picture(faces["test"], rows["test"], labels["test"], lr["test"], embeddings["student"]),
    ]
    explained = ""
    if "gen" in run.folders:
        of_gen = run.folder("gen") / "metrics.json"
        r2 = json.loads(of_gen.read_text(encoding="utf-8"))["held_out_r2"]
        explained = (
            f" Stage gen explains {100 * r2:.1f} % of the variance of the "
            "generative teacher's features on these people (R\u00b2)."
        )
    same = results["student"].arrays["same"]
    summary = (
        f"{people['test']} people who were not trained on, {len(labels['test'])} faces, {same.sum()} genuine "
        f"and {(~same).sum()} impostor pairs; faces reduced to {resolution}x{resolution} "
        f"pixels by the {config.views.kernel} kernel.{explained}"
    )
    title = f"GDRD at {resolution}x{resolution} pixels: {config.name}"
    curves = {name: Pairs(result.arrays["scores"], result.arrays["same"]) for name, result in results.items()}
    reporting.write(
        run.folder("report"), results, columns=held_out.COLUMNS, curves=curves, title=title, summary=summary,
        legend=held_out.LEGEND, figures=[(pictures.png(image), caption) for image, caption in examples],
        settings=json.loads(config.to_json()),
        document={"protocol": "held_out", "units": "percent", "warnings": list(network.warnings)},
        warning=". ".join(network.warnings),
    )  # fmt: skip
    LOG.info("report: %s\n%s", run.workdir / "report.html", reporting.text_table(results, held_out.COLUMNS))


def embed_enlarged(network, lr: np.ndarray) -> np.ndarray:
    """What one does without a student: the recognizer on enlarged faces, summed with their mirror images."""
    return embed_both(network, np.stack([resize(face, FACE_SIZE, "bicubic") for face in lr]))


def _inputs_picture(run: Run, faces: Faces, lr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, str]:
    shown = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    originals = [faces[rows[i]] for i in shown]
    lines, caption = [list(lr[shown]), originals], "What the student sees; the original face."
    network = generative.load(run) if "generative" in run.folders else None
    if network and network.conditional:
        lines.insert(1, list(network.super_resolve(lr[shown], run.config.seed)))
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

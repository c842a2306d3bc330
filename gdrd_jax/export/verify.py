"""Does an exported file do what the student does, and how fast? Measured before it is handed out."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import main_accuracy
from gdrd_jax.inference.embedders import BATCH, Embedder
from gdrd_jax.utils.tables import markdown_table

TURNS, SINGLE_FACES = 7, 50
COLUMNS = {
    "name": "", "least_cosine": "least cosine", "largest_difference": "largest difference",
    "quality_difference": "quality difference", "accuracy": "LFW %", "faces_per_second": "faces/s",
    "one_face_ms": "one face, ms",
}  # fmt: skip


def verify_exports(
    forms: list[Embedder], baselines: list[Embedder], faces: np.ndarray, pairs: PairList | None
) -> list[dict]:
    """A row for each embedder, with the names in `COLUMNS`.

    Args:
      forms: the student and its exported files, compared with the first one, the student.
      baselines: other recognizers, of which only accuracy and speed are measured, on faces as the student gets them.
      faces: real ones at full size, uint8 RGB `[N, S, S, 3]`.
      pairs: of faces at full size; None measures no accuracy.
    """
    student, rows = forms[0], []
    reference, reference_scores = _embedded(student, faces)
    if pairs:
        low = dataclasses.replace(pairs, faces=resize_all(pairs.faces, student.input_size, student.kernel))
    for number, embedder in enumerate(embedders := [*forms, *baselines]):
        row = {"name": embedder.name}
        if number < len(forms):
            embeddings, scores = _embedded(embedder, faces)
            row["least_cosine"] = float(np.einsum("nd,nd->n", embeddings, reference).min())
            row["largest_difference"] = float(np.abs(embeddings - reference).max())
            if scores is not None and reference_scores is not None:
                row["quality_difference"] = float(np.abs(scores - reference_scores).max())
        if pairs:
            own = low if number >= len(forms) or embedder.input_size == student.input_size else pairs
            row |= _accuracy(evaluate([Row(embedder.name, embedder)], own)[embedder.name])
        rows.append(row)
    for row, speed in zip(rows, speeds(embedders, faces)):
        row |= speed
    return rows


def _embedded(embedder: Embedder, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings, and quality scores if the recognizer has them, from one pass of its network."""
    if not embedder.scored:
        return embedder.embed(faces), None
    found = embedder.scored(resize_all(faces, embedder.input_size, embedder.kernel))
    return found[:, :-1], found[:, -1]


def _accuracy(result: Result) -> dict:
    """`accuracy`, its 95 % `interval`, and the true accept rates `tar_at_far`, in percent."""
    name = main_accuracy(result.metrics)
    return {
        "accuracy": result.metrics[name], "interval": result.intervals[name],
        "tar_at_far": result.metrics["tar_at_far"], "pairs": result.metrics["n_pairs"],
    }  # fmt: skip


def speeds(embedders: list[Embedder], faces: np.ndarray) -> list[dict]:
    """`faces_per_second` in batches of 128 and `one_face_ms`, medians, without resizing; the embedders take turns."""
    several, singly = [[] for _ in embedders], [[] for _ in embedders]
    batch = np.resize(faces, (BATCH, *faces.shape[1:]))
    ready = [resize_all(batch, embedder.input_size, embedder.kernel) for embedder in embedders]
    for turn in range(TURNS + 1):
        for number, (embedder, inputs) in enumerate(zip(embedders, ready)):
            took = _seconds(embedder.forward, inputs)
            one_by_one = [_seconds(embedder.forward, inputs[:1]) for _ in range(SINGLE_FACES // TURNS)]
            if turn:  # the first may compile
                several[number].append(took)
                singly[number] += one_by_one
    return [
        {"faces_per_second": BATCH / float(np.median(a)), "one_face_ms": 1000 * float(np.median(b))}
        for a, b in zip(several, singly)
    ]


def _seconds(forward: Callable, inputs: np.ndarray) -> float:
    start = time.perf_counter()
    forward(inputs)
    return time.perf_counter() - start


def table(rows: list[dict]) -> str:
    """Markdown; without a column that no row has, except for LFW's."""
    keys = [key for key in COLUMNS if key != "quality_difference" or any(key in row for row in rows)]
    return markdown_table([[COLUMNS[key] for key in keys], *([_cell(row, key) for key in keys] for row in rows)])


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    forms = {"least_cosine": ".7f", "faces_per_second": ",.0f"}
    return format(value, ".1e" if key.endswith("difference") else forms.get(key, ".2f"))

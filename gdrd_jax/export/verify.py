"""Does an exported file do what the student does, and how fast? Measured before it is handed out."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gdrd_jax.evaluation.lfw import PairList

AT_ONCE, TURNS, SINGLE_FACES = 128, 7, 50
COLUMNS = {
    "name": "", "least_cosine": "least cosine", "largest_difference": "largest difference", "accuracy": "LFW %",
    "faces_per_second": "faces/s", "one_face_ms": "one face, ms",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to run a recognizer.

    Attributes:
      name: of its row.
      embed: what `prepare` made -> float32 `[N, D]`, unit length.
      prepare: uint8 RGB `[N, R, R, 3]` -> what it is fed with; not timed.
      same: it is a form of the same student, to be compared with the first one.
    """

    name: str
    embed: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray], np.ndarray] = lambda faces: faces
    same: bool = True


@dataclasses.dataclass(frozen=True)
class PairBenchmark:
    """Faces of pairs, as the student sees them.

    Attributes:
      pairs: of LFW, or a `.bin`.
      faces: uint8 RGB `[N, R, R, 3]`.
    """

    pairs: PairList
    faces: np.ndarray


def verify_exports(backends: list[Backend], faces: np.ndarray, benchmark: PairBenchmark | None) -> list[dict]:
    """A row for each backend, with the names in `COLUMNS`.

    Args:
      backends: the first is the reference.
      faces: real ones, uint8 RGB `[N, R, R, 3]`.
      benchmark: None without pairs; then there is no accuracy.
    """
    reference, rows = backends[0].embed(backends[0].prepare(faces)), []
    for backend in backends:
        row = {"name": backend.name}
        if backend.same:
            found = backend.embed(backend.prepare(faces))
            row["least_cosine"] = float(np.einsum("nd,nd->n", found, reference).min())
            row["largest_difference"] = float(np.abs(found - reference).max())
        if benchmark:
            batches = [benchmark.faces[i : i + AT_ONCE] for i in range(0, len(benchmark.faces), AT_ONCE)]
            embeddings = np.concatenate([backend.embed(backend.prepare(batch)) for batch in batches])
            row |= judged(benchmark.pairs, embeddings)
        rows.append(row)
    for row, speed in zip(rows, speeds(backends, faces)):
        row |= speed
    return rows


def judged(pairs: PairList, embeddings: np.ndarray) -> dict:
    """`accuracy`, its 95 % `interval`, and the true accept rates `tar_at_far`, in percent."""
    result = pairs.evaluate(embeddings, seed=0)
    name = "accuracy" if "accuracy" in result.metrics else "best_threshold_accuracy"
    return {
        "accuracy": result.metrics[name], "interval": result.intervals[name],
        "tar_at_far": result.metrics["tar_at_far"], "pairs": result.metrics["n_pairs"],
    }  # fmt: skip


def speeds(backends: list[Backend], faces: np.ndarray) -> list[dict]:
    """`faces_per_second` in batches of 128 and `one_face_ms`, medians; the backends take turns."""
    several, singly = [[] for _ in backends], [[] for _ in backends]
    ready = [backend.prepare(np.resize(faces, (AT_ONCE, *faces.shape[1:]))) for backend in backends]
    for turn in range(TURNS + 1):
        for number, (backend, inputs) in enumerate(zip(backends, ready)):
            took = _seconds(backend.embed, inputs)
            one_by_one = [_seconds(backend.embed, inputs[:1]) for _ in range(SINGLE_FACES // TURNS)]
            if turn:  # the first may compile
                several[number].append(took)
                singly[number] += one_by_one
    return [
        {"faces_per_second": AT_ONCE / float(np.median(a)), "one_face_ms": 1000 * float(np.median(b))}
        for a, b in zip(several, singly)
    ]


def _seconds(embed: Callable, inputs: np.ndarray) -> float:
    start = time.perf_counter()
    embed(inputs)
    return time.perf_counter() - start


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *([_cell(row, key) for key in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    forms = {"least_cosine": ".7f", "largest_difference": ".1e", "faces_per_second": ",.0f"}
    return format(value, forms.get(key, ".2f"))

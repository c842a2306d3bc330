"""The one way from faces to figures: embeds the faces of a protocol and scores them."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from gdrd_jax.data.degradation import Degradation
from gdrd_jax.data.faces import Faces
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.embedders import Embedder, embed_faces
from gdrd_jax.utils.errors import GdrdError


class EvaluationProtocol(Protocol):
    """Faces, and what is asked of their embeddings.

    Attributes:
      faces: all of them; as an array, uint8 RGB `[N, R, R, 3]`, where they have been reduced.
    """

    faces: Faces | np.ndarray

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer.

        Args:
          embeddings: of `faces`, float `[N, D]`, unit length.
          gallery: of the same faces as they are in a gallery, `[N, D]`; None where they are the same.
          seed: of the bootstrap.
        """
        ...


class ReportedProtocol(EvaluationProtocol, Protocol):
    """A protocol of `gdrd evaluate`, which writes a report.

    Attributes:
      about: counts and remarks: "n_skipped", "skipped" as `(name, reason)`, and where there are such "remark" and
        "drawn", what the bootstrap draws.
      main: the metric that rows are compared by.
      columns: metric ("a.b" for b in a) to heading.
      legend: explains them.
    """

    about: dict
    main: str
    columns: dict[str, str]
    legend: str

    def shared_arrays(self) -> dict[str, np.ndarray]:
        """What the arrays of every row belong to."""
        ...

    def curves(self, results: dict[str, Result]) -> dict[str, Pairs]:
        """Row to the pairs whose ROC is drawn; empty where the protocol has none."""
        ...

    def figures(self, results: dict[str, Result]) -> list[tuple[str, bytes, str]]:
        """File name, PNG and caption of figures of all rows."""
        ...

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Examples of a row, and their caption; `render` gives a face as the row's network gets it."""
        ...


@dataclasses.dataclass(frozen=True)
class Row:
    """A recognizer under some condition.

    Attributes:
      name: of the row.
      embedder: of the probes.
      degradation: what the probes go through; None takes them as they are.
      gallery: who embeds the gallery, and what its faces go through; None takes the probes for the gallery, too.
    """

    name: str
    embedder: Embedder
    degradation: Degradation | None = None
    gallery: tuple[Embedder, Degradation | None] | None = None


def evaluate(
    rows: Iterable[Row], protocol: EvaluationProtocol, *, seed: int = 0, cache: Path | None = None
) -> dict[str, Result]:
    """Scores every row under a protocol.

    Args:
      rows: of different names.
      protocol: with its faces.
      seed: of noise, directions and bootstrap.
      cache: see `embed_faces`.

    Returns:
      Name of the row to its result.

    Raises:
      GdrdError: two rows have one name.
    """
    results = {}
    for row in rows:
        if row.name in results:
            raise GdrdError(f"two rows have the name {row.name!r}; give each a name of its own", "row-twice")
        probes = embed_faces(row.embedder, protocol.faces, row.degradation, seed=seed, cache=cache)
        gallery = None
        if row.gallery:
            embedder, degradation = row.gallery
            gallery = embed_faces(embedder, protocol.faces, degradation, seed=seed, cache=cache)
        results[row.name] = protocol.evaluate(probes, gallery, seed=seed)
    return results

"""Embeds the faces of a protocol and scores the embeddings."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from gdrd_jax.data.degradation import Degradation
from gdrd_jax.evaluation.interface import EvaluationProtocol, ReportedProtocol
from gdrd_jax.evaluation.result import Result
from gdrd_jax.inference.embedders import Embedder, embed_and_score, embed_faces
from gdrd_jax.utils.errors import GdrdError


@dataclasses.dataclass(frozen=True)
class Row:
    """A recognizer under some condition: a row of the results table.

    Attributes:
      name: name of the row.
      embedder: recognizer that embeds the probes.
      degradation: degradation of the probes; None takes them as they are.
      gallery: recognizer that embeds the gallery, and degradation of its faces; None uses the embeddings of the probes.
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
      rows: rows with distinct names.
      protocol: the protocol with its faces.
      seed: seed of the noise, the directions of motion blur, and the bootstrap.
      cache: see `embed_faces`.

    Returns:
      A dict from the name of each row to its result.

    Raises:
      GdrdError: two rows have the same name.
    """
    results = {}
    for row in rows:
        if row.name in results:
            raise GdrdError(f"two rows have the name {row.name!r}; give each a name of its own", "row-twice")
        results[row.name] = _scored(row, protocol, seed, cache)
    return results


def _scored(row: Row, protocol: EvaluationProtocol, seed: int, cache: Path | None) -> Result:
    """The result of a row, whose embeddings are freed before those of the next one are made."""
    quality = gallery = None
    judge = protocol if isinstance(protocol, ReportedProtocol) and protocol.judges_quality else None
    if judge and row.embedder.scored:
        probes, quality = embed_and_score(row.embedder, protocol.faces, row.degradation, seed=seed, cache=cache)
    else:
        probes = embed_faces(row.embedder, protocol.faces, row.degradation, seed=seed, cache=cache)
    if row.gallery:
        embedder, degradation = row.gallery
        gallery = embed_faces(embedder, protocol.faces, degradation, seed=seed, cache=cache)
    result = protocol.evaluate(probes, gallery, seed=seed)
    return judge.with_quality(result, quality, seed=seed) if judge and quality is not None else result

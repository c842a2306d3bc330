"""The rows of a grid: runs, each judged under the same protocols, stored so that they can be collected and compared.

A stored row is a small JSON file, `NAME-seedN.json`, with the decisions behind its figures. So the difference of two
methods is paired by pair or probe and by seed, also where they were trained on different machines. The identities in
the pairs or probes of a protocol are in a file of their own, `DIGEST.people.json`, which all rows share.
"""

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.evaluation.methods import METHODS
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import write_json

FORMAT = 1
PEOPLE = ".people.json"
DEV = "lfw"  # the first column: the dev pairs
STAND_IN = " stand-in"  # end of a column's name


@dataclasses.dataclass(frozen=True)
class Judged:
    """What one model decided under one protocol.

    Attributes:
      right: whether each decision is right, bool `[P]`: of a pair, or of a probe.
      people: the identities of each decision, int `[P, 2]`, of a probe the same twice; None where they are not known.
      subject: fingerprint of what was decided; decisions on the same subject can be paired.
      figures: the protocol's further figures, in percent.
      pairs: the scored pairs of a verification; None of a stored row.
    """

    right: np.ndarray
    people: np.ndarray | None
    subject: str
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pairs: Pairs | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A trained model, or one that it is compared with.

    Attributes:
      name: of the combination of settings.
      seed: of its training; None if it was not trained here.
      judged: by column, the dev pairs first, under `DEV`.
      about: what can be said of the training, see `pipeline.run_record.described`.
    """

    name: str
    seed: int | None
    judged: Mapping[str, Judged]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.json" if self.seed is None else f"{self.name}-seed{self.seed}.json"

    def save(self, folder: Path) -> None:
        """Writes the row, and the identities of its decisions, into `folder`."""
        results: dict[str, dict[str, Any]] = {}
        for column, one in self.judged.items():
            results[column] = {
                "subject": one.subject, "count": len(one.right), "figures": dict(one.figures),
                "right": base64.b64encode(np.packbits(one.right).tobytes()).decode(),
            }  # fmt: skip
            if one.people is None:
                continue
            content = one.people.astype("<i4").tobytes()
            results[column]["people"] = hashlib.sha256(content).hexdigest()[:16]
            path = folder / f"{results[column]['people']}{PEOPLE}"
            if not path.exists():
                write_json(path, {"people": base64.b64encode(zlib.compress(content, 9)).decode()})
        head = {"format": FORMAT, "name": self.name, "seed": self.seed}
        write_json(folder / self.file, {**head, **self.about, "results": results})

    @classmethod
    def load(cls, path: Path) -> "Row":
        """Reads what `save` wrote.

        Raises:
          GdrdError: the file is damaged, or the file of its identities is missing.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results, name, seed = content.pop("results"), content.pop("name"), content.pop("seed")
            if content.pop("format") != FORMAT:
                raise ValueError("a later version wrote it")
            return cls(name, seed, {column: _judged(one, path) for column, one in results.items()}, content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise GdrdError(
                f"{path} is no row of a grid ({type(error).__name__}: {error}); move it elsewhere", "row-damaged"
            ) from error


def _judged(stored: dict, path: Path) -> Judged:
    right = np.unpackbits(np.frombuffer(base64.b64decode(stored["right"]), np.uint8), count=stored["count"])
    people = None
    if digest := stored.get("people"):
        packed = json.loads((path.parent / f"{digest}{PEOPLE}").read_text(encoding="utf-8"))["people"]
        people = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").reshape(-1, 2)
    return Judged(right.astype(bool), people, stored["subject"], stored["figures"])


def read_rows(folders: Iterable[Path]) -> dict[str, list[Row]]:
    """All stored rows of some folders: name to the rows of its seeds, the zoo's methods in its order, then by name.

    Raises:
      GdrdError: two have one name and seed, or one is damaged.
    """
    found: dict[tuple[str, int | None], tuple[Row, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name.endswith(PEOPLE) or path.name == "table.json":
                continue
            row = Row.load(path)
            if (key := (row.name, row.seed)) in found:
                raise GdrdError(f"{path} and {found[key][1]} are of the same name and seed; remove one", "row-twice")
            found[key] = row, path
    order = list(METHODS)
    names = sorted({name for name, _ in found}, key=lambda name: (order.index(name) if name in order else 999, name))
    rows = [row for row, _ in found.values()]
    return {name: sorted((row for row in rows if row.name == name), key=lambda row: row.seed or 0) for name in names}


def check_same_subjects(rows: Iterable[Row]) -> None:
    """Makes sure that all rows were judged by the same pairs and probes.

    Raises:
      GdrdError: they were not.
    """
    known: dict[str, tuple[str, Row]] = {}
    for row in rows:
        for column, one in row.judged.items():
            subject, first = known.setdefault(column, (one.subject, row))
            if subject != one.subject:
                raise GdrdError(
                    f"{row.file} and {first.file} were judged by other data under {column!r}; use the same for both",
                    "row-data",
                )

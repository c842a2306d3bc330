"""What a protocol is: faces, and what is asked of their embeddings.

A new protocol of `gdrd evaluate` is one file: a subclass of `ReportedProtocol` with `@protocols.register("name")`, see
docs/extending.md. N is the number of faces, D the dimension of the embeddings. Shares are in [0, 1] in functions and
in percent in results.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.utils.pictures import grid

SHOWN = 8  # faces of the picture that is drawn of any protocol


class Figure(NamedTuple):
    """A picture of the report.

    Attributes:
      name: of the file, one of `ReportedProtocol.files`.
      png: its bytes.
      caption: plain text, one or two sentences.
    """

    name: str
    png: bytes
    caption: str


class NativeFloor(NamedTuple):
    """What every recognizer reaches at native size if it is fed as in its training.

    Attributes:
      percent: of the protocol's main figure; a recognizer below it causes a warning.
      why: which figures are known, as part of a sentence.
    """

    percent: float
    why: str


class EvaluationProtocol(Protocol):
    """What `evaluation.evaluate.evaluate` needs of a protocol."""

    @property
    def faces(self) -> Faces | np.ndarray:
        """All N faces; as an array, uint8 RGB `[N, R, R, 3]`, where they have been reduced."""
        ...

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer, see `ReportedProtocol.evaluate`."""
        ...


class ReportedProtocol:
    """A protocol of `gdrd evaluate`: opened from files, and shown in a report.

    The first paragraph of a subclass's docstring says what `--data` holds; `gdrd list protocols` and `gdrd evaluate
    --protocol NAME --help` print it.

    Attributes:
      Config: frozen dataclass of the protocol's own settings, which the command line takes as options (`pairs: str` is
        `--pairs VALUE`). Fields are str, int, float or bool, each with a default value. Its docstring documents them
        under "Attributes:"; its `__post_init__` raises `ValueError` for values out of range.
      files: names of all files that `figures` may return; those of an earlier evaluation are removed first.
      title: of the report.
      main: the metric by which rows are compared and whose curve over resolutions is drawn.
      columns: metric ("a.b" for the figure b of the metric a) to its heading in the report's table.
      legend: explains the columns, plain text.
      native_floor: see `NativeFloor`; None where no such figure is known.
      judges_quality: whether `with_quality` is called for recognizers that say how recognizable a face is.
      faces: all N faces, checked by `data.prepare.checked`; `evaluate` gets one embedding for each.
      about: counts and remarks for `metrics.json`: "alignment", how the faces came to the model's input, where the
        protocol decides that; "n_skipped" and "skipped", a list of `(name, reason)`, of what was
        left out; where there are such, "remark", a sentence for the report, and "drawn", what the bootstrap draws
        ("people" without it).
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    files: ClassVar[tuple[str, ...]] = ()
    title: str
    main: str
    columns: Mapping[str, str]
    legend: str
    native_floor: NativeFloor | None = None
    judges_quality: ClassVar[bool] = False
    faces: Any  # Faces or an array; subclasses say which
    about: dict[str, Any]

    @classmethod
    def open(cls, data: Path, config: Any, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Reads and checks the data; no face is embedded yet.

        Args:
          data: folder, tar or store, see `data.readers.list_files`, or whatever the protocol reads.
          config: a `Config`.
          stretch: take faces that are not 112x112; they are stretched to the network's input.
          skip_bad: leave damaged or missing faces out, counted and listed in `about`, instead of raising.

        Raises:
          GdrdError: something is missing, damaged or contradictory.
        """
        raise NotImplementedError

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer.

        Args:
          embeddings: of `faces` as probes, float32 `[N, D]`, unit length.
          gallery: of the same faces as they are in a gallery, float32 `[N, D]`, unit length, by another recognizer or
            at another resolution; None where they are the same.
          seed: of the bootstrap.

        Returns:
          Metrics in percent, their 95 % intervals (`evaluation.bootstrap`), and the arrays behind them.
        """
        raise NotImplementedError

    def with_quality(self, result: Result, quality: np.ndarray, *, seed: int) -> Result:
        """A result, and how well the quality of the faces predicts its errors.

        Args:
          result: of `evaluate`.
          quality: of `faces` as probes, float32 `[N]`, in [0, 1].
          seed: of the bootstrap.
        """
        raise NotImplementedError

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the arrays of every row belong to, for `scores.npz`."""
        return {}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Which decisions of a row are right, bool `[P]`, and the people in them, int `[P, 2]`.

        The share that is right is the main figure. A probe has its person twice. `gdrd grid` needs this, others do not.
        """
        raise NotImplementedError

    def curves(self, results: Mapping[str, Result]) -> Mapping[str, Pairs]:
        """Row to the pairs whose ROC is drawn; empty where the protocol has none."""
        return {}

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """Figures of all rows together."""
        return []

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Examples of a row.

        Args:
          result: of the row.
          render: gives a face, by its row in `faces`, as the row's network gets it: uint8 RGB `[R, R, 3]`.

        Returns:
          uint8 RGB `[H, W, 3]`, see `utils.pictures.grid`, and the caption.
        """
        return grid([[render(row) for row in range(min(SHOWN, len(self.faces)))]]), "Faces as the model receives them."

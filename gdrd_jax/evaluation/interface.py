"""What a protocol is: faces, and the evaluation of their embeddings.

A new protocol of `gdrd evaluate` is one file: a subclass of `ReportedProtocol` with `@protocols.register("name")`, see
docs/extending.md. N is the number of faces, D the dimension of the embeddings. Rates are in [0, 1] in functions and
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
    """A figure of the report.

    Attributes:
      name: name of the file, one of `ReportedProtocol.files`.
      png: content of the PNG file.
      caption: plain text, one or two sentences.
    """

    name: str
    png: bytes
    caption: str


class NativeFloor(NamedTuple):
    """The lowest figure that a recognizer should reach at native size if its input is prepared as in its training.

    Attributes:
      percent: lowest plausible value of the protocol's main metric; a recognizer below it causes a warning.
      why: the known figures behind this value, as part of a sentence.
    """

    percent: float
    why: str


class EvaluationProtocol(Protocol):
    """What `evaluation.evaluate.evaluate` needs of a protocol."""

    @property
    def faces(self) -> Faces | np.ndarray:
        """All N faces; an array, uint8 RGB `[N, R, R, 3]`, if they were reduced already."""
        ...

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer, see `ReportedProtocol.evaluate`."""
        ...


class ReportedProtocol:
    """A protocol of `gdrd evaluate`: it is opened from files, and its results are shown in a report.

    The first paragraph of a subclass's docstring says what `--data` holds; `gdrd list protocols` and `gdrd evaluate
    --protocol NAME --help` print it.

    Attributes:
      Config: frozen dataclass of the protocol's own settings, which become options of the command (`pairs: str` is
        `--pairs VALUE`). Fields are str, int, float or bool, each with a default value. The docstring of `Config`
        documents them under "Attributes:"; its `__post_init__` raises `ValueError` for values out of range.
      files: names of all files that `figures` may return; those of an earlier evaluation are removed first.
      title: title of the report.
      main: the metric by which rows are compared and whose curve over resolutions is drawn.
      columns: metric ("a.b" for the figure b of the metric a) to its heading in the report's table.
      legend: explanation of the columns, plain text.
      native_floor: see `NativeFloor`; None if no such figure is known.
      judges_quality: whether `with_quality` is called for recognizers that have a quality score.
      faces: all N faces, checked by `data.prepare.checked`; `evaluate` gets one embedding for each.
      about: counts and remarks for `metrics.json`: "n_skipped" and "skipped", a list of `(name, reason)` of what was
        left out. Optional: "alignment", how the faces were brought to the model's input, if the protocol decides that;
        "remark", a sentence for the report; "drawn", what the bootstrap draws, "people" by default.
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
          data: folder, tar or store, see `data.readers.list_files`, or whatever else the protocol reads.
          config: a `Config`.
          stretch: accept faces that are not 112x112 and stretch them to the network's input.
          skip_bad: leave out damaged or missing faces, counted and listed in `about`, instead of raising.

        Raises:
          GdrdError: something is missing, damaged or contradictory.
        """
        raise NotImplementedError

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer.

        Args:
          embeddings: embeddings of `faces` as probes, float32 `[N, D]`, unit length.
          gallery: embeddings of the same faces as they are in a gallery, by another recognizer or at another
            resolution, float32 `[N, D]`, unit length; None if they are the same as `embeddings`.
          seed: seed of the bootstrap.

        Returns:
          Metrics in percent, their 95 % intervals (`evaluation.bootstrap`), and the arrays behind them.
        """
        raise NotImplementedError

    def with_quality(self, result: Result, quality: np.ndarray, *, seed: int) -> Result:
        """Adds to a result how well the quality of the faces predicts its errors.

        Args:
          result: result of `evaluate`.
          quality: quality of `faces` as probes, float32 `[N]`, in [0, 1].
          seed: seed of the bootstrap.
        """
        raise NotImplementedError

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays for `scores.npz` that are the same for every row, such as names and labels."""
        return {}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Which decisions of a row are correct, bool `[P]`, and the people in them, int `[P, 2]`.

        The share of correct decisions is the main metric. A probe has its person twice. Only `gdrd grid` needs this.
        """
        raise NotImplementedError

    def curves(self, results: Mapping[str, Result]) -> Mapping[str, Pairs]:
        """Row to the pairs whose ROC curve is drawn; empty if the protocol has none."""
        return {}

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """Figures that show all rows together."""
        return []

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Examples of a row.

        Args:
          result: result of the row.
          render: function from a row of `faces` to that face as the network gets it, uint8 RGB `[R, R, 3]`.

        Returns:
          uint8 RGB `[H, W, 3]`, see `utils.pictures.grid`, and the caption.
        """
        return grid([[render(row) for row in range(min(SHOWN, len(self.faces)))]]), "Faces as the model receives them."

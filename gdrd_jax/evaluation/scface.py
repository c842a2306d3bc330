"""SCface: who of the people in mugshots did a surveillance camera see, 4.2, 2.6 or 1 meter away?

Grgic, Delac and Grgic, SCface - surveillance cameras face database, Multimedia Tools and Applications 2011
(https://www.scface.org): 130 people, mugshot_frontal_cropped_all/001_frontal.JPG and
surveillance_cameras_distance_{1,2,3}/cam_{1-7}/001_cam1_1.jpg. Cameras 6 and 7 see infrared and are left out, as usual.
The file of landmarks that its authors give out has a line for each image, `NAME X Y X Y X Y X Y`: the person's right
eye, left eye, nose tip and middle of the mouth, in pixels of the image.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation.identification import nearest
from gdrd_jax.evaluation.interface import SHOWN, Figure, ReportedProtocol
from gdrd_jax.evaluation.report import GREEN, RED, draw_bars
from gdrd_jax.evaluation.result import Metric, Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import read_lines, user_path
from gdrd_jax.utils.pictures import Frame, grid

NAME = re.compile(r"(\d{3})_(?:frontal|cam([1-5])_([123]))", re.IGNORECASE)
FOLDERS = ("mugshot_frontal_cropped_all", *(f"surveillance_cameras_distance_{d}" for d in (1, 2, 3)))
DISTANCES = {1: "4.2 m", 2: "2.6 m", 3: "1 m"}
FIELDS = 9  # of a line of landmarks
STRETCHED = "SCface's images, stretched to the model's input (--stretch), not aligned"
ALIGNED = "SCface's images, aligned by the landmarks of its authors (--landmarks): eyes, nose and mouth"
PREPARED = "Faces of 112x112, aligned before the evaluation"


@protocols.register("scface")
@dataclasses.dataclass(frozen=True)
class SCface(ReportedProtocol):
    """001_frontal.JPG and 001_cam1_1.jpg to 130_cam5_3.jpg, in SCface's folders or at any depth.

    The frontal mugshots are the gallery; the probes are of five cameras at three distances.

    Attributes:
      faces: all, labeled.
      distances: int `[N]`, 1 (far) to 3; 0 of mugshots.
      about: see `ReportedProtocol`.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          landmarks: file of the landmarks, by which the faces are aligned; without it they must be 112x112 or, with
            --stretch, of any size.
          untested: the first people, by number, who are left out: 50 where others train on these.
        """

        landmarks: str = ""
        untested: int = 0

        def __post_init__(self) -> None:
            if self.untested < 0:
                raise ValueError(f"untested is {self.untested}; it must be at least 0")

    faces: Faces
    distances: np.ndarray
    about: dict[str, Any]

    title, files = "SCface", ("distances.png",)
    main = "rank_1"
    columns = {"rank_1": "rank-1 %", **{f"rank_1_distance_{d}": f"distance {d} ({m}) %" for d, m in DISTANCES.items()}}
    legend = (
        "Rank-1: share of the probes of cameras 1 to 5 whose nearest mugshot is of the right person, at all distances "
        "and at each. Gallery: one frontal mugshot of each person."
    )

    @classmethod
    def open(cls, data: Path, config: Any = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Reads SCface's names; a probe without a mugshot is an error, see `ReportedProtocol.open`."""
        config = config or cls.Config()
        files = list_files(data)
        rows = [
            row for row, name in enumerate(files.names)
            if (found := NAME.fullmatch(PurePosixPath(name).stem)) and int(found[1]) > config.untested
            and is_image(files, row)
        ]  # fmt: skip
        # The original release has each image a second time, such as in surveillance_cameras_all.
        official = [row for row in rows if not set(PurePosixPath(files.names[row]).parts).isdisjoint(FOLDERS)]
        rows = official or rows
        if not rows:
            raise GdrdError(f"{data} holds no images with SCface's names, such as 001_cam1_1.jpg", "scface-no-images")
        check_unique(files, rows, lambda name: PurePosixPath(name).stem.lower())
        chosen = files.take(rows)
        if config.landmarks:
            chosen = _with_landmarks(chosen, user_path(config.landmarks), skip_bad)
        faces = checked(chosen, stretch=stretch, skip_bad=skip_bad)
        distances = np.array([_distance(name) for name in faces.names])
        faces = labeled(faces, (PurePosixPath(name).name[:3] for name in faces.names))
        lonely = np.flatnonzero(~np.isin(faces.labels, faces.labels[distances == 0]))
        if len(lonely):
            raise GdrdError(
                f"{faces.where(lonely[0])}: there is no mugshot {faces.identities[faces.labels[lonely[0]]]}_frontal of "
                "this person, by which it could be recognized",
                "scface-no-mugshot",
            )
        if not (distances > 0).any():
            raise GdrdError(f"{data} has no images of cameras 1 to 5, such as 001_cam1_1.jpg", "scface-no-probes")
        policy = ALIGNED if config.landmarks else STRETCHED if stretch else PREPARED
        about = {"alignment": policy, "n_skipped": len(faces.skipped), "skipped": list(faces.skipped)}
        return cls(faces, distances, about)

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer by the cosine of its embeddings; `gallery` is that of enrolled faces."""
        enrolled = np.flatnonzero(self.distances == 0)
        probes, labels = self._probes(), self.faces.labels
        found = nearest(embeddings[probes], (embeddings if gallery is None else gallery)[enrolled])[:, 0]
        best = enrolled[found]
        right = labels[best] == labels[probes]
        metrics: dict[str, Metric] = {}
        intervals = {}
        parts = {"rank_1": self.distances[probes] > 0}
        parts |= {f"rank_1_distance_{d}": self.distances[probes] == d for d in DISTANCES}
        for name, chosen in parts.items():
            metrics[name] = percent(right[chosen].mean()) if chosen.any() else None
            metrics[name.replace("rank_1", "n_probes")] = int(chosen.sum())
            if chosen.any():
                intervals[name] = percents(bootstrap.of_mean(right[chosen], labels[probes][chosen], seed=seed))
        metrics["n_gallery"] = len(enrolled)
        return Result(metrics, intervals, {"nearest": best})

    def _probes(self) -> np.ndarray:
        return np.flatnonzero(self.distances > 0)

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the arrays of every row belong to."""
        return {"names": np.array(self.faces.names), "probes": self._probes(), "distance": self.distances}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Of each probe, at all distances."""
        truth = self.faces.labels[self._probes()]
        return self.faces.labels[result.arrays["nearest"]] == truth, np.stack([truth, truth], axis=1)

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """Bars of the distances."""
        keys = [f"rank_1_distance_{d}" for d in DISTANCES]
        bars = {
            name: [None if (figure := result.figure(key)) is None else (figure, result.intervals[key]) for key in keys]
            for name, result in results.items()
        }
        png = draw_bars(bars, [f"distance {d}, {meters}" for d, meters in DISTANCES.items()], y="rank-1, %")
        return [Figure("distances.png", png, "Rank-1 by distance, with 95 % intervals.")]

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Some probes at every distance over the mugshot that they were taken for."""
        probes, best, labels = self._probes(), result.arrays["nearest"], self.faces.labels
        lines: list[list[np.ndarray]] = []
        frames: list[list[Frame]] = []
        for distance in DISTANCES:
            there = np.flatnonzero(self.distances[probes] == distance)
            if not len(there):
                continue
            shown = there[np.linspace(0, len(there) - 1, min(SHOWN, len(there))).astype(int)]
            lines += [[render(probes[i]) for i in shown], [render(best[i]) for i in shown]]
            frames += [
                [None] * len(shown), [GREEN if labels[best[i]] == labels[probes[i]] else RED for i in shown],
            ]  # fmt: skip
        caption = "Probes at distances 1 to 3, as the model receives them, over the nearest mugshot: green if right."
        return grid(lines, frames), caption


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """Lines `NAME X Y X Y X Y X Y`: name in small letters to float `[4, 2]`; lines that begin with "#" are ignored.

    Raises:
      GdrdError: missing or malformed (with the number of the line), or a name is there twice.
    """
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        try:
            if len(fields) != FIELDS or fields[0].lower() in found:
                raise ValueError
            found[fields[0].lower()] = np.array(fields[1:], np.float64).reshape(-1, 2)
        except ValueError:
            raise GdrdError(
                f"{path}, line {number}: {line.strip()!r} is not `NAME X Y X Y X Y X Y` of another image", "scface-line"
            ) from None
    return found


def _with_landmarks(files: Faces, path: Path, skip_bad: bool) -> Faces:
    known = read_landmarks(path)
    stems = [PurePosixPath(name).stem.lower() for name in files.names]
    absent = [name for name, stem in zip(files.names, stems) if stem not in known]
    if absent and not (skip_bad and len(absent) < len(stems)):
        raise GdrdError(f"{path} has no landmarks of {len(absent)} images, the first {absent[0]!r}", "scface-landmarks")
    kept = files.take([row for row, stem in enumerate(stems) if stem in known])
    skipped = tuple((name, f"{path.name} has no landmarks of it") for name in absent)
    points = np.stack([known[stem] for stem in stems if stem in known])
    return dataclasses.replace(kept, landmarks=points, skipped=(*kept.skipped, *skipped))


def _distance(name: str) -> int:
    found = NAME.fullmatch(PurePosixPath(name).stem)
    return int(found[3] or 0) if found else 0

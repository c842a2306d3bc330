"""Open-set identification: who of a gallery is it, if anybody?"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files, open_faces
from gdrd_jax.evaluation import bootstrap, identification
from gdrd_jax.evaluation.closed_set import class_means
from gdrd_jax.evaluation.identification import FPIRS, Searches
from gdrd_jax.evaluation.interface import SHOWN, Figure, ReportedProtocol
from gdrd_jax.evaluation.parts import images_of_parts, place
from gdrd_jax.evaluation.report import GREEN, RED, draw_lines
from gdrd_jax.evaluation.result import Metric, Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.arrays import number_within
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.pictures import Frame, grid
from gdrd_jax.utils.texts import counted

PARTS = GALLERY, MATED, UNMATED = ("gallery", "mated", "unmated")


@protocols.register("open_set")
@dataclasses.dataclass(frozen=True)
class OpenSet(ReportedProtocol):
    """PERSON/IMAGE, whose people are divided into known and unknown ones; or gallery/, mated/, unmated/PERSON/IMAGE.

    Attributes:
      faces: all N faces.
      labels: people, int `[N]`, numbered from 0 without gaps.
      gallery, probes: rows of `faces`, int `[G]` and `[P]`; some probes show people who are not in the gallery.
      as_templates: whether the faces of a person in the gallery are averaged.
      about: see `ReportedProtocol`.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          unknown: share of the people of PERSON/IMAGE who are not in the gallery.
          enrolled: number of images, the first by name, of each known person in the gallery; the others are probes.
          templates: compare with the mean of each person's faces in the gallery, not with each of them.
          division: seed by which people are divided into known and unknown ones.
        """

        unknown: float = 0.5
        enrolled: int = 1
        templates: bool = False
        division: int = 0

        def __post_init__(self) -> None:
            if not 0 < self.unknown < 1:
                raise ValueError(f"unknown is {self.unknown:g}; it must be between 0 and 1")
            for name, least in (("enrolled", 1), ("division", 0)):
                if getattr(self, name) < least:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    faces: Faces
    labels: np.ndarray
    gallery: np.ndarray
    probes: np.ndarray
    as_templates: bool
    about: dict[str, Any]

    title, files = "Open set", ("det.png",)
    main = "rank_1"
    columns = {"rank_1": "rank-1 %", **{f"tpir_at_fpir.{fpir:g}": f"TPIR % at FPIR {fpir:g}" for fpir in FPIRS}}
    legend = (
        "Rank-1: share of the probes of known people whose most similar face in the gallery is of this person. TPIR at "
        "FPIR: the share that is also accepted, where at most so many of the probes of unknown people have any "
        "accepted face. A stranger as similar as a mate comes first."
    )

    @classmethod
    def open(cls, data: Path, config: Any = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """See `ReportedProtocol.open`."""
        config = config or cls.Config()
        if data.is_dir() or data.suffix.lower() == ".tar":
            found = {parts[-3] for name in list_files(data).names if len(parts := place(name)) >= 3}
            there = [part for part in PARTS if part in found]
            if 0 < len(there) < len(PARTS):
                raise GdrdError(
                    f"{data} has {', '.join(there)} of the folders {', '.join(PARTS)}, each PART/PERSON/IMAGE; give "
                    "all three, or folders PERSON/IMAGE alone",
                    "open-set-parts",
                )
            if there:
                return cls._of_parts(data, config, stretch, skip_bad)
        faces = checked(open_faces(data, skip_bad=skip_bad), stretch=stretch, skip_bad=skip_bad)
        people = len(faces.identities)
        unknown = np.random.default_rng(config.division).permutation(people)[: round(config.unknown * people)]
        enrolled = ~np.isin(faces.labels, unknown) & (number_within(faces.labels) < config.enrolled)
        return cls._made(faces, enrolled, config)

    @classmethod
    def _of_parts(cls, data: Path, config: Any, stretch: bool, skip_bad: bool) -> Self:
        faces = checked(images_of_parts(data, PARTS), stretch=stretch, skip_bad=skip_bad)
        part, people = (np.array([place(name)[at] for name in faces.names]) for at in (-3, -2))
        enrolled = set(people[part == GALLERY])
        for of, wrong, what in (
            (MATED, set(people[part == MATED]) - enrolled, f"has no image in {GALLERY}; give one, or move the person"),
            (UNMATED, set(people[part == UNMATED]) & enrolled, f"is in {GALLERY}; move the images"),
        ):
            if wrong:
                other = UNMATED if of == MATED else MATED
                raise GdrdError(f"{data}: {min(wrong)!r}, who is in {of}, {what} to {other}", "open-set-person")
        return cls._made(labeled(faces, people), part == GALLERY, config)

    @classmethod
    def _made(cls, faces: Faces, enrolled: np.ndarray, config: Any) -> Self:
        gallery, probes = np.flatnonzero(enrolled), np.flatnonzero(~enrolled)
        mated = np.isin(faces.labels[probes], faces.labels[gallery])
        if not 0 < mated.sum() < len(mated):
            raise GdrdError(
                f"an open set needs probes of known and of unknown people; {faces.root} has {mated.sum()} and "
                f"{(~mated).sum()}, with {counted(len(gallery), 'face')} in the gallery; give more people, and more "
                "images of each than are enrolled",
                "open-set-probes",
            )
        about: dict[str, Any] = {"n_skipped": len(faces.skipped), "skipped": list(faces.skipped)}
        return cls(faces, faces.labels, gallery, probes, config.templates, about)

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer by the cosine of its embeddings; `gallery` has the embeddings of enrolled faces."""
        ids, people = self.labels[self.probes], self.labels[self.gallery]
        enrolled = (embeddings if gallery is None else gallery)[self.gallery]
        shown = np.arange(len(people))
        if self.as_templates:
            people, shown, numbers = np.unique(people, return_index=True, return_inverse=True)
            enrolled = class_means(enrolled, numbers)
        searches = identification.search(embeddings[self.probes], ids, enrolled, people)
        right, known = searches.right[searches.mated], ids[searches.mated]
        tpir, spread = identification.tpir_figures(searches, ids, seed=seed)
        intervals = {"rank_1": percents(bootstrap.of_mean(right, known, seed=seed)), **spread}
        metrics: dict[str, Metric] = {
            "rank_1": percent(right.mean()), "tpir_at_fpir": tpir,
            "n_gallery": len(np.unique(people)), "n_mated": len(known), "n_unmated": len(ids) - len(known),
            "n_unknown_people": len(np.unique(ids[~searches.mated])),
        }  # fmt: skip
        arrays = searches._asdict() | {"nearest": self.gallery[shown[searches.nearest]]}
        return Result(metrics, intervals, arrays)

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays that are the same for every row: names and people of all faces, and rows of gallery and probes."""
        return {
            "names": np.array(self.faces.names), "labels": self.labels, "gallery": self.gallery, "probes": self.probes,
        }  # fmt: skip

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """The DET curves."""
        caption = "Known people who are missed or taken for others (FNIR) over unknown people who are accepted (FPIR)."
        return [det(results, caption, x="FPIR: unknown people accepted", y="FNIR: known people missed")]

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """The most similar strangers of a row, and known people who are mistaken for others."""
        searches = searches_of(result)
        lines: list[list[np.ndarray]] = []
        frames: list[list[Frame]] = []
        for chosen in (~searches.mated, searches.mated & ~searches.right):
            rows = np.flatnonzero(chosen)[np.argsort(-searches.best[chosen], kind="stable")[:SHOWN]]
            lines += [[render(self.probes[row]) for row in rows], [self.faces[searches.nearest[row]] for row in rows]]
            mates = searches.mated[rows]
            frames += [[GREEN if mate else RED for mate in mates], [None] * len(rows)]
        shown = [(line, frame) for line, frame in zip(lines, frames) if line]
        return grid(*map(list, zip(*shown))), (
            "Probes as the model receives them, each over the face of the gallery that it is most similar to: unknown "
            "people (red), the most similar first, and known people who are taken for somebody else (green)."
        )


def searches_of(result: Result) -> Searches:
    """The searches stored in the arrays of a result."""
    return Searches(**{name: result.arrays[name] for name in Searches._fields})


def det(results: Mapping[str, Result], caption: str, *, x: str, y: str) -> Figure:
    """The DET curves of all rows, FNIR over FPIR, with the axis labels `x` and `y`."""
    lines = {}
    for name, result in results.items():
        fpir, fnir = identification.fnir_over_fpir(searches_of(result))
        lines[name] = fpir[fpir > 0], fnir[fpir > 0]
    return Figure("det.png", draw_lines(lines, x=x, y=y, log=True), caption)

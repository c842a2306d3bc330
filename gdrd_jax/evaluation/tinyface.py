"""The TinyFace protocol: find a probe's mates among a gallery with distractors."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation import bootstrap, mat_lists, retrieval
from gdrd_jax.evaluation.interface import Figure, ReportedProtocol
from gdrd_jax.evaluation.report import GREEN, RED, draw_lines
from gdrd_jax.evaluation.result import Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.pictures import grid
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger(__name__)
RANKS = (1, 5, 10)
LONGEST = 50  # of the CMC curve
SHOWN, NEAREST = 6, 5
PROBE, MATCH, DISTRACTOR = "Probe", "Gallery_Match", "Gallery_Distractor"
ALIGNED = "Crops aligned to 112x112 by others, such as AdaFace's aligned_pad_0.1_pad_high"
STRETCHED = "TinyFace's own crops, stretched to the model's input, not aligned"
LISTS = {PROBE: ("probe_img_ID_pairs.mat", "probe"), MATCH: ("gallery_match_img_ID_pairs.mat", "gallery")}


@protocols.register("tinyface")
@dataclasses.dataclass(frozen=True)
class TinyFace(ReportedProtocol):
    """Testing_Set/{Probe,Gallery_Match,Gallery_Distractor} at any depth, with or without the two .mat lists.

    Probes are searched for in a gallery with distractors. AdaFace's repository (arXiv 2204.00964,
    validation_lq/validate_tinyface.py) has other crops, aligned_pad_0.1_pad_high/Probe and so on, aligned to 112x112.

    Attributes:
      faces: all of them.
      ids: int `[N]`; -1 for distractors.
      probes, gallery: rows of `faces`.
      about: counts and remarks for the report.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          aligned: the crops are aligned to 112x112, such as AdaFace's aligned_pad_0.1_pad_high; others are refused.
        """

        aligned: bool = False

    faces: Faces
    ids: np.ndarray
    probes: np.ndarray
    gallery: np.ndarray
    about: dict[str, Any]

    title = "TinyFace"
    files = ("cmc.png",)
    main = "rank_1"
    columns = {
        "rank_1": "rank-1 %", "rank_5": "rank-5 %", "rank_10": "rank-10 %", "map": "mAP %", "map_step": "mAP % (step)",
    }  # fmt: skip
    legend = (
        "Rank-k: share of probes with a mate among the k most similar gallery faces, distractors included; a stranger "
        "as similar as a mate comes first. mAP: mean over probes of the area under precision over recall by "
        "trapezoids, as TinyFace's own toolkit has it; step: without them, as scikit-learn has it."
    )

    @classmethod
    def open(cls, data: Path, config: Any = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Identities are those of the two `.mat` lists beside the folders, if they exist, else a file's name up to "_".

        TinyFace's own faces are about 20x16 pixels, not aligned, and are stretched to the input. A probe without a mate
        is an error, see `ReportedProtocol.open`.
        """
        files = list_files(data)
        rows: dict[str, list[int]] = {PROBE: [], MATCH: [], DISTRACTOR: []}
        for row, name in enumerate(files.names):
            parent = PurePosixPath(name).parent.name
            if parent in rows and is_image(files, row):
                rows[parent].append(row)
        for kind in (PROBE, MATCH):
            if not rows[kind]:
                raise GdrdError(
                    f"{data} has no images in a folder {kind!r}; TinyFace's layout is Testing_Set/{kind}/",
                    "tinyface-folder",
                )
        identity: dict[int, int] = {}
        skipped: list[tuple[str, str]] = []
        for kind, listing in LISTS.items():
            listed, absent = _identities(files, rows[kind], *listing)
            unlisted = [files.names[row] for row in rows[kind] if row not in listed]
            if absent and not skip_bad:
                raise GdrdError(
                    f"{listing[0]} names {counted(len(absent), 'image')} that {kind} does not hold, the first "
                    f"{absent[0]!r}",
                    "tinyface-missing",
                )
            if unlisted and not skip_bad:
                raise GdrdError(
                    f"{listing[0]} does not name {counted(len(unlisted), 'image')} of {kind}, the first "
                    f"{unlisted[0]!r}",
                    "tinyface-unlisted",
                )
            rows[kind] = [row for row in rows[kind] if row in listed]
            identity |= listed
            skipped += [(name, "it is missing") for name in absent]
            skipped += [(name, f"{listing[0]} does not name it") for name in unlisted]
        chosen = np.array([*rows[PROBE], *rows[MATCH], *rows[DISTRACTOR]])
        usable = checked(files.take(chosen), stretch=not (config and config.aligned), skip_bad=skip_bad)
        number = {name: row for row, name in zip(chosen, files.take(chosen).names)}
        ids = np.array([identity.get(number[name], -1) for name in usable.names])
        kinds = np.array([PurePosixPath(name).parent.name for name in usable.names])
        mated = np.isin(ids, ids[kinds == MATCH])
        lonely = np.flatnonzero((kinds == PROBE) & ~mated)
        if len(lonely) and not skip_bad:
            raise GdrdError(
                f"{MATCH} has no mate for {counted(len(lonely), 'probe')}, the first {usable.names[lonely[0]]!r}",
                "tinyface-no-mate",
            )
        skipped += [*usable.skipped, *((usable.names[row], "it has no mate in the gallery") for row in lonely)]
        if skipped:
            LOG.warning("left out: %s", counted(len(skipped), "face"))
        probes, gallery = np.flatnonzero((kinds == PROBE) & mated), np.flatnonzero(kinds != PROBE)
        if not len(probes):
            raise GdrdError(f"no probe of {data} has a mate in the gallery", "tinyface-no-probes")
        about = {
            "n_probes": len(probes), "n_gallery": len(gallery), "n_distractors": int((kinds == DISTRACTOR).sum()),
            "n_skipped": len(skipped), "skipped": skipped,
            "alignment": ALIGNED if config and config.aligned else STRETCHED,
        }  # fmt: skip
        return cls(usable, ids, probes, gallery, about)

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one model by the cosine of its embeddings, float `[N, D]`, unit length.

        `gallery` are those of the same faces as they are in the gallery; None where they are the same.
        """
        ids, enrolled = self.ids[self.probes], (embeddings if gallery is None else gallery)[self.gallery]
        ranks = retrieval.mate_ranks(embeddings[self.probes], ids, enrolled, self.ids[self.gallery])
        shares = {f"rank_{k}": retrieval.rank_k(ranks, k) for k in RANKS}
        shares["map"] = retrieval.average_precision_trapezoid(ranks)
        shares["map_step"] = retrieval.average_precision(ranks)
        metrics = {name: percent(values.mean()) for name, values in shares.items()}
        metrics |= {key: self.about[key] for key in ("n_probes", "n_gallery", "n_distractors")}
        intervals = {name: percents(bootstrap.of_mean(values, ids, seed=seed)) for name, values in shares.items()}
        arrays = {
            "rank_of_first_mate": np.array([r[0] for r in ranks]), "average_precision": shares["map"],
            "average_precision_step": shares["map_step"], "cmc": retrieval.cmc(ranks, LONGEST),
            "nearest": self._nearest(embeddings, enrolled, ranks),
        }  # fmt: skip
        return Result(metrics, intervals, arrays)

    def _nearest(self, embeddings: np.ndarray, enrolled: np.ndarray, ranks: list[np.ndarray]) -> np.ndarray:
        """The probes that fail worst and, after each, the gallery faces nearest to it: rows, int `[S, 1 + K]`."""
        worst = np.argsort([-r[0] for r in ranks], kind="stable")[:SHOWN]
        scores = embeddings[self.probes[worst]] @ enrolled.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]
        return np.concatenate([self.probes[worst, None], self.gallery[best]], axis=1)

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the arrays of every row belong to."""
        return {"probe": np.array(self.faces.names)[self.probes], "identity": self.ids[self.probes]}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Of each probe, by the face that is most similar."""
        people = self.ids[self.probes]
        return result.arrays["rank_of_first_mate"] == 1, np.stack([people, people], axis=1)

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """The CMC curves."""
        lines = {name: (np.arange(1, LONGEST + 1), 100 * result.arrays["cmc"]) for name, result in results.items()}
        png = draw_lines(lines, x="rank", y="probes with a mate by that rank, %")
        return [Figure("cmc.png", png, "Cumulative match characteristic.")]

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """The worst probes of a row beside what was taken for their mates."""
        rows = result.arrays["nearest"]
        mate = [next(g for g in self.gallery if self.ids[g] == self.ids[line[0]]) for line in rows]
        lines = [[render(row) for row in (line[0], m, *line[1:])] for line, m in zip(rows, mate)]
        frames = [
            [None, GREEN, *(GREEN if self.ids[g] == self.ids[line[0]] else RED for g in line[1:])] for line in rows
        ]
        caption = (
            "The probes whose mate comes last, as the model receives them: the probe, a mate of it, and the gallery "
            "faces that are most similar, green for its own."
        )
        return grid(lines, frames), caption


def _identities(files: Faces, rows: list[int], mat: str, prefix: str) -> tuple[dict[int, int], list[str]]:
    """Row to identity, and names in the list that are not among the rows."""
    check_unique(files, rows, lambda name: PurePosixPath(name).name)
    by_name = {PurePosixPath(files.names[row]).name: row for row in rows}
    found = mat_lists.find(files, mat)
    if found is None:
        ids = {}
        for name, row in by_name.items():
            person = name.split("_")[0]
            if not person.isdecimal():
                raise GdrdError(
                    f"{files.where(row)}: TinyFace's names begin with the identity's number and _", "tinyface-name"
                )
            ids[row] = int(person)
        return ids, []
    people = mat_lists.read_identities(files, found, prefix)
    ids = {by_name[name]: person for name, person in people.items() if name in by_name}
    return ids, [name for name in people if name not in by_name]

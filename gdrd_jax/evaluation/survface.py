"""QMUL-SurvFace: faces of surveillance cameras, about 24x20 pixels, as they were detected; 1:1 and open-set 1:N.

Cheng, Zhu and Gong, Surveillance Face Recognition Challenge, arXiv 1804.09691 (https://qmul-survface.github.io). The
lists are .mat files: Face_Verification_Test_Set/{positive,negative}_pairs_names.mat, and
Face_Identification_Test_Set/{gallery,mated_probe}_img_ID_pairs.mat; unmated probes are the images of the folder
unmated_probe, which no list names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation import bootstrap, identification, mat_lists, retrieval
from gdrd_jax.evaluation.closed_set import class_means
from gdrd_jax.evaluation.identification import Searches
from gdrd_jax.evaluation.interface import Figure, ReportedProtocol
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.open_set import det
from gdrd_jax.evaluation.pair_files import Pair, image_name, without_folds
from gdrd_jax.evaluation.result import Metric, Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.texts import counted

STRETCHED = "SurvFace's own crops, stretched to the model's input, not aligned"
PAIRS = {"positive_pairs_names": True, "negative_pairs_names": False}
VERIFICATION = "verification_images"
GALLERY, MATED, UNMATED = "gallery", "mated_probe", "unmated_probe"
FARS = (0.3, 1e-1, 1e-2, 1e-3)  # those of the paper
FPIRS = (0.3, 0.2, 0.1, 0.01)
RANK = 20  # of a mate that counts as found


@protocols.register("survface")
class SurvFacePairs(PairList):
    """Face_Verification_Test_Set of QMUL-SurvFace: verification_images, and the two .mat lists of pairs.

    Pairs are divided into ten folds as LFW's are.
    """

    title, fars = "QMUL-SurvFace, verification", FARS
    columns = {
        "accuracy": "accuracy %", "best_threshold_accuracy": "best threshold %", "auc": "AUC %", "eer": "EER %",
        **{f"tar_at_far.{far:g}": f"TAR % at FAR {far:g}" for far in FARS},
    }  # fmt: skip

    @classmethod
    def open(cls, data: Path, config: object = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Faces are of any size and are stretched to the input; see `ReportedProtocol.open`."""
        files = list_files(data)
        listed = []
        for variable, same in PAIRS.items():
            row = _list(files, f"{variable}.mat")
            for first, second in mat_lists.read_pairs(files, row, variable):
                people = _person(first), _person(second)
                if (people[0] == people[1]) != same:
                    raise GdrdError(
                        f"{files.where(row)} has the pair {first} {second}, whose names are of "
                        f"{'two people' if same else 'one person'}",
                        "survface-list",
                    )
                listed.append(Pair((image_name(first), image_name(second)), people, same, 0))
        images = files.take([row for row, name in enumerate(files.names) if _folder(name) == VERIFICATION])
        found = cls.of_listed(images, without_folds(listed), data, stretch=True, skip_bad=skip_bad)
        found.about["alignment"] = STRETCHED
        return found


@protocols.register("survface_search")
@dataclasses.dataclass(frozen=True)
class SurvFaceSearch(ReportedProtocol):
    """Face_Identification_Test_Set of QMUL-SurvFace: gallery, mated_probe, unmated_probe, and two .mat lists.

    A probe is compared with the mean of the gallery's embeddings of each person.

    Attributes:
      faces: all N faces.
      ids: people, int `[N]`; -1 for unmated probes.
      gallery, probes: rows of `faces`.
      about: see `ReportedProtocol`.
    """

    faces: Faces
    ids: np.ndarray
    gallery: np.ndarray
    probes: np.ndarray
    about: dict[str, Any]

    title, files = "QMUL-SurvFace, open-set identification", ("det.png",)
    main = f"tpir_at_fpir.{FPIRS[2]:g}"
    columns = {"rank_1": "rank-1 %", **{f"tpir_at_fpir.{fpir:g}": f"TPIR20 % at FPIR {fpir:g}" for fpir in FPIRS}}
    legend = (
        f"TPIR20 at FPIR: share of the probes of people in the gallery whose person is among the {RANK} most similar "
        "and is accepted, where at most so many of the probes of others have any accepted person. Rank-1: share whose "
        "person is the most similar. The gallery has one template a person, the mean of the embeddings."
    )

    @classmethod
    def open(cls, data: Path, config: object = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Faces are of any size and are stretched to the input; see `ReportedProtocol.open`."""
        files = list_files(data)
        rows: dict[str, list[int]] = {kind: [] for kind in (GALLERY, MATED, UNMATED)}
        for row, name in enumerate(files.names):
            if (kind := _folder(name)) in rows and is_image(files, row):
                rows[kind].append(row)
        identity: dict[int, int] = {}
        skipped: list[tuple[str, str]] = []
        for kind in (GALLERY, MATED):
            check_unique(files, rows[kind], lambda name: PurePosixPath(name).name)
            by_name = {PurePosixPath(files.names[row]).name: row for row in rows[kind]}
            list_row = _list(files, f"{kind}_img_ID_pairs.mat")
            listed = mat_lists.read_identities(files, list_row, kind)
            absent = [name for name in listed if name not in by_name]
            if absent and not skip_bad:
                raise GdrdError(
                    f"{files.where(list_row)} names {counted(len(absent), 'image')} that {kind} does not hold, the "
                    f"first {absent[0]!r}; check --data, or leave them out with --skip-bad",
                    "survface-missing",
                )
            skipped += [(name, "it is missing") for name in absent]
            rows[kind] = [by_name[name] for name in listed if name in by_name]
            identity |= {by_name[name]: person for name, person in listed.items() if name in by_name}
        chosen = [*rows[GALLERY], *rows[MATED], *rows[UNMATED]]
        usable = checked(files.take(chosen), stretch=True, skip_bad=skip_bad)
        number = {files.names[row]: row for row in chosen}
        ids = np.array([identity.get(number[name], -1) for name in usable.names], int)
        kinds = np.array([_folder(name) for name in usable.names])
        lonely = np.flatnonzero((kinds == MATED) & ~np.isin(ids, ids[kinds == GALLERY]))
        if len(lonely) and not skip_bad:
            raise GdrdError(
                f"{GALLERY} does not have the people of {counted(len(lonely), 'probe')} of {MATED}, the first "
                f"{usable.names[lonely[0]]!r}",
                "survface-no-mate",
            )
        skipped += [*usable.skipped, *((usable.names[row], "its person is not in the gallery") for row in lonely)]
        kept = np.setdiff1d(np.flatnonzero(kinds != GALLERY), lonely)
        if not 0 < (ids[kept] >= 0).sum() < len(kept):
            raise GdrdError(
                f"{data} needs probes in {MATED} and in {UNMATED}; QMUL-SurvFace's layout is "
                f"Face_Identification_Test_Set/{{{GALLERY},{MATED},{UNMATED}}}/IMAGE",
                "survface-probes",
            )
        about = {
            "alignment": STRETCHED, "n_skipped": len(skipped), "skipped": skipped,
            "drawn": f"people, and the images of {UNMATED} one by one (no list says who is in them)",
        }  # fmt: skip
        return cls(usable, ids, np.flatnonzero(kinds == GALLERY), kept, about)

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer by the cosine of its embeddings; `gallery` is that of enrolled faces."""
        people, numbers = np.unique(self.ids[self.gallery], return_inverse=True)
        enrolled = class_means((embeddings if gallery is None else gallery)[self.gallery], numbers)
        ids, probes = self.ids[self.probes], embeddings[self.probes]
        searches, ranks = ranked(probes, ids, enrolled, people, RANK)
        known, first = ids[searches.mated], ranks == 1
        owners = np.where(searches.mated, ids, -1 - np.arange(len(ids)))
        tpir, spread = identification.tpir_figures(searches, owners, FPIRS, seed=seed)
        intervals = {"rank_1": percents(bootstrap.of_mean(first, known, seed=seed)), **spread}
        metrics: dict[str, Metric] = {
            "rank_1": percent(first.mean()), "tpir_at_fpir": tpir,
            "n_gallery": len(people), "n_mated": len(known), "n_unmated": len(ids) - len(known),
        }  # fmt: skip
        return Result(metrics, intervals, searches._asdict() | {"rank": ranks})

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the arrays of every row belong to."""
        return {"probe": np.array(self.faces.names)[self.probes], "identity": self.ids[self.probes]}

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """FNIR over FPIR."""
        caption = "Mated probes that are missed (FNIR) over unmated ones that are accepted (FPIR)."
        missed = f"FNIR: mated probes missed (rank {RANK})"
        return [det(results, caption, x="FPIR: unmated probes accepted", y=missed)]


def ranked(
    probes: np.ndarray, ids: np.ndarray, templates: np.ndarray, people: np.ndarray, rank: int
) -> tuple[Searches, np.ndarray]:
    """Searches in which a mate counts as found among the `rank` most similar, at its own similarity.

    Args:
      probes: float `[P, D]`, unit length.
      ids: people of the probes, int `[P]`.
      templates: one of each person, float `[G, D]`, unit length.
      people: of the templates, rising, int `[G]`.
      rank: 1 or more.

    Returns:
      `best` is the mate's similarity of mated probes, and the highest one of others; and the ranks of the mates of
      mated probes, int `[M]`.
    """
    at = np.searchsorted(people, ids).clip(max=len(people) - 1)
    mated = people[at] == ids
    found = identification.search(probes, ids, templates, people)
    ranks = np.array([of[0] for of in retrieval.mate_ranks(probes[mated], ids[mated], templates, people)], int)
    best, right = found.best.copy(), np.zeros(len(ids), bool)
    best[mated] = np.einsum("pd,pd->p", probes[mated], templates[at[mated]])
    right[mated] = ranks <= rank
    return Searches(best, found.nearest, right, mated), ranks


def _list(files: Faces, name: str) -> int:
    row = mat_lists.find(files, name)
    if row is None:
        raise GdrdError(f"{files.root} has no list {name}; give QMUL-SurvFace's folder as --data", "survface-list")
    return row


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name


def _person(image: str) -> str:
    return PurePosixPath(image).name.split("_")[0]

"""The LFW protocol: are both faces of a pair of one person? Also InsightFace's `.bin` sets (CFP-FP, AgeDB-30)."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.insightface_bin import read_bin
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation import bootstrap, discard, verification
from gdrd_jax.evaluation.interface import Figure, NativeFloor, ReportedProtocol
from gdrd_jax.evaluation.pair_files import Pair, find_images, read_pairs
from gdrd_jax.evaluation.report import GREEN, RED, draw_lines
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import FARS, Pairs, cosines, hardest_pairs
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.pictures import Frame, grid
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger(__name__)
BIN_FOLDS = 10
SHOWN = 6  # pairs a line of the picture
# Accuracy that the weakest recognizers of 112x112 faces pass on LFW when they are fed rightly.
FLOOR = NativeFloor(90.0, "recognizers have 95 % and more on LFW's own pairs (less on CALFW, CPLFW and XQLFW)")


@dataclasses.dataclass(frozen=True)
class PairList(ReportedProtocol):
    """Pairs of faces in folds.

    Attributes:
      faces: every face of a pair, once; as an array where they have been reduced, uint8 `[N, R, R, 3]`.
      first, second: rows of `faces`, int `[P]`.
      same: bool `[P]`, True for a genuine pair.
      folds: int `[P]`.
      people: int `[P, 2]`, who is in a pair; pairs of one another's people are not independent.
      about: counts and remarks for the report.
    """

    faces: Faces | np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    people: np.ndarray
    about: dict[str, Any]

    main, fars = "accuracy", FARS
    files = ("edc.png",)
    judges_quality = True
    columns = {
        "accuracy": "accuracy %", "accuracy_std_error": "± std. error", "best_threshold_accuracy": "best threshold %",
        "auc": "AUC %", "eer": "EER %", "tar_at_far.0.01": "TAR % at FAR 1e-2", "tar_at_far.0.001": "TAR % at FAR 1e-3",
    }  # fmt: skip
    legend = (
        "Accuracy: mean over the folds of the share of right decisions in a fold, at the threshold that is best on the "
        "other folds, and the standard error of that mean. Best threshold: the share at the one threshold that is best "
        "on all pairs (chosen on what it judges; papers often report this). AUC: area under the ROC curve. EER: equal "
        "error rate. TAR at FAR: share of genuine pairs accepted where at most so many impostors are."
    )

    @property
    def named_faces(self) -> Faces:
        """`faces`, where they have not been reduced to an array."""
        if isinstance(self.faces, np.ndarray):
            raise TypeError("an array of faces has no names")
        return self.faces

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one model by the cosine of its embeddings.

        Args:
          embeddings: float `[N, D]`, unit length.
          gallery: of the same faces as they are in a gallery, `[N, D]`. Then each pair is compared twice, with either
            face as the probe, and all figures are of both orders together.
          seed: of the bootstrap.
        """
        pairs = self.score(embeddings, gallery)
        orders = len(pairs.scores) // len(self.same)
        folds, people = np.tile(self.folds, orders), np.tile(self.people, (orders, 1))
        found = bootstrap.of_pairs(pairs, people[:, 0], people[:, 1], folds, self.fars, seed=seed)
        metrics = verification.pair_metrics(pairs, folds=folds, fars=self.fars)
        return verification.result(pairs, metrics, found)

    def score(self, embeddings: np.ndarray, gallery: np.ndarray | None = None) -> Pairs:
        """The pairs with the cosine of their embeddings; arguments as of `evaluate`."""
        orders = [(embeddings, embeddings)] if gallery is None else [(embeddings, gallery), (gallery, embeddings)]
        return self._pairs(np.concatenate([cosines(a, b, self.first, self.second) for a, b in orders]))

    def with_quality(self, result: Result, quality: np.ndarray, *, seed: int) -> Result:
        """The error-versus-discard curve, see `evaluation.discard`; a pair has the quality of its worse probe."""
        pairs = self._pairs(result.arrays["scores"])
        orders = len(pairs.scores) // len(self.same)
        first, second = quality[self.first], quality[self.second]
        # Compared with a gallery of good faces, a pair has one probe: the first face, and then the second one.
        of_pairs = np.minimum(first, second) if orders == 1 else np.concatenate([first, second])
        return discard.with_curve(result, pairs, of_pairs, np.tile(self.people, (orders, 1)), seed=seed)

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """The error-versus-discard curves of the rows whose model says how recognizable a face is."""
        lines = {}
        for name, result in results.items():
            if "quality" in result.arrays:
                pairs = self._pairs(result.arrays["scores"])
                wrong = discard.false_rejects(pairs)[pairs.same]
                rates = discard.curve(result.arrays["quality"][pairs.same], wrong, discard.PLOTTED)
                low, high = result.intervals["edc_area"]
                area = f"mean to {100 * discard.LIMIT:g} %: {result.figure('edc_area'):.1f} % ({low:.1f} to {high:.1f})"
                lines[f"{name}, {area}"] = 100 * discard.PLOTTED, 100 * rates
        if not lines:
            return []
        caption = (
            "Error versus discard: the share of genuine pairs that are falsely rejected, at the threshold of a false "
            f"accept rate of {discard.FMR:g} on all pairs, when those of the lowest quality are discarded. The quality "
            "of a pair is the lower one of its two probes'; random scores would leave the rate as it is on the left."
        )
        x, y = "genuine pairs discarded, %", f"false rejects at FAR {discard.FMR:g}, %"
        return [Figure("edc.png", draw_lines(lines, x=x, y=y), caption)]

    def _pairs(self, scores: np.ndarray) -> Pairs:
        """Scores of all pairs, or of all pairs in one order and then in the other."""
        return Pairs(scores, np.tile(self.same, len(scores) // len(self.same)))

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the scores of a row belong to; rows of two resolutions have them twice, one order after the other."""
        names = np.array(self.named_faces.names)
        return {"same": self.same, "fold": self.folds, "first": names[self.first], "second": names[self.second]}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair, at the threshold that is best on the other folds."""
        pairs = self._pairs(result.arrays["scores"])
        orders = len(pairs.scores) // len(self.same)
        return verification.fold_decisions(pairs, np.tile(self.folds, orders)), np.tile(self.people, (orders, 1))

    def curves(self, results: Mapping[str, Result]) -> Mapping[str, Pairs]:
        """ROC of every row."""
        return {name: self._pairs(result.arrays["scores"]) for name, result in results.items()}

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """The hardest pairs of a row; `render` gives a face as the model receives it."""
        scores = result.arrays["scores"].reshape(-1, len(self.same)).mean(axis=0)
        lines: list[list[np.ndarray]] = []
        frames: list[list[Frame]] = []
        for genuine, color in ((False, RED), (True, GREEN)):
            hardest = hardest_pairs(scores, self.same, genuine, SHOWN)
            both = [row for pair in hardest for row in (self.first[pair], self.second[pair])]
            lines += [[self.faces[row] for row in both], [render(row) for row in both]]
            frames += [[color] * len(both), [None] * len(both)]
        caption = (
            "Hardest pairs, two faces each. Red: the impostors with the highest scores (false accepts); green: the "
            "genuine pairs with the lowest (false rejects). Under each face is the model's input."
        )
        return grid(lines, frames), caption

    @classmethod
    def of_listed(
        cls, files: Faces, listed: Sequence[Pair], where: Path, *, stretch: bool = False, skip_bad: bool = False
    ) -> Self:
        """The pairs of a list.

        Args:
          files: among which the images are, see `pair_files.find_images`.
          listed: the pairs.
          where: the list, for messages and the report.
          stretch, skip_bad: see `ReportedProtocol.open`.

        Raises:
          GdrdError: an image is missing, damaged or there twice, or all pairs are of one kind.
        """
        wanted = {name for pair in listed for name in pair.images}
        found = {
            name: images for name, rows in find_images(files.names, wanted).items()
            if (images := [row for row in rows if is_image(files, row)])
        }  # fmt: skip
        for name, rows in sorted(found.items()):
            check_unique(files, rows, lambda _: name)
        absent = sorted(wanted - found.keys())
        if absent and not skip_bad:
            raise GdrdError(
                f"{where} names {counted(len(absent), 'image')} that {files.root} does not hold, the first "
                f"{absent[0]!r}; check --data, or leave their pairs out with --skip-bad",
                "pair-image-missing",
            )
        if not found:
            raise GdrdError(f"{files.root} holds none of the images that {where} names", "pair-images-none")
        chosen = sorted(found)
        usable = checked(files.take([found[name][0] for name in chosen]), stretch=stretch, skip_bad=skip_bad)
        name_of = {files.names[found[name][0]]: name for name in chosen}
        row_of = {name_of[file]: row for row, file in enumerate(usable.names)}
        kept = [pair for pair in listed if all(name in row_of for name in pair.images)]
        skipped = [(name, "it is missing") for name in absent] + list(usable.skipped)
        people = {person: i for i, person in enumerate(sorted({person for pair in kept for person in pair.people}))}
        about = {"pairs": str(where), "n_skipped": len(listed) - len(kept), "skipped": skipped}
        if all(a == b for a, b in (pair.people for pair in listed)):
            about["drawn"] = "pairs (the list does not say who is in them)"
        return cls._checked(
            usable, [[row_of[name] for name in pair.images] for pair in kept], [pair.same for pair in kept],
            [pair.fold for pair in kept], [[people[person] for person in pair.people] for pair in kept], about,
        )  # fmt: skip

    @classmethod
    def _checked(
        cls,
        faces: Faces,
        rows: Sequence[Sequence[int]],
        same: Sequence[bool] | np.ndarray,
        folds: Sequence[int] | np.ndarray,
        people: Sequence[Sequence[int]],
        about: dict[str, Any],
    ) -> Self:
        same, folds = np.asarray(same, bool), np.asarray(folds, int)
        if not same.any() or same.all():
            bad = about["skipped"]
            left_out = f"; {counted(len(bad), 'face')} left out, the first because {bad[0][1]}" if bad else ""
            raise GdrdError(
                f"verification needs genuine and impostor pairs; there are {same.sum()} and {(~same).sum()}{left_out}",
                "pairs-one-kind",
            )
        several = (
            [(same[folds == fold], same[folds != fold]) for fold in np.unique(folds)] if len(set(folds)) > 1 else []
        )
        if any(not others.any() or others.all() for _, others in several):
            raise GdrdError(
                "outside of one fold all pairs are genuine, or all impostors: no threshold can be learned",
                "pairs-fold-one-kind",
            )
        if any(not own.any() or own.all() for own, _ in several):
            about["remark"] = (
                "A fold has genuine or impostor pairs only: mix them, or look at the best threshold alone."
            )
            LOG.warning(about["remark"])
        if about["n_skipped"]:
            LOG.warning(
                "left out: %s because of %s",
                counted(about["n_skipped"], "pair"),
                counted(len(about["skipped"]), "bad face"),
            )
        first, second = np.array(rows, int).T
        return cls(faces, first, second, same, folds, np.array(people, int), about)


@protocols.register("lfw")
class LFW(PairList):
    """NAME/NAME_0001.jpg at any depth, with --pairs: LFW's pairs.txt, or the list of another benchmark of pairs."""

    title = "LFW"
    native_floor = FLOOR

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          pairs: file with the list of pairs: LFW's pairs.txt, Kaggle's pairs.csv, lines "IMAGE FLAG" as of CALFW and
            CPLFW, or lines "PATH1 PATH2 LABEL".
        """

        pairs: str = ""

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Images anywhere under a folder, in a tar or a store; see `ReportedProtocol.open`."""
        if not config.pairs:
            raise GdrdError("the protocol lfw needs the list of pairs: --pairs pairs.txt", "pairs-not-given")
        pairs = user_path(config.pairs)
        listed = read_pairs(pairs)
        return cls.of_listed(list_files(data), listed, pairs, stretch=stretch, skip_bad=skip_bad)


@protocols.register("bin")
@dataclasses.dataclass(frozen=True)
class Bin(PairList):
    """An InsightFace .bin (lfw, cfp_fp, agedb_30).

    Attributes:
      title: name of the file.
      native_floor: LFW's, if the file is LFW.
    """

    title: str = "bin"
    native_floor: NativeFloor | None = None

    @classmethod
    def open(cls, data: Path, config: object = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Pairs are divided into ten folds in the order of the file, as InsightFace does; errors as of `read_bin`."""
        faces, same = read_bin(data)
        usable = checked(faces, stretch=stretch, skip_bad=skip_bad)
        row_of = {name: row for row, name in enumerate(usable.names)}
        folds = np.empty(len(same), int)
        for fold, rows in enumerate(np.array_split(np.arange(len(same)), min(BIN_FOLDS, len(same)))):
            folds[rows] = fold
        kept = [i for i in range(len(same)) if all(faces.names[2 * i + side] in row_of for side in (0, 1))]
        about = {
            "n_skipped": len(same) - len(kept), "skipped": list(usable.skipped),
            "drawn": "pairs (a .bin does not say who is in them)",
        }  # fmt: skip
        listed = cls._checked(
            usable, [[row_of[faces.names[2 * i + side]] for side in (0, 1)] for i in kept], same[kept], folds[kept],
            [[i, i] for i in kept], about,
        )  # fmt: skip
        return dataclasses.replace(listed, title=data.name, native_floor=FLOOR if data.stem == "lfw" else None)

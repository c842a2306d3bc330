"""What judges the models of a grid: the dev pairs, and any protocols of `gdrd evaluate`.

Models that are not trained, such as T_d on enlarged faces, are judged in the same way (`of_model`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gdrd_jax.data import readers
from gdrd_jax.data.degradation import Degradation
from gdrd_jax.evaluation import dev, verification
from gdrd_jax.evaluation.evaluate import Row as Evaluated
from gdrd_jax.evaluation.evaluate import evaluate
from gdrd_jax.evaluation.grid_rows import DEV, STAND_IN, Judged, Row
from gdrd_jax.evaluation.interface import ReportedProtocol
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.run import open_protocol
from gdrd_jax.evaluation.settings import Settings, check_resolution
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest


def judged_pairs(
    scores: np.ndarray, same: np.ndarray, folds: np.ndarray, faces: np.ndarray, people: np.ndarray | None
) -> Judged:
    """What a model decided on pairs in folds.

    Args:
      scores, same, folds: `[P]`.
      faces: of each pair, rows or names, `[2, P]`.
      people: of each pair, int `[P, 2]`; None where they are not known.
    """
    require_folds(folds)
    pairs = Pairs(scores, same)
    right = verification.fold_decisions(pairs, folds)
    return Judged(right, people, subject_of_pairs(faces, same), {"auc": 100 * verification.auc(pairs)}, pairs)


def require_folds(folds: np.ndarray) -> None:
    """Refuses pairs without folds, by which the accuracy is defined."""
    if not np.ptp(folds):
        raise GdrdError(
            "the dev pairs have no folds; give LFW with --config.dev.path and --config.dev.pairs", "dev-folds"
        )


def subject_of_pairs(faces: np.ndarray, same: np.ndarray) -> str:
    """Fingerprint of pairs of faces, rows (of training) or names (of evaluation) `[2, P]`, numbered as they appear."""
    _, first, inverse = np.unique(faces, return_index=True, return_inverse=True)
    numbered = np.argsort(np.argsort(first))[inverse].reshape(faces.shape)
    return digest({"faces": numbered.tolist(), "same": np.asarray(same).tolist()})[:16]


def of_training(stage: Path) -> Judged:
    """What the student of a stage decided on the dev pairs at the end of its training.

    Raises:
      GdrdError: the pairs have no folds, or an earlier version wrote the scores.
    """
    found = np.load(stage / "dev.npz")
    if "people" not in found:
        raise GdrdError(
            f"{stage / 'dev.npz'} is of an earlier version, which did not record who is in the dev pairs; to train it "
            f"again, rename {stage} and run the same command",
            "dev-scores-outdated",
        )
    faces = np.stack([found["first"], found["second"]])
    return judged_pairs(found["scores"], found["same"], found["folds"], faces, found["people"])


def of_model(embedder: Embedder, pairs: PairList, how: Degradation) -> Judged:
    """What a model decides on the dev pairs, whose faces are degraded as in training."""
    row = Evaluated(embedder.name, embedder, how)
    scores = evaluate([row], pairs, seed=dev.SEED)[row.name].arrays["scores"]
    return judged_pairs(scores, pairs.same, pairs.folds, np.stack([pairs.first, pairs.second]), pairs.people)


def of_evaluation(folder: Path) -> dict[str, list[Row]]:
    """The rows of an output of `gdrd evaluate --protocol lfw`, by name.

    Raises:
      GdrdError: it is none, or of a .bin.
    """
    path = folder / "scores.npz"
    if not path.exists():
        raise GdrdError(
            f"--baseline: there is no {path}; give a folder that gdrd evaluate --protocol lfw wrote", "baseline-missing"
        )
    found = np.load(path)
    faces = np.stack([found["first"], found["second"]])
    if len(np.unique(faces)) == faces.size:  # as in a .bin, whose faces have no names
        raise GdrdError(
            "--baseline needs LFW's pairs.txt: the faces of a .bin have no names, so two .bin files cannot be compared",
            "baseline-bin",
        )
    names = [key.removesuffix("/scores") for key in found if key.endswith("/scores")]
    judged = [judged_pairs(found[f"{name}/scores"], found["same"], found["fold"], faces, None) for name in names]
    return {name: [Row(name, None, {DEV: one})] for name, one in zip(names, judged)}


def check_baseline(subject: str, rows: Sequence[Row]) -> None:
    """Makes sure that rows which runs are compared with are of the dev pairs of this fingerprint.

    Raises:
      GdrdError: they are not.
    """
    for row in rows:
        if row.judged[DEV].subject != subject:
            raise GdrdError(
                f"{row.file} holds other pairs than --config.dev.pairs; use the same file for --baseline and for all "
                "rows of --rows",
                "baseline-pairs",
            )


def dev_subject(pairs: PairList) -> str:
    """Fingerprint of the dev pairs.

    Raises:
      GdrdError: they have no folds.
    """
    require_folds(pairs.folds)
    return subject_of_pairs(np.stack([pairs.first, pairs.second]), pairs.same)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A protocol at one resolution.

    Attributes:
      column: in the table.
      settings: of the evaluation, without models.
      resolution: one of its `resolutions`.
      protocol: opened.
    """

    column: str
    settings: Settings
    resolution: str
    protocol: ReportedProtocol

    @classmethod
    def open(cls, settings: Settings) -> "list[Judge]":
        """One for each resolution of the settings; the data are read and checked once.

        Raises:
          GdrdError: the data are damaged, or a resolution names a gallery's, too.
        """
        for resolution in settings.resolutions:
            check_resolution(resolution)
            if ":" in resolution:
                raise GdrdError(
                    f"--evaluate: the resolution {resolution!r} names a gallery, which a grid does not have; give one",
                    "resolution-unknown",
                )
        if protocols[settings.protocol].decisions is ReportedProtocol.decisions:
            raise GdrdError(
                f"--evaluate: the protocol {settings.protocol!r} has no decisions that could be paired; its class "
                "needs the method `decisions`",
                "protocol-decisions",
            )
        protocol, found = open_protocol(settings), []
        for resolution in settings.resolutions:
            several = f" {resolution}" if len(settings.resolutions) > 1 or settings.protocol == DEV else ""
            column = settings.protocol + (STAND_IN if readers.stand_in(settings.data) else "") + several
            found.append(cls(column + (" degraded" if settings.degraded else ""), settings, resolution, protocol))
        return found

    def judged(self, embedder: Embedder) -> Judged:
        """What a model decides."""
        row = Evaluated(embedder.name, embedder, self.settings.degradation(self.resolution))
        result = evaluate([row], self.protocol, seed=self.settings.seed)[row.name]
        right, people = self.protocol.decisions(result)
        subject = {
            "protocol": self.settings.protocol, "faces": self.protocol.faces.fingerprint, "people": people.tolist(),
            "how": str(row.degradation),
        }  # fmt: skip
        further = [key for key in self.protocol.columns if key != self.protocol.main]
        figures = {key: value for key in further if (value := result.figure(key)) is not None}
        return Judged(right, people, digest(subject)[:16], figures)

    def fits(self, side: int) -> bool:
        """Whether a student of this input size in pixels takes such faces: larger ones it would reduce again."""
        return self.resolution == "native" or int(self.resolution) <= side


def columns(embedder: Embedder, wanted: Sequence[Judge], known: Mapping[str, Judged]) -> dict[str, Judged]:
    """What is known of a model, and what it decides under the protocols that are missing."""
    return {**known, **{judge.column: judge.judged(embedder) for judge in wanted if judge.column not in known}}

"""The AR protocol: does light, or something before the face, keep people from being recognized?"""

import dataclasses
import hashlib
import logging
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
from gdrd_jax.evaluation.interface import Figure, ReportedProtocol
from gdrd_jax.evaluation.report import GREEN, RED, draw_bars
from gdrd_jax.evaluation.result import Metric, Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.pictures import Frame, grid
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger(__name__)
NAME = re.compile(r"([mw]-\d{3})-(\d{1,2})", re.IGNORECASE)
GALLERY = (1, 14)  # the neutral images of both sessions
GROUPS = {
    "expression": (2, 3, 4, 15, 16, 17),
    "illumination": (5, 6, 7, 18, 19, 20),
    "eyes": (8, 9, 10, 21, 22, 23),
    "mouth": (11, 12, 13, 24, 25, 26),
}
SHOWN = 8


@protocols.register("ar")
@dataclasses.dataclass(frozen=True)
class AR(ReportedProtocol):
    """m-001-01 ... w-050-26, any image format, at any depth.

    The neutral images are the gallery; the probes are divided into groups.

    Attributes:
      faces: all, labeled.
      numbers: int `[N]`, AR's number of the condition, 1 to 26.
      about: counts and remarks for the report.
    """

    faces: Faces
    numbers: np.ndarray
    about: dict[str, Any]

    title = "AR"
    files = ("groups.png",)
    main = "rank_1"
    columns = {"rank_1": "rank-1 %", **{f"rank_1_{group}": f"{group} %" for group in GROUPS}}
    legend = (
        "Rank-1: share of probes whose nearest gallery face is of the right person. Gallery: the neutral images, 1 and "
        "14 (the paper does not give its split; this is ours). Groups: expression (2-4, 15-17), illumination (5-7, "
        "18-20), eyes behind sunglasses (8-10, 21-23), mouth behind a scarf (11-13, 24-26); rank-1 is over all of them."
    )

    @classmethod
    def open(cls, data: Path, config: object = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Reads AR's names; a person without a neutral image is an error, see `ReportedProtocol.open`."""
        files = list_files(data)
        chosen = [
            row
            for row, name in enumerate(files.names)
            if NAME.fullmatch(PurePosixPath(name).stem) and is_image(files, row)
        ]
        if not chosen:
            raise GdrdError(f"{data} holds no images with AR's names, such as m-001-01.bmp", "ar-no-images")
        check_unique(files, chosen, _condition)
        faces = checked(files.take(chosen), stretch=stretch, skip_bad=skip_bad)
        numbers = np.array([_condition(name)[1] for name in faces.names])
        faces = labeled(faces, (_condition(name)[0] for name in faces.names))
        odd = np.flatnonzero((numbers < 1) | (numbers > 26))
        if len(odd):
            raise GdrdError(f"{faces.where(odd[0])}: AR's images are numbered 01 to 26", "ar-number")
        enrolled = np.unique(faces.labels[np.isin(numbers, GALLERY)])
        lonely = np.flatnonzero(~np.isin(faces.labels, enrolled))
        skipped = list(faces.skipped)
        if len(lonely):
            if not skip_bad:
                raise GdrdError(
                    f"{faces.where(lonely[0])}: its person has no neutral image (01 or 14) to be recognized by",
                    "ar-no-neutral",
                )
            skipped += [(faces.names[row], "its person has no neutral image") for row in lonely]
        if skipped:
            LOG.warning("left out: %s", counted(len(skipped), "face"))
        kept = np.setdiff1d(np.arange(len(faces)), lonely)
        if not np.isin(numbers[kept], GALLERY).any() or np.isin(numbers[kept], GALLERY).all():
            raise GdrdError(f"{data} needs neutral images (01, 14) and others to be recognized", "ar-one-kind")
        fingerprint = hashlib.sha256(f"{faces.fingerprint}{kept.tolist()}".encode()).hexdigest()
        of_kept = labeled(faces.take(kept), (faces.identities[label] for label in faces.labels[kept]))
        of_kept = dataclasses.replace(of_kept, fingerprint=fingerprint)
        return cls(of_kept, numbers[kept], {"n_skipped": len(skipped), "skipped": skipped})

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one model by the cosine of its embeddings, float `[N, D]`, unit length.

        `gallery` are those of the same faces as they are in the gallery; None where they are the same.
        """
        enrolled = embeddings if gallery is None else gallery
        gallery, probes = self._gallery(), self._probes()
        best = gallery[nearest(embeddings[probes], enrolled[gallery])[:, 0]]
        right = self.faces.labels[best] == self.faces.labels[probes]
        metrics: dict[str, Metric] = {}
        intervals = {}
        of_group = {"rank_1": np.ones(len(probes), bool)}
        of_group |= {f"rank_1_{group}": np.isin(self.numbers[probes], numbers) for group, numbers in GROUPS.items()}
        for name, chosen in of_group.items():
            metrics[name] = percent(right[chosen].mean()) if chosen.any() else None
            metrics[name.replace("rank_1", "n_probes")] = int(chosen.sum())
            if chosen.any():
                people = self.faces.labels[probes][chosen]
                intervals[name] = percents(bootstrap.of_mean(right[chosen], people, seed=seed))
        metrics |= {"n_gallery": len(gallery), "n_identities": len(self.faces.identities)}
        return Result(metrics, intervals, {"nearest": best})

    def _gallery(self) -> np.ndarray:
        return np.flatnonzero(np.isin(self.numbers, GALLERY))

    def _probes(self) -> np.ndarray:
        return np.flatnonzero(~np.isin(self.numbers, GALLERY))

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the arrays of every row belong to."""
        return {"names": np.array(self.faces.names), "probes": self._probes()}

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Of each probe, of all groups."""
        truth = self.faces.labels[self._probes()]
        return self.faces.labels[result.arrays["nearest"]] == truth, np.stack([truth, truth], axis=1)

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """Bars of the groups."""
        keys = [f"rank_1_{group}" for group in GROUPS]
        bars = {
            name: [None if (figure := result.figure(key)) is None else (figure, result.intervals[key]) for key in keys]
            for name, result in results.items()
        }
        return [
            Figure("groups.png", draw_bars(bars, list(GROUPS), y="rank-1, %"), "Rank-1 by group, with 95 % intervals.")
        ]

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Some probes of every group over the gallery face that they were taken for."""
        probes, best, labels = self._probes(), result.arrays["nearest"], self.faces.labels
        lines: list[list[np.ndarray]] = []
        frames: list[list[Frame]] = []
        for numbers in GROUPS.values():
            of_group = np.flatnonzero(np.isin(self.numbers[probes], numbers))
            if not len(of_group):
                continue
            shown = of_group[np.linspace(0, len(of_group) - 1, min(SHOWN, len(of_group))).astype(int)]
            lines += [[render(probes[i]) for i in shown], [self.faces[best[i]] for i in shown]]
            frames += [
                [None] * len(shown), [GREEN if labels[best[i]] == labels[probes[i]] else RED for i in shown],
            ]  # fmt: skip
        caption = (
            "Probes of every group, as the model receives them, over the gallery face that is nearest: green if right."
        )
        return grid(lines, frames), caption


def _condition(name: str) -> tuple[str, int]:
    found = NAME.fullmatch(PurePosixPath(name).stem)
    if found is None:
        raise ValueError(f"{name} is none of AR's names")
    return found[1].lower(), int(found[2])

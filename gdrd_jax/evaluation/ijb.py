"""IJB-B and IJB-C from InsightFace's release: loose crops, aligned by their landmarks; 1:1 and 1:N.

Whitelam et al., IARPA Janus Benchmark-B, CVPR Workshops 2017; Maze et al., IARPA Janus Benchmark-C, ICB 2018. Templates
are averaged as in `evaluation.templates`; `detector_score` weights images as InsightFace's evaluation does, which also
weights them by the length of their embeddings, as this one does not: embeddings have unit length here. The images are
read one batch at a time and never kept.
"""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np

from gdrd_jax.evaluation.ijb_files import Release
from gdrd_jax.evaluation.template_search import TemplateSearch
from gdrd_jax.evaluation.templates import TemplatePairs, Templates
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError


def _opened(release: Release, subjects: dict[int, int], detector_score: bool, skip_bad: bool) -> Templates:
    listed, landmarks = release.templates(subjects, detector_score=detector_score)
    found = Templates.open(release.folder / "loose_crop", listed, skip_bad=skip_bad, landmarks=landmarks)
    weighted = "weighted by the detector's score" if detector_score else "not weighted"
    found.about["alignment"] = (
        f"Loose crops of InsightFace's release, aligned by the landmarks of {release.kind}_name_5pts_score.txt; images "
        f"of a template {weighted}"
    )
    return found


@protocols.register("ijb")
class IJBPairs(TemplatePairs):
    """IJBB or IJBC of InsightFace's IJB_release, with loose_crop/ and meta/: 1:1."""

    title = "IJB"

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          detector_score: weight the images of a template by the detector's score, as InsightFace does.
        """

        detector_score: bool = True

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """See `ReportedProtocol.open`."""
        release = Release.find(data)
        pairs = release.pairs()
        templates = _opened(release, release.subjects_of(pairs), config.detector_score, skip_bad)
        names, rows = np.unique(pairs[:, :2], return_inverse=True)
        numbers = templates.numbered(rows.reshape(-1, 2), tuple(map(str, names)))
        return cls.of(templates, numbers)


@protocols.register("ijb_search")
class IJBSearch(TemplateSearch):
    """IJBB or IJBC of InsightFace's IJB_release, with loose_crop/ and meta/: 1:N."""

    title = "IJB, 1:N"

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          gallery: 1 or 2: probes of the other gallery's subjects are of strangers (the benchmark's figure is the mean
            of both); 0: both in one, where every probe has a mate, as in InsightFace's evaluation.
          detector_score: weight the images of a template by the detector's score, as InsightFace does.
        """

        gallery: int = 1
        detector_score: bool = True

        def __post_init__(self) -> None:
            if self.gallery not in (0, 1, 2):
                raise ValueError(f"gallery is {self.gallery}; it can be 1, 2, or 0 for both")

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """See `ReportedProtocol.open`."""
        release = Release.find(data)
        first, second = release.galleries
        enrolled = {0: {**first, **second}, 1: first, 2: second}[config.gallery]
        subjects = {**enrolled, **release.probes}
        if shared := enrolled.keys() & release.probes.keys():
            raise GdrdError(
                f"{release.list('1N_probe_mixed.csv')} and the gallery both have template {min(shared)}", "ijb-label"
            )
        templates = _opened(release, subjects, config.detector_score, skip_bad)
        names = tuple(map(str, subjects))
        gallery = templates.numbered(np.arange(len(enrolled)), names)
        return cls.of(templates, gallery, templates.numbered(np.arange(len(enrolled), len(names)), names))

"""Protocols of templates: several images of a subject are compared as one, as in IJB-A, IJB-B and IJB-C.

Embeddings are averaged within each medium (a photograph, or the frames of a video), then over the media of a template,
and the mean is scaled to unit length (Maze et al., IARPA Janus Benchmark-C, ICB 2018; Crosswhite et al., Template
adaptation, FG 2017). InsightFace's evaluation of IJB-C does the same, but its averages are weighted: it keeps the
length of each image's embedding and multiplies by the detector's score. Here all images of a medium weigh the same.

The protocol `templates` (1:1) reads lists of images in any folder. A reader of a benchmark with files of its own makes
a `TemplateList`, and subclasses `TemplatePairs`, or `template_search.TemplateSearch` (1:N).
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy import sparse

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation import bootstrap, verification
from gdrd_jax.evaluation.interface import ReportedProtocol
from gdrd_jax.evaluation.pair_files import find_images
from gdrd_jax.evaluation.report import GREEN, RED
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.template_files import TemplateList, read_template_pairs, read_templates
from gdrd_jax.evaluation.verification import Pairs, hardest_pairs
from gdrd_jax.registry import protocols
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.pictures import Frame, grid
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger(__name__)
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Templates:
    """Faces and the templates they belong to: M memberships in T templates.

    Attributes:
      faces: all N faces.
      rows: row in `faces` of each membership, int `[M]`; a face may be in several templates.
      templates: template of each membership, int `[M]`, below T; every template has an image.
      media: medium of each membership, int `[M]`.
      subjects: subject of each template, int `[T]`.
      names: names of the T templates.
      about: "n_skipped" and "skipped", see `ReportedProtocol`.
      weights: weights of the memberships, see `TemplateList`.
    """

    faces: Faces
    rows: np.ndarray
    templates: np.ndarray
    media: np.ndarray
    subjects: np.ndarray
    names: tuple[str, ...]
    about: dict[str, Any]
    weights: np.ndarray | None = None

    @classmethod
    def open(
        cls, data: Path, listed: TemplateList, *, stretch: bool = False, skip_bad: bool = False,
        landmarks: Mapping[str, np.ndarray] | None = None,
    ) -> Self:  # fmt: skip
        """Finds the images of a list under a folder, in a tar or a store.

        Args:
          data: see `data.readers.list_files`.
          listed: the memberships, with names of images as `pair_files.find_images` takes them.
          stretch: accept faces that are not 112x112.
          skip_bad: leave out missing and damaged images, and templates without any other image, instead of raising.
          landmarks: landmarks of each image of the list, with which faces are aligned, see `data.align.align`.

        Raises:
          GdrdError: an image is missing, damaged or present twice, or a template has no image.
        """
        files, wanted = list_files(data), set(listed.images)
        found = {
            name: images
            for name, files_of in find_images(files.names, wanted).items()
            if (images := [row for row in files_of if is_image(files, row)])
        }
        for name, images in sorted(found.items()):
            check_unique(files, images, lambda _: name)
        absent = sorted(wanted - found.keys())
        if absent and (not found or not skip_bad):
            raise GdrdError(
                f"{data} does not hold {len(absent)} of the {len(wanted)} images that templates consist of, the first "
                f"{absent[0]!r}; check --data, or leave such images out with --skip-bad",
                "template-image-missing",
            )
        chosen = sorted(found)
        given = files.take([found[name][0] for name in chosen])
        if landmarks is not None:
            given = dataclasses.replace(given, landmarks=np.stack([landmarks[name] for name in chosen]))
        usable = checked(given, stretch=stretch, skip_bad=skip_bad)
        row_of_file = {file: row for row, file in enumerate(usable.names)}
        row_of = {name: row_of_file.get(files.names[found[name][0]], -1) for name in chosen}
        rows = np.array([row_of.get(name, -1) for name in listed.images], int)
        there = rows >= 0
        kept, numbers = np.unique(listed.templates[there], return_inverse=True)
        empty = [listed.names[row] for row in np.setdiff1d(np.arange(len(listed.names)), kept)]
        if empty and not skip_bad:
            raise GdrdError(f"the template {empty[0]!r} has no image", "template-empty")
        skipped = [(name, "it is missing") for name in absent] + list(usable.skipped)
        skipped += [(name, "no image of this template is left") for name in empty]
        if skipped:
            LOG.warning(
                "left out: %s, and %s without any other",
                counted(len(skipped) - len(empty), "image"),
                counted(len(empty), "template"),
            )
        _, subjects = np.unique(np.array(listed.subjects), return_inverse=True)
        return cls(
            usable, rows[there], numbers.astype(np.int32), listed.media[there], subjects[kept].astype(np.int32),
            tuple(listed.names[row] for row in kept), {"n_skipped": len(skipped), "skipped": skipped},
            None if listed.weights is None else listed.weights[there],
        )  # fmt: skip

    def pool(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps embeddings of faces, float32 `[N, D]`, to those of templates, float32 `[T, D]`, unit length."""
        return pooled(embeddings, self.rows, self.templates, self.media, self.weights)

    def numbered(self, numbers: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Maps template numbers, in any shape, of a list with `names` to numbers here; -1 for missing templates."""
        own = {name: row for row, name in enumerate(self.names)}
        return np.array([own.get(name, -1) for name in names], np.int32)[numbers]

    def example(self, template: int) -> int:
        """Row in `faces` of the first face of a template."""
        return int(self.rows[np.argmax(self.templates == template)])


def pooled(
    embeddings: np.ndarray, rows: np.ndarray, templates: np.ndarray, media: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Averages embeddings within each medium of a template, then over its media, and scales the mean to unit length.

    Args:
      embeddings: float32 `[N, D]`.
      rows: row in `embeddings` of each membership, int `[M]`.
      templates: template of each membership, int `[M]`; every number up to the largest one occurs.
      media: medium of each membership, int `[M]`; a medium in two templates is averaged in each of them.
      weights: factors on the embeddings, float `[M]`; None means 1.

    Returns:
      Embeddings of the templates, float32 `[T, D]`.

    Raises:
      GdrdError: a template has no image.
    """
    count = int(templates.max()) + 1
    if len(empty := np.setdiff1d(np.arange(count), templates)):
        raise GdrdError(f"the template of number {empty[0]} has no image", "template-empty")
    own_media = templates.astype(np.int64) * (int(media.max()) + 1) + media
    _, medium, images = np.unique(own_media, return_inverse=True, return_counts=True)
    # The number of media, by which a mean would be divided, does not change its direction.
    shares = (1 if weights is None else weights) / images[medium]
    means = sparse.csr_array((shares.astype(np.float32), (templates, rows)), shape=(count, len(embeddings)))
    return unit(means @ embeddings)


@dataclasses.dataclass(frozen=True)
class TemplatePairs(ReportedProtocol):
    """Pairs of an enrolled template and a probe.

    Attributes:
      faces: all faces.
      templates: T templates made from these faces.
      first, second: the enrolled template and the probe of each pair, int32 `[P]`, below T.
      about: see `ReportedProtocol`.
    """

    faces: Faces
    templates: Templates
    first: np.ndarray
    second: np.ndarray
    about: dict[str, Any]

    title = "Templates"
    main = "auc"
    columns = {
        **{f"tar_at_far.{far:g}": f"TAR % at FAR {far:.0e}".replace("e-0", "e-") for far in reversed(FARS[1:])},
        "eer": "EER %", "auc": "AUC %",
    }  # fmt: skip
    legend = (
        "TAR at FAR: share of genuine pairs of templates accepted where at most so many impostors are. EER: equal "
        "error rate. AUC: area under the ROC curve. A template is the mean over its media of the mean over a medium's "
        "images."
    )

    @property
    def same(self) -> np.ndarray:
        """Whether both templates of a pair are of one subject, bool `[P]`."""
        return self.templates.subjects[self.first] == self.templates.subjects[self.second]

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer by the cosine of templates; `gallery` has the embeddings of enrolled faces.

        Scores are float32, and all metrics are exact functions of them; see `evaluation.bootstrap` for the intervals.
        """
        probes = self.templates.pool(embeddings)
        enrolled = probes if gallery is None else self.templates.pool(gallery)
        scores = verification.cosines(enrolled, probes, self.first, self.second)
        pairs, subjects = Pairs(scores, self.same), self.templates.subjects
        metrics = verification.pair_metrics(pairs, fars=FARS)
        folds = np.zeros(len(scores), np.int8)
        found = bootstrap.of_pairs(pairs, subjects[self.first], subjects[self.second], folds, FARS, seed=seed)
        return verification.result(pairs, metrics, found)

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays that are the same for every row: template numbers of the pairs, and names of the templates."""
        names = np.array(self.templates.names)
        return {"same": self.same, "first": self.first, "second": self.second, "templates": names}

    def curves(self, results: Mapping[str, Result]) -> Mapping[str, Pairs]:
        """The pairs of every row, for its ROC curve."""
        same = self.same
        return {name: Pairs(result.arrays["scores"], same) for name, result in results.items()}

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """One face from each template of the hardest pairs."""
        scores = result.arrays["scores"]
        lines: list[list[np.ndarray]] = []
        frames: list[list[Frame]] = []
        for genuine, color in ((False, RED), (True, GREEN)):
            hardest = hardest_pairs(scores, self.same, genuine, SHOWN)
            shown = [self.templates.example(row) for p in hardest for row in (self.first[p], self.second[p])]
            lines += [[self.faces[row] for row in shown], [render(row) for row in shown]]
            frames += [[color] * len(shown), [None] * len(shown)]
        caption = (
            "Hardest pairs of templates, the first face of either. Red: the impostors with the highest scores (false "
            "accepts); green: the genuine pairs with the lowest (false rejects). Under each face is the model's input."
        )
        return grid(lines, frames), caption

    @classmethod
    def of(cls, templates: Templates, pairs: np.ndarray) -> Self:
        """Makes the protocol from pairs of templates, int32 `[P, 2]`; pairs with a missing template (-1) are left out.

        Raises:
          GdrdError: there are no genuine or no impostor pairs.
        """
        kept = (pairs >= 0).all(axis=1)
        first, second = (np.ascontiguousarray(pairs[kept, side]) for side in (0, 1))
        about = {**templates.about, "drawn": "subjects"}
        if lost := int((~kept).sum()):
            about["remark"] = f"{counted(lost, 'pair')} left out with their templates"
        made = cls(templates.faces, templates, first, second, about)
        genuine = int(made.same.sum())
        if not 0 < genuine < len(first):
            raise GdrdError(
                f"verification needs genuine and impostor pairs of templates; there are {genuine} and "
                f"{len(first) - genuine}",
                "pairs-one-kind",
            )
        return made


@protocols.register("templates")
class ListedPairs(TemplatePairs):
    """Images anywhere, with --templates (IMAGE TEMPLATE MEDIUM SUBJECT) and --pairs (TEMPLATE TEMPLATE): 1:1."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings; see `evaluation.template_files` for the lists.

        Attributes:
          templates: file with a line for each image of a template.
          pairs: file with a line for each pair, the enrolled template and the probe.
        """

        templates: str = ""
        pairs: str = ""

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """See `ReportedProtocol.open`."""
        require_lists(config, "templates", "pairs")
        listed = read_templates(user_path(config.templates))
        pairs = read_template_pairs(user_path(config.pairs), listed.names)
        templates = Templates.open(data, listed, stretch=stretch, skip_bad=skip_bad)
        return cls.of(templates, templates.numbered(pairs, listed.names))


def require_lists(config: object, *lists: str) -> None:
    """Raises GdrdError if one of these settings is empty."""
    absent = [f"--{name}" for name in lists if not getattr(config, name)]
    if absent:
        raise GdrdError(f"the protocol needs lists of templates; give {', '.join(absent)}", "template-list-not-given")

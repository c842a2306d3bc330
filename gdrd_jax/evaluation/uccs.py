"""The UCCS protocol of the paper: a closed set of people, features frozen, a softmax layer trained on them."""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.prepare import checked
from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation.interface import Figure, ReportedProtocol
from gdrd_jax.evaluation.parts import TEST, TRAIN, images_of_parts, place
from gdrd_jax.evaluation.report import GREEN, RED, draw_points
from gdrd_jax.evaluation.result import Result, percent, percents
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.pictures import Frame, grid
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger(__name__)
# Inverse strength of the softmax layer's weight decay on unit-length embeddings, about where accuracy is flat.
INVERSE_DECAY = 100.0
SHOWN_PEOPLE, SHOWN = 10, 8


@protocols.register("uccs")
@dataclasses.dataclass(frozen=True)
class UCCS(ReportedProtocol):
    """train/PERSON/IMAGE and test/PERSON/IMAGE at any depth, with the same people in both.

    The paper's split of UCCS (180 people, 3,918 and 907 images) is not published: put yours into this layout.

    Attributes:
      faces: all, labeled.
      train, test: rows of `faces`.
      about: counts and remarks for the report.
    """

    faces: Faces
    train: np.ndarray
    test: np.ndarray
    about: dict[str, Any]

    title = "UCCS"
    files = ("tsne.png",)
    main = "accuracy"
    columns = {"accuracy": "accuracy %", "rank_5": "rank-5 %"}
    legend = (
        "Accuracy: share of test faces whose person a softmax layer names, which was trained on the frozen embeddings "
        f"of the training faces (scikit-learn's LogisticRegression, C = {INVERSE_DECAY:g}). Rank-5: the person is "
        "among its five likeliest."
    )

    @classmethod
    def open(cls, data: Path, config: object = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """A person who is tested but not trained on is an error, see `ReportedProtocol.open`."""
        files = images_of_parts(data)
        faces = checked(files, stretch=stretch, skip_bad=skip_bad) if len(files) else files
        places = [place(name) for name in faces.names]
        split = np.array([parts[-3] for parts in places])
        for part in (TRAIN, TEST):
            if not (split == part).any():
                raise GdrdError(
                    f"{data} has no images {part}/PERSON/IMAGE; the layout is train/PERSON/ and test/PERSON/",
                    "uccs-layout",
                )
        known = {parts[-2] for parts in places if parts[-3] == TRAIN}
        strangers = [row for row, parts in enumerate(places) if parts[-3] == TEST and parts[-2] not in known]
        skipped = list(faces.skipped)
        if strangers:
            name = faces.names[strangers[0]]
            if not skip_bad:
                raise GdrdError(
                    f"there is no training face of the person of {counted(len(strangers), 'test face')}, the first "
                    f"{name!r}",
                    "uccs-strangers",
                )
            skipped += [(faces.names[row], "its person has no training face") for row in strangers]
        if skipped:
            LOG.warning("left out: %s", counted(len(skipped), "face"))
        faces = labeled(faces, (parts[-2] for parts in places))
        test = np.setdiff1d(np.flatnonzero(split == TEST), strangers)
        about = {"n_skipped": len(skipped), "skipped": skipped}
        if len(known) < 2 or not len(test):
            raise GdrdError(
                f"{data} holds {counted(len(known), 'person', 'people')} to train on and "
                f"{counted(len(test), 'test face')}; at least 2 and 1",
                "uccs-too-few",
            )
        return cls(faces, np.flatnonzero(split == TRAIN), test, about)

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one model by its embeddings, float `[N, D]`, unit length.

        `gallery` are those of the same faces as the softmax layer learns them; None where they are the same.
        """
        from sklearn.exceptions import ConvergenceWarning  # imported late: other protocols do not need them
        from sklearn.linear_model import LogisticRegression

        labels, learned = self.faces.labels, embeddings if gallery is None else gallery
        layer = LogisticRegression(C=INVERSE_DECAY, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                layer.fit(learned[self.train], labels[self.train])
            except ConvergenceWarning:
                raise GdrdError(
                    "the softmax layer did not converge; look at the embeddings of this model", "softmax-diverged"
                ) from None
        order = layer.classes_[np.argsort(-layer.predict_log_proba(embeddings[self.test]), axis=1, kind="stable")]
        truth = labels[self.test]
        shares = {"accuracy": order[:, 0] == truth, "rank_5": (order[:, :5] == truth[:, None]).any(axis=1)}
        metrics = {name: percent(right.mean()) for name, right in shares.items()}
        metrics |= {"n_train": len(self.train), "n_test": len(self.test), "n_identities": len(layer.classes_)}
        intervals = {name: percents(bootstrap.of_mean(right, truth, seed=seed)) for name, right in shares.items()}
        return Result(
            metrics, intervals, {"predicted": order[:, 0], "five_likeliest": order[:, :5], "embeddings": embeddings}
        )

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """What the predictions of every row belong to."""
        return {
            "names": np.array(self.faces.names), "labels": self.faces.labels, "train": self.train, "test": self.test,
            "truth": self.faces.labels[self.test], "identities": np.array(self.faces.identities),
        }  # fmt: skip

    def decisions(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """Of each test face."""
        truth = self.faces.labels[self.test]
        return result.arrays["predicted"] == truth, np.stack([truth, truth], axis=1)

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """t-SNE of the people with most faces, all rows side by side."""
        from sklearn.manifold import TSNE

        people = np.argsort(-np.bincount(self.faces.labels), kind="stable")[:SHOWN_PEOPLE]
        rows = np.flatnonzero(np.isin(self.faces.labels, people))
        panels = {}
        for name, result in results.items():
            tsne = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=0)
            panels[name] = tsne.fit_transform(result.arrays["embeddings"][rows].astype(np.float64))
        names = [self.faces.identities[label] for label in self.faces.labels[rows]]
        caption = f"t-SNE of the embeddings of the {len(people)} people with most faces ({len(rows)} faces)."
        return [Figure("tsne.png", draw_points(panels, names), caption)]

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Test faces given a wrong name, over a training face of the right and of the wrong person."""
        labels, predicted = self.faces.labels, result.arrays["predicted"]
        wrong = np.flatnonzero(predicted != labels[self.test])
        wrong = wrong[np.linspace(0, len(wrong) - 1, min(SHOWN, len(wrong))).astype(int)] if len(wrong) else wrong
        if not len(wrong):
            return grid(
                [[render(row) for row in self.test[:SHOWN]]]
            ), "No test face was given a wrong name; some of them."
        tests = self.test[wrong]

        def example(label: int) -> int:
            return next(row for row in self.train if labels[row] == label)

        lines = [
            [render(row) for row in tests],
            [self.faces[example(labels[row])] for row in tests],
            [self.faces[example(label)] for label in predicted[wrong]],
        ]
        frames: list[list[Frame]] = [[None] * len(tests), [GREEN] * len(tests), [RED] * len(tests)]
        return grid(lines, frames), (
            "Test faces that were given a wrong name, as the model receives them; below, a training face of the "
            "right person (green) and of the one it was taken for (red)."
        )

"""What a generative teacher's features are worth: a linear probe, and how far raw pixels predict them."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.report import plt, saved
from gdrd_jax.teachers import GenerativeTeacher
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import markdown_table

BATCH = 32
SIDE = 4  # of the student's own features, to which all are averaged
COMPONENTS, SHRINKAGE = 512, 0.1  # chosen on raw pixels: docs/studies/taps.md
TESTED = 0.25  # of each person's images, whose identity the probe has to tell
RIDGE = 1e-2  # of the mean variance of a pixel


class ProbeData(NamedTuple):
    """Low-resolution faces to judge features by.

    Attributes:
      train: uint8 `[N, h, w, 3]`, of people with `labels`.
      labels: int `[N]`.
      test: uint8 `[M, h, w, 3]`, of other people, in the order of `pairs.faces`.
      pairs: which of these are of one person.
    """

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    pairs: PairList


def studied(train: Faces, pairs: PairList, views: Views, images: int) -> ProbeData:
    """Reduces at most `images` faces of each training person who has two, evenly chosen, and all faces of the pairs."""
    of_each = [np.flatnonzero(train.labels == person) for person in range(len(train.identities))]
    of_each = [own for own in of_each if len(own) > 1]
    if len(of_each) < 2:
        raise GdrdError(
            f"{train.root} has {len(of_each)} people with two faces or more; the probe needs at least 2", "probe-people"
        )
    rows = np.concatenate([own[np.unique(np.linspace(0, len(own) - 1, images).astype(int))] for own in of_each])

    def low(faces: Faces, rows: np.ndarray) -> np.ndarray:
        small = in_parallel(lambda i: views.degrade(faces[rows[i]], rows[i], 0), range(len(rows)))
        return np.stack(list(small))

    return ProbeData(low(train, rows), train.labels[rows], low(pairs.named_faces, np.arange(len(pairs.faces))), pairs)


def study(network: GenerativeTeacher, taps: tuple[str, ...], faces: ProbeData, *, seed: int) -> dict[str, dict]:
    """`worth` of several taps of a generative teacher, and the shape of their features."""
    found: dict[str, list[dict[str, np.ndarray]]] = {"train": [], "test": []}
    shapes: dict[str, list[int]] = {}
    for split, lr in (("train", faces.train), ("test", faces.test)):
        for start in tqdm(range(0, len(lr), BATCH), desc=f"features, {split}", unit="batch"):
            features = network.features_at(lr[start : start + BATCH], taps)
            shapes |= {tap: list(x.shape[1:]) for tap, x in features.items()}
            found[split].append({tap: pooled(x) for tap, x in features.items()})

    def joined(split: str, tap: str) -> np.ndarray:
        return np.concatenate([batch.pop(tap) for batch in found[split]])

    return {
        tap: {"shape": shapes[tap], **worth(joined("train", tap), joined("test", tap), faces, seed=seed)}
        for tap in taps
    }


def pooled(features: np.ndarray) -> np.ndarray:
    """Averages float `[N, C, h, w]` to at most 4x4 positions and flattens: `[N, D]`."""
    n, channels, height, width = features.shape
    down, across = max(1, height // SIDE), max(1, width // SIDE)
    features = features[:, :, : height // down * down, : width // across * across]
    blocks = features.reshape(n, channels, height // down, down, width // across, across)
    return blocks.mean(axis=(3, 5)).reshape(n, -1)


def worth(train: np.ndarray, test: np.ndarray, faces: ProbeData, *, seed: int) -> dict[str, float | None]:
    """Measures features that came from low-resolution faces alone.

    The probe is linear: standardization, PCA to 512 dimensions, discriminant analysis with shrinkage;
    verification is by the cosine in its space, at thresholds chosen on the other folds.

    Args:
      train, test: `[N, D]` and `[M, D]`, of the faces of `faces`.
      faces: the faces.
      seed: of the choice of held-out images, and of PCA.

    Returns:
      `identity`: percentage of the held-out images of the training people that the probe names rightly;
      `accuracy` and `accuracy_std_error`: of verification of the others, in percent; `r2`: percentage of the
      features' variance, on those people, that a linear map of the pixels explains.
    """
    held_out = _some_of_each(faces.labels, TESTED, seed)
    probe = _fitted(train[~held_out], faces.labels[~held_out], seed)
    verified = faces.pairs.evaluate(unit(probe.transform(test)), seed=seed)
    return {
        "identity": 100 * float((probe.predict(train[held_out]) == faces.labels[held_out]).mean()),
        "accuracy": verified.figure("accuracy"),
        "accuracy_std_error": verified.figure("accuracy_std_error"),
        "r2": 100 * _linear_r2(faces.train, train, faces.test, test),
    }


def _some_of_each(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool `[N]`: at least one and about `share` of the images of each label."""
    chosen, random = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[random.permutation(rows)[: max(1, round(share * len(rows)))]] = True
    return chosen


class _Probe(NamedTuple):
    scaler: StandardScaler
    pca: PCA
    lda: LinearDiscriminantAnalysis

    def _reduced(self, x: np.ndarray) -> np.ndarray:
        return self.pca.transform(self.scaler.transform(x))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.lda.predict(self._reduced(x))

    def transform(self, x: np.ndarray) -> np.ndarray:
        return self.lda.transform(self._reduced(x))


def _fitted(x: np.ndarray, labels: np.ndarray, seed: int) -> _Probe:
    scaler = StandardScaler().fit(x)
    pca = PCA(min(COMPONENTS, *x.shape), svd_solver="randomized", random_state=seed).fit(scaler.transform(x))
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Only one sample available")  # of a person: no covariance, and that is right
        lda.fit(pca.transform(scaler.transform(x)), labels)
    return _Probe(scaler, pca, lda)


def _linear_r2(lr: np.ndarray, features: np.ndarray, test_lr: np.ndarray, test: np.ndarray) -> float:
    """Of ridge regression from the pixels, over all standardized features."""
    pixels, test_pixels = (images.reshape(len(images), -1) / 127.5 - 1 for images in (lr, test_lr))
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.maximum(std, 1e-3 * std.mean())  # a feature that hardly changes must not decide
    wanted, target = (features - mean) / std, (test - mean) / std
    center = pixels.mean(axis=0)
    x, y = pixels - center, test_pixels - center
    gram = x.T @ x / len(x)
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram)
    error = target - y @ np.linalg.solve(gram, x.T @ wanted / len(x))
    return float(1 - (error**2).sum() / ((target - target.mean(axis=0)) ** 2).sum())


def table(rows: dict[str, dict]) -> str:
    """Markdown."""
    lines = [["teacher", "timestep", "tap", "features", "identity %", "LFW accuracy %", "linear in pixels, R² %"]]
    for row in rows.values():
        accuracy = f"{row['accuracy']:.2f} ± {row['accuracy_std_error']:.2f}"
        lines.append([
            row["name"], "" if row["timestep"] is None else str(row["timestep"]), row["tap"],
            "x".join(map(str, row["shape"])), f"{row['identity']:.1f}", accuracy, f"{row['r2']:.1f}",
        ])  # fmt: skip
    return markdown_table(lines)


def picture(rows: dict[str, dict]) -> bytes:
    """PNG: verification accuracy over taps, a line a teacher and timestep; what has no taps is a level."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    lines: dict[str, list[dict]] = {}
    for row in rows.values():
        timestep = "" if row["timestep"] is None else f", t = {row['timestep']}"
        lines.setdefault(f"{row['name']}{timestep}", []).append(row)
    order = list(dict.fromkeys(row["tap"] for row in rows.values() if not _is_level(row)))
    for number, (label, points) in enumerate(lines.items()):
        if _is_level(points[0]):
            for style, point in zip(("--", ":", "-."), points):
                label = f"{point['name']}, {point['tap']}"
                axes.axhline(point["accuracy"], ls=style, lw=1.5, color=f"C{number}", label=label)
            continue
        points = sorted(points, key=lambda row: order.index(row["tap"]))
        axes.errorbar(
            [order.index(row["tap"]) for row in points], [row["accuracy"] for row in points],
            [row["accuracy_std_error"] for row in points], marker="o", capsize=3, color=f"C{number}", label=label,
        )  # fmt: skip
    axes.set_xticks(range(len(order)), order)
    axes.set(xlabel="tap", ylabel="LFW accuracy of a linear probe, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return saved(figure)


def _is_level(row: dict) -> bool:
    """Whether this is no tap of a teacher. Versions up to 0.4 recorded no kind, and each teacher had a timestep."""
    return row["timestep"] is None and "kind" not in row

"""How recognizable a face is to a student, from the length of its embedding before it is scaled to unit length.

The embedding of a face and that of its mirror image are added; the more they agree, the longer the sum. Among the
scores that `tools/study_quality.py` compares, this length is the best or not worse than the best, see
docs/studies/quality.md. A logistic curve maps it to [0, 1]: the probability that the face is accepted when it is
compared with another, undegraded face of the same person.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError

FAR = 0.01  # of the threshold that accepts
VIEWS = 2  # of a calibration face: as it is, and degraded at random
MOST = 6000  # faces
STRONGEST = (4.0, 14.0, 16.0, 25)  # of those: blur, motion, noise and jpeg of `Degradation`
FEWER = 0.3  # share of them that have fewer pixels than the student's input, down to a quarter
SEED = 7
STEPS = 50  # of Newton's method
PRIOR = 1e-2  # pulls the slope to 0, so that faces that are all accepted, or none, have finite ones


@dataclasses.dataclass(frozen=True)
class Quality:
    """Maps lengths of embeddings to scores in [0, 1].

    Attributes:
      slope, intercept: parameters of the score's logit as a linear function of the logarithm of the length; the slope
        is positive.
      far: false accept rate of the threshold at which the calibration faces were accepted.
      faces: number of calibration faces, each of which was used in `VIEWS` views.
      name: name of the calibration data set.
    """

    slope: float
    intercept: float
    far: float
    faces: int
    name: str

    def __post_init__(self) -> None:
        if not (self.slope > 0 and np.isfinite([self.slope, self.intercept]).all()):
            raise ValueError(f"slope is {self.slope} and intercept {self.intercept}")

    def __call__(self, lengths: np.ndarray) -> np.ndarray:
        """Maps lengths above 0, float `[N]`, to scores, float32 `[N]`."""
        logits = self.slope * np.log(np.maximum(lengths, 1e-12)) + self.intercept
        return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)


def mean_embedding(embeddings: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The template of one person's faces: the weighted mean of their embeddings, scaled to unit length.

    Args:
      embeddings: float `[N, D]`, unit length.
      weights: weights of the faces, `[N]`, at least 0, such as their quality. None weights all faces equally, and so do
        weights that are all 0.

    Returns:
      float32 `[D]`, unit length.

    Raises:
      GdrdError: there is no face.
    """
    if not len(embeddings):
        raise GdrdError("a template needs at least one face, and there is none", "template-empty")
    if weights is not None and not weights.any():
        weights = None
    return unit(np.average(embeddings, axis=0, weights=weights)[None])[0].astype(np.float32)


def learn(
    embed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], faces: Faces, resolution: int, kernel: str,
    threshold: float, far: float, name: str,
) -> Quality | None:  # fmt: skip
    """Learns the score on faces of people that the student was not trained on.

    Each face, once as it is and once degraded, is compared with the other faces of its person as they are.

    Args:
      embed: the student as a function: uint8 `[N, R, R, C]` -> unit-length embeddings, float `[N, D]`, and their
        lengths before they were scaled, `[N]`.
      faces: faces at full size.
      resolution, kernel: resolution of the student's input, and kernel with which faces are reduced to it.
      threshold: lowest similarity at which two faces are accepted.
      far: false accept rate of the threshold.
      name: name of the data set.

    Returns:
      The score, or None if no person has two faces, or if faces with longer embeddings are not accepted more often.
    """
    labels = faces.labels[:MOST]
    rows = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(rows):
        return None
    labels = labels[rows]
    views = [embed(view_of(faces, view, resolution, kernel, rows)) for view in range(VIEWS)]
    clean = views[0][0]
    lengths, shares = [], []
    for row in range(len(rows)):
        others = np.flatnonzero(labels == labels[row])
        others = others[others != row]
        for embeddings, length in views:
            lengths.append(length[row])
            shares.append((clean[others] @ embeddings[row] >= threshold).mean())
    slope, intercept = logistic(np.log(lengths), np.array(shares))
    return Quality(slope, intercept, far, len(lengths) // VIEWS, name) if slope > 0 else None


def view_of(faces: Faces, view: int, resolution: int, kernel: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows of the faces, uint8 `[N, R, R, C]`; view 0 shows them as they are, others are degraded."""
    strongest = Degradation(resolution, kernel, *STRONGEST)

    def one(row: int) -> np.ndarray:
        face, random = faces[row], np.random.default_rng([SEED, row, view])
        if view == 0:
            return resize(face, resolution, kernel)
        if random.random() < FEWER:
            side = int(random.integers(max(resolution // 4, 3), resolution, endpoint=True))
            face = resize(resize(face, side, kernel), len(face), "bicubic")
        return strongest.weakened(random)(face, random)

    return np.stack(list(in_parallel(one, [int(row) for row in rows])))


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of shares `y`, in [0, 1], on `x`, `[N]` each, by Newton's method.

    Maximizes the likelihood of the standardized `x`, with a prior on the slope.
    """
    mean, spread = x.mean(), max(float(x.std()), 1e-12)
    design = np.stack([(x - mean) / spread, np.ones_like(x)], axis=1)
    prior = np.diag([PRIOR, 1e-9])
    weights = np.zeros(2)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (y - p) - prior @ weights
        step = np.linalg.solve((design * (p * (1 - p) + 1e-12)[:, None]).T @ design + prior, gradient)
        weights += step * min(1.0, 2 / max(np.abs(step).max(), 1e-12))
    return float(weights[0] / spread), float(weights[1] - weights[0] * mean / spread)

"""Metric learning: losses of the distances between the faces of a batch, mined from the whole batch.

Distances are of embeddings of unit length. A face without identity (label -1) takes no part in triplets, and is no
negative of a pair.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.interface import Batch, Loss, Metrics, Outputs
from gdrd_jax.losses.margin import unit
from gdrd_jax.registry import losses

FARTHEST = 2.0  # distance of opposite points of the unit sphere
# Squared distances up to this are taken for 0: they are of the size of rounding, and the root's gradient is infinite
# at 0.
NEAREST = 1e-6


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """`||a_i - b_j||^2` of vectors of unit length: float32 `[A, D]`, `[B, D]` -> `[A, B]`, at least 0."""
    return jnp.maximum(2 - 2 * jnp.matmul(a, b.T, precision="highest"), 0)


def identity_masks(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which faces of the whole batch are positives and negatives of the faces on this device.

    Args:
      labels: int `[b]`, -1 without identity.

    Returns:
      bool `[b, B]`: another face of the same identity; a face of another identity.
    """
    everyone = sharding.gathered(labels)
    known = (labels >= 0)[:, None] & (everyone >= 0)
    same = labels[:, None] == everyone
    itself = sharding.device_index() * len(labels) + jnp.arange(len(labels))
    return known & same & (itself[:, None] != jnp.arange(len(everyone))), known & ~same


def _check(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0")


@losses.register("triplet")
class SemiHardTriplet(Loss):
    """FaceNet's triplet loss of squared distances with semi-hard negatives (Schroff et al., arXiv 1503.03832; after
    others' code).

    Every two faces of an identity are anchor and positive. Their negative is drawn among those that are farther from
    the anchor than the positive by less than the margin. Where there is none the nearest of those at least as far as
    the positive takes its place, and where there is none of these either the triplet is left out. The loss is the mean
    over the triplets. The others' code is davidsandberg/facenet, whose batches are larger, and which takes any negative
    that violates the margin.

    Logged: `semi_hard`, the share of anchors and positives with a semi-hard negative; `negative_distance`, the mean
    squared distance between anchor and negative, which falls to 0 where all embeddings collapse to one.
    """

    needs = frozenset({"embedding", "label", "balanced"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          margin: by how much the squared distance to a negative has to be larger than to a positive, above 0.
        """

        margin: float = 0.2

        def __post_init__(self) -> None:
            _check(self.margin)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        embedding = unit(outputs.embedding)
        distance = squared_distances(embedding, sharding.gathered(embedding))
        positive, negative = identity_masks(batch["label"])
        chosen, semi_hard, counted = semi_hard_negatives(distance, positive, negative, key, self.config.margin)
        farther = jnp.take_along_axis(distance, chosen, axis=1)
        loss = sharding.mean_where(jax.nn.relu(distance - farther + self.config.margin), counted)
        share, collapse = sharding.mean_where(semi_hard, positive), sharding.mean_where(farther, counted)
        return loss, {"semi_hard": share, "negative_distance": collapse}


def semi_hard_negatives(
    distance: jax.Array, positive: jax.Array, negative: jax.Array, key: jax.Array, margin: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The negative of each anchor and positive, see `SemiHardTriplet`.

    Args:
      distance: squared, from the anchors on this device to all faces, float `[b, B]`.
      positive, negative: bool `[b, B]`, see `identity_masks`.
      key: the same on all devices.
      margin: see `SemiHardTriplet`.

    Returns:
      `[b, B]` each: number of the negative; whether it is semi-hard; whether the triplet counts.
    """
    anchors, size = distance.shape
    # Drawn for the whole batch, so that the number of devices changes nothing. One number serves all positives of an
    # anchor: among any of its negatives each is the largest equally often.
    drawn = sharding.local_shard(jax.random.uniform(key, (size, size)), anchors)[:, None, :]
    distance = jax.lax.stop_gradient(distance)
    to_positive, to_negative = distance[:, :, None], distance[:, None, :]
    at_least = negative[:, None, :] & (to_negative >= to_positive)
    semi_hard = at_least & (to_negative > to_positive) & (to_negative < to_positive + margin)
    random = jnp.argmax(jnp.where(semi_hard, drawn, -1), axis=-1)
    nearest = jnp.argmin(jnp.where(at_least, to_negative, jnp.inf), axis=-1)
    found = semi_hard.any(axis=-1)
    return jnp.where(found, random, nearest), positive & found, positive & at_least.any(axis=-1)


@losses.register("octuplet")
class Octuplet(Loss):
    """Batch-hard triplet losses within the student's embeddings and across to T_d's (octuplet loss, arXiv 2207.06726;
    after the authors' code).

    The sum over (student, student), (student, T_d) and (T_d, student) of the mean over anchors of
    `[max_p d(u_i, v_p) - min_n d(u_i, v_n) + margin]+`, of Euclidean distances; the anchor itself is no positive, and
    anchors without positive or negative do not count. The authors' code (Martlgap/octuplet-loss) trains one network for
    both resolutions; here T_d stays as it is, which leaves out the term within T_d's embeddings (our reading), and
    embeddings are of unit length.

    Logged: `active_triplets`, the share of the terms of anchors that are not 0.
    """

    needs = frozenset({"embedding", "label", "discriminative", "balanced"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          margin: by how much the nearest negative has to be farther away than the farthest positive, above 0.
        """

        margin: float = 0.5

        def __post_init__(self) -> None:
            _check(self.margin)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student = unit(outputs.embedding)
        teacher = jax.lax.stop_gradient(outputs.teacher)
        positive, negative = identity_masks(batch["label"])
        counted = positive.any(axis=1) & negative.any(axis=1)
        terms = []
        for anchors, others in ((student, student), (student, teacher), (teacher, student)):
            distance = _root(squared_distances(anchors, sharding.gathered(others)))
            hardest = jnp.max(distance, axis=1, where=positive, initial=0.0)
            nearest = jnp.min(distance, axis=1, where=negative, initial=FARTHEST)
            terms.append(jax.nn.relu(hardest - nearest + self.config.margin))
        active = sharding.mean_where(jnp.mean(jnp.stack(terms) > 0, axis=0), counted)
        return sum(sharding.mean_where(term, counted) for term in terms), {"active_triplets": active}


def _root(squared: jax.Array) -> jax.Array:
    apart = squared > NEAREST
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


@losses.register("contrastive_pairs")
class ContrastivePairs(Loss):
    """Contrastive loss of pairs of faces, `d^2` of one identity and `[margin - d]+^2` of two (Hadsell et al., 2006; of
    SiameseFace, ICIIP 2023, no arXiv: our reading of its title).

    The positive pairs are the two images of each row, where there are two; the negative ones are an image and the
    second image of the row before it, where these are known to be of different identities. The mean is over all pairs.

    Logged: `active_negatives`, the share of the negative pairs that are nearer than the margin.
    """

    needs = frozenset({"embedding", "label", "second"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          margin: distance from which on two identities are apart enough, above 0; opposite embeddings have distance 2.
        """

        margin: float = 1.0

        def __post_init__(self) -> None:
            _check(self.margin)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        assert outputs.second is not None  # `needs` has it
        first, second = unit(outputs.embedding), unit(outputs.second.embedding)
        before, label = (_rolled(x) for x in (second, batch["second_label"]))
        negative = (batch["label"] >= 0) & (label >= 0) & (batch["label"] != label)
        near = jnp.sum((first - second) ** 2, axis=-1)
        gap = jax.nn.relu(self.config.margin - jnp.sqrt(jnp.sum((first - before) ** 2, axis=-1) + 1e-12))
        values, counted = jnp.stack([near, gap**2]), jnp.stack([batch["has_second"], negative])
        return sharding.mean_where(values, counted), {"active_negatives": sharding.mean_where(gap > 0, negative)}


def _rolled(x: jax.Array) -> jax.Array:
    """What the row before has, over all devices: `[b, ...]` of the whole batch, moved by one."""
    return sharding.local_shard(jnp.roll(sharding.gathered(x), 1, axis=0), len(x))

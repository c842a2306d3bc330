"""Eq. 2 of GDRD (arXiv 2409.06371): cross-resolution relational contrastive distillation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs
from gdrd_jax.models.relation import RelationCritic
from gdrd_jax.registry import losses


def relation_scores(
    h1: jax.Array, h2: jax.Array, labels: jax.Array, key: jax.Array, first: int | jax.Array = 0, *,
    tau: float, positive: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Scores `s = h1(v_t[i,j]) . h2(v_ts[i,k]) / tau`, with one positive and one negative k for each (i, j).

    Args:
      h1, h2: unit-length projected relations of `RelationCritic`, `[A, B, P]`: relations of A anchors i with all B
        faces of the batch, to which the anchors belong.
      labels: identities of all faces, int `[B]`.
      key: random key that picks k; the choice does not depend on which part of the batch the anchors are.
      first: position of the first anchor in the batch.
      tau: temperature, 0.4 in the paper.
      positive: "pair": k = j is positive and any other k negative; "identity": k with the same identity as j is
        positive and k with another one negative.

    Returns:
      `positives` and `negatives`, float32 `[A, B]`, and a bool mask `[A, B]` of the valid (i, j), with i != j and an
      existing negative.
    """
    anchors, size = h1.shape[:2]
    if positive == "pair":
        negative_of = ~jnp.eye(size, dtype=bool)
        k_positive = jnp.broadcast_to(jnp.arange(size), (anchors, size))
    else:
        # Each unlabeled face counts as an identity of its own.
        same = (labels[:, None] == labels[None, :]) & (labels >= 0) | jnp.eye(size, dtype=bool)
        negative_of = ~same
        k_positive = pick(jax.random.fold_in(key, 1), same, first, anchors)
    k_negative = pick(key, negative_of, first, anchors)
    anchor = jnp.arange(anchors)[:, None]
    positives = jnp.sum(h1 * h2[anchor, k_positive], axis=-1) / tau
    negatives = jnp.sum(h1 * h2[anchor, k_negative], axis=-1) / tau
    itself = first + anchor == jnp.arange(size)
    return positives, negatives, ~itself & negative_of.any(axis=1)[None, :]


def pick(key: jax.Array, allowed: jax.Array, first: int | jax.Array, anchors: int) -> jax.Array:
    """For each (i, j) a uniformly random k with `allowed[j, k]`, for i from `first` on: int `[anchors, B]`."""
    size = len(allowed)
    count = allowed.sum(axis=1)
    of_all = jax.random.uniform(key, (size, size))
    rank = jnp.floor(jax.lax.dynamic_slice_in_dim(of_all, first, anchors) * count).astype(jnp.int32)
    rank = jnp.minimum(rank, count - 1)
    in_order = jnp.argsort(~allowed, axis=1, stable=True)  # row j: its allowed k first
    return in_order[jnp.arange(size), jnp.maximum(rank, 0)]


def relation_loss(
    positives: jax.Array, negatives: jax.Array, mask: jax.Array, negative_ratio: float = 0.5
) -> jax.Array:
    """Eq. 2, `L_rcd`, from scores: mean over positives plus mean over negatives.

    With `h(s) = exp(s) / (exp(s) + n/m)` and `c = log(n/m)`, the paper's `-log h(s)` is `softplus(c - s)`, and
    `-log(1 - h(s))` is `softplus(s - c)`; neither overflows.

    Args:
      positives, negatives: scores `[A, B]`.
      mask: valid (i, j), bool `[A, B]`.
      negative_ratio: `n/m`, 1/2 for equal numbers of positives and negatives.
    """
    c = jnp.log(negative_ratio)
    terms = jax.nn.softplus(c - positives) + jax.nn.softplus(negatives - c)
    return sharding.total(jnp.sum(terms * mask)) / jnp.maximum(sharding.total(mask.sum()), 1)


@losses.register("rcd")
class RelationalContrast(Loss):
    """`L_rcd`, Eq. 2: a critic distinguishes relations between faces in T_d's space and across the spaces."""

    needs = frozenset({"embedding", "label", "discriminative"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          tau: temperature, above 0; 0.4 in the paper.
          positive: "pair" or "identity", what b = 1 means in Eq. 2, see `relation_scores`.
          pairs: "gathered": relations of a face with the whole batch, so that the number of devices changes nothing;
            "local": only with the part of the batch on the same device, which is less work.
        """

        tau: float = 0.4
        positive: str = "pair"
        pairs: str = "gathered"

        def __post_init__(self) -> None:
            if not self.tau > 0:
                raise ValueError(f"tau is {self.tau}; it must be above 0")
            if self.positive not in ("pair", "identity"):
                raise ValueError(f"positive is {self.positive!r}; it can be pair, identity")
            if self.pairs not in ("gathered", "local"):
                raise ValueError(f"pairs is {self.pairs!r}; it can be gathered, local")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.critic = RelationCritic(info.embedding_dim, rngs=rngs)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        teacher, embedding, label = outputs.teacher, outputs.embedding, batch["label"]
        assert teacher is not None and embedding is not None  # `needs` has both
        anchors, first = teacher, 0
        if self.config.pairs == "gathered":
            first = sharding.device_index() * len(teacher)
            teacher, embedding, label = map(sharding.gathered, (teacher, embedding, label))
        else:
            key = jax.random.fold_in(key, sharding.device_index())
        h1, h2 = self.critic(anchors, teacher, embedding)
        scores = relation_scores(h1, h2, label, key, first, tau=self.config.tau, positive=self.config.positive)
        return relation_loss(*scores), {}

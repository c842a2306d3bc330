"""Contrastive representation distillation: an image's own embedding among those of other images in a memory bank."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, State
from gdrd_jax.models.relation import normalize
from gdrd_jax.registry import losses


def contrastive_terms(positives: jax.Array, negatives: jax.Array, counted: jax.Array, offset: jax.Array) -> jax.Array:
    """`-log h(u)` of the positive plus `-log(1 - h(u))` of all negatives, with `h(u) = e^u / (e^u + e^offset)`.

    Args:
      positives: scores u, `[b]`.
      negatives: scores u, `[b, n]`.
      counted: bool `[b, n]`, the negatives that count.
      offset: scalar, `log(Z n / N)` in CRD.

    Returns:
      float32 `[b]`.
    """
    return jax.nn.softplus(offset - positives) + jnp.sum(jax.nn.softplus(negatives - offset) * counted, axis=1)


def log_mean_exp(x: jax.Array) -> jax.Array:
    """`log(mean(exp(x)))` over the arrays of all devices; no gradient."""
    x = jax.lax.stop_gradient(x)
    largest = sharding.maximum(jnp.max(x))
    return largest + jnp.log(sharding.mean(jnp.mean(jnp.exp(x - largest))))


def with_rows(bank: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
    """A bank `[N, ...]` with the rows `index` `[B]` replaced; where an index occurs more than once, by the first."""
    first = jnp.argmax(index[:, None] == index[None, :], axis=1)
    place = jnp.arange(len(index))
    # Different places, so that their order does not matter; those outside of the bank are dropped.
    places = jnp.where(first == place, index, len(bank) + place)
    return bank.at[places].set(rows, mode="drop", unique_indices=True)


def drawn_rows(key: jax.Array, seen: jax.Array, number: int) -> jax.Array:
    """Draws rows that were seen, bool `[N]`, uniformly with replacement: int `[number]`; at least one has to be."""
    ends = jnp.cumsum(seen)
    return jnp.searchsorted(ends, jax.random.randint(key, (number,), 0, ends[-1]), side="right")


def updated_bank(bank: jax.Array, index: jax.Array, values: jax.Array, momentum: jax.Array | float) -> jax.Array:
    """A bank `[N, P]` of unit-length rows after a batch: the rows `index` `[B]` have moved to `values` `[B, P]`, or to
    their mean where an index occurs more than once, and keep a share `momentum` of what they were, a scalar or
    `[B, 1]`; an index of N moves nothing."""
    same = index[:, None] == index[None, :]
    mean = jnp.matmul(same.astype(values.dtype), values, precision="highest") / jnp.sum(same, axis=1, keepdims=True)
    return with_rows(bank, index, normalize(momentum * bank[index] + (1 - momentum) * mean))


def updated_identities(known: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
    """The identities of all images, int `[N]`, -1 where unknown, after a batch with `labels` `[B]`; a label of -1
    changes nothing, because mixup images have it and the index of a labeled image."""
    found = jnp.max(jnp.where(index[:, None] == index[None, :], labels[None, :], -1), axis=1)
    return with_rows(known, index, jnp.maximum(found, known[index]))


@losses.register("crd")
class ContrastiveRepresentation(Loss):
    """Contrasts projections of the student's and T_d's embeddings, in both directions: those of one image are a
    positive pair, those of other images, from a memory bank, are negatives (CRD, Tian et al., arXiv 1910.10699).

    After the authors' code (RepDistiller), where the weight beside a cross-entropy of weight 1 is 0.8. Ours: all images
    of a batch share one draw of negatives, which are images of other identities, uniform with replacement. With n
    negatives the loss begins near `2 (log(1 + n) + 1 + 1 / (256 tau^2))`.

    The authors' banks begin with random rows, which hundreds of passes over the images replace; here trainings can be
    as short as two. So negatives are images that were in a batch, T_d's bank has its embeddings, which are projected
    for each batch, and a positive is the projection of the batch itself, not the image's row. The state has 1.5 KB per
    image of the training set.

    Logged: `crd_positive`, the mean probability `h` of the positives; it begins below 1 / n.
    """

    needs = frozenset({"embedding", "discriminative", "label", "index"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          negatives: number of negatives, n, at least 1.
          dim: of the projections, at least 1.
          tau: temperature, above 0.
          momentum: share of a row of the student's bank that an update leaves, at least 0 and below 1.
        """

        negatives: int = 16384
        dim: int = 128
        tau: float = 0.07
        momentum: float = 0.5

        def __post_init__(self) -> None:
            if min(self.negatives, self.dim) < 1:
                raise ValueError("negatives and dim must be at least 1")
            if not self.tau > 0:
                raise ValueError(f"tau is {self.tau}; it must be above 0")
            if not 0 <= self.momentum < 1:
                raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.project_student = nnx.Linear(info.embedding_dim, config.dim, rngs=rngs)
        self.project_teacher = nnx.Linear(info.embedding_dim, config.dim, rngs=rngs)
        # Of images that were in a batch; the others have zeros and the identity -1.
        self.seen, self.identities = State(jnp.zeros(info.images, bool)), State(jnp.full(info.images, -1))
        self.student_bank = State(jnp.zeros((info.images, config.dim)))
        self.teacher_bank = State(jnp.zeros((info.images, info.embedding_dim), jnp.float16))
        self.log_means = State(jnp.zeros(2))  # of `e^u` in the first batch: log(Z / N)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        assert outputs.embedding is not None and outputs.teacher is not None  # `needs` has both
        student = normalize(self.project_student(outputs.embedding.astype(jnp.float32)))
        teacher = normalize(self.project_teacher(jax.lax.stop_gradient(outputs.teacher)))
        index, everyone = batch["index"], sharding.replicated(batch["index"])
        labels = sharding.replicated(batch["label"])
        # A mixup image has no label, and the index of one of its images, whose row stays.
        everyone = jnp.where((labels < 0) & (self.identities[...][everyone] >= 0), len(self.seen[...]), everyone)
        first_batch, seen = ~jnp.any(self.seen[...]), self.seen[...].at[everyone].set(True, mode="drop")
        identities = updated_identities(self.identities[...], everyone, labels)
        found, embeddings = (
            sharding.replicated(jax.lax.stop_gradient(x)) for x in (student, outputs.teacher.astype(jnp.float16))
        )
        teacher_bank = with_rows(self.teacher_bank[...], everyone, embeddings)
        momentum = jnp.where(self.seen[...][everyone], self.config.momentum, 0.0)[:, None]
        student_bank = updated_bank(self.student_bank[...], everyone, found, momentum)

        drawn = drawn_rows(key, seen, self.config.negatives)
        own, of_drawn = identities[index][:, None], identities[drawn]
        counted = ((own != of_drawn) | (of_drawn < 0)) & (index[:, None] != drawn)
        of_student = student_bank[drawn]
        of_teacher = normalize(self.project_teacher(teacher_bank[drawn].astype(jnp.float32)))
        value, positive, log_means = jnp.zeros(()), jnp.zeros(()), []
        directions = (student, teacher, of_teacher), (teacher, student, of_student)
        for (anchors, others, bank), before in zip(directions, self.log_means[...]):
            others, bank = jax.lax.stop_gradient((others, bank))
            positives = jnp.sum(anchors * others, axis=-1) / self.config.tau
            negatives = jnp.matmul(anchors, bank.T, precision="highest") / self.config.tau
            every = jnp.concatenate([positives[:, None], negatives], axis=1)
            # Z of the first batch stays: log(Z n / N) is log n + log(mean(e^u)).
            log_means.append(jnp.where(first_batch, log_mean_exp(every), before))
            offset = jnp.log(self.config.negatives) + log_means[-1]
            value += jnp.mean(contrastive_terms(positives, negatives, counted, offset))
            positive += jnp.mean(jax.nn.sigmoid(positives - offset)) / 2
        self.seen[...], self.identities[...] = seen, identities
        self.student_bank[...], self.teacher_bank[...] = student_bank, teacher_bank
        self.log_means[...] = jnp.stack(log_means)
        return sharding.mean(value), {"crd_positive": positive}

"""A stage of the training: a student, the losses it is trained with, and the parts of it that stay fixed.

`training.trainer.fit` requires of a stage only `loss(batch, key) -> (scalar, metrics)` and `frozen`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.data.random_degradation import RandomDegradation
from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses import accuracy
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, State
from gdrd_jax.models.relation import normalize
from gdrd_jax.models.student import Student
from gdrd_jax.registry import losses as registry
from gdrd_jax.utils.errors import GdrdError

DEGRADATION_KEY, MIXUP_KEY, SECOND_KEY = 2, 3, 5  # folded into a step's key; `trainer.SHIFT_KEYS` has 1 and 4
OF_HEAD = {"embedding", "logits"}  # needs that take the student's head
MIRRORED = {"hr_features", "hr_small"}  # needs that are stored for a face, view 0, and its mirror image, view 1


class Stage(nnx.Module):
    """Trains a student with a weighted sum of losses; Eq. 1 and Eq. 3 of GDRD are two settings of it.

    Args:
      student: backbone and head.
      losses: name to weight and settings, `{"rcd": {"weight": 4.0, "tau": 0.4}}`; see `gdrd_jax.registry.losses`.
      info: see `losses.interface.DataInfo`.
      frozen: parts of the student that are not trained: "backbone", or none.
      rngs: random streams for the losses' parameters.
      degradation: makes the student's input from `small` faces, drawn again at each use and mirrored at random; one
        target serves a face and its mirror image. With losses that need one of `MIRRORED`, the batch says which it is.
        None takes `lr` as it is.
      mixup: share of the faces that are mixed with another face of the batch before both are degraded (Zhang et al.,
        arXiv 1710.09412); their target is the mixture of both targets, and they have no identity. With mixup targets
        (`data.packed_mixup`), share of the faces that are replaced by one of their mixup images.

    Raises:
      GdrdError: an unknown loss or setting.
    """

    def __init__(
        self, student: Student, losses: Mapping[str, Mapping[str, object]], info: DataInfo, *,
        frozen: Sequence[str] = (), rngs: nnx.Rngs, degradation: RandomDegradation | None = None, mixup: float = 0.0,
    ):  # fmt: skip
        self.degradation, self.mixup, self.frozen = degradation, mixup, tuple(frozen)
        needs = needs_of(losses)
        self.backbone = student.backbone
        self.head = student.head if needs & OF_HEAD else None
        self.identities = info.identities
        size = info.embedding_dim, info.identities
        self.classifier = class_parallel.classifier(*size, rngs=rngs) if "logits" in needs else None
        self.has_teacher, self.has_second = "discriminative" in needs, "second" in needs
        self.has_stages, self.mirrors_by_view = "stages" in needs, bool(needs & MIRRORED)
        self.weights, terms = {}, {}
        for name, given in losses.items():
            settings = dict(given)
            self.weights[name] = settings.pop("weight", 1.0)
            terms[name] = registry[name](registry.settings(name, settings), info, rngs=rngs)
        # The name sorts between "classifier" and "head", like the critic of version 0.4. The norm of the gradient is a
        # sum in this order, so that the same training still gives the same bits.
        self.criteria = nnx.Dict(terms)

    def loss(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the losses (Eq. 3), and its terms to log.

        Args:
          batch: `lr` uint8 `[B,R,R,C]`, or with `degradation` `small` uint8 `[B,S,S,C]`; `label` int `[B]`, -1 without
            identity; `index` and `view` int `[B]`, row of the training set and which view of it; what the losses need:
            `discriminative` `[B,D]`, `generative` `[B,C,h,w]`; with a second image of each row `has_second` bool `[B]`
            and all of the above under names that begin with `second_`; with mixup targets also `mixup_targets`
            `[B,D]`, `mixup_share` and `mixup_mirrored` `[B]`, and `mixup_small`, the faces they are mixed with, as
            `small`.
          key: random key of this step, the same on all devices.
        """
        if self.mixup:
            mix = _mixup_images if "mixup_targets" in batch else _mixed
            batch = mix(batch, jax.random.fold_in(key, MIXUP_KEY), self.mixup)
        images = self._input(batch, jax.random.fold_in(key, DEGRADATION_KEY))
        if self.has_second:  # one pass, so that batch normalization sees both as one batch
            others = self._input(batch, jax.random.fold_in(key, SECOND_KEY), "second_")
            images = jnp.concatenate([images, others])
        maps = self.backbone.stages(images) if self.has_stages else (self.backbone(images),)
        if "backbone" in self.frozen:
            maps = jax.lax.stop_gradient(maps)
        metrics: Metrics = {}
        embedding = self.head(maps[-1]) if self.head else None
        logits = second = None
        if self.has_second:
            (maps, second_maps), (embedding, second_embedding) = _halves(maps), _halves(embedding)
            second = self._outputs(second_maps, second_embedding, batch, "second_")
        outputs = self._outputs(maps, embedding, batch, "")
        if self.classifier:
            logits = class_parallel.own_logits(self.classifier(sharding.gathered(embedding)), self.identities)
            metrics["train_accuracy"] = accuracy(logits, sharding.gathered(batch["label"]))
        outputs, terms = dataclasses.replace(outputs, logits=logits, second=second), {}
        for name in self.weights:  # in the given order, which `nnx.Dict` does not keep
            terms[name], more = _checked(name, self.criteria[name](outputs, batch, key), self.criteria[name])
            metrics |= {key: sharding.mean(value) for key, value in more.items()}
        return sum(self.weights[name] * terms[name] for name in terms), {**terms, **metrics}

    def _input(self, batch: Batch, key: jax.Array, prefix: str = "") -> jax.Array:
        """What the student sees of the first images (`prefix` ""), or of the second ones."""
        if self.degradation is None:
            return batch[f"{prefix}lr"]
        small = batch[f"{prefix}small"]
        mirrored = batch[f"{prefix}view"] == 1 if self.mirrors_by_view else None
        return self.degradation(small, mirrored, key, sharding.device_index() * len(small))

    def _outputs(
        self, maps: tuple[jax.Array, ...], embedding: jax.Array | None, batch: Batch, prefix: str
    ) -> Outputs:  # fmt: skip
        teacher = normalize(batch[f"{prefix}discriminative"].astype(jnp.float32)) if self.has_teacher else None
        return Outputs(maps[-1], embedding, teacher=teacher, stages=maps if self.has_stages else None)


def _checked(name: str, result: Any, loss: Loss) -> tuple[jax.Array, Metrics]:
    """What a loss returned.

    Raises:
      GdrdError: it is no pair of a scalar and figures, or it differs between devices, or the loss's state does.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and jnp.shape(result[0]) == ()):
        found = f"shape {jnp.shape(result)}" if isinstance(result, jax.Array) else type(result).__name__
        raise GdrdError(
            f"the loss {name!r} returns {found}; it has to return a scalar and a dict of figures to log", "loss-result"
        )
    state = [x for _, x in nnx.to_flat_state(nnx.state(loss, State)) if not class_parallel.per_class(x)]
    for what, value in (("a value", result[0]), ("state", state)):
        if any(map(sharding.may_differ, jax.tree.leaves(value))):
            remedy = "sharding.mean(value)" if what == "a value" else "an update by sharding.replicated"
            raise GdrdError(
                f"the loss {name!r} has {what} that differs between devices, each of which sees a part of the batch; "
                f"use {remedy}",
                "loss-differs",
            )
    return result


def _halves(both: Any) -> tuple[Any, Any]:
    """The first and the second half of arrays `[2b, ...]`, or of None."""
    first = jax.tree.map(lambda x: x[: len(x) // 2], both)
    return first, jax.tree.map(lambda x: x[len(x) // 2 :], both)


def needs_of(losses: Mapping[str, Mapping[str, object]]) -> set[str]:
    """What the losses of a stage read, see `losses.interface.Loss`; arguments as of `Stage`."""
    return {need for name in losses for need in registry[name].needs}


def _mixed(batch: Batch, key: jax.Array, share: float) -> Batch:
    """Mixes a share of the `small` faces with their neighbors (0 with 1, 2 with 3)."""
    size = len(batch["small"])
    if size % 2:
        raise GdrdError(
            f"mixup needs an even number of faces on each device, not {size}; change config.dis.batch",
            "mixup-odd-batch",
        )
    # Drawn for the whole batch, so that the number of devices changes nothing.
    chosen, weight = sharding.local_shard(jax.random.uniform(key, (size * sharding.device_count(), 2)), size).T
    own = jnp.where(chosen < share, 0.5 + weight / 2, 1.0)
    swap = lambda x: x.reshape(size // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)  # noqa: E731

    targets = normalize(batch["discriminative"].astype(jnp.float32))
    targets = own[:, None] * targets + (1 - own[:, None]) * swap(targets)
    small = _laid_over(batch["small"], swap(batch["small"]), own)
    return {**batch, "small": small, "discriminative": targets, "label": jnp.where(own < 1, -1, batch["label"])}


def _laid_over(faces: jax.Array, others: jax.Array, share: jax.Array) -> jax.Array:
    """Mixup images of two batches of faces, uint8 `[b,S,S,C]`, with a share `[b]` of the pixels of the first."""
    share = share[:, None, None, None]
    return jnp.rint(share * faces.astype(jnp.float32) + (1 - share) * others.astype(jnp.float32)).astype(jnp.uint8)


def _mixup_images(batch: Batch, key: jax.Array, share: float) -> Batch:
    """Puts a mixup image, of which T_d's embedding is known, in the place of a share of the `small` faces."""
    size = len(batch["small"])
    chosen = sharding.local_shard(jax.random.uniform(key, (size * sharding.device_count(),)), size) < share
    mirrored = batch["mixup_mirrored"][:, None, None, None] == 1
    partner = jnp.where(mirrored, batch["mixup_small"][:, :, ::-1], batch["mixup_small"])
    small = _laid_over(batch["small"], partner, jnp.where(chosen, batch["mixup_share"], 1.0))
    both = (normalize(batch[name].astype(jnp.float32)) for name in ("mixup_targets", "discriminative"))
    targets = jnp.where(chosen[:, None], *both)
    return {**batch, "small": small, "discriminative": targets, "label": jnp.where(chosen, -1, batch["label"])}


def class_centers(embeddings: np.ndarray, labels: np.ndarray, identities: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalized mean of the normalized teacher embeddings of each identity, and the length of their sum.

    Args:
      embeddings: teacher embeddings, `[N, D]`.
      labels: identity of each row, int `[N]`, in `range(identities)`; every identity occurs.
      identities: number of identities.

    Returns:
      float32 `[identities, D]`, unit length; float32 `[identities]`.
    """
    unit = embeddings.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    sums = np.zeros((identities, unit.shape[1]), np.float32)
    np.add.at(sums, labels, unit)
    lengths = np.linalg.norm(sums, axis=1)
    return sums / lengths[:, None], lengths

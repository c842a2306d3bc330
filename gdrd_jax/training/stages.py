"""The two stages: what each trains, on which targets, by which loss.

A stage is an NNX module with `loss(batch, key) -> (scalar, metrics)` and the names of
the sub-modules that stay as they are (`frozen`). `training.trainer.fit` knows nothing else of it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax import losses
from gdrd_jax.data.random_degradation import RandomDegradation
from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.models.relation import RelationCritic, normalize
from gdrd_jax.models.student import Backbone, Student
from gdrd_jax.utils.errors import GdrdError

DEGRADATION_KEY, MIXUP_KEY = 2, 3  # folded into a step's key
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Fixed(nnx.Variable):
    """A constant of a stage, such as target statistics: saved and moved, never trained."""


class Gen(nnx.Module):
    """Stage gen: regresses the backbone onto standardized generative features (Eq. 1).

    What is the same in the features of all faces is taken away: of aligned faces it is half of their variance, and says
    nothing of anybody.

    `R` is the identity where shapes agree, else a 1x1 convolution: after average pooling where the targets are
    coarser, and where they are n times finer to n x n outputs a position (the sub-pixel convolution of Shi et al.,
    arXiv 1609.05158), for interpolated features could not follow them. It is thrown away afterwards.

    Args:
      backbone: `S_b`.
      feature_shape: `(h, w, C)` of `backbone`'s features.
      target_shape: `(C, h, w)` of the teacher's.
      mean, std: of the teacher's features, float `[C,h,w]` and `[C]`, see `data.feature_store.feature_statistics`.
    """

    frozen: Sequence[str] = ()

    def __init__(
        self, backbone: Backbone, feature_shape: tuple[int, int, int], target_shape: tuple[int, int, int],
        mean: np.ndarray, std: np.ndarray, *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.backbone = backbone
        self.target_size = target_shape[1:]
        same = (target_shape[1:], target_shape[0]) == (feature_shape[:2], feature_shape[2])
        self.finer = _times(target_shape[1:], feature_shape[:2])
        outputs = target_shape[0] * self.finer[0] * self.finer[1]
        self.regressor = None if same else nnx.Conv(feature_shape[2], outputs, (1, 1), rngs=rngs)
        self.mean, self.std = Fixed(jnp.asarray(mean)), Fixed(jnp.asarray(std))

    def loss(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """`batch` has `lr` uint8 `[B,R,R,3]` and `generative` `[B,C,h,w]`; `key` is not used."""
        prediction = self.predict(batch["lr"])
        target = self.standardize(batch["generative"])
        loss = losses.generative_loss(prediction, target)
        return loss, {"gen": loss, "r2": 1 - loss / sharding.mean(jnp.mean(target**2))}

    def predict(self, lr: jax.Array) -> jax.Array:
        """`R(S_b(lr))`, `[B,h,w,C]`, in standardized units."""
        features = _pooled(self.backbone(lr), self.target_size)
        if self.regressor is not None:
            features = _spread(self.regressor(features), self.finer)
        if features.shape[1:3] != self.target_size:  # no whole number of times larger or smaller
            features = jax.image.resize(features, (*features.shape[:1], *self.target_size, features.shape[3]), "linear")
        return features

    def standardize(self, target: jax.Array) -> jax.Array:
        """Teacher features `[B,C,h,w]` -> `[B,h,w,C]`, zero mean at each position and unit variance a channel."""
        return _standardized(target, self.mean[...], self.std[...])


def _standardized(features: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    return (features.astype(jnp.float32) - mean).transpose(0, 2, 3, 1) / std


def _times(size: Sequence[int], of: Sequence[int]) -> tuple[int, int]:
    """How many times larger, along both axes, where it is a whole number; else 1."""
    return (size[0] // of[0], size[1] // of[1]) if size[0] % of[0] == size[1] % of[1] == 0 else (1, 1)


def _pooled(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Means of blocks, `[B,h,w,C]` -> `[B,*size,C]` where that is a whole number of times smaller."""
    down, across = _times(x.shape[1:3], size)
    blocks = x.reshape(len(x), x.shape[1] // down, down, x.shape[2] // across, across, x.shape[3])
    return blocks.mean(axis=(2, 4))


def _spread(x: jax.Array, times: tuple[int, int]) -> jax.Array:
    """Depth to space: `[B,h,w,m*n*C]` -> `[B,h*m,w*n,C]`."""
    (batch, height, width, _), (down, across) = x.shape, times
    blocks = x.reshape(batch, height, width, down, across, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height * down, width * across, -1)


class TeacherFeatures(nnx.Module):
    """Stands in the backbone's place: T_g's own features, standardized; the paper's "SR".

    Args:
      mean, std: of the features, float `[C,h,w]` and `[C]`.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray):
        self.mean, self.std = Fixed(jnp.asarray(mean)), Fixed(jnp.asarray(std))

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B,C,h,w]` -> float32 `[B,h,w,C]`."""
        return _standardized(features, self.mean[...], self.std[...])


class Dis(nnx.Module):
    """Stage dis: trains the head on Eq. 3 or on what of it has a weight, with a classifier and a critic where needed.

    Args:
      student: `S`, its backbone as stage gen left it, or new.
      centers: normalized mean teacher embedding of each training identity, `[K, D]`.
      weights: weights of the terms of Eq. 3, `cls`, `kd` and `rcd`, and of three that the paper does not have:
        `embedding_cosine`, `similarity_preserving` and `nce`; a term of weight 0 is not computed. Faces without
        identity (label -1) count in all but `cls`.
      temperature, teacher_scale: of the logit distillation.
      tau, positive: of Eq. 2, see `losses.relation_scores`.
      pairs: relations of a face with the whole batch ("gathered"), so that the number of devices changes nothing, or
        only with the part of it on the same device ("local"), which is less work.
      end_to_end: train the backbone, too; it stays as it is otherwise.
      degradation: makes the student's input of `small` faces, drawn again at each use, mirrored or not: the target of a
        face serves its mirror image, too. None takes `lr` as it is.
      nce_scale: see `losses.contrastive_loss`.
      mixup: share of the faces that another face of the batch is laid over, before both are degraded (Zhang et al.,
        arXiv 1710.09412); their target is the mixture of both targets, and they have no identity. With mixup targets
        (`data.packed_mixup`), share of the faces in whose place one of their mixup images is seen.
    """

    def __init__(
        self, student: Student, centers: np.ndarray, *, weights: dict[str, float], temperature: float,
        teacher_scale: float, tau: float, positive: str, pairs: str, end_to_end: bool, rngs: nnx.Rngs,
        degradation: RandomDegradation | None = None, nce_scale: float = 16.0, mixup: float = 0.0,
    ):  # fmt: skip
        self.degradation, self.nce_scale, self.mixup = degradation, nce_scale, mixup
        identities, dim = centers.shape
        self.frozen = () if end_to_end else ("backbone",)
        self.backbone, self.head = student.backbone, student.head
        self.classes = identities
        self.classifier = nnx.Linear(dim, identities, rngs=rngs) if weights["cls"] or weights["kd"] else None
        if self.classifier:
            class_parallel.divide(self.classifier.kernel, axis=1)
            class_parallel.divide(self.classifier.bias, axis=0)
        self.critic = RelationCritic(dim, rngs=rngs) if weights["rcd"] else None
        self.centers = Fixed(jnp.asarray(centers))
        class_parallel.divide(self.centers, axis=0)
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature, self.teacher_scale = temperature, teacher_scale
        self.tau, self.positive, self.pairs = tau, positive, pairs

    def loss(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss and its terms.

        Args:
          batch: `lr` uint8 `[B,R,R,3]`, or with `degradation` `small` uint8 `[B,S,S,3]`; `label` int `[B]`;
            `discriminative` `[B,D]`; with mixup targets also `mixup_targets` `[B,D]`, `mixup_share` and
            `mixup_mirrored` `[B]`, and `mixup_small`, the faces they are mixed with, as `small`.
          key: of this step, the same on all devices.
        """
        if self.mixup:
            mix = _mixup_images if "mixup_targets" in batch else _mixed
            batch = mix(batch, jax.random.fold_in(key, MIXUP_KEY), self.mixup)
        features = self.backbone(self._input(batch, key))
        if self.frozen:
            features = jax.lax.stop_gradient(features)
        embedding = self.head(features)
        teacher = normalize(batch["discriminative"].astype(jnp.float32))
        terms, more = {}, {}
        if self.classifier:
            logits = class_parallel.own_logits(self.classifier(sharding.gathered(embedding)), self.classes)
            labels = sharding.gathered(batch["label"])
            more["train_accuracy"] = losses.accuracy(logits, labels)
        if "cls" in self.weights:
            terms["cls"] = losses.classification_loss(logits, labels)
        if "kd" in self.weights:
            teacher_logits = losses.center_logits(sharding.gathered(teacher), self.centers[...], self.teacher_scale)
            teacher_logits = class_parallel.own_logits(teacher_logits, self.classes)
            terms["kd"] = losses.distillation_loss(logits, teacher_logits, self.temperature)
        if "rcd" in self.weights:
            terms["rcd"] = self._relational_loss(teacher, embedding, batch["label"], key)
        if "embedding_cosine" in self.weights:
            terms["embedding_cosine"] = losses.embedding_cosine(embedding, teacher)
        if "similarity_preserving" in self.weights:
            terms["similarity_preserving"] = losses.similarity_preserving(embedding, teacher)
        if "nce" in self.weights:
            terms["nce"] = losses.contrastive_loss(embedding, teacher, self.nce_scale)
        return losses.discriminative_loss(terms, self.weights), {**terms, **more}

    def _input(self, batch: Batch, key: jax.Array) -> jax.Array:
        if self.degradation is None:
            return batch["lr"]
        first = sharding.device_index() * len(batch["small"])
        return self.degradation(batch["small"], None, jax.random.fold_in(key, DEGRADATION_KEY), first)

    def _relational_loss(self, teacher: jax.Array, embedding: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
        anchors, first = teacher, 0
        if self.pairs == "gathered":
            first = sharding.device_index() * len(teacher)
            teacher, embedding, label = map(sharding.gathered, (teacher, embedding, label))
        else:
            key = jax.random.fold_in(key, sharding.device_index())
        assert self.critic is not None  # made where the term has a weight
        h1, h2 = self.critic(anchors, teacher, embedding)
        scores = losses.relation_scores(h1, h2, label, key, first, tau=self.tau, positive=self.positive)
        return losses.relation_loss(*scores)


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
    """Mixup images of two batches of faces, uint8 `[b,S,S,3]`, with a share `[b]` of the pixels of the first."""
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


def class_centers(embeddings: np.ndarray, labels: np.ndarray, identities: int) -> np.ndarray:
    """Normalized mean of the (normalized) teacher embeddings of each identity.

    Args:
      embeddings: `[N, D]`.
      labels: int `[N]`, in `range(identities)`; every identity occurs.

    Returns:
      float32 `[identities, D]`, unit length.
    """
    unit = embeddings.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    sums = np.zeros((identities, unit.shape[1]), np.float32)
    np.add.at(sums, labels, unit)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)

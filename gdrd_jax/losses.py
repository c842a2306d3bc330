"""Eq. 1, 2 and 3 of GDRD (arXiv 2409.06371) as pure functions of arrays.

Symbols as in the paper. Losses are float32 scalars of the whole batch, also where each device has a part of it.
"""

import jax
import jax.numpy as jnp
import optax

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.models.relation import normalize


def generative_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Eq. 1: `mean_i ||R(S_b(lr_i)) - T_g(lr_i)||^2`, per feature element.

    The paper's sum over the elements of a feature map is a mean here, which changes
    nothing but the learning rate that fits; with standardized targets the loss is
    then the unexplained share of the variance, 1 - R^2.

    Args:
      prediction: `R(S_b(lr))`, float `[B, ...]`.
      target: `T_g(lr)`, same shape; receives no gradient.
    """
    difference = prediction.astype(jnp.float32) - jax.lax.stop_gradient(target)
    return sharding.mean(jnp.mean(difference**2))


def classification_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`L_cls` of Eq. 3: softmax cross-entropy, mean over the faces whose identity is known.

    Args:
      logits: `[B, K]` of the whole batch, of the classes that this device has (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity.
    """
    entropy = -class_parallel.of_labels(class_parallel.log_softmax(logits), labels)
    return _mean_of_known(entropy, labels)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the faces of known identity whose own class has the largest logit, alone or with others; arguments as of
    `classification_loss`."""
    largest = sharding.maximum(jax.lax.stop_gradient(logits.max(axis=-1)))
    return _mean_of_known(class_parallel.of_labels(logits, labels) >= largest, labels)


def _mean_of_known(values: jax.Array, labels: jax.Array) -> jax.Array:
    known = labels >= 0
    return sharding.mean(jnp.sum(values * known) / jnp.maximum(known.sum(), 1))


def embedding_cosine(embedding: jax.Array, teacher: jax.Array) -> jax.Array:
    """`1 - cos(S(lr_i), T_d(x_i))`, mean over the batch; not in the paper.

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
    """
    cosine = jnp.sum(normalize(embedding) * jax.lax.stop_gradient(teacher), axis=-1)
    return sharding.mean(jnp.mean(1 - cosine))


def similarity_preserving(embedding: jax.Array, teacher: jax.Array) -> jax.Array:
    """Squared difference of all cosines between two faces of the batch, the student's and the teacher's; mean over
    pairs of different faces (similarity preservation, Tung and Mori, arXiv 1907.09682, of cosines); not in the paper.

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
    """
    embedding, teacher = normalize(embedding), jax.lax.stop_gradient(teacher)
    ours, theirs = (own @ sharding.gathered(own).T for own in (embedding, teacher))
    # On the diagonal, that of a face with itself, both are 1.
    return sharding.total(jnp.sum((ours - theirs) ** 2)) / (ours.shape[1] * (ours.shape[1] - 1))


def contrastive_loss(embedding: jax.Array, teacher: jax.Array, scale: float) -> jax.Array:
    """Cross-entropy of finding a face's own teacher embedding among those of the whole batch (InfoNCE, van den Oord et
    al., arXiv 1807.03748, between student and teacher); mean over the batch; not in the paper.

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
      scale: of the cosines, the inverse of the temperature.
    """
    everyone = sharding.gathered(jax.lax.stop_gradient(teacher))
    own = sharding.device_index() * len(embedding) + jnp.arange(len(embedding))
    logits = scale * normalize(embedding) @ everyone.T
    return sharding.mean(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, own)))


def distillation_loss(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """`L_kd` of Eq. 3: `T^2 KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch.

    Args:
      logits: the student's, `[B, K]` of the whole batch, of the classes that this device has (see `class_parallel`).
      teacher_logits: `[B, K]`, see `center_logits`; receives no gradient.
      temperature: `T > 0`.
    """
    teacher = class_parallel.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    student = class_parallel.log_softmax(logits / temperature)
    divergence = sharding.total(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))
    return temperature**2 * jnp.mean(divergence)


def center_logits(embeddings: jax.Array, centers: jax.Array, scale: float) -> jax.Array:
    """Teacher logits `scale * cos(T_d(x), center_c)`, which a public ArcFace does not bring.

    Args:
      embeddings: `T_d(x)`, `[B, D]`, unit length.
      centers: `[K, D]`, unit length: the normalized mean teacher embedding of each identity.
      scale: as the `s` of ArcFace.
    """
    return scale * embeddings @ centers.T


def relation_scores(
    h1: jax.Array, h2: jax.Array, labels: jax.Array, key: jax.Array, first: int | jax.Array = 0, *,
    tau: float, positive: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Scores `s = h1(v_t[i,j]) . h2(v_ts[i,k]) / tau`, one positive and one negative k an (i, j).

    Args:
      h1, h2: unit-length projected relations of `RelationCritic`, `[A, B, P]`: of A of the batch's B faces, the
        anchors i, with all of them.
      labels: identities of all, int `[B]`.
      key: picks k, the same whatever part of the batch the anchors are.
      first: position of the first anchor in the batch.
      tau: temperature, 0.4 in the paper.
      positive: "pair": k = j is positive and any other k negative; "identity": k of the
        same identity as j is positive and k of another one negative.

    Returns:
      `positives` and `negatives`, float32 `[A, B]`, and a bool mask `[A, B]` of the (i, j)
      that count: i != j, and a negative exists.
    """
    anchors, size = h1.shape[:2]
    if positive == "pair":
        negative_of = ~jnp.eye(size, dtype=bool)
        k_positive = jnp.broadcast_to(jnp.arange(size), (anchors, size))
    else:
        # Each unlabeled face counts as an identity of its own.
        same = (labels[:, None] == labels[None, :]) & (labels >= 0) | jnp.eye(size, dtype=bool)
        negative_of = ~same
        k_positive = _pick(jax.random.fold_in(key, 1), same, first, anchors)
    k_negative = _pick(key, negative_of, first, anchors)
    anchor = jnp.arange(anchors)[:, None]
    positives = jnp.sum(h1 * h2[anchor, k_positive], axis=-1) / tau
    negatives = jnp.sum(h1 * h2[anchor, k_negative], axis=-1) / tau
    itself = first + anchor == jnp.arange(size)
    return positives, negatives, ~itself & negative_of.any(axis=1)[None, :]


def _pick(key: jax.Array, allowed: jax.Array, first: int | jax.Array, anchors: int) -> jax.Array:
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

    With `h(s) = exp(s) / (exp(s) + n/m)` and `c = log(n/m)` the paper's `-log h(s)` is
    `softplus(c - s)` and `-log(1 - h(s))` is `softplus(s - c)`, which do not overflow.

    Args:
      positives, negatives: scores `[A, B]`.
      mask: bool `[A, B]`, the (i, j) that count.
      negative_ratio: `n/m`; equally many positives and negatives make it 1/2.
    """
    c = jnp.log(negative_ratio)
    terms = jax.nn.softplus(c - positives) + jax.nn.softplus(negatives - c)
    return sharding.total(jnp.sum(terms * mask)) / jnp.maximum(sharding.total(mask.sum()), 1)


def discriminative_loss(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """Eq. 3: the weighted sum of the terms `cls`, `kd` and `rcd`, and of those that are not in the paper."""
    return sum(weights[name] * terms[name] for name in terms)

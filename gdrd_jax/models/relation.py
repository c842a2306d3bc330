"""Relations between samples and the critic that compares them (GDRD, Eq. 2).

`v_t[i,j] = F_t(T_d(x_i), T_d(x_j))` is a relation in the teacher's space,
`v_ts[i,j] = F_ts(T_d(x_i), S_h(f_j))` crosses from the teacher's to the student's.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class Relation(nnx.Module):
    """`F`: linear -> ReLU -> linear on the difference of two embeddings."""

    def __init__(self, embedding_dim: int, hidden: int, outputs: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(embedding_dim, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, anchors: jax.Array, others: jax.Array) -> jax.Array:
        """float `[A, D]`, `[B, D]` -> `[A, B, outputs]`, entry `[i, j]` for `anchors[i] - others[j]`."""
        # The first layer is linear, so the A B differences are taken after it: A + B products, not A B.
        kernel = self.first.kernel[...]
        difference = (anchors @ kernel)[:, None] - (others @ kernel)[None, :]
        return self.second(nnx.relu(difference + self.first.bias[...]))


class RelationCritic(nnx.Module):
    """`F_t`, `F_ts` and the projections `h1`, `h2` onto the sphere where relations are compared.

    Args:
      embedding_dim: dimension of the teacher's and the student's embedding.
      hidden: width of `F`.
      relation_dim: dimension of `v_t` and `v_ts`.
      projection_dim: dimension in which `h1(v_t) . h2(v_ts)` is taken.
    """

    def __init__(
        self, embedding_dim: int, *, hidden: int = 128, relation_dim: int = 128,
        projection_dim: int = 128, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.teacher_relation = Relation(embedding_dim, hidden, relation_dim, rngs=rngs)
        self.cross_relation = Relation(embedding_dim, hidden, relation_dim, rngs=rngs)
        self.h1 = nnx.Linear(relation_dim, projection_dim, rngs=rngs)
        self.h2 = nnx.Linear(relation_dim, projection_dim, rngs=rngs)

    def __call__(self, anchors: jax.Array, teacher: jax.Array, student: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projected relations of some faces of a batch, the anchors, with all of it.

        Args:
          anchors: `T_d(x_i)`, float `[A, D]`, unit length; receives no gradient.
          teacher: `T_d(x_j)`, float `[B, D]`, likewise.
          student: `S_h(f_j)`, float `[B, D]`; normalized here, to be on the teacher's scale.

        Returns:
          `h1(v_t)` and `h2(v_ts)`, float32 `[A, B, P]`, unit length.
        """
        anchors, teacher = (jax.lax.stop_gradient(normalize(x)) for x in (anchors, teacher))
        v_t = self.teacher_relation(anchors, teacher)
        v_ts = self.cross_relation(anchors, normalize(student))
        return normalize(self.h1(v_t)), normalize(self.h2(v_ts))


def normalize(x: jax.Array) -> jax.Array:
    """Scales the last axis to unit length; a zero vector stays zero with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)

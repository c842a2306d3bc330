"""A classifier whose classes are divided among the devices, as in Partial FC (An et al., arXiv 2203.15565).

For millions of people the weights of all classes, and a batch's logits of them, are too much for one device. Each
device has an equal share of the classes, all of which take part in each step, and computes their logits for all faces
of the batch. The host's copy, and checkpoints, have all classes, whatever the number of devices. With one device,
and outside `jax.shard_map`, the functions below are those of plain logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdrd_jax.distributed import sharding

NO_CLASS = -1e30  # a logit of the classes that are added so that each device has equally many


def divide(variable: nnx.Variable, axis: int) -> None:
    """Marks a variable that has one entry a class along `axis`, to be divided among the devices."""
    variable.set_metadata(per_class=(axis, variable.shape[axis]))


def per_class(leaf) -> tuple[int, int] | None:
    """`(axis, classes)` of a variable that is divided."""
    return leaf.get_metadata().get("per_class") if isinstance(leaf, nnx.Variable) else None


def _map(function, state):
    return jax.tree.map(function, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _spec(leaf) -> PartitionSpec:
    divided = per_class(leaf)
    return PartitionSpec(*[None] * divided[0], sharding.AXIS) if divided else PartitionSpec()


def partition_specs(state):
    """`PartitionSpec` of each variable of a state; each device has the whole of those that are not divided."""
    return _map(_spec, state)


def to_devices(state, mesh: Mesh):
    """Puts a state from the host's memory on the devices."""

    def padded(leaf):
        if divided := per_class(leaf):
            axis, classes = divided
            if missing := -classes % mesh.size:
                widths = [(0, missing if i == axis else 0) for i in range(leaf.ndim)]
                leaf = leaf.replace(np.pad(np.asarray(leaf[...]), widths))
        return leaf

    return jax.device_put(_map(padded, state), _map(lambda leaf: NamedSharding(mesh, _spec(leaf)), state))


def to_host(state):
    """The inverse of `to_devices`. Where there are several processes all of them have to call it."""

    def whole(leaf):
        if divided := per_class(leaf):
            axis, classes = divided
            array = leaf[...]
            if not array.is_fully_addressable:
                array = multihost_utils.process_allgather(array, tiled=True)
            leaf = leaf.replace(np.asarray(array)[(slice(None),) * axis + (slice(classes),)])
        return leaf

    return jax.device_get(_map(whole, state))


def classifier(inputs: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear classifier, `[B, inputs]` -> logits `[B, K]`, that is divided among the devices."""
    linear = nnx.Linear(inputs, classes, rngs=rngs)
    divide(linear.kernel, axis=1)
    divide(linear.bias, axis=0)
    return linear


def own_logits(logits: jax.Array, classes: int) -> jax.Array:
    """Logits `[B, K]` of this device's classes, in which those beyond the number of all `classes` do not count."""
    if logits.shape[1] * sharding.device_count() == classes:
        return logits
    numbers = sharding.device_index() * logits.shape[1] + jnp.arange(logits.shape[1])
    return jnp.where(numbers < classes, logits, NO_CLASS)


def log_softmax(logits: jax.Array) -> jax.Array:
    """Over the classes of all devices: `[B, K]` of this device's classes."""
    shifted = logits - sharding.maximum(jax.lax.stop_gradient(logits.max(axis=-1)))[:, None]
    return shifted - jnp.log(sharding.total(jnp.exp(shifted).sum(axis=-1)))[:, None]


def _places(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Where each face's own class is among the `classes` of this device, int `[B]`, and whether it is, bool `[B]`."""
    column = labels - sharding.device_index() * classes
    here = (labels >= 0) & (column >= 0) & (column < classes)
    return jnp.where(here, column, 0), here


def of_labels(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The value of each face's own class, on whichever device it is: `[B, K]`, int `[B]` -> `[B]`; 0 for label -1."""
    column, here = _places(labels, values.shape[1])
    picked = jnp.take_along_axis(values, column[:, None], axis=1)[:, 0]
    return sharding.total(jnp.where(here, picked, 0))


def with_labels(values: jax.Array, labels: jax.Array, new: jax.Array) -> jax.Array:
    """`values` with `new` in the place of `of_labels(values, labels)`: `[B, K]`, int `[B]`, `[B]` -> `[B, K]`."""
    column, here = _places(labels, values.shape[1])
    return values.at[jnp.arange(len(values)), jnp.where(here, column, values.shape[1])].set(new, mode="drop")


def rows_of_labels(rows: jax.Array, labels: jax.Array) -> jax.Array:
    """The row of each face's own class, on whichever device it is: `[K, D]`, int `[B]` -> `[B, D]`; 0 for label -1."""
    column, here = _places(labels, len(rows))
    return sharding.total(jnp.where(here[:, None], rows[column], 0))


def sums_of_labels(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Sums over the faces of each of the `classes` of this device: `[B, ...]`, int `[B]` -> `[K, ...]`."""
    column, here = _places(labels, classes)
    return jnp.zeros((classes, *values.shape[1:])).at[jnp.where(here, column, classes)].add(values, mode="drop")


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` of gradients, some of them divided among the devices."""

    def square(leaf):
        own = jnp.sum(jnp.square(leaf[...]))
        return sharding.total(own) if per_class(leaf) else own

    def update(gradients, state, params=None):
        norm = jnp.sqrt(sum(jax.tree.leaves(_map(square, gradients))))
        return jax.tree.map(lambda g: jnp.where(norm < limit, g, g / norm * limit), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

"""Classes divided among devices against all of them on one."""

import jax
import numpy as np
import optax
from conftest import finished, run_script
from flax import nnx

from gdrd_jax import losses
from gdrd_jax.distributed import class_parallel

DIVIDED = """
import numpy as np
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from gdrd_jax import losses
from gdrd_jax.distributed import class_parallel, sharding

def total(kernel, embedding, teacher, labels):
    logits = class_parallel.own_logits(sharding.gathered(embedding) @ kernel["k"][...], 10)
    wanted = class_parallel.own_logits(sharding.gathered(teacher) @ kernel["c"][...].T, 10)
    labels = sharding.gathered(labels)
    found = {
        "cls": losses.classification_loss(logits, labels), "kd": losses.distillation_loss(logits, wanted, 4.0),
        "accuracy": losses.accuracy(logits, labels),
    }
    return found["cls"] + found["kd"], found

def step(kernel, *batch):
    (_, found), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(kernel, *batch)
    clip = class_parallel.clip_by_global_norm(0.01)
    return found, gradients, clip.update(gradients[0], clip.init(None))[0]

rng = np.random.default_rng(0)
k, c = np.float32(3 * rng.normal(size=(6, 10))), np.float32(rng.normal(size=(10, 6)))
kernel = {"k": t.nnx.Param(k), "c": t.nnx.Param(c)}
class_parallel.divide(kernel["k"], 1)
class_parallel.divide(kernel["c"], 0)
batch = np.float32(rng.normal(size=(8, 6))), np.float32(rng.normal(size=(8, 6))), np.array([0, 9, -1, 3, 7, 7, -1, 5])
batch[0][1] = k[:, 9]
mesh = sharding.mesh()
specs, b = class_parallel.partition_specs(kernel), P("data")
on_four = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs, b, b, b), out_specs=(P(), (specs, b), specs)))
there = class_parallel.to_devices(kernel, mesh)
assert there["k"].shape == (6, 12) and there["k"][...].sharding.shard_shape((6, 12)) == (6, 3)
back = class_parallel.to_host(there)
assert all(np.array_equal(back[name][...], kernel[name][...]) for name in kernel)
divided = class_parallel.to_host(on_four(there, *batch))
whole = jax.device_get(jax.jit(step)(kernel, *batch))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), divided, whole)
assert float(np.sqrt(sum((g[...] ** 2).sum() for g in divided[2].values()))) < 0.0101
print(divided[0]["accuracy"])
"""


def test_losses_gradients_and_clipping_are_those_of_one_device():
    assert 0 < float(finished(run_script(DIVIDED, devices=4))[0]) < 1


def test_on_one_device_everything_is_as_optax_has_it():
    rng = np.random.default_rng(1)
    logits, labels = np.float32(rng.normal(size=(5, 7))), np.array([0, 6, 3, 3, 1])
    gradients = {"a": nnx.Param(logits), "b": logits[0]}

    @jax.jit
    def everything(logits, labels, gradients):
        found = losses.classification_loss(logits, labels), losses.accuracy(logits, labels)
        clips = [
            [
                clip(limit).update(gradients, None)[0]
                for clip in (class_parallel.clip_by_global_norm, optax.clip_by_global_norm)
            ]
            for limit in (0.1, 100.0)
        ]
        return *found, optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), clips

    entropy, accuracy, expected, clips = everything(logits, labels, gradients)
    np.testing.assert_allclose(entropy, expected, rtol=1e-6)
    assert accuracy == np.float32((logits.argmax(1) == labels).mean())
    for ours, theirs in clips:
        np.testing.assert_allclose(ours["a"][...], theirs["a"][...], rtol=1e-6)
        np.testing.assert_allclose(ours["b"], theirs["b"], rtol=1e-6)

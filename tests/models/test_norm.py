import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gdrd_jax.models.norm import BatchNorm

RNG = np.random.default_rng(0)


def random_like(module):
    values = jax.tree.map(lambda p: np.float32(RNG.uniform(0.5, 1.5, p.shape)), nnx.state(module, nnx.Param))
    nnx.update(module, values)
    return values


OTHER_SHAPES = (3, 5, 7, 4), (1, 4, 4, 2), (6, 3)


@pytest.mark.parametrize(
    "shape", [(8, 16, 16, 6), *(pytest.param(shape, marks=pytest.mark.slow) for shape in OTHER_SHAPES)]
)
def test_values_gradients_and_statistics_are_flaxs(shape):
    ours = BatchNorm(shape[-1], dtype=jnp.float32)
    theirs = nnx.BatchNorm(shape[-1], momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    nnx.update(theirs, random_like(ours))
    x, weight = (np.float32(RNG.normal(2, 3, shape)) for _ in range(2))

    @nnx.jit
    def values_and_gradients(module, x):
        def loss(module, x):
            values = module(x)
            return (values * weight).sum(), values

        gradients, values = nnx.grad(loss, argnums=(0, 1), has_aux=True)(module, x)
        return values, gradients

    for mode in ("train", "eval"):
        for module in (ours, theirs):
            getattr(module, mode)()
        (values, gradients), (expected, expected_gradients) = (values_and_gradients(m, x) for m in (ours, theirs))
        np.testing.assert_allclose(values, expected, atol=2e-5)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(ours, name)[...], getattr(theirs, name)[...], rtol=1e-5)


def test_bfloat16_goes_in_and_out_and_is_normalized_in_float32():
    x = jnp.asarray(RNG.normal(100, 1, (64, 4, 4, 3)), jnp.bfloat16)
    y = nnx.jit(lambda module, x: module(x))(BatchNorm(3, dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    exact = np.float64(x)
    exact = (exact - exact.mean(axis=(0, 1, 2))) / exact.std(axis=(0, 1, 2))
    np.testing.assert_allclose(np.float64(y), exact, atol=0.03)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gdrd_jax.models.layers import ConvNorm, DepthwiseConvolution


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 2)])
def test_a_depthwise_convolution_is_the_same_in_training(size, stride):
    layer = ConvNorm(4, 4, size, stride, jnp.float32, nnx.Rngs(0), depthwise=True).conv
    assert isinstance(layer, DepthwiseConvolution) and layer.kernel.shape == (size, size, 1, 4)
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype(np.float32)

    def graph_and_results(training):
        layer.train() if training else layer.eval()
        graph, state = nnx.split(layer)

        def loss(state, x):
            y = nnx.merge(graph, state)(x)
            return jnp.sum(y**3), y

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return str(run.trace(state, x).jaxpr), jax.tree.leaves(run(state, x))

    (as_sum, found), (as_convolution, wanted) = graph_and_results(True), graph_and_results(False)
    assert "conv_general_dilated" not in as_sum and "conv_general_dilated" in as_convolution
    assert [value.shape for value in found[1:2]] == [(2, -(-6 // stride), -(-7 // stride), 4)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

"""The arithmetic on paper is that of the network."""

import jax
import numpy as np
import pytest
from flax import nnx

from gdrd_jax.benchmarks import roofline
from gdrd_jax.models.student import abstract_student


@pytest.mark.parametrize(("resolution", "width"), [(16, 0.25), (8, 0.5), (32, 0.125)])
def test_layers_have_the_students_weights_and_operations(resolution, width):
    settings = {"resolution": resolution, "width": width, "hidden": (), "embedding_dim": roofline.DIM}
    student = abstract_student(settings)
    student.eval()
    found = roofline.layers(resolution, width)
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(student, nnx.Param)) if leaf.ndim > 1]
    assert sum(layer.weights for layer in found) == sum(leaf.size for leaf in kernels)
    graphdef, state = nnx.split(student)
    faces = np.zeros((4, resolution, resolution, 3), np.uint8)
    lowered = jax.jit(lambda state, faces: nnx.merge(graphdef, state)(faces)).lower(state, faces)
    counted = lowered.cost_analysis()["flops"] / 4
    # XLA leaves out products with the border's zeros, up to 31 % at 4x4 pixels, and counts normalization and ReLU.
    assert 0.69 < counted / sum(layer.flops for layer in found) < 1.02


def test_a_larger_batch_is_nearer_to_the_peak_and_never_beyond():
    found = roofline.layers(16, 1.0)
    for peak, bandwidth in roofline.DEVICES.values():
        shares = []
        for batch in (96, 1024, 4096):
            step = sum(max(layer.seconds(batch, peak, bandwidth, 2)) for layer in found)
            shares.append(3 * sum(layer.flops for layer in found) * batch / step / peak)
        assert 0 < shares[0] < shares[1] < shares[2] <= 1

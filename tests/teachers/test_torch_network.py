import numpy as np
import pytest
from conftest import raises

from gdrd_jax.teachers import torch_network


def test_bfloat16_is_refused_where_one_image_changes():
    exact = np.random.default_rng(0).normal(size=(4, 5))
    near, far = exact + 1e-3, exact.copy()
    far[2] = exact[2][::-1]
    torch_network.check_precision("bfloat16", {"float32": exact, "bfloat16": near}.get, "m")
    with raises("precision-changes-output", " m ", "bfloat16", "choose float32"):
        torch_network.check_precision("bfloat16", {"float32": exact, "bfloat16": far}.get, "m")
    with raises("precision-unknown", "'float16'"):
        torch_network.check_precision("float16", None, "m")


def test_a_gpu_that_is_too_small_gets_smaller_batches(caplog):
    sizes = []

    def run(images):
        if len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        sizes.append(len(images))
        return images * 2

    images = np.arange(10)
    np.testing.assert_array_equal(torch_network.in_batches(run, images, 8), images * 2)
    assert sizes == [2, 2, 2, 2, 2] and "batches of 2" in caplog.text
    with pytest.raises(RuntimeError, match="something else"):
        torch_network.in_batches(lambda x: (_ for _ in ()).throw(RuntimeError("something else")), images, 8)

import numpy as np

from gdrd_jax.models.haar import low_frequencies


def test_low_frequencies_are_the_product_with_both_rows_of_the_transform():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    along_y, along_x = (np.kron(np.eye(side // 2), [1, 1]) / np.sqrt(2) for side in x.shape[1:3])
    wanted = np.einsum("iy,byxc,jx->bijc", along_y, x.astype(np.float64), along_x)
    np.testing.assert_allclose(low_frequencies(x), wanted, atol=1e-6)

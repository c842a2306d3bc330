import numpy as np
import pytest

from gdrd_jax.models import haar

X = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)


def test_the_four_parts_have_all_of_an_image():
    ll, lh, hl, hh = map(np.asarray, haar.transform(X))
    found = np.empty_like(X)
    found[:, ::2, ::2], found[:, ::2, 1::2] = ll + lh + hl + hh, ll - lh + hl - hh
    found[:, 1::2, ::2], found[:, 1::2, 1::2] = ll + lh - hl - hh, ll - lh - hl + hh
    np.testing.assert_allclose(found / 2, X, atol=1e-6)
    assert sum((part**2).sum() for part in (ll, lh, hl, hh)) == pytest.approx((X**2).sum(), rel=1e-5)


def test_details_are_those_along_x_along_y_and_along_both():
    x, y = np.meshgrid(np.arange(4.0), 10 * np.arange(4.0))
    parts = [np.asarray(part)[0, :, :, 0] for part in haar.transform((x + y)[None, :, :, None])]
    np.testing.assert_array_equal([part[0, 0] for part in parts[1:]], [-1, -10, 0])
    constant = haar.transform(np.full((1, 4, 4, 1), 3.0))
    np.testing.assert_array_equal([np.unique(part) for part in constant], [[6], [0], [0], [0]])

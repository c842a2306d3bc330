import cv2
import numpy as np
import pytest

from gdrd_jax.data.degrade import Views, enlarge, reduce
from gdrd_jax.errors import GdrdError

FACE = np.random.default_rng(0).integers(256, size=(112, 112, 3), dtype=np.uint8)


def views(**changes):
    settings = {
        "resolution": 16,
        "kernel": "area",
        "count": 6,
        "shift": 4,
        "rotate": 8,
        "scale": 0.08,
        "light": 0.2,
        "seed": 7,
    }
    return Views(**{**settings, **changes})


def test_area_is_the_mean_over_each_cell():
    expected = FACE.reshape(16, 7, 16, 7, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(reduce(FACE, 16, "area"), expected, atol=0.51)


def test_bicubic_does_not_alias():
    stripes = np.zeros((112, 112, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 16 pixels can show: must become grey
    assert np.abs(reduce(stripes, 16, "bicubic").astype(int) - 127).max() < 16
    aliased = cv2.resize(stripes, (16, 16), interpolation=cv2.INTER_CUBIC)
    assert np.abs(aliased.astype(int) - 127).max() > 64


@pytest.mark.parametrize("kernel", ["area", "bicubic"])
@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_shapes(kernel, resolution):
    assert views(kernel=kernel, resolution=resolution).low(FACE).shape == (resolution, resolution, 3)
    assert enlarge(FACE[:resolution, :resolution], 112).shape == (112, 112, 3)


def test_views_0_and_1_are_the_face_and_its_mirror_image():
    np.testing.assert_array_equal(views().high(FACE, 3, 0), FACE)
    np.testing.assert_array_equal(views().high(FACE, 3, 1), FACE[:, ::-1])


def test_later_views_depend_on_seed_index_and_view_only():
    a = views().high(FACE, 3, 2)
    np.testing.assert_array_equal(a, views(count=9).high(FACE, 3, 2))
    for other in (views(seed=8).high(FACE, 3, 2), views().high(FACE, 4, 2), views().high(FACE, 3, 4)):
        assert not np.array_equal(a, other)


def test_random_views_stay_near_the_face():
    smooth = cv2.GaussianBlur(FACE, (0, 0), 12)
    moved = views(light=0.0).high(smooth, 0, 2)
    assert np.corrcoef(smooth.ravel(), moved.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("changes", [{"kernel": "nearest"}, {"count": 1}])
def test_refuses_nonsense(changes):
    with pytest.raises(GdrdError):
        views(**changes)

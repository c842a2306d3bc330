import cv2
import numpy as np
import pytest
from conftest import raises

from gdrd_jax.data.degradation import Degradation, Views, _line, resize

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
        "blur": 0.0,
        "motion": 0.0,
        "noise": 0.0,
        "jpeg": 0,
        "seed": 7,
    }
    return Views(**{**settings, **changes})


def test_area_is_the_mean_over_each_cell():
    expected = FACE.reshape(16, 7, 16, 7, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(FACE, 16, "area"), expected, atol=0.51)


def test_bicubic_does_not_alias():
    stripes = np.zeros((112, 112, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 16 pixels can show: must become gray
    assert np.abs(resize(stripes, 16, "bicubic").astype(int) - 127).max() < 16
    aliased = cv2.resize(stripes, (16, 16), interpolation=cv2.INTER_CUBIC)
    assert np.abs(aliased.astype(int) - 127).max() > 64


@pytest.mark.parametrize("kernel", ["area", "bicubic"])
@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_shapes(kernel, resolution):
    assert views(kernel=kernel, resolution=resolution).degrade(FACE, 0, 0).shape == (resolution, resolution, 3)
    assert resize(FACE[:resolution, :resolution], 112, kernel).shape == (112, 112, 3)


def test_views_0_and_1_are_the_face_and_its_mirror_image():
    np.testing.assert_array_equal(views().augment(FACE, 3, 0), FACE)
    np.testing.assert_array_equal(views().augment(FACE, 3, 1), FACE[:, ::-1])


def test_later_views_depend_on_seed_index_and_view_only():
    a = views().augment(FACE, 3, 2)
    np.testing.assert_array_equal(a, views(count=9).augment(FACE, 3, 2))
    for other in (views(seed=8).augment(FACE, 3, 2), views().augment(FACE, 4, 2), views().augment(FACE, 3, 4)):
        assert not np.array_equal(a, other)


def test_random_views_stay_near_the_face():
    smooth = cv2.GaussianBlur(FACE, (0, 0), 12)
    moved = views(light=0.0).augment(smooth, 0, 2)
    assert np.corrcoef(smooth.ravel(), moved.ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("changes", "code", "fact"),
    [
        ({"kernel": "nearest"}, "degradation-kernel", "'nearest'"),
        ({"count": 0}, "views-count", "views.count is 0"),
        ({"noise": -1.0}, "degradation-strength", "noise -1.0"),
        ({"jpeg": 101}, "degradation-strength", "jpeg 101"),
    ],
)
def test_refuses_nonsense(changes, code, fact):
    with raises(code, fact):
        views(**changes)


SMOOTH = cv2.GaussianBlur(FACE, (0, 0), 6)


def degraded(face=FACE, seed=0, **how):
    return Degradation(16, "area", **how)(face, np.random.default_rng(seed)).astype(int)


def test_no_strength_is_plain_reduction():
    np.testing.assert_array_equal(degraded(), resize(FACE, 16, "area"))


def test_blur_and_motion_take_detail_away_and_keep_the_mean():
    stripes = np.zeros((112, 112, 3), np.uint8)
    stripes[:, np.arange(112) // 14 % 2 == 0] = 255
    plain = degraded(stripes)
    for how in ({"blur": 6.0}, {"motion": 12.0}):
        blurred = degraded(stripes, **how)
        assert blurred[4:-4, 4:-4].std() < 0.9 * plain[4:-4, 4:-4].std()
        assert abs(blurred.mean() - plain.mean()) < 4


def test_motion_is_along_one_direction():
    dot = np.zeros((113, 113, 3), np.uint8)
    dot[56, 56] = 255
    line = Degradation(112, "area", motion=21.0)
    seen = cv2.filter2D(dot, -1, _line(21.0, 0.0))
    assert line.motion == 21.0
    assert (seen[56, 46:67] > 0).all() and not seen[50, :].any() and not seen[:, 40].any()


def test_noise_has_its_strength_and_jpeg_its_quality():
    gray = np.full((112, 112, 3), 128, np.uint8)
    assert degraded(gray, noise=10.0).std() == pytest.approx(10, rel=0.1)
    errors = [np.abs(degraded(jpeg=quality) - degraded()).mean() for quality in (95, 30, 5)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_randomness_comes_from_the_generator_alone():
    how = {"motion": 9.0, "noise": 5.0}
    np.testing.assert_array_equal(degraded(seed=3, **how), degraded(seed=3, **how))
    assert (degraded(seed=3, **how) != degraded(seed=4, **how)).any()


def test_strengths_scale_with_the_face():
    large = cv2.resize(SMOOTH, (224, 224), interpolation=cv2.INTER_CUBIC)
    assert np.abs(degraded(large, blur=4.0) - degraded(SMOOTH, blur=4.0)).mean() < 1.5


def test_degraded_views_depend_on_seed_index_and_view_only():
    strengths = {"blur": 3.0, "motion": 9.0, "noise": 8.0, "jpeg": 30}
    a = views(**strengths).degrade(FACE, 3, 2)
    np.testing.assert_array_equal(a, views(**strengths, count=9).degrade(FACE, 3, 2))
    others = (
        views(**strengths, seed=8).degrade(FACE, 3, 2),
        views(**strengths).degrade(FACE, 4, 2),
        views(**strengths).degrade(FACE, 3, 4),
    )
    assert all((a != other).any() for other in others)
    for view in (0, 1):  # the face itself and its mirror image stay clean
        np.testing.assert_array_equal(views(**strengths).degrade(FACE, 3, view), resize(FACE, 16, "area"))


def test_a_small_crop_of_any_shape_is_brought_to_size():
    for kernel in ("area", "bicubic"):
        assert resize(FACE[:20, :14], 16, kernel).shape == (16, 16, 3)


@pytest.mark.parametrize("how", [{"noise": float("nan")}, {"blur": float("inf")}, {"motion": 1e6}, {"jpeg": -1}])
def test_strengths_that_no_camera_has_are_refused(how):
    [(name, value)] = how.items()
    with raises("degradation-strength", f"{name} {value}", "0 to 112", "0 to 255"):
        Degradation(16, "area", **how)


def test_light_changes_every_value_as_its_formula_says():
    how = views(shift=0, rotate=0, scale=0)
    contrast, brightness = np.random.default_rng([7, 3, 2]).uniform(-1, 1, 6)[4:] * 0.2
    expected = (FACE.astype(np.float64) - 127.5) * (1 + contrast) + 127.5 + 255 * brightness
    assert np.abs(how.augment(FACE, 3, 2) - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises
from PIL import Image

from gdrd_jax.data import jpeg_in_jax
from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.data.random_degradation import RandomDegradation

EVERYTHING = {
    "shift": 4, "rotate": 8, "scale": 0.08, "jitter": 0.3, "light": 0.2, "low_light": 0.6, "blur": 2, "motion": 8,
    "noise": 8, "jpeg": 50,
}  # fmt: skip


def portrait(random):
    """A picture 112 pixels large whose spectrum falls as a photograph's does."""
    sizes = (3, 7, 14, 28, 56, 112)
    layers = [
        cv2.resize(random.normal(size=(n, n, 3)).astype(np.float32), (112, 112), interpolation=cv2.INTER_CUBIC) * 90 / n
        for n in sizes
    ]
    return np.clip(128 + 1.5 * sum(layers), 0, 255).astype(np.uint8)


FULL = np.stack([portrait(np.random.default_rng(i)) for i in range(48)])
FACES = np.stack([cv2.resize(face, (48, 48), interpolation=cv2.INTER_AREA) for face in FULL])


AREA = (1.0, 0.0, 0.0, 0.0)
TRACED = ("clean", "shift", "scale", "blur", "motion")  # strengths that are not looked at while a step is traced


@functools.cache
def compiled(resolution, kernels, others):
    """A function that many strengths share, because compiling it takes the time of these tests."""

    def run(traced, faces, mirrored, key, first):
        degradation = RandomDegradation(resolution, kernels=kernels, **dict(others))
        for name, value in traced.items():
            object.__setattr__(degradation, name, value)
        return degradation(faces, mirrored, key, first)

    return jax.jit(run)


def mirroring(count, seed=0, first=0):
    return np.random.default_rng(seed).random(first + count)[first:] < 0.5


def degraded(faces=FACES, seed=0, first=0, resolution=16, kernels=AREA, **strengths):
    """The degraded faces, turned back where they are mirrored."""
    degradation = RandomDegradation(resolution, kernels=kernels, **strengths)
    traced = {name: np.float32(getattr(degradation, name)) for name in TRACED}
    run = compiled(resolution, kernels, tuple((name, strengths[name]) for name in strengths if name not in TRACED))
    mirrored = mirroring(len(faces), seed, first)
    low = run(traced, faces, mirrored, jax.random.key(seed), first)
    assert low.dtype == jnp.uint8 and low.shape == (len(faces), resolution, resolution, 3)
    return np.where(mirrored[:, None, None, None], low[:, :, ::-1], low).astype(float)


def often(faces=FACES, times=21, **how):
    """`[times, 48, R, R, 3]`: the same 48 faces at as many positions of a large batch, which is degraded in parts."""
    return np.stack([degraded(faces, first=len(faces) * i, **how) for i in range(times)])


def pillow(face, size, how):
    return np.asarray(Image.fromarray(face).resize((size, size), how))


REDUCED = (
    lambda face, size: cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA),
    lambda face, size: pillow(face, size, Image.Resampling.BICUBIC),
    lambda face, size: pillow(face, size, Image.Resampling.BILINEAR),
    lambda face, size: cv2.resize(face, (size, size), interpolation=cv2.INTER_CUBIC),
)


@pytest.mark.parametrize("resolution", [16, *(pytest.param(side, marks=pytest.mark.slow) for side in (8, 32))])
def test_clean_faces_are_reduced_as_opencv_and_pillow_do_and_every_kernel_has_its_share(resolution):
    expected = np.stack([[reduced(face, resolution) for face in FACES] for reduced in REDUCED]).astype(float)
    shares = (0.4, 0.3, 0.2, 0.1)
    found = often(clean=1, resolution=resolution, kernels=shares)
    error = np.abs(found[:, None] - expected)  # [21, 4, 48, R, R, 3]
    kernel = error.mean(axis=(3, 4, 5)).argmin(axis=1)
    error = np.take_along_axis(error, kernel[:, None, :, None, None, None], axis=1)[:, 0]
    assert error.max() < 2.01  # Pillow rounds between rows and columns, too
    for number, share in enumerate(shares):
        assert error[kernel == number].mean() < 0.3 and abs((kernel == number).mean() - share) < 0.05


@pytest.mark.parametrize("resolution", [16, *(pytest.param(side, marks=pytest.mark.slow) for side in (8, 32))])
def test_one_kernel_alone_reduces_all_faces(resolution):
    expected = np.stack([REDUCED[0](face, resolution) for face in FACES]).astype(float)
    found = degraded(clean=1, resolution=resolution)
    np.testing.assert_allclose(found, expected, atol=2.01)
    assert np.abs(found - expected).mean() < 0.3


def test_clean_faces_are_reduced_and_nothing_else():
    np.testing.assert_allclose(degraded(clean=1, **EVERYTHING), degraded(clean=1), atol=1)


def test_area_of_the_small_face_is_area_of_the_full_one():
    expected = np.stack([resize(face, 16, "area") for face in FULL]).astype(float)
    np.testing.assert_allclose(degraded(clean=1), expected, atol=1.01)


def test_a_share_of_the_faces_is_clean():
    same = np.repeat(FACES[:1], len(FACES), axis=0)
    clean = degraded(clean=1, resolution=8)[0]
    alike = np.abs(often(same, clean=0.3, resolution=8, shift=8) - clean).max(axis=(2, 3, 4)) <= 1
    assert 0.25 < alike.mean() < 0.35


def test_draws_depend_on_key_and_position_alone():
    once = degraded(**EVERYTHING)
    np.testing.assert_array_equal(once, degraded(**EVERYTHING))
    halves = [degraded(FACES[:24], **EVERYTHING), degraded(FACES[24:], first=24, **EVERYTHING)]
    np.testing.assert_allclose(np.concatenate(halves), once, atol=1)
    assert np.abs(degraded(seed=1, **EVERYTHING) - once).mean() > 5
    same = degraded(np.repeat(FACES[:1], 24, axis=0), clean=0, **EVERYTHING)
    assert len(np.unique(same.reshape(24, -1), axis=0)) == 24


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_strength_does_something(name):
    change = np.abs(degraded(clean=0, **{name: EVERYTHING[name]}) - degraded(clean=1)).mean(axis=(1, 2, 3))
    assert change.mean() > 0.2 and np.isfinite(change).all()
    unchanged = np.mean(
        change < 0.01
    )  # an effect is left out of a fifth of the faces; those with a direction never are
    assert unchanged < 0.6


@pytest.mark.parametrize(("name", "strength"), [("blur", 5), ("motion", 24), ("noise", 8), ("jpeg", 50)])
@pytest.mark.parametrize("resolution", [16, pytest.param(8, marks=pytest.mark.slow)])
def test_strengths_mean_what_they_do_to_full_size_faces(name, strength, resolution):
    """The mean squared change is that of `data.degradation`, but for the faces that an effect is left out of."""
    random, clean = np.random.default_rng(0), degraded(clean=1, resolution=resolution)
    degradation = Degradation(resolution, "area", **{name: strength})
    full = [np.stack([degradation.weakened(random)(face, random) for face in FULL]) for _ in range(8)]
    small = [degraded(clean=0, seed=seed, resolution=resolution, **{name: strength}) for seed in range(8)]
    change = [np.mean((np.stack(low) - clean) ** 2) for low in (small, full)]
    assert 0.65 < change[0] / change[1] < 1.0


def test_motion_has_every_direction_and_blur_none():
    dot = np.zeros_like(FACES)
    dot[:, 22:26, 22:26] = 255
    place = np.arange(32) - 15.5

    def spread(low):  # variances along and across, and their covariance
        weight = low.mean(axis=-1) / low.mean(axis=-1).sum(axis=(1, 2), keepdims=True)
        return [
            np.einsum("bij,ij->b", weight, m)
            for m in (place[:, None] ** 2 + 0 * place, place**2 + 0 * place[:, None], np.outer(place, place))
        ]

    def drawn(**strength):  # 288 of them
        return np.concatenate(often(dot, times=6, resolution=32, clean=0, **strength))

    y, x, xy = spread(drawn(motion=16))
    assert np.std(y - x) > 0.3 and abs(np.mean(y - x)) < 0.1 and np.std(xy) > 0.15 and abs(np.mean(xy)) < 0.05
    y, x, xy = spread(drawn(blur=4))
    assert np.std(y - x) < 0.05 and np.std(xy) < 0.03 and np.std(y + x) > 0.3


def test_crops_move_turn_and_scale_by_as_much_as_said():
    dots = np.zeros_like(FACES)
    for i, (row, column) in enumerate(((12, 12), (12, 36), (36, 24))):
        dots[:, row - 1 : row + 1, column - 1 : column + 1, i] = 255
    place = np.arange(32) - 15.5

    def centers(**strength):  # of the three dots, in pixels of a 112x112 face, of 288 faces: [B, 3, 2]
        low = np.concatenate(often(dots, times=6, resolution=32, **strength))
        total = low.sum(axis=(1, 2))
        return (
            np.stack([np.einsum("bijc,i->bc", low, place), np.einsum("bijc,j->bc", low, place)], axis=-1)
            / total[..., None]
            * 3.5
        )

    still = centers(clean=1)
    by = centers(clean=0, shift=6) - still
    assert 5 < np.abs(by).max() < 6.6 and np.abs(by - by.mean(axis=1, keepdims=True)).max() < 0.7
    assert abs(by.mean()) < 0.7
    larger = centers(clean=0, scale=0.2)
    longer = np.linalg.norm(larger[:, 1] - larger[:, 0], axis=1) / 56
    assert 0.8 < longer.min() < 0.88 and 1.18 < longer.max() < 1.29
    turned = centers(clean=0, rotate=10)
    turned = turned[:, 1] - turned[:, 0]
    angles = np.degrees(np.arctan2(turned[:, 0], turned[:, 1]))
    assert 8.5 < np.abs(angles).max() < 11 and abs(angles.mean()) < 1.5
    assert np.abs(np.linalg.norm(turned, axis=1) - 56).max() < 1.5


compress = jax.jit(jax.vmap(jpeg_in_jax.compress))


@pytest.mark.parametrize("quality", [10, 50, 80, 95, 100])
@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_jpeg_is_nearly_that_of_libjpeg(resolution, quality):
    low = np.stack([resize(face, resolution, "area") for face in FULL[:16]])
    coded = [cv2.imencode(".jpg", face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for face in low]
    expected = np.stack([cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] for data in coded]).astype(float)
    found = np.asarray(compress(low.astype(np.float32), np.full(16, quality, np.float32)))
    change = np.abs(expected - low).mean()
    assert np.abs(found - expected).mean() < max(0.4 * change, 1.5)
    assert 0.75 < np.abs(found - low).mean() / change < 1.25


def test_a_step_is_traced_once_whatever_the_strengths_drawn():
    traced, mirrored = [], mirroring(24)

    @jax.jit
    def step(faces, key):
        traced.append(1)
        return RandomDegradation(16, kernels=AREA, **EVERYTHING)(faces, mirrored, key)

    first, *_ = [step(FACES[:24], jax.random.key(seed)) for seed in range(3)]
    assert len(traced) == 1
    first = np.where(mirrored[:, None, None, None], first[:, :, ::-1], first)
    np.testing.assert_allclose(first.astype(float), degraded(FACES[:24], **EVERYTHING), atol=1)


WRONG = [
    ("resolution", 12, "multiple of 8"), ("resolution", 0, "multiple of 8"), ("clean", 1.5, "0 to 1"),
    ("noise", -1, "0 to 255"), ("jpeg", 101, "0 to 100"), ("blur", float("nan"), "0 to 28"), ("scale", 0.9, "0 to 0.5"),
    ("kernels", (1.0, 1.0, 0.0, 0.0), "add up to 1"), ("kernels", (0.5, 0.5), "add up to 1"),
    ("kernels", (1.5, -0.5, 0.0, 0.0), "add up to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "can_be"), WRONG)
def test_strengths_out_of_range_are_refused(name, value, can_be):
    code = {"resolution": "degradation-resolution", "kernels": "degradation-kernels"}.get(name, "degradation-strength")
    with raises(code, f"{name} is {value}", can_be):
        RandomDegradation(**{"resolution": 16, name: value})


def test_light_from_the_side_brightens_one_side_and_darkens_the_other():
    gray = np.full_like(FACES, 100)
    lit, clean = (degraded(gray, clean=share, side_light=0.6) for share in (0, 1))
    np.testing.assert_array_equal(clean, np.full((48, 16, 16, 3), 100))
    # The largest and the smallest gain of a face are the inverse of one another, and lie in opposite corners.
    product = lit.max(axis=(1, 2, 3)) / 100 * lit.min(axis=(1, 2, 3)) / 100
    np.testing.assert_allclose(product, 1, atol=0.02)
    ratio = lit.max(axis=(1, 2, 3)) / lit.min(axis=(1, 2, 3))
    assert ratio.max() < np.exp(1.2) + 0.1 and ratio.max() > 2.5 and ratio.min() < 1.3
    np.testing.assert_allclose((lit / 100 * lit[:, ::-1, ::-1] / 100), 1, atol=0.02)

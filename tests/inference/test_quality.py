"""How recognizable a face is, and templates weighted by it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import make_faces, raises, save_student
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from gdrd_jax.data.readers import open_faces
from gdrd_jax.inference import quality
from gdrd_jax.inference.embedders import embed_and_score, embed_faces, student_embedder
from gdrd_jax.inference.quality import Quality, mean_embedding
from gdrd_jax.inference.recognizer import Recognizer

SCORE = Quality(2.5, -1.0, 0.01, 40, "made up")
FACES = np.random.default_rng(0).integers(256, size=(7, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def plain(folder):
    return Recognizer.load(folder)


@pytest.fixture(scope="module")
def recognizer(folder, tmp_path_factory):
    """As an export with calibration faces makes it."""
    copy = shutil.copytree(folder / "dis" / "student", tmp_path_factory.mktemp("exported") / "student")
    write_quality(copy, dataclasses.asdict(SCORE))
    return Recognizer.load(copy)


def write_quality(folder, found):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"quality": found}))


@settings(deadline=None)
@given(st.floats(0.01, 20), st.floats(-20, 20), st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_the_score_is_a_logistic_function_of_the_logarithm(slope, intercept, lengths):
    score, lengths = dataclasses.replace(SCORE, slope=slope, intercept=intercept), np.sort(lengths)
    found = score(lengths)
    assert found.dtype == np.float32 and (np.diff(found) >= 0).all() and 0 <= found.min() <= found.max() <= 1
    expected = special.expit(slope * np.log(np.maximum(lengths, 1e-12)) + intercept)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_has_the_greatest_likelihood(seed):
    random = np.random.default_rng(seed)
    x = random.normal(3, 0.2, size=80)
    y = random.binomial(4, special.expit(6 * x - 17)) / 4

    def loss(weights):
        logits = weights[0] * x + weights[1]
        return np.logaddexp(0, logits).sum() - y @ logits + quality.PRIOR / 2 * (weights[0] * x.std()) ** 2

    best = optimize.minimize(
        loss, [0, 0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 9999}
    )
    np.testing.assert_allclose(quality.logistic(x, y), best.x, rtol=1e-3)


@pytest.mark.parametrize("y", [[0.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_the_regression_is_finite_where_lengths_separate_or_say_nothing(y):
    slope, intercept = quality.logistic(np.array([1.0, 2, 3, 4]), np.array(y))
    assert np.isfinite([slope, intercept]).all() and (slope > 1 if 0 < sum(y) < 4 else abs(slope) < 1e-3)


def test_scores_come_with_the_same_embeddings(recognizer, plain):
    embeddings, scores = recognizer.embed(FACES, quality=True)
    np.testing.assert_array_equal(embeddings, recognizer.embed(FACES))
    raw = np.asarray(plain.student(FACES)) + np.asarray(plain.student(FACES[:, :, ::-1]))
    np.testing.assert_allclose(scores, SCORE(np.linalg.norm(raw, axis=1)), atol=1e-5)
    assert scores.dtype == np.float32 and np.ptp(scores) > 0
    one, score = recognizer.embed(FACES[0], quality=True)
    assert one.shape == (1, recognizer.dim) and score == pytest.approx(scores[:1], abs=1e-5)
    assert [len(part) for part in recognizer.embed(FACES[:0], quality=True)] == [0, 0]


def test_a_student_without_scores_says_how_to_get_them(plain, folder, tmp_path):
    for call in (lambda: plain.embed(FACES, quality=True), lambda: plain.template(FACES, "quality")):
        with raises("quality-missing", "gdrd export", "--calibration"):
            call()
    assert plain.quality is None and plain.template(FACES).shape == (plain.dim,)
    for wrong in ({"slope": 1.0}, dataclasses.asdict(SCORE) | {"slope": -1.0}, [1, 2]):
        copy = shutil.copytree(folder / "dis" / "student", tmp_path / "copy", dirs_exist_ok=True)
        write_quality(copy, wrong)
        with raises("manifest-invalid", copy):
            Recognizer.load(copy)


def test_a_template_is_the_weighted_mean(recognizer):
    embeddings, scores = recognizer.embed(FACES, quality=True)
    for weights, name in ((scores, "quality"), (np.ones(7), "uniform")):
        expected = sum(weight * one for weight, one in zip(weights, embeddings))
        found = recognizer.template(FACES, name)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
        assert found.dtype == np.float32
    np.testing.assert_allclose(recognizer.template(FACES[:1]), embeddings[0], atol=1e-6)
    np.testing.assert_allclose(mean_embedding(embeddings, np.zeros(7)), recognizer.template(FACES), atol=1e-6)
    with raises("template-weights", "'best'", "'quality'", "'uniform'"):
        recognizer.template(FACES, "best")
    with raises("template-empty"):
        recognizer.template(FACES[:0])


def person_and_noise(labels, *, longer_is_better):
    """A student whose embeddings are of the person in the red channel; noise makes them shorter, or longer."""

    def embed(faces):
        random = np.random.default_rng(0)
        noise = np.abs(np.diff(faces.astype(float), axis=1)).mean(axis=(1, 2, 3))
        embeddings = np.eye(max(labels) + 1)[labels] + (noise / 5)[:, None] * random.normal(size=(len(faces), 4))
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings / length, np.exp(-noise / 20 if longer_is_better else noise / 20)

    return embed


@pytest.mark.parametrize("longer_is_better", [True, False])
def test_scores_are_learned_where_longer_embeddings_are_recognized_more_often(tmp_path, longer_is_better):
    faces = open_faces(make_faces(tmp_path / "faces", 4, 5))
    embed = person_and_noise(faces.labels, longer_is_better=longer_is_better)
    found = quality.learn(embed, faces, 16, "area", 0.6, 0.02, "made up")
    if not longer_is_better:
        assert found is None
        return
    assert (found.far, found.faces, found.name) == (0.02, 20, "made up") and found.slope > 0
    views = [quality.view_of(faces, view, 16, "area", range(20)) for view in range(quality.VIEWS)]
    assert not np.array_equal(views[0], views[1]) and np.array_equal(
        views[1], quality.view_of(faces, 1, 16, "area", range(20))
    )
    shares, scores = [], []
    for view in views:
        similar = embed(views[0])[0] @ embed(view)[0].T >= 0.6
        shares += [
            np.delete(similar[faces.labels == label, row], row % 5).mean() for row, label in enumerate(faces.labels)
        ]
        scores.append(found(embed(view)[1]))
    assert np.mean(scores) == pytest.approx(np.mean(shares), abs=1e-3)  # as of any logistic regression


def test_nothing_is_learned_from_people_with_one_face(tmp_path):
    faces = open_faces(make_faces(tmp_path / "faces", 4, 1))
    assert (
        quality.learn(person_and_noise(faces.labels, longer_is_better=True), faces, 16, "area", 0.5, 0.1, "x") is None
    )


def test_an_evaluation_embeds_and_scores_in_one_pass(recognizer, plain, tmp_path):
    faces = open_faces(make_faces(tmp_path / "faces", 2, 2))
    embedder = student_embedder("s", recognizer)
    faces = dataclasses.replace(faces, fingerprint="made up")
    embeddings, scores = embed_and_score(embedder, faces, None, seed=0, cache=tmp_path / "cache")
    np.testing.assert_allclose(embeddings, embed_faces(embedder, faces, None), atol=1e-6)
    np.testing.assert_allclose(scores, recognizer.embed([faces[row] for row in range(4)], quality=True)[1], atol=1e-6)
    assert student_embedder("s", plain).scored is None

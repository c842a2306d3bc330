"""Thresholds of templates from those of single faces."""

import itertools

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.template_scores import TemplateScores
from gdrd_jax.inference.thresholds import Thresholds


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def people(counts, seed=0):
    """People differ in fewer dimensions than the faces of a person, so that templates are more alike than faces."""
    random = np.random.default_rng(seed)
    labels = np.arange(len(counts)).repeat(counts)
    embeddings = random.normal(size=(len(labels), 48))
    embeddings[:, :12] += 2 * random.normal(size=(len(counts), 12))[labels]
    return np.float32(unit(embeddings)), labels


def test_moments_are_those_of_all_pairs_of_similarities():
    random = np.random.default_rng(1)
    embeddings, labels = people([1, 2, 3, 2, 1, 2, 2, 2, 2, 3, 2, 2])
    gallery = np.float32(unit(embeddings + 0.5 * random.normal(size=embeddings.shape)))
    found = TemplateScores.learn(embeddings, labels, "made up", gallery)
    scores, members = np.float64(embeddings) @ gallery.T, [np.flatnonzero(labels == p) for p in range(12)]
    mean = scores[labels[:, None] != labels].mean()
    products = {name: [] for name in ("variance", "of_probes", "of_gallery", "of_both")}
    for a, b in itertools.permutations(range(12), 2):
        own = {name: [] for name in products}
        for i, k in itertools.product(members[a], repeat=2):
            for j, m in itertools.product(members[b], repeat=2):
                same_probe, same_face = i == k, j == m
                name = {(1, 1): "variance", (0, 1): "of_probes", (1, 0): "of_gallery", (0, 0): "of_both"}
                own[name[same_probe, same_face]].append((scores[i, j] - mean) * (scores[k, m] - mean))
        for name, values in own.items():
            products[name] += [np.mean(values)] if values else []
    assert found.mean == pytest.approx(mean, abs=1e-6) and found.people == 10
    for name, values in products.items():
        assert getattr(found, name) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-6)
    for faces, value in ((embeddings, found.probe_cosine), (gallery, found.gallery_cosine)):
        within = [
            np.mean([faces[i] @ faces[j] for i, j in itertools.permutations(m, 2)]) for m in members if len(m) > 1
        ]
        assert value == pytest.approx(np.mean(within), abs=1e-5)


@pytest.mark.parametrize(("probe_faces", "gallery_faces"), [(1, 4), (2, 2), (4, 8)])
def test_other_peoples_templates_pass_as_often_as_single_faces(probe_faces, gallery_faces):
    embeddings, labels = people([2] * 300)
    scores, far = TemplateScores.learn(embeddings, labels, "made up"), 0.02
    single = Thresholds.learn(embeddings, labels, "made up").at(far)
    others, of = people([12] * 300, seed=1)
    first, second = (
        unit(others.reshape(300, 12, -1)[:, chosen].mean(axis=1))
        for chosen in (slice(probe_faces), slice(probe_faces, probe_faces + gallery_faces))
    )
    impostors = (first @ second.T)[~np.eye(300, dtype=bool)]
    assert 0.6 * far < (impostors >= scores.threshold(single, probe_faces, gallery_faces)).mean() < 1.4 * far
    assert (impostors >= single).mean() > 1.7 * far


def test_single_faces_keep_their_threshold_and_too_few_people_have_none():
    embeddings, labels = people([2] * 10)
    scores = TemplateScores.learn(embeddings, labels, "made up")
    assert scores.threshold(0.4, 1, 1) == pytest.approx(0.4)
    assert TemplateScores.learn(embeddings[:-1], labels[:-1], "made up") is None
    with raises("template-faces", 0):
        scores.threshold(0.4, 0, 2)


def test_a_recognizer_has_thresholds_of_templates_and_searches():
    embeddings, labels = people([2] * 60)
    thresholds = Thresholds.learn(embeddings, labels, "made up")
    scores = TemplateScores.learn(embeddings, labels, "made up")
    recognizer = Recognizer(None, "area", thresholds, template_scores=scores)
    assert recognizer.threshold(0.1, probe_faces=4, gallery_faces=3) == scores.threshold(thresholds.at(0.1), 4, 3)
    assert recognizer.threshold() == thresholds.at(1e-3)
    in_search = recognizer.threshold(fpir=0.1, gallery=20, probe_faces=2)
    assert in_search == scores.threshold(thresholds.at(1 - 0.9 ** (1 / 20)), 2, 1)
    with raises("threshold-rates"):
        recognizer.threshold(0.1, fpir=0.1, gallery=20)
    for gallery in (None, 0, 2.5):
        with raises("fpir-gallery", repr(gallery)):
            recognizer.threshold(fpir=0.1, gallery=gallery)
    without = Recognizer(None, "area", thresholds)
    with raises("threshold-templates", "--calibration"):
        without.threshold(0.1, gallery_faces=2)

"""Thresholds by false accept rate."""

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.inference import thresholds as thresholds_module
from gdrd_jax.inference.thresholds import FACES_PER_PERSON, Thresholds, compared, strictest


def people(count, faces, noise=0.6, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(count, 32)), faces, axis=0)
    found = centers + noise * rng.normal(size=centers.shape)
    return np.float32(found / np.linalg.norm(found, axis=1, keepdims=True)), np.repeat(np.arange(count), faces)


def scores_of(embeddings, labels):
    first, second = np.triu_indices(len(labels), 1)
    return (embeddings @ embeddings.T)[first, second], labels[first] == labels[second]


def test_at_most_the_asked_share_of_strangers_passes_and_hardly_fewer():
    embeddings, labels = people(60, 4)
    thresholds = Thresholds.learn(embeddings, labels, "made up")
    scores, same = scores_of(embeddings, labels)
    for far in (0.3, 0.1, 0.05, 0.01, 1e-3):
        accepted = scores >= thresholds.at(far)
        assert 0.85 * far * 0.95 <= accepted[~same].mean() <= far
        assert thresholds.tar(far) == pytest.approx(accepted[same].mean())
    assert thresholds.at(0.01) > thresholds.at(0.1)


def test_images_of_the_same_two_people_are_no_further_evidence():
    few = Thresholds.learn(*people(20, 10), "twenty")
    assert few.between == 190 and few.faces == 200 and few.genuine == 20 * 45
    assert few.at(1 / 190) > few.at(0.1)
    with raises("far-too-fine", "0.001", 190, "twenty", few.finest(), "--calibration"):
        few.at(1e-3)
    assert Thresholds.learn(*people(60, 2), "sixty").at(1e-3)


def test_one_person_with_many_faces_does_not_outweigh_the_others():
    embeddings, labels = people(6, 50)
    found = Thresholds.learn(embeddings, labels, "x")
    assert found.faces == 6 * FACES_PER_PERSON
    shuffled = np.random.default_rng(1).permutation(len(labels))
    assert Thresholds.learn(embeddings[shuffled], labels[shuffled], "x").faces == found.faces


@pytest.mark.parametrize("far", [0, -1, 0.6, float("nan")])
def test_what_is_no_rate(far):
    with raises("far-range", f"{far:g}", "above 0", "at most 0.5"):
        Thresholds.learn(*people(5, 3), "x").at(far)


@pytest.mark.parametrize("scores", [[0.5, 0.4, 0.3], [4, 3, 2.5], [-1, -2, -3]])
def test_the_strictest_threshold_is_just_above_the_first_impostor_too_many(scores):
    impostors = np.array(scores, np.float32)
    for far, accepted in ((0.3, 0), (0.34, 1), (0.7, 2)):
        (value,) = strictest(impostors, np.array([far]))
        assert (impostors >= value).sum() == accepted and np.nextafter(value, np.float32(-9)) in impostors


def test_a_rate_is_a_number():
    found = Thresholds.learn(*people(5, 3), "x")
    for far in ("1e-1", None):
        with raises("far-range", repr(far), "above 0"):
            found.at(far)
    assert found.at(np.float32(0.25)) == found.at(0.25)


def test_of_many_people_only_some_are_compared(monkeypatch):
    monkeypatch.setattr(thresholds_module, "FACES", 30)
    embeddings, labels = people(40, 4)
    found = Thresholds.learn(embeddings, labels, "x")
    assert (found.faces, found.people) == (30, 15) and found.tar(0.1) > 0
    rows = compared(labels)
    np.testing.assert_array_equal(compared(labels[rows]), np.arange(30))


def test_a_rate_is_supported_as_far_as_it_is_granted():
    found = Thresholds.learn(*people(5, 3), "x")
    assert found.between == 10 and found.supports(0.1) and found.at(0.1)
    assert not found.supports(0.09)
    for count in (3, 10, 11, 12, 15, 16, 40, 199):
        found = Thresholds.learn(*people(count, 2), "x")
        assert found.at(float(f"{found.finest():.2g}"))  # the rate that the error names


def test_faces_that_say_nothing():
    with raises("calibration-too-small", "x has 2 people", "6 pairs", "at least 3"):
        Thresholds.learn(*people(2, 3), "x")
    with raises("calibration-too-small", "x has 1 people"):
        Thresholds.learn(*people(1, 5), "x")
    with raises("calibration-too-small", "x has 5 people", "0 pairs"):
        Thresholds.learn(*people(5, 1), "x")


def test_against_a_gallery_each_face_is_a_probe_of_all_others():
    probes, labels = people(20, 2, seed=0)
    gallery, _ = people(20, 2, noise=0.3, seed=0)
    found = Thresholds.learn(probes, labels, "x", gallery)
    scores = (probes @ gallery.T)[~np.eye(40, dtype=bool)]
    same = (labels[:, None] == labels)[~np.eye(40, dtype=bool)]
    assert found.genuine == same.sum() == 40 and found.between == 190
    impostors = scores[~same]
    assert np.mean(impostors >= found.at(0.1)) <= 0.1 < np.mean(impostors >= found.at(0.1) - 0.01)


def test_a_search_has_the_rate_of_independent_comparisons():
    found = Thresholds.learn(*people(60, 2), "sixty")
    for fpir, gallery in ((0.3, 1), (0.3, 100), (0.05, 20)):
        far = found.far_of_search(fpir, gallery)
        assert 1 - (1 - far) ** gallery == pytest.approx(fpir)
    with raises("fpir-range", "0.6", "at most 0.5"):
        found.far_of_search(0.6, 3)
    with raises("fpir-range", "'0.1'"):
        found.far_of_search("0.1", 3)


def test_the_finest_search_and_the_largest_gallery_are_named_and_granted():
    found = Thresholds.learn(*people(60, 2), "sixty")  # 1,770 pairs of people
    with raises("fpir-too-fine", "0.01", "1,000", "1770 pairs", "sixty", "0.44", "one of 17;"):
        found.far_of_search(0.01, 1000)
    assert found.far_of_search(0.44, 1000) and found.far_of_search(0.01, 17)
    with raises("fpir-too-fine", "no rate in this gallery"):
        found.far_of_search(0.01, 100_000)

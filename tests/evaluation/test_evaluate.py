"""The one way from faces to figures."""

import dataclasses

import numpy as np
import pytest
from conftest import make_lfw, raises

from gdrd_jax.data.degradation import Degradation, resize_all
from gdrd_jax.evaluation import dev, verification
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.held_out import HeldOutPeople
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.embedders import Embedder, pixel_embedder

RNG = np.random.default_rng(0)


def test_rows_differ_by_what_the_probes_go_through(tmp_path):
    pairs = dev.open_pairs(make_lfw(tmp_path), tmp_path / "pairs.txt")
    small, large = pixel_embedder("small", 8), pixel_embedder("large", 16)
    low = Degradation(8, "area")
    rows = [Row("clean", large), Row("low", large, low), Row("mixed", large, low, (large, None)), Row("small", small)]
    results = evaluate(rows, pairs, cache=tmp_path / "cache")
    assert list(results) == ["clean", "low", "mixed", "small"]
    full = resize_all(pairs.faces, 16)
    clean, reduced = large.embed(full), large.embed(resize_all(pairs.faces, 8))
    np.testing.assert_allclose(results["clean"].arrays["scores"], pairs.score(clean).scores, rtol=1e-5)
    np.testing.assert_allclose(results["low"].arrays["scores"], pairs.score(reduced).scores, rtol=1e-5)
    np.testing.assert_allclose(results["mixed"].arrays["scores"], pairs.score(reduced, clean).scores, rtol=1e-5)
    assert len(results["mixed"].arrays["scores"]) == 2 * len(pairs.same)
    of_array = evaluate(rows[:1], dataclasses.replace(pairs, faces=full))["clean"]
    assert of_array.metrics == results["clean"].metrics and of_array.intervals == results["clean"].intervals


def test_two_rows_of_one_name_are_refused():
    protocol = HeldOutPeople(np.zeros((8, 8, 8, 3), np.uint8), np.repeat(np.arange(4), 2), tested=4)
    rows = [Row("twin", Embedder("a", 8, lambda faces: np.eye(len(faces), dtype=np.float32)))] * 2
    with raises("row-twice", "'twin'"):
        evaluate(rows, protocol)


def test_held_out_people_are_judged_at_the_threshold_of_others():
    labels = np.tile(np.repeat(np.arange(4), 5), 2)
    centers = RNG.normal(size=(8, 16))
    noisy = centers[np.repeat(np.arange(8), 5)] + 0.8 * RNG.normal(size=(40, 16))
    embeddings = np.float32(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
    result = HeldOutPeople(np.zeros((40, 8, 8, 3), np.uint8), labels, tested=20).evaluate(embeddings)
    test, other = (verification.all_pairs(embeddings[part], labels[part]) for part in (slice(20), slice(20, 40)))
    threshold = verification.best_threshold(other)
    assert result.metrics["threshold"] == threshold
    right = (test.scores >= threshold) == test.same
    expected = 100 * (right[test.same].mean() + right[~test.same].mean()) / 2
    assert result.metrics["accuracy"] == pytest.approx(expected, abs=1e-4)
    assert result.metrics["best_threshold_accuracy"] >= result.metrics["accuracy"]
    assert result.metrics["n_pairs"] == 190 and result.metrics["n_genuine"] == 40


def test_pair_metrics_take_folds_a_threshold_or_neither():
    scores, same = RNG.normal(size=400), np.tile([True, False], 200)
    pairs, folds = Pairs(scores + same, same), np.repeat(np.arange(4), 100)
    alone = verification.pair_metrics(pairs)
    assert verification.main_accuracy(alone) == "best_threshold_accuracy" and "threshold" not in alone
    assert verification.pair_metrics(pairs, folds=np.zeros(400, int)) == alone  # one fold is none
    in_folds = verification.pair_metrics(pairs, folds=folds)
    assert in_folds["accuracy"] == pytest.approx(np.mean(in_folds["accuracy_by_fold"]), abs=1e-4)
    assert verification.main_accuracy(in_folds) == "accuracy" and len(in_folds["accuracy_by_fold"]) == 4
    at = verification.pair_metrics(pairs, threshold=0.5)
    assert at["threshold"] == 0.5
    assert at["accuracy"] == pytest.approx(100 * ((pairs.scores >= 0.5) == same).mean(), abs=1e-4)
    few = Pairs(pairs.scores[1:], same[1:])  # more impostors than genuine pairs
    assert verification.pair_metrics(few, balanced=True)["best_threshold_accuracy"] == pytest.approx(
        100 * verification.balanced_accuracy(few, verification.best_threshold(few)), abs=1e-4
    )

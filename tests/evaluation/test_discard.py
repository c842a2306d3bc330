"""Error-versus-discard curves, against their definition written out."""

import itertools

import numpy as np
import pytest

from gdrd_jax.evaluation import bootstrap, discard
from gdrd_jax.evaluation.evaluate import Row, evaluate
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.utils.arrays import unit

RNG = np.random.default_rng(0)


def after(quality, wrong, count):
    """The share of errors without the `count` pairs of the lowest quality, one by one."""
    left = sorted(zip(quality, wrong))[count:]
    return sum(error for _, error in left) / len(left)


def test_the_curve_is_the_share_of_errors_among_the_pairs_that_are_left():
    quality, wrong = RNG.permutation(40) / 7, RNG.random(40) < 0.4
    counts = np.arange(39)
    expected = [after(quality, wrong, count) for count in counts]
    np.testing.assert_allclose(discard.curve(quality, wrong, counts / 40), expected, atol=1e-12)


def test_equal_qualities_are_discarded_in_the_mean_of_all_orders():
    quality, wrong = np.array([1, 1, 0, 1, 2, 0]), np.array([True, False, True, False, True, False])
    orders = [np.array(order) for order in itertools.permutations(range(6))]
    for count in range(6):
        every = [after(list(zip(quality, order)), wrong, count) for order in orders]
        assert discard.curve(quality, wrong, np.array([count / 6]))[0] == pytest.approx(np.mean(every), abs=1e-12)
    shares = np.linspace(0, 0.9, 7)
    np.testing.assert_allclose(discard.curve(np.zeros(6), wrong, shares), 0.5, atol=1e-12)


def test_a_weight_is_a_number_of_pairs():
    quality, wrong = RNG.permutation(12), RNG.random(12) < 0.5
    weights = RNG.integers(0, 4, size=(3, 12))
    found = discard.curve(quality, wrong, discard.SHARES, weights)
    for row, line in zip(weights, found):
        repeated = discard.curve(np.repeat(quality, row), np.repeat(wrong, row), discard.SHARES)
        np.testing.assert_allclose(line, repeated, atol=1e-12)
    np.testing.assert_allclose(
        discard.area(quality, wrong, weights),
        [np.mean((line[1:] + line[:-1]) / 2) for line in found], atol=1e-12,
    )  # fmt: skip


def test_the_best_score_finds_the_errors_first_and_the_worst_last():
    wrong = np.arange(100) < 20
    best, worst = discard.area(wrong * -1.0, wrong), discard.area(wrong * 1.0, wrong)
    shares = discard.SHARES
    assert best == pytest.approx(np.trapezoid((0.2 - shares).clip(0) / (1 - shares), shares) / 0.3, abs=1e-9)
    assert best < 0.08 < 0.2 < worst < 0.25


def test_false_rejects_are_below_the_threshold_of_all_pairs():
    scores, same = RNG.normal(size=600).astype(np.float32), np.arange(600) < 300
    scores[same] += 1.5
    impostors = scores[~same]
    lowest = min(t for t in scores if (impostors >= t).mean() <= 0.01)
    np.testing.assert_array_equal(discard.false_rejects(Pairs(scores, same), 0.01), scores < lowest)


def test_the_metrics_are_percentages_with_intervals():
    scores, same = RNG.normal(size=400), np.arange(400) < 200
    scores[same] += 2
    people = np.stack([RNG.integers(60, size=400)] * 2, axis=1)
    found = discard.with_curve(Result({"auc": 1.0}, {}, {}), Pairs(scores, same), scores, people, seed=0)
    wrong = discard.false_rejects(Pairs(scores, same))[same]
    assert found.metrics["auc"] == 1.0 and found.metrics["fnmr"] == pytest.approx(100 * wrong.mean(), abs=1e-3)
    assert found.metrics["fnmr_discarded"]["0.3"] == pytest.approx(100 * after(scores[same], wrong, 60), abs=1e-3)
    for name in ("fnmr", "edc_area", "fnmr_discarded.0.1"):
        low, high = found.intervals[name]
        assert 0 <= low <= found.figure(name) <= high <= 100 and low < high
    assert found.arrays["quality"].dtype == np.float32 and len(found.arrays["quality"]) == 400
    few = Pairs(scores[:299], same[:299])
    assert discard.with_curve(found, few, scores[:299], people[:299], seed=0) is found  # 99 impostors


def test_intervals_are_those_of_all_resamples_however_many_are_made_at_once(monkeypatch):
    scores, same = RNG.normal(size=300), np.arange(300) < 100
    people = RNG.integers(20, size=(300, 2))
    pairs = Pairs(scores, same)
    expected = discard.with_curve(Result({}, {}, {}), pairs, scores, people, seed=1).intervals
    weights = bootstrap.resamples_of_pairs(people[same], seed=1)
    areas = discard.area(scores[same], discard.false_rejects(pairs)[same], weights)
    assert expected["edc_area"] == pytest.approx(100 * np.array(bootstrap.interval(areas)), abs=1e-4)
    monkeypatch.setattr(bootstrap, "CELLS", 700)
    assert discard.with_curve(Result({}, {}, {}), pairs, scores, people, seed=1).intervals == expected


def test_a_resample_without_pairs_has_no_curve():
    found = discard.curve(np.arange(3), np.array([True, False, True]), np.array([0, 0.5]), np.eye(3)[:2] * [0, 1, 0])
    np.testing.assert_array_equal(found, [[np.nan] * 2, [0, 0]])


def pair_list(count):
    first, second = RNG.integers(count, size=(2, 200))
    same = np.arange(200) < 100
    return PairList(
        np.zeros((count, 8, 8, 3), np.uint8),
        first,
        second,
        same,
        np.arange(200) % 2,
        RNG.integers(9, size=(200, 2)),
        {},
    )


@pytest.mark.usefixtures("no_figures")
def test_a_pair_is_as_good_as_its_worse_face_and_in_a_gallery_as_its_probe():
    pairs, quality = pair_list(30), RNG.random(30).astype(np.float32)
    embeddings, gallery = unit(RNG.normal(size=(30, 4))), unit(RNG.normal(size=(30, 4)))
    first, second = quality[pairs.first], quality[pairs.second]
    results = {}
    for name, other, expected in (
        ("16", None, np.minimum(first, second)), ("16:native", gallery, np.concatenate([first, second]))
    ):  # fmt: skip
        plain = pairs.evaluate(embeddings, other, seed=0)
        results[name] = pairs.with_quality(plain, quality, seed=0)
        np.testing.assert_array_equal(results[name].arrays["quality"], expected)
        scored = Pairs(plain.arrays["scores"], np.tile(pairs.same, len(expected) // 200))
        wrong = discard.false_rejects(scored)[scored.same]
        area = 100 * discard.area(expected[scored.same], wrong)
        assert results[name].metrics["edc_area"] == pytest.approx(area, abs=1e-3)
        assert plain.metrics.items() <= results[name].metrics.items()
        results[f"{name} without"] = plain
    (figure,) = pairs.figures(results)
    assert figure.name in PairList.files and "0.01" in figure.caption
    assert pairs.figures({"16 without": results["16 without"]}) == []


def test_rows_of_students_with_scores_are_judged():
    pairs, asked = pair_list(12), []
    forward = lambda faces: unit(np.random.default_rng(0).normal(size=(len(faces), 4))).astype(np.float32)  # noqa: E731
    scored = lambda faces: asked.append(1) or np.column_stack([forward(faces), np.arange(len(faces), dtype=np.float32)])  # noqa: E731
    rows = [
        Row("plain", Embedder("a", 8, forward)),
        Row("scored", Embedder("b", 8, forward, scored=scored, settings={"quality": {}})),
    ]
    found = evaluate(rows, pairs)
    assert asked and "edc_area" not in found["plain"].metrics
    assert found["scored"].metrics.keys() - found["plain"].metrics.keys() == {"fnmr", "fnmr_discarded", "edc_area"}
    np.testing.assert_array_equal(found["scored"].arrays["scores"], found["plain"].arrays["scores"])
    np.testing.assert_array_equal(found["scored"].arrays["quality"], np.minimum(pairs.first, pairs.second))

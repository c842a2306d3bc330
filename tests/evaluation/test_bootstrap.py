import tracemalloc

import numpy as np
import pytest

from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation import verification as v
from gdrd_jax.evaluation.verification import Pairs

FARS = (0.1, 0.01)


def made(pairs, people, seed=0, spread=0.0):
    """Half genuine; every person's genuine scores are shifted alike by `spread` times a number of its own."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    first = rng.integers(people, size=pairs)
    second = np.where(same, first, (first + rng.integers(1, people, size=pairs)) % people)
    scores = rng.normal(size=pairs) + 2 * same + spread * rng.normal(size=people)[first]
    return Pairs(scores, same), first, second, np.arange(pairs) % 10


def test_undrawn_figures_are_those_of_verification(monkeypatch):
    pairs, first, second, folds = made(600, 80)
    pairs = Pairs(np.round(pairs.scores, 1), pairs.same)  # with ties
    monkeypatch.setattr(bootstrap, "draws", lambda count, replicates, seed: np.ones((replicates, count), np.float32))
    found = bootstrap.of_pairs(pairs, first, second, folds, FARS, replicates=3)
    expected = {
        "accuracy": v.fold_accuracies(pairs, folds)[0].mean(),
        "best_threshold_accuracy": v.best_accuracy(pairs),
        "auc": v.auc(pairs),
        "eer": v.eer(pairs),
        "tar_at_far_0.1": v.tar_at_far(pairs, 0.1),
        "tar_at_far_0.01": v.tar_at_far(pairs, 0.01),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx((value, value), abs=1e-5), name


def test_a_pair_weighs_as_often_as_its_people_were_drawn(monkeypatch):
    pairs = Pairs(np.array([0.9, 0.2, 0.5, 0.1]), np.array([True, True, False, False]))
    first, second = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 2])
    drawn = np.float32([[2, 1, 0]])
    monkeypatch.setattr(bootstrap, "draws", lambda *_: drawn)
    found = bootstrap.of_pairs(pairs, first, second, np.zeros(4, int), (), replicates=1)
    # Genuine weights 2 and 1, impostor weights 2 (people 0 and 1) and 0 (person 2 was not drawn).
    assert found["auc"][0] == pytest.approx(2 / 3)
    assert "accuracy" not in found  # one fold


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = v.auc(made(200_000, 5000)[0])
    hits = 0
    for seed in range(60):
        low, high = bootstrap.of_pairs(*made(400, 60, seed=seed), (), replicates=200)["auc"]
        hits += low <= truth <= high
    assert hits >= 50


def test_intervals_are_wider_when_pairs_share_people():
    """Resampling pairs would not see that one person's pairs go wrong together."""
    pairs, first, second, folds = made(2000, 40, spread=2.0)
    by_person = bootstrap.of_pairs(pairs, first, second, folds, ())["auc"]
    alone = np.arange(2000)
    by_pair = bootstrap.of_pairs(pairs, alone, alone, folds, ())["auc"]
    assert by_person[1] - by_person[0] > 1.3 * (by_pair[1] - by_pair[0])


def test_the_mean_of_probes_is_resampled_by_person():
    people = np.repeat(np.arange(50), 4)
    right = np.repeat(np.arange(50) % 2, 4).astype(float)
    low, high = bootstrap.of_mean(right, people)
    assert low < 0.5 < high
    # 50 people, not 200 faces: the standard error is sqrt(0.25 / 50).
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 50), rel=0.2)
    assert bootstrap.of_mean(np.ones(8), np.arange(8)) == (1.0, 1.0)


def test_resamples_of_six_thousand_pairs_are_not_all_in_memory():
    pairs, first, second, folds = made(6000, 4000)
    tracemalloc.start()
    bootstrap.of_pairs(pairs, first, second, folds, (1e-1, 1e-2, 1e-3, 1e-4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * 6000 * 8  # one number for each pair and resample


def test_pairs_of_unknown_people_are_drawn_once():
    """A .bin: every pair is its own observation, genuine or not."""
    pairs, *_, folds = made(2000, 50)
    alone = np.arange(2000)
    found = bootstrap.of_pairs(pairs, alone, alone, folds, ())
    accuracy = v.best_accuracy(pairs)
    low, high = found["best_threshold_accuracy"]
    assert low < accuracy < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000), rel=0.25)


def test_resamples_without_genuine_pairs_do_not_count():
    pairs = Pairs(np.array([0.9, 0.1, 0.2, 0.3]), np.array([True, False, False, False]))
    first, second = np.array([0, 1, 2, 3]), np.array([0, 2, 3, 1])
    found = bootstrap.of_pairs(pairs, first, second, np.zeros(4, int), (0.5,))
    assert found["eer"] == (0.0, 0.0) and found["tar_at_far_0.5"] == (1.0, 1.0) and found["auc"] == (1.0, 1.0)


def test_pairs_of_the_same_people_are_not_independent():
    values = np.repeat(np.random.default_rng(0).normal(size=200), 10)
    alone, shared = np.arange(2000), np.repeat(np.arange(200), 10)

    def error(people):
        weights = bootstrap.resamples_of_pairs(np.stack([people, people], axis=1))
        return (weights @ values).std(ddof=1)

    independent = error(alone)
    assert independent == pytest.approx(values.std() / np.sqrt(2000), rel=0.1)
    assert error(shared) == pytest.approx(independent * np.sqrt(10), rel=0.15)

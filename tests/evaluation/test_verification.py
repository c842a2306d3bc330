import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score, roc_curve

from gdrd_jax.evaluation import verification as v
from gdrd_jax.evaluation.verification import Pairs

RNG = np.random.default_rng(0)
SAME = RNG.random(400) < 0.2
PAIRS = Pairs(RNG.normal(size=400) + SAME, SAME)


def test_all_pairs_are_unordered_and_scored_by_cosine():
    x = RNG.normal(size=(5, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array([0, 0, 1, 1, 1])
    pairs = v.all_pairs(x, labels)
    expected = [(x[i] @ x[j], labels[i] == labels[j]) for i in range(5) for j in range(i + 1, 5)]
    np.testing.assert_allclose(pairs.scores, [s for s, _ in expected])
    np.testing.assert_array_equal(pairs.same, [s for _, s in expected])


def test_balanced_accuracy_and_auc_agree_with_scikit_learn():
    accepted = PAIRS.scores >= 0.3
    assert v.balanced_accuracy(PAIRS, 0.3) == pytest.approx(balanced_accuracy_score(PAIRS.same, accepted))
    assert v.auc(PAIRS) == pytest.approx(roc_auc_score(PAIRS.same, PAIRS.scores))


def test_no_threshold_is_better_than_the_best():
    best = v.balanced_accuracy(PAIRS, v.best_threshold(PAIRS))
    tried = [v.balanced_accuracy(PAIRS, t) for t in [*PAIRS.scores, np.inf]]
    assert best == pytest.approx(max(tried))


def test_the_best_threshold_leaves_room_on_both_sides():
    pairs = Pairs(np.array([0.9, 0.7, 0.3, 0.1]), np.array([True, True, False, False]))
    assert v.best_threshold(pairs) == pytest.approx(0.5)


def test_the_best_threshold_is_a_number_even_when_scores_are_upside_down():
    pairs = Pairs(np.float32([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False]))
    threshold = v.best_threshold(pairs)
    assert np.isfinite(threshold) and v.balanced_accuracy(pairs, threshold) == 0.5


def test_rejecting_everything_is_no_better_than_chance_although_impostors_abound():
    assert v.balanced_accuracy(PAIRS, np.inf) == 0.5


def test_eer_is_where_false_accepts_meet_false_rejects():
    scores = np.array([0.9, 0.8, 0.3, 0.7, 0.2, 0.1])
    same = np.array([1, 1, 1, 0, 0, 0], bool)
    assert v.eer(Pairs(scores, same)) == pytest.approx(1 / 3)
    assert v.eer(Pairs(same.astype(float), same)) == 0
    rate = v.eer(PAIRS)
    gaps = [abs((PAIRS.scores[~SAME] >= t).mean() - (PAIRS.scores[SAME] < t).mean()) for t in PAIRS.scores]
    nearest = PAIRS.scores[int(np.argmin(gaps))]
    assert rate == pytest.approx((PAIRS.scores[~SAME] >= nearest).mean(), abs=0.02)


FOLDS = np.arange(400) % 10


def test_fold_accuracy_is_that_of_scikit_learns_curve_on_the_other_folds():
    shares, thresholds = v.fold_accuracies(PAIRS, FOLDS)
    for fold in range(10):
        test = FOLDS == fold
        far, tar, candidates = roc_curve(SAME[~test], PAIRS.scores[~test], drop_intermediate=False)
        right = tar * SAME[~test].sum() + (1 - far) * (~SAME[~test]).sum()
        threshold = candidates[np.argmax(np.round(right))]
        assert thresholds[fold] == threshold
        assert shares[fold] == accuracy_score(SAME[test], PAIRS.scores[test] >= threshold)


def test_the_best_accuracy_is_that_of_one_threshold_for_all():
    tried = [accuracy_score(SAME, PAIRS.scores >= t) for t in [*PAIRS.scores, np.inf]]
    assert v.best_accuracy(PAIRS) == pytest.approx(max(tried))


def test_tar_at_far_accepts_no_more_impostors_than_it_says():
    impostors = np.sort(PAIRS.scores[~SAME])[::-1]
    for far in (0.1, 0.01):
        allowed = int(far * len(impostors) + 1e-9)
        expected = (PAIRS.scores[SAME] > impostors[allowed]).mean()
        assert v.tar_at_far(PAIRS, far) == pytest.approx(expected)


def test_a_far_that_the_impostors_are_too_few_for_has_no_tar():
    assert v.tar_at_far(PAIRS, 1e-3) is None  # about 320 impostors
    assert v.tar_at_far(Pairs(np.ones(4), np.array([1, 1, 0, 0], bool)), 0.5) == 0  # ties are accepted together


def test_cosines_are_those_of_the_pairs_in_any_blocks(monkeypatch):
    first, second = RNG.normal(size=(2, 9, 4)).astype(np.float32)
    a, b = RNG.integers(9, size=(2, 50))
    expected = np.einsum("pd,pd->p", first[a], second[b])
    monkeypatch.setattr(v, "BLOCK", 7)
    found = v.cosines(first, second, a, b)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_long_curve_is_thinned_to_points_of_it(monkeypatch):
    monkeypatch.setattr(v, "MANY", 100)
    monkeypatch.setattr(v, "KEPT", 40)
    far, tar, thresholds = v.roc(PAIRS)
    few = v.thinned(far, tar, thresholds)
    assert 20 < len(few[0]) <= 40 and set(zip(*few)) < set(zip(far, tar, thresholds))
    assert (few[0][0], few[1][0], few[0][-1], few[1][-1]) == (0, 0, 1, 1) and (np.diff(few[2]) < 0).all()
    assert few[0][few[0] > 0][0] == far[far > 0][0]  # the lowest rate that these pairs can estimate
    short = v.thinned(*(part[:90] for part in (far, tar, thresholds)))
    assert len(short[0]) == 90

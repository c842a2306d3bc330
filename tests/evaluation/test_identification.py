import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gdrd_jax.evaluation import identification as ident

GALLERY = np.eye(3)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_first_of_each_is_the_gallery():
    np.testing.assert_array_equal(ident.first_of_each(np.array([0, 0, 1, 2, 2, 1])), [0, 2, 3])


def test_nearest_orders_by_similarity():
    probe = np.array([[0.1, 0.9, 0.4]])
    np.testing.assert_array_equal(ident.nearest(probe, GALLERY), [[1, 2, 0]])


def test_rank_1_counts_probes_whose_nearest_gallery_face_is_right():
    right = np.concatenate([GALLERY, GALLERY])
    assert ident.rank_1(right, LABELS) == 1.0
    one_wrong = np.concatenate([GALLERY, GALLERY[[0, 1, 1]]])
    assert ident.rank_1(one_wrong, LABELS) == 2 / 3


def made(seed: int, probes: int = 60, people: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities with ties, and the people of probes and gallery; some of the former are not in the latter."""
    random = np.random.default_rng(seed)
    probe_ids, gallery_ids = random.integers(2 * people, size=probes), random.permutation(np.arange(people).repeat(2))
    scores = random.integers(-20, 20, (probes, 2 * people)) / 20
    return scores + 0.5 * (probe_ids[:, None] == gallery_ids), probe_ids, gallery_ids


def rates(scores: np.ndarray, probe_ids: np.ndarray, gallery_ids: np.ndarray, threshold: float) -> tuple[float, float]:
    """FPIR and TPIR at a threshold, probe by probe."""
    false, true, strangers = 0, 0, 0
    for line, person in zip(scores, probe_ids):
        others = max(score for score, of in zip(line, gallery_ids) if of != person)
        if person not in gallery_ids:
            strangers += 1
            false += others >= threshold
        else:
            own = max(score for score, of in zip(line, gallery_ids) if of == person)
            true += own >= threshold and own > others
    return false / strangers, true / (len(scores) - strangers)


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.5, 0.2, 0.1]))
@hypothesis.settings(max_examples=10, deadline=None)
def test_open_set_rates_are_those_of_counting_every_search(seed, fpir):
    scores, probe_ids, gallery_ids = made(seed)
    searches = ident.searched(scores, probe_ids, gallery_ids)
    levels = np.append(np.nextafter(np.unique(scores), np.inf), np.unique(scores))
    counted = [rates(scores, probe_ids, gallery_ids, level) for level in levels]
    expected = max(true for false, true in counted if false <= fpir)
    assert ident.tpir_at_fpir(searches, fpir) == pytest.approx(expected)
    for false, missed in zip(*ident.fnir_over_fpir(searches)):
        assert missed == pytest.approx(1 - max(true for rate, true in counted if rate <= false + 1e-9))
    low, high = ident.tpir_intervals(searches, probe_ids, [fpir], seed=seed)[fpir]
    assert 0 <= low <= high <= 1


def test_people_weigh_as_often_as_they_are_drawn(monkeypatch):
    scores, probe_ids, gallery_ids = made(1)
    searches, (people, owner) = (
        ident.searched(scores, probe_ids, gallery_ids),
        np.unique(probe_ids, return_inverse=True),
    )
    drawn = np.random.default_rng(0).integers(3, size=(2, len(people)))
    monkeypatch.setattr(ident.bootstrap, "draws", lambda count, b, _: np.resize(np.float32(drawn), (b, count)))
    monkeypatch.setattr(ident.bootstrap, "interval", lambda values: tuple(values[:2]))
    found = ident.tpir_intervals(searches, probe_ids, [0.1])[0.1]
    for value, counts in zip(found, drawn):
        rows = np.arange(len(probe_ids)).repeat(counts[owner])
        again = ident.searched(scores[rows], probe_ids[rows], gallery_ids)
        assert value == pytest.approx(ident.tpir_at_fpir(again, 0.1))


def test_a_stranger_at_the_threshold_is_not_accepted():
    def of(strangers: list[float]) -> ident.Searches:
        best = np.array([0.9, 0.8, 0.7, 0.6, *strangers])
        right = np.array([True, True, False, True, *[False] * len(strangers)])
        return ident.Searches(best, np.zeros(len(best), int), right, np.arange(len(best)) < 4)

    strangers = [0.8, 0.5, 0.4, 0.3]
    assert ident.tpir_at_fpir(of(strangers), 0.25) == 3 / 4  # above 0.5, and right
    assert ident.tpir_at_fpir(of([*strangers, 0.1]), 0.2) == 3 / 4
    assert ident.tpir_at_fpir(of(strangers), 0.24) is None  # fewer than 1 / 0.24 strangers
    assert ident.tpir_intervals(of(strangers), np.arange(8), [0.24]) == {}


def test_a_stranger_as_similar_as_the_mate_comes_first_and_blocks_change_nothing(monkeypatch):
    ids, probes = np.array([0, 1, 2]), np.eye(3)[[0, 1, 0]]
    gallery = np.eye(3)[[0, 0, 1]]
    found = ident.search(probes, ids, gallery, np.array([0, 7, 1]))
    np.testing.assert_array_equal(found.right, [False, True, False])
    np.testing.assert_array_equal(found.mated, [True, True, False])
    np.testing.assert_array_equal(found.nearest, [0, 2, 0])
    monkeypatch.setattr(ident, "CELLS", 7)  # two probes
    for whole, parts in zip(found, ident.search(probes, ids, gallery, np.array([0, 7, 1]))):
        np.testing.assert_array_equal(whole, parts)

import itertools

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.registry import selections

RNG = np.random.default_rng(3)


def make(**settings):
    return selections["sparse_graph"](selections.settings("sparse_graph", settings))


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def people(count, each, dim=6, spread=0.5):
    labels = np.repeat(np.arange(count), each)
    return unit(RNG.normal(size=(count, dim))[labels] + spread * RNG.normal(size=(len(labels), dim))), labels


def energy(cost, pairs, weights, penalty, reward, chosen):
    both = sum(w for (i, j), w in zip(pairs, weights) if chosen[i] and chosen[j])
    return float(((cost - reward) * chosen).sum() + penalty * both)


def test_the_choice_is_a_minimum_that_no_single_change_improves():
    embeddings, labels = people(4, 3)
    selection = make(neighbors=11, margin=0.0)
    cost, pairs, weights = selection.graph(embeddings, labels)
    cosine = embeddings.astype(np.float64) @ embeddings.T
    expected = {(i, j): cosine[i, j] for i, j in itertools.combinations(range(12), 2) if labels[i] != labels[j]}
    expected = {ends: value for ends, value in expected.items() if value > 0}
    assert {tuple(ends): pytest.approx(w, abs=1e-5) for ends, w in zip(pairs, weights)} == expected
    for reward in (0.2, 0.5, 0.9, 1.5):
        chosen = selection.solve(cost, pairs, weights, reward)
        own = energy(cost, pairs, weights, 1.0, reward, chosen)
        assert own <= energy(cost, pairs, weights, 1.0, reward, np.ones(12, bool)) + 1e-6
        for image in range(12):
            other = chosen.copy()
            other[image] ^= True
            assert own <= energy(cost, pairs, weights, 1.0, reward, other) + 1e-6


def test_so_many_are_kept_and_without_penalty_those_near_their_center():
    embeddings, labels = people(20, 10)
    labels[:7] = -1
    chosen = make(keep=0.6)(embeddings, labels)
    assert chosen.dtype == np.float32 and set(chosen) == {0.0, 1.0} and not chosen[:7].any()
    assert chosen.sum() == pytest.approx(0.6 * 193, abs=8)
    selection = make(keep=0.5, penalty=0.0)
    chosen = selection(embeddings, labels)[7:] > 0
    cost, _, _ = selection.graph(embeddings[7:], labels[7:])
    assert cost[chosen].max() < cost[~chosen].min()
    np.testing.assert_array_equal(make(keep=1.0)(embeddings, labels), labels >= 0)


def test_wrong_settings_are_refused():
    for settings in ({"keep": 0.0}, {"keep": 1.5}, {"sweeps": 0}, {"share": 0.5}):
        with raises("entry-setting", "sparse_graph"):
            make(**settings)

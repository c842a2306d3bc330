"""Eq. 1-3 against plain NumPy evaluations of the paper's formulas in float64.

Each function is compiled as a whole, which takes less time than one operation after the other.
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from gdrd_jax import losses, registry
from gdrd_jax.config import LOSS_DEFAULTS

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def with_gradients(loss, *arguments, checked=1, tolerance=1e-2):
    """The value of a loss and its gradients; those of the first arguments are compared with central differences."""
    function = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arguments)))))
    value, gradients = function(*arguments)
    directions, values = [RNG.normal(size=x.shape) for x in arguments[:checked]], []
    for step in (1e-3, -1e-3):
        moved = [np.float32(x + step * along) for x, along in zip(arguments, directions)]
        values.append(np.float64(function(*moved, *arguments[checked:])[0]))
    slope = sum(np.sum(gradient * along) for gradient, along in zip(gradients, directions))
    np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-3, atol=tolerance, rtol=tolerance)
    return value, gradients


def test_generative_loss_is_the_mean_squared_distance_of_eq_1():
    a, b = RNG.normal(size=(2, 6, 4, 4, 8))
    per_face = [np.sum((x - y) ** 2) for x, y in zip(a, b)]
    expected = np.mean(per_face) / (4 * 4 * 8)
    assert jax.jit(losses.generative_loss)(np.float32(a), np.float32(b)) == pytest.approx(expected, rel=1e-5)


def test_generative_loss_gradient():
    a, b = np.float32(RNG.normal(size=(2, 3, 2, 2, 4)))
    assert not np.any(with_gradients(losses.generative_loss, a, b)[1][1])


def test_classification_loss():
    logits, labels = RNG.normal(size=(5, 7)) * 3, RNG.integers(7, size=5)
    expected = -np.mean(np.log(softmax(logits)[np.arange(5), labels]))
    assert jax.jit(losses.classification_loss)(np.float32(logits), labels) == pytest.approx(expected, rel=1e-5)


def test_classification_leaves_out_faces_of_nobody_known():
    logits = np.float32(RNG.normal(size=(5, 7)))
    labels = np.array([3, -1, 0, -1, 6])
    known = labels >= 0
    function = jax.jit(jax.value_and_grad(losses.classification_loss))
    value, gradient = function(logits, labels)
    assert value == jax.jit(losses.classification_loss)(logits[known], labels[known])
    assert not np.any(gradient[~known]) and np.all(np.isfinite(gradient))
    assert function(logits, np.full(5, -1))[0] == 0


def test_embedding_cosine_and_similarity_preserving_losses():
    ours, teacher = RNG.normal(size=(2, 6, 8))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    difference = (unit @ unit.T - teacher @ teacher.T)[~np.eye(6, dtype=bool)]
    arguments = np.float32(ours), np.float32(teacher)
    for loss, wanted, rel in (
        (losses.embedding_cosine, np.mean(1 - np.sum(unit * teacher, axis=1)), 1e-5),
        (losses.similarity_preserving, np.mean(difference**2), 1e-4),
    ):
        value, (_, of_teacher) = with_gradients(loss, *arguments)
        assert value == pytest.approx(wanted, rel=rel)
        assert not np.any(of_teacher)
        assert jax.jit(loss)(3 * arguments[1], arguments[1]) == pytest.approx(0, abs=1e-6)


def test_similarity_preserving_with_normalized_rows_is_the_authors():
    ours, teacher = RNG.normal(size=(2, 6, 8))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    rows = [x @ x.T / np.linalg.norm(x @ x.T, axis=1, keepdims=True) for x in (unit, teacher)]
    of_authors = np.sum((rows[0] - rows[1]) ** 2) / 6**2  # RepDistiller's weight is of this one
    arguments = np.float32(ours), np.float32(teacher)
    value, (of_ours, of_teacher) = with_gradients(lambda *x: losses.similarity_preserving(*x, True), *arguments)
    assert 5 / 6 * value == pytest.approx(of_authors, rel=1e-4)
    assert np.any(of_ours) and not np.any(of_teacher)
    same = np.ones((6, 8), np.float32)  # a student at the start: all cosines are 1
    plain, scaled = (jax.jit(losses.similarity_preserving, static_argnums=2)(same, arguments[1], x) for x in (0, 1))
    assert scaled < plain / 2
    assert jax.jit(losses.similarity_preserving, static_argnums=2)(arguments[1], arguments[1], True) < 1e-6


def test_selected_distance_is_of_unit_vectors_and_weighted():
    ours, teacher = RNG.normal(size=(2, 6, 8)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    weights = np.float32([1, 0, 2, 0, 0.5, 1])
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    loss = registry.losses["selected_distance"](None, losses.DataInfo(), rngs=None)
    function = jax.jit(
        jax.value_and_grad(lambda x: loss(losses.Outputs(x, x, None, teacher), {"selected": weights}, KEY)[0])
    )
    value, gradient = function(ours)
    expected = np.mean(weights * np.sum((unit - teacher) ** 2, axis=1))
    assert value == pytest.approx(expected, rel=1e-5)
    assert not np.any(gradient[weights == 0]) and np.all(np.any(gradient[weights > 0], axis=1))


def test_contrastive_loss_is_the_cross_entropy_of_ones_own_teacher_embedding():
    ours, teacher = RNG.normal(size=(2, 6, 5))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    logits = 16 * ours / np.linalg.norm(ours, axis=1, keepdims=True) @ teacher.T
    expected = -np.mean(np.log(np.diag(softmax(logits))))
    arguments = np.float32(ours), np.float32(teacher)
    loss = jax.jit(losses.contrastive_loss)
    assert loss(*arguments, 16.0) == pytest.approx(expected, rel=1e-5)
    _, (_, of_teacher) = with_gradients(lambda *x: losses.contrastive_loss(*x, 4.0), *arguments)
    assert not np.any(of_teacher)
    assert loss(arguments[1], arguments[1], 1000.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_distillation_loss_is_the_scaled_divergence(temperature, size):
    student, teacher = RNG.normal(size=(2, 5, 7)) * size
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0)
    expected = temperature**2 * np.mean(terms.sum(axis=1))
    found = jax.jit(losses.distillation_loss)(np.float32(student), np.float32(teacher), temperature)
    assert np.isfinite(found)
    assert found == pytest.approx(expected, rel=1e-4)


def test_distillation_reaches_the_student_and_not_the_teacher():
    student, teacher = np.float32(RNG.normal(size=(2, 5, 7)))
    _, (_, of_teacher) = with_gradients(lambda *x: losses.distillation_loss(*x, 4.0), student, teacher)
    assert not np.any(of_teacher)
    assert jax.jit(losses.distillation_loss)(teacher, teacher, 4.0) == pytest.approx(0, abs=1e-6)


def test_center_logits_are_scaled_cosines():
    embeddings, centers = RNG.normal(size=(4, 8)), RNG.normal(size=(3, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    expected = [[16 * np.dot(e, c) for c in centers] for e in embeddings]
    found = jax.jit(losses.center_logits)(np.float32(embeddings), np.float32(centers), 16.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def paper_relation_loss(positives, negatives, mask, ratio):
    """-log h for positives and -log(1 - h) for negatives, h = exp(s) / (exp(s) + n/m), as written."""
    h = lambda s: np.exp(s) / (np.exp(s) + ratio)  # noqa: E731
    total = 0.0
    for i, j in np.argwhere(mask):
        total += -np.log(h(positives[i, j])) - np.log(1 - h(negatives[i, j]))
    return total / mask.sum()


@pytest.mark.parametrize("tau", [0.4, 0.1])
def test_relation_loss_is_eq_2(tau):
    positives, negatives = RNG.uniform(-1, 1, size=(2, 6, 6)) / tau
    mask = ~np.eye(6, dtype=bool)
    expected = paper_relation_loss(positives, negatives, mask, 0.5)
    found = jax.jit(losses.relation_loss)(np.float32(positives), np.float32(negatives), mask)
    assert found == pytest.approx(expected, rel=1e-5)


def test_relation_loss_where_exp_overflows():
    scores = np.float32([[200.0, -200.0], [1e4, -1e4]])
    mask = np.ones((2, 2), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        naive = np.exp(scores) / (np.exp(scores) + np.float32(0.5))
    assert not np.isfinite(naive).all()
    # -log h(s) tends to log(1/2) - s for s -> -inf and to 0 for s -> inf; -log(1 - h(s)) the other way round.
    c = np.log(0.5)
    expected = np.mean(np.maximum(c - scores, 0) + np.maximum(scores - c, 0))
    value, (g1, g2) = jax.jit(jax.value_and_grad(losses.relation_loss, argnums=(0, 1)))(scores, scores, mask)
    assert value == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(g1).all() and np.isfinite(g2).all()


def test_relation_loss_gradient():
    positives, negatives = np.float32(RNG.normal(size=(2, 5, 5)))
    mask = ~np.eye(5, dtype=bool)
    with_gradients(lambda p, n: losses.relation_loss(p, n, mask), positives, negatives, checked=2)


scores_of = jax.jit(partial(losses.relation_scores, tau=0.4), static_argnames="positive")


def unit_relations(size, dim=8):
    x = RNG.normal(size=(2, size, size, dim))
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def test_pair_reading_takes_the_same_pair_and_any_other_partner():
    labels = np.array([0, 0, 1, 1, 2])
    h1, h2 = unit_relations(5)
    positives, negatives, mask = scores_of(h1, h2, labels, KEY, positive="pair")
    all_scores = np.einsum("ijp,ikp->ijk", h1, h2) / 0.4
    np.testing.assert_array_equal(mask, ~np.eye(5, dtype=bool))
    for i, j in np.argwhere(mask):
        assert positives[i, j] == pytest.approx(all_scores[i, j, j], abs=1e-5)
        others = np.delete(all_scores[i, j], j)
        assert np.min(np.abs(others - negatives[i, j])) < 1e-5


def test_identity_reading_goes_by_labels():
    labels = np.array([0, 0, 1, 1, 1])
    h1, h2 = unit_relations(5)
    positives, negatives, mask = scores_of(h1, h2, labels, KEY, positive="identity")
    all_scores = np.einsum("ijp,ikp->ijk", h1, h2) / 0.4
    for i, j in np.argwhere(mask):
        same = labels == labels[j]
        assert np.min(np.abs(all_scores[i, j, same] - positives[i, j])) < 1e-5
        assert np.min(np.abs(all_scores[i, j, ~same] - negatives[i, j])) < 1e-5


def test_identity_reading_takes_each_unlabeled_face_for_somebody_else():
    labels = np.array([-1, -1, 0, 0])
    h1, h2 = unit_relations(4)
    positives, negatives, mask = scores_of(h1, h2, labels, KEY, positive="identity")
    all_scores = np.einsum("ijp,ikp->ijk", h1, h2) / 0.4
    np.testing.assert_array_equal(mask, ~np.eye(4, dtype=bool))
    for i, j in ((2, 0), (3, 1)):
        assert positives[i, j] == pytest.approx(all_scores[i, j, j], abs=1e-5)
    drawn = [scores_of(h1, h2, labels, k, positive="identity")[1] for k in jax.random.split(KEY, 30)]
    at = {int(np.argmin(np.abs(all_scores[2, 0] - negatives[2, 0]))) for negatives in drawn}
    assert at == {1, 2, 3}


def test_identity_reading_ignores_anchors_without_a_negative():
    h1, h2 = unit_relations(4)
    *_, mask = scores_of(h1, h2, np.zeros(4, int), KEY, positive="identity")
    assert not mask.any()


def test_every_partner_is_drawn_equally_often():
    h1, h2 = unit_relations(4)
    all_scores = np.einsum("ijp,ikp->ijk", h1, h2) / 0.4
    drawn = [scores_of(h1, h2, np.arange(4), k, positive="pair")[1] for k in jax.random.split(KEY, 300)]
    chosen = np.array([np.argmin(np.abs(all_scores[0, 1] - negatives[0, 1])) for negatives in map(np.array, drawn)])
    counts = np.bincount(chosen, minlength=4)
    assert counts[1] == 0
    assert all(70 < counts[k] < 130 for k in (0, 2, 3))


@pytest.mark.parametrize("positive", ["pair", "identity"])
def test_anchors_of_a_part_of_the_batch_get_what_they_get_in_the_whole(positive):
    rng, labels = np.random.default_rng(3), np.array([0, 1, 0, 2, 1, 2])
    h1, h2 = np.float32(rng.normal(size=(2, 6, 6, 4)))
    whole = scores_of(h1, h2, labels, KEY, positive=positive)
    for first in (0, 2, 4):
        rows = slice(first, first + 2)
        part = scores_of(h1[rows], h2[rows], labels, KEY, first, positive=positive)
        for ours, theirs in zip(part, whole):
            np.testing.assert_array_equal(ours, theirs[rows])


def test_the_defaults_that_records_leave_out_are_those_of_the_losses():
    for name, defaults in LOSS_DEFAULTS.items():
        assert dataclasses.asdict(registry.losses[name].Config()) == defaults, name

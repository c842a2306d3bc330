import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdrd_jax.models.students.directcaps import route, squash

PREDICTIONS = np.random.default_rng(0).normal(size=(2, 7, 3, 4))


def squashed(vector):
    length = np.linalg.norm(vector)
    return vector * length / (1 + length**2)


def test_squash_keeps_directions_and_makes_lengths_below_1():
    vectors = np.random.default_rng(1).normal(size=(50, 8)) * np.logspace(-3, 2, 50)[:, None]
    found = np.asarray(jax.jit(squash)(vectors))
    np.testing.assert_allclose(found, [squashed(vector) for vector in vectors], rtol=0.01)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths.min() > 0 and 0.99 < lengths.max() < 1
    value, gradient = jax.jit(jax.value_and_grad(lambda x: squash(x).sum()))(jnp.zeros(8))
    assert value == 0 and not gradient.any()


@pytest.fixture(scope="module")
def routed():
    """Capsules after one, two and three rounds, and the gradients of the sum of the last."""

    @jax.jit
    def run(predictions):
        gradients = jax.grad(lambda values: route(values, 3).sum())(predictions)
        return [route(predictions, rounds) for rounds in (1, 2, 3)], gradients

    return jax.tree.map(np.asarray, run(PREDICTIONS))


def test_routing_is_that_of_the_paper_and_its_first_round_the_uniform_sum(routed):
    for number, image in enumerate(PREDICTIONS):
        agreement = np.zeros((7, 3))
        for found in routed[0]:
            coupling = np.exp(agreement) / np.exp(agreement).sum(axis=1, keepdims=True)
            capsules = [squashed(sum(coupling[i, j] * image[i, j] for i in range(7))) for j in range(3)]
            agreement += [[image[i, j] @ capsules[j] for j in range(3)] for i in range(7)]
            np.testing.assert_allclose(found[number], capsules, atol=1e-5)
    uniform = [[squashed(image[:, j].sum(axis=0) / 3) for j in range(3)] for image in PREDICTIONS]
    np.testing.assert_allclose(routed[0][0], uniform, atol=1e-5)
    assert np.abs(routed[0][1] - uniform).max() > 0.01


def test_gradients_are_those_of_the_last_round_alone(routed):
    agreement = sum((PREDICTIONS * capsules[:, None]).sum(axis=3, keepdims=True) for capsules in routed[0][:2])
    coupling = np.exp(agreement) / np.exp(agreement).sum(axis=2, keepdims=True)
    change = np.random.default_rng(2).normal(size=PREDICTIONS.shape)
    before, after = (
        sum(squashed(vector).sum() for vector in (coupling * values).sum(axis=1).reshape(-1, 4))
        for values in (PREDICTIONS - 1e-4 * change, PREDICTIONS + 1e-4 * change)
    )
    assert (routed[1] * change).sum() == pytest.approx((after - before) / 2e-4, rel=1e-3)


def test_a_single_capsule_has_all_of_every_prediction():
    found = jax.jit(lambda predictions: route(predictions, 3))(PREDICTIONS[:, :, :1])
    np.testing.assert_allclose(found[:, 0], [squashed(image[:, 0].sum(axis=0)) for image in PREDICTIONS], atol=1e-5)

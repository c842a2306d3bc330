import jax
import numpy as np
from flax import nnx

from gdrd_jax.models.relation import RelationCritic, normalize

TEACHER, STUDENT = np.float32(np.random.default_rng(0).normal(size=(2, 5, 8)))


def critic():
    model = RelationCritic(8, hidden=6, relation_dim=7, projection_dim=4, rngs=nnx.Rngs(0))
    # Biases start at zero, which would hide a mistake in them.
    rng = np.random.default_rng(1)
    nnx.update(model, jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), nnx.state(model)))
    return model


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relation(module, a, b):
    """F(a - b) as the paper writes it, in float64."""
    w1, b1, w2, b2 = (
        np.float64(p[...]) for p in (module.first.kernel, module.first.bias, module.second.kernel, module.second.bias)
    )
    return np.maximum((a - b) @ w1 + b1, 0) @ w2 + b2


def test_relations_of_all_pairs_are_f_of_the_difference():
    model = critic()
    h1, h2 = model(TEACHER[1:4], TEACHER, STUDENT)
    teacher, student = unit(np.float64(TEACHER)), unit(np.float64(STUDENT))
    for i in range(3):
        for j in range(5):
            v_t = relation(model.teacher_relation, teacher[1 + i], teacher[j])
            v_ts = relation(model.cross_relation, teacher[1 + i], student[j])
            expected = [
                unit(v @ np.float64(h.kernel[...]) + np.float64(h.bias[...]))
                for v, h in ((v_t, model.h1), (v_ts, model.h2))
            ]
            np.testing.assert_allclose(h1[i, j], expected[0], atol=1e-4)
            np.testing.assert_allclose(h2[i, j], expected[1], atol=1e-4)


def test_the_teacher_gets_no_gradient_but_everything_else_does():
    def total(model, teacher, student):
        h1, h2 = model(teacher, teacher, student)
        return (h1 * h2).sum()

    of_model, of_teacher, of_student = nnx.jit(nnx.grad(total, argnums=(0, 1, 2)))(critic(), TEACHER, STUDENT)
    assert not np.any(of_teacher)
    assert np.any(of_student)
    assert all(np.any(g) for g in jax.tree.leaves(of_model))


def test_normalize_has_a_finite_gradient_at_zero():
    assert np.isfinite(jax.grad(lambda x: normalize(x).sum())(np.zeros(3, np.float32))).all()

"""What each stage trains, what it must leave alone, and that it can learn."""

import jax
import numpy as np
import optax
import pytest
import tiny_student  # noqa: F401  registers the students
from conftest import raises
from flax import nnx

from gdrd_jax.data.degradation import resize
from gdrd_jax.data.random_degradation import RandomDegradation
from gdrd_jax.losses import DataInfo, TeacherFeatures, feature_regression
from gdrd_jax.models.student import make_student
from gdrd_jax.training import stages, trainer

RNG = np.random.default_rng(0)
FACES, PEOPLE, DIM = 8, 4, 8
BATCH = {
    "lr": RNG.integers(256, size=(FACES, 16, 16, 3), dtype=np.uint8),
    "label": np.arange(FACES) % PEOPLE,
    "generative": np.float16(RNG.normal(2, 3, size=(FACES, 12, 4, 4))),
    "discriminative": np.float16(RNG.normal(size=(FACES, DIM))),
}
KEY = jax.random.key(0)


def student(name):
    return make_student(name=name, resolution=16, hidden=(32,), embedding_dim=DIM, rngs=nnx.Rngs(0))


def statistics(target_shape=(12, 4, 4)):
    """Another mean at each place, which is the same in all faces, and another deviation of each channel."""
    rng = np.random.default_rng(1)
    return (
        np.float32(rng.normal(2, 1, target_shape)),
        np.float32(rng.uniform(2, 4, target_shape[0])),
    )


def gen(target_shape=(12, 4, 4), name="three_stages"):
    mean, std = statistics(target_shape)
    info = DataInfo(feature_shape=(4, 4, 32), target_shape=target_shape, target_statistics=lambda: (mean, std))
    return stages.Stage(student(name), {"feature_regression": {}}, info, rngs=nnx.Rngs(1))


def predict(stage):
    return stage.criteria["feature_regression"].predict(stage.backbone(BATCH["lr"])), stage.backbone(BATCH["lr"])


PAPER = {"cls": 1.0, "kd": 0.25, "rcd": 4.0}


def dis(weights=PAPER, *, frozen=("backbone",), **changes):
    centers, _ = stages.class_centers(BATCH["discriminative"], BATCH["label"], PEOPLE)
    losses = {name: {"weight": weight} for name, weight in weights.items()}
    info = DataInfo(PEOPLE, FACES, DIM, centers, feature_shape=(4, 4, 32))
    return stages.Stage(student("three_stages"), losses, info, frozen=frozen, rngs=nnx.Rngs(1), **changes)


def gradients(stage, batch):
    graphdef, params, rest = nnx.split(stage, nnx.Param, ...)

    def loss(params, batch):
        return nnx.merge(graphdef, params, rest, copy=True).loss({**BATCH, **batch}, KEY)[0]

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
    return gradient(params, {name: np.float32(batch[name]) for name in batch})


def loss_of(stage, batch=BATCH):
    """As `stage.loss`, compiled as a whole, which takes less time than one operation after the other."""
    return nnx.jit(lambda stage: stage.loss(batch, KEY))(stage)


def is_zero(tree):
    return not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))


def overfit(stage, steps, rate, batch=BATCH):
    graphdef, params, rest = trainer.split(stage)
    optimizer = optax.adam(rate)

    @jax.jit
    def step(params, rest, opt_state):
        def loss(params):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            value, metrics = merged.loss(batch, KEY)
            return value, (metrics, trainer.split(merged)[2])

        gradient, (metrics, new_rest) = jax.grad(loss, has_aux=True)(params)
        update, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, update), new_rest, opt_state, metrics

    opt_state = optimizer.init(params)
    for _ in range(steps):
        params, rest, opt_state, metrics = step(params, rest, opt_state)
    nnx.update(stage, params, rest)
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("shape", [(6, 8, 8), pytest.param((12, 4, 4), marks=pytest.mark.slow)])  # finer, or not
def test_stage_gen_overfits_a_tiny_set(shape):
    targets = np.float16(RNG.normal(2, 3, size=(FACES, *shape)))
    assert overfit(gen(shape, "one_block"), 150, 1e-2, {**BATCH, "generative": targets})["r2"] > 0.95


@pytest.fixture(scope="module")
def overfitted():
    """The backbone before, stage dis after some steps on the same faces, and the metrics of the last."""
    stage = dis()
    before = jax.tree.map(np.array, nnx.state(stage.backbone))
    return before, stage, overfit(stage, 100, 1e-2)


def test_stage_dis_overfits_a_tiny_set(overfitted):
    *_, metrics = overfitted
    assert metrics["train_accuracy"] == 1.0
    assert metrics["cls"] < 0.3
    # Eq. 2 at s = 0 everywhere is log(3/2) + log(3); learning must leave that far behind.
    assert metrics["rcd"] < 0.6 * (np.log(1.5) + np.log(3))


def test_without_identities_and_relations_neither_classifier_nor_critic_is_made():
    stage = dis({"embedding_cosine": 1.0, "similarity_preserving": 1.0}, frozen=())
    assert stage.classifier is None and set(nnx.state(stage, nnx.Param)) == {"backbone", "head"}
    metrics = overfit(stage, 200, 1e-2, {**BATCH, "label": np.full(FACES, -1)})
    assert (
        metrics.keys() == {"embedding_cosine", "similarity_preserving"}
        and metrics["embedding_cosine"] < 0.1
        and metrics["similarity_preserving"] < 0.01
    )


def test_stage_gen_gives_the_teacher_no_gradient():
    of_params, of_batch = gradients(gen(), {"generative": BATCH["generative"]})
    assert is_zero(of_batch)
    assert not is_zero(of_params["backbone"])
    assert not is_zero(of_params["criteria"]["feature_regression"]["regressor"])


def test_stage_dis_gives_teacher_and_frozen_backbone_no_gradient():
    of_params, of_batch = gradients(dis(), {"discriminative": BATCH["discriminative"]})
    assert is_zero(of_batch)
    assert is_zero(of_params["backbone"])
    for trained in (of_params["head"], of_params["classifier"], of_params["criteria"]["rcd"]["critic"]):
        assert not is_zero(trained)


def test_training_the_head_changes_nothing_in_the_backbone_not_even_statistics(overfitted):
    before, stage, _ = overfitted
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(stage.backbone)))


def test_end_to_end_trains_the_backbone():
    of_params, _ = gradients(dis(frozen=()), {})
    assert not is_zero(of_params["backbone"])


def test_the_loss_is_the_weighted_sum_of_eq_3():
    loss, metrics = loss_of(dis({"cls": 1.0, "kd": 0.25, "rcd": 4.0}))
    expected = metrics["cls"] + 0.25 * metrics["kd"] + 4.0 * metrics["rcd"]
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_a_loss_that_is_not_named_is_left_out():
    stage = dis({"cls": 1.0})
    loss, metrics = loss_of(stage)
    assert "kd" not in metrics and "rcd" not in metrics
    assert loss == metrics["cls"]


@pytest.mark.parametrize("shape", [(12, 4, 4), (12, 2, 2), (12, 1, 1), (12, 8, 8), (12, 3, 3)])
def test_the_regressor_meets_targets_of_any_size(shape):
    assert nnx.eval_shape(lambda: predict(gen(shape)))[0].shape == (FACES, *shape[1:], shape[0])


def test_finer_targets_are_met_patch_by_patch():
    x = np.arange(2 * 3 * 6, dtype=np.float32).reshape(1, 2, 3, 6)
    spread, pooled = jax.jit(
        lambda x: (spread := feature_regression._spread(x, (2, 3)), feature_regression._pooled(spread, (2, 3)))
    )(x)
    assert spread.shape == (1, 4, 9, 1)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(spread[0, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 0].ravel(), x[0, i, j])
    np.testing.assert_array_equal(pooled, x.mean(axis=3, keepdims=True))


def test_the_regressor_is_the_identity_where_shapes_agree():
    stage = gen((32, 4, 4))
    stage.eval()
    np.testing.assert_array_equal(*nnx.jit(predict)(stage))


def test_loss_of_stage_gen_is_the_unexplained_variance_of_standardized_targets():
    stage = gen()
    stage.eval()
    mean, std = statistics()
    target = (np.float64(BATCH["generative"]) - mean) / std[:, None, None]
    prediction = np.float64(nnx.jit(predict)(stage)[0]).transpose(0, 3, 1, 2)
    expected = np.mean((prediction - target) ** 2)
    loss, metrics = loss_of(stage)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert metrics["r2"] == pytest.approx(1 - expected / np.mean(target**2), rel=1e-4)
    features = nnx.jit(TeacherFeatures(mean, std))(BATCH["generative"])
    np.testing.assert_allclose(features, target.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


def test_class_centers_are_normalized_means_of_normalized_embeddings():
    embeddings, labels = RNG.normal(size=(6, 4)), np.array([0, 1, 0, 1, 1, 0])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    sums = np.stack([unit[labels == c].sum(axis=0) for c in (0, 1)])
    norms = np.linalg.norm(sums, axis=1)
    centers, lengths = stages.class_centers(embeddings, labels, 2)
    np.testing.assert_allclose(centers, sums / norms[:, None], rtol=1e-5)
    np.testing.assert_allclose(lengths, norms, rtol=1e-5)


def test_degraded_faces_are_mirrored_at_random():
    degradation = RandomDegradation(16, clean=1.0, kernels=(1.0, 0.0, 0.0, 0.0))
    stage = dis({"embedding_cosine": 1.0}, degradation=degradation)
    small = np.random.default_rng(0).integers(256, size=(64, 48, 48, 3), dtype=np.uint8)
    draw = nnx.jit(lambda stage: stage._input({"small": small}, jax.random.key(0)))
    found = np.asarray(draw(stage)).astype(int)
    plain = np.stack([resize(face, 16, "area") for face in small]).astype(int)
    as_is, mirrored = (np.abs(found - x).max(axis=(1, 2, 3)) <= 1 for x in (plain, plain[:, :, ::-1]))
    assert (as_is ^ mirrored).all() and 20 < mirrored.sum() < 44


def test_with_feature_maps_of_the_teacher_the_mirrored_faces_are_those_of_view_1():
    degradation = RandomDegradation(16, clean=1.0, kernels=(1.0, 0.0, 0.0, 0.0))
    info = DataInfo(feature_shape=(4, 4, 32), hr_shape=(12, 4, 4), hr_statistics=statistics)
    stage = stages.Stage(student("three_stages"), {"wavelet": {}}, info, rngs=nnx.Rngs(1), degradation=degradation)
    rng = np.random.default_rng(0)
    small, view = rng.integers(256, size=(8, 48, 48, 3), dtype=np.uint8), rng.permutation([0, 1] * 4)
    batch = {"small": small, "view": view, "second_small": small[::-1], "second_view": 1 - view}
    prefixes = "", "second_"
    both = nnx.jit(lambda stage: [stage._input(batch, jax.random.key(0), prefix) for prefix in prefixes])(stage)
    for found, prefix in zip(both, prefixes):
        seen = zip(batch[f"{prefix}small"], batch[f"{prefix}view"])
        wanted = [resize(face, 16, "area")[:, :: -1 if number else 1] for face, number in seen]
        assert np.abs(np.asarray(found, int) - np.array(wanted, int)).max() <= 1


def test_mixup_lays_a_neighbor_over_some_faces_and_mixes_their_targets():
    rng = np.random.default_rng(0)
    small = rng.integers(256, size=(400, 2, 2, 3), dtype=np.uint8)
    teacher = np.float32(rng.normal(size=(400, DIM)))
    batch = {"small": small, "discriminative": teacher, "label": np.arange(400)}
    mixed = jax.tree.map(np.asarray, jax.jit(lambda batch: stages._mixed(batch, KEY, 0.25))(batch))
    alone = mixed["label"] >= 0
    assert 270 < alone.sum() < 330
    np.testing.assert_array_equal(mixed["small"][alone], small[alone])
    unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed["discriminative"][alone], unit[alone], atol=1e-6)
    other = np.arange(400) ^ 1
    for row in np.flatnonzero(~alone):
        a, b = unit[row], unit[other[row]]
        share = np.linalg.lstsq(np.stack([a, b], 1), mixed["discriminative"][row], rcond=None)[0]
        assert 0.5 <= share[0] + 1e-5 and share.sum() == pytest.approx(1, abs=1e-5)
        pixels = share[0] * small[row].astype(float) + share[1] * small[other[row]]
        np.testing.assert_allclose(mixed["small"][row], pixels, atol=0.51)
    with raises("mixup-odd-batch", "not 3", "config.dis.batch"):
        stages._mixed({name: values[:3] for name, values in batch.items()}, KEY, 0.5)

"""Losses of distillation by relations, memory banks and ranks, against their papers' formulas in loops of float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import finished, raises, run_script
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.losses import DataInfo, Outputs, State, memory_bank, pairwise

B, DIM, PEOPLE, IMAGES, NEGATIVES, ANGLES = 8, 16, 20, 50, 12, 5
KEY = jax.random.key(0)
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, -1])
INDEX = np.array([3, 7, 12, 12, 30, 31, 40, 47])  # one of them twice; 3, 12 and 47 are drawn as negatives, too
SETTINGS = {
    "assistant_cosine": {}, "rkd": {"images": ANGLES}, "pkt": {}, "cckd": {}, "mk_mmd": {},
    "crd": {"negatives": NEGATIVES}, "ekd_evaluation": {"hardest": 0.3},
}  # fmt: skip
OF_COSINES = ("rkd", "pkt", "cckd", "ekd_evaluation")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(seed):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(B, DIM))), np.float32(unit(rng.normal(size=(B, DIM))))


@functools.cache
def made(name):
    """A loss's graph, parameters and state, and a jitted function of these and a batch."""
    loss = registry.losses[name](
        registry.losses.settings(name, SETTINGS[name]),
        DataInfo(identities=PEOPLE, images=IMAGES, embedding_dim=DIM), rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, params, state = nnx.split(loss, nnx.Param, ...)

    def value(params, student, teacher, state, labels, index):
        loss = nnx.merge(graph, params, state, copy=True)
        batch = {"label": labels, "index": index, "assistant": teacher}  # read in place of T_d's embeddings, or not
        found, metrics = loss(Outputs(student, student, teacher=teacher), batch, KEY)
        return found, (metrics, nnx.state(loss, State))

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)), params, state


def evaluated(name, student, teacher, *, state=None, params=None, labels=LABELS, index=INDEX):
    """Value, metrics, the state afterwards, and the gradients to parameters, student and teacher."""
    function, own, fresh = made(name)
    (value, (metrics, after)), gradients = function(params or own, student, teacher, state or fresh, labels, index)
    return float(value), metrics, after, gradients


def huber(d):
    return d**2 / 2 if abs(d) < 1 else abs(d) - 1 / 2


def rkd(student, teacher):
    chosen = np.asarray(jax.random.permutation(KEY, B)[:ANGLES])
    distances, angles = [], []
    for e in (unit(student), unit(teacher)):
        d = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        distances.append(d.ravel() / d[~np.eye(B, dtype=bool)].mean())
        toward = {(i, j): (e[i] - e[j]) / (d[i, j] or 1) for i in chosen for j in chosen}
        angles.append([toward[i, j] @ toward[k, j] for i in chosen for j in chosen for k in chosen])
    distance, angle = (np.mean([huber(s - t) for s, t in zip(*pair)]) for pair in (distances, angles))
    return 25 * distance + 50 * angle


def cosine(student, teacher):
    return np.mean([1 - s @ t for s, t in zip(unit(student), unit(teacher))])


def pkt(student, teacher):
    total = 0.0
    for i in range(B):
        p, q = ([(e[i] @ e[j] + 1) / 2 for j in range(B)] for e in (unit(teacher), unit(student)))
        total += sum(a / sum(p) * math.log((a / sum(p) + 1e-7) / (b / sum(q) + 1e-7)) for a, b in zip(p, q))
    return 30000 / 64 * total / B


def cckd(student, teacher):
    kernel = lambda a, b: math.exp(-0.8) * (1 + 0.8 * (a @ b) + 0.32 * (a @ b) ** 2)  # noqa: E731
    (s, t), pairs = (unit(student), unit(teacher)), list(np.ndindex(B, B))
    return 400 * np.mean([(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i, j in pairs])


def mk_mmd(student, teacher, width=None):
    s, t = unit(student), unit(teacher)
    both = [*s, *t]
    width = width or np.mean([np.sum((a - b) ** 2) for a in both for b in both])
    kernel = lambda a, b: sum(  # noqa: E731
        math.exp(-np.sum((a - b) ** 2) / (2 * alpha * width)) for alpha in (0.125, 0.25, 0.5, 1, 2)
    )
    mean = lambda x, y: np.mean([kernel(a, b) for a in x for b in y])  # noqa: E731
    return mean(s, s) + mean(t, t) - 2 * mean(s, t)


REFERENCES = {"assistant_cosine": cosine, "rkd": rkd, "pkt": pkt, "cckd": cckd, "mk_mmd": mk_mmd}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_loss_of_pairs_is_its_formula(name):
    for seed in range(3):
        student, teacher = embeddings(seed)
        found = evaluated(name, student, teacher)[0]
        assert found == pytest.approx(REFERENCES[name](np.float64(student), np.float64(teacher)), rel=1e-5)


def widths(student, teacher):
    both = np.concatenate([unit(student), unit(teacher)])
    return np.mean(np.sum((both[:, None] - both[None]) ** 2, axis=-1))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_gradient_of_a_loss_of_pairs_is_that_of_its_formula(name):
    """Along a random direction; the width of the kernels has no gradient."""
    student, teacher = embeddings(3)
    direction = np.random.default_rng(4).normal(size=student.shape)
    fixed = {"width": widths(np.float64(student), np.float64(teacher))} if name == "mk_mmd" else {}
    ahead, behind = (
        REFERENCES[name](student + step * direction, np.float64(teacher), **fixed) for step in (1e-5, -1e-5)
    )
    gradient = evaluated(name, student, teacher)[3][1]
    assert np.sum(gradient * direction) == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)


def projection(params, name, x):
    return unit(x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"]))


def projections(params, student, teacher):
    return projection(params, "project_student", student), projection(params, "project_teacher", teacher)


def banks(state, student, teacher):
    """The images seen and the banks after a batch: momentum 0.5 of rows that were there before, and the mean of what an
    index has, or its first embedding of T_d."""
    seen, of_student, of_teacher = (np.array(state[name]) for name in ("seen", "student_bank", "teacher_bank"))
    of_student = np.float64(of_student)
    for row in np.unique(INDEX):
        kept = 0.5 if seen[row] else 0.0
        of_student[row] = unit(kept * of_student[row] + (1 - kept) * student[row == INDEX].mean(axis=0))
        of_teacher[row] = teacher[list(INDEX).index(row)]
    seen[INDEX] = True
    return seen, of_student, of_teacher


def contrasted(params, state, student, teacher, fixed=None):
    """CRD in loops.

    Args:
      fixed: the parameters and the student's embeddings of which positives and banks are, if other than the given ones.

    Returns:
      The value, and log(Z / N) of both directions.
    """
    identities = {row: y for row, y in enumerate(state["identities"]) if y >= 0} | dict(zip(INDEX, LABELS))
    (p, q), (kept, fixed_student) = projections(params, student, teacher), fixed or (params, student)
    kept_p, kept_q = projections(kept, fixed_student, teacher)
    seen, of_student, of_teacher = banks(state, kept_p, teacher)
    rows = np.flatnonzero(seen)
    negatives = rows[np.asarray(jax.random.randint(KEY, (NEGATIVES,), 0, len(rows)))]
    projected = projection(kept, "project_teacher", np.float64(of_teacher[negatives]))
    total, log_means = 0.0, []
    for direction, (anchors, own, others) in enumerate(((p, kept_q, projected), (q, kept_p, of_student[negatives]))):
        scores = np.array([[a @ o / 0.07, *(others @ a / 0.07)] for a, o in zip(anchors, own)])
        z = np.mean(np.exp(scores)) * IMAGES  # Z of CRD
        log_means.append(state["log_means"][direction] if state["seen"].any() else np.log(z / IMAGES))
        h = np.exp(scores) / (np.exp(scores) + np.exp(log_means[-1]) * NEGATIVES)
        for row, index in enumerate(INDEX):
            total -= np.log(h[row, 0]) / B
            for number, other in enumerate(negatives, start=1):
                same = index == other or identities.get(index, -1) == identities.get(other, -1) != -1
                total -= 0 if same else np.log(1 - h[row, number]) / B
    return total, log_means


def after_another_batch():
    """State of CRD in which some of the images have been seen, others not."""
    rows, labels = np.array([3, 30, 1, 2, 20, 21, 22, 23]), np.array([0, 2, 5, 6, 7, 7, 8, -1])
    return evaluated("crd", *embeddings(9), index=rows, labels=labels)[2]


def test_crd_is_its_formula_and_its_banks_move_by_the_mean():
    _, params, fresh = made("crd")
    known = nnx.to_pure_dict(params)
    for start in (fresh, after_another_batch()):
        state = start
        for seed in range(2):
            student, teacher = map(np.float64, embeddings(seed))
            before = nnx.to_pure_dict(state)
            value, _, state, _ = evaluated("crd", np.float32(student), np.float32(teacher), state=state)
            expected, log_means = contrasted(known, before, student, teacher)
            assert value == pytest.approx(expected, rel=1e-5)
            after = nnx.to_pure_dict(state)
            # Z is that of the first batch.
            np.testing.assert_allclose(after["log_means"], log_means, rtol=1e-5, atol=1e-5)
            seen, of_student, of_teacher = banks(before, projection(known, "project_student", student), teacher)
            np.testing.assert_array_equal(after["seen"], seen)
            np.testing.assert_allclose(after["student_bank"], of_student, atol=1e-5)
            np.testing.assert_array_equal(after["teacher_bank"], of_teacher)
            np.testing.assert_array_equal(after["identities"][INDEX], LABELS)
    assert np.sum(seen) == 7 + 6 and np.sum(after["identities"] >= 0) == 6 + 5


def test_a_mixup_image_changes_no_row_of_its_image():
    """It has no label, and the index of a labeled image."""
    before = after_another_batch()
    labels = np.where(INDEX == 3, -1, LABELS)  # image 3 was in the other batch
    after = evaluated("crd", *embeddings(0), state=before, labels=labels)[2]
    for name in ("student_bank", "teacher_bank", "identities", "seen"):
        np.testing.assert_array_equal(after[name][3], before[name][3])
        assert name == "seen" or np.any(after[name][7] != before[name][7])


def test_images_are_drawn_among_those_seen():
    seen = np.isin(np.arange(9), (0, 3, 8))
    drawn = jax.jit(lambda key: memory_bank.drawn_rows(key, jnp.asarray(seen), 3000))(KEY)
    counts = np.bincount(drawn, minlength=9)
    assert counts.sum() == counts[seen].sum() and counts[seen].min() > 900


def test_a_gradient_of_crd_reaches_the_student_and_both_projections():
    """Along a random direction; what stands in the banks has no gradient."""
    _, params, _ = made("crd")
    student, teacher = embeddings(0)
    state = after_another_batch()
    gradients = evaluated("crd", student, teacher, state=state)[3]
    known, before, rng = nnx.to_pure_dict(params), nnx.to_pure_dict(state), np.random.default_rng(1)
    directions = jax.tree.map(lambda x: rng.normal(size=x.shape), (known, student))
    values = []
    for step in (1e-5, -1e-5):
        there = jax.tree.map(lambda x, along: np.float64(x) + step * along, (known, student), directions)
        values.append(contrasted(there[0], before, there[1], np.float64(teacher), (known, np.float64(student)))[0])
    products = jax.tree.map(
        lambda g, along: np.sum(g * along), (nnx.to_pure_dict(gradients[0]), gradients[1]), directions
    )
    assert sum(jax.tree.leaves(products)) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    assert not np.any(gradients[2])


def test_a_direction_of_crd_begins_at_the_value_of_random_banks():
    rng, count = np.random.default_rng(0), 2000
    anchors, own, others = (unit(rng.normal(size=(size, 128))) for size in (256, 256, count))
    scores = np.float32(np.c_[np.sum(anchors * own, axis=1), anchors @ others.T] / 0.07)

    @jax.jit
    def direction(u):
        offset = jnp.log(count) + memory_bank.log_mean_exp(u)
        return jnp.mean(memory_bank.contrastive_terms(u[:, 0], u[:, 1:], jnp.ones(u[:, 1:].shape, bool), offset))

    assert direction(scores) == pytest.approx(math.log(1 + count) + 1 + 1 / (256 * 0.07**2), abs=0.2)


def test_equal_projections_make_both_directions_of_the_first_batch_of_crd_equal():
    """The student's embeddings are T_d's, so the value is twice that of a direction."""
    _, params, _ = made("crd")
    student = np.float16(embeddings(0)[1]).astype(np.float32)
    params = jax.tree.map(lambda x: x, params)
    params["project_student"] = params["project_teacher"]
    value, _, state, gradients = evaluated("crd", student, student, params=params, index=np.arange(B))
    assert state["log_means"][0] == pytest.approx(float(state["log_means"][1]), rel=1e-5) != 0
    own, other = (gradients[0][name]["kernel"][...] for name in ("project_student", "project_teacher"))
    np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)
    assert value > 0 and np.any(own)


def test_h_of_crd_does_not_overflow():
    scores = np.float32([1e4, -1e4])
    terms = jax.jit(lambda u: memory_bank.contrastive_terms(u, jnp.stack([u, u]), jnp.ones((2, 2), bool), 3.0))
    np.testing.assert_allclose(terms(scores), [1e4 - 3, 2e4], rtol=1e-6)
    assert jax.jit(memory_bank.log_mean_exp)(np.float32([-300, -301])) == pytest.approx(-300.38, abs=0.01)


PAIRS = [(i, j) for i in range(B) for j in range(i + 1, B) if min(LABELS[i], LABELS[j]) >= 0]
POSITIVE = [(i, j) for i, j in PAIRS if LABELS[i] == LABELS[j]]
NEGATIVE = [(i, j) for i, j in PAIRS if LABELS[i] != LABELS[j]]


def passed(space):
    """The cosines that one in 10^k negative pairs passes."""
    ordered = sorted((unit(space)[i] @ unit(space)[j] for i, j in NEGATIVE), reverse=True)
    return np.array([ordered[len(NEGATIVE) // 10**k] for k in range(1, 7)])


def ekd(student, teacher, limits):
    sigmoid = lambda x: 1 / (1 + math.exp(-min(max(x, -50), 50)))  # noqa: E731
    cosines = [{(i, j): e[i] @ e[j] for i, j in PAIRS} for e in (unit(student), unit(teacher))]
    ranks = [
        {pair: sum(sigmoid((value - limit) / 0.01) for limit in own) for pair, value in space.items()}
        for space, own in zip(cosines, limits)
    ]
    hardest = sorted(NEGATIVE, key=lambda pair: -cosines[0][pair])[: math.ceil(0.3 * B * (B - 1) / 2)]
    mean = lambda chosen: np.mean([(ranks[0][pair] - ranks[1][pair]) ** 2 for pair in chosen])  # noqa: E731
    active = [min(abs(cosines[0][pair] - limits[0])) < 0.05 for pair in POSITIVE + hardest]
    return 0.02 * mean(POSITIVE) + 0.01 * mean(hardest), np.mean(active)


def test_ekd_is_its_formula_and_its_thresholds_are_averages():
    state, averages = None, np.zeros((2, 6))
    for seed in range(3):
        student, teacher = map(np.float64, embeddings(seed))
        value, metrics, state, _ = evaluated("ekd_evaluation", np.float32(student), np.float32(teacher), state=state)
        averages = 0.99 * averages + 0.01 * np.array([passed(student), passed(teacher)])
        np.testing.assert_allclose(state["averages"][...], averages, rtol=1e-5)
        assert state["updates"][...] == seed + 1
        expected, active = ekd(student, teacher, averages / (1 - 0.99 ** (seed + 1)))
        assert value == pytest.approx(expected, rel=1e-5)
        assert metrics["ekd_active"] == pytest.approx(active) and metrics["ekd_positives"] == len(POSITIVE)


def test_a_gradient_of_ekd_is_that_of_fixed_thresholds():
    student, teacher = embeddings(2)
    _, _, state, (_, gradient, _) = evaluated("ekd_evaluation", student, teacher)
    limits, direction = np.float64(state["averages"][...]) / 0.01, np.random.default_rng(4).normal(size=student.shape)
    ahead, behind = (ekd(student + step * direction, np.float64(teacher), limits)[0] for step in (1e-6, -1e-6))
    assert np.sum(gradient * direction) == pytest.approx((ahead - behind) / 2e-6, rel=1e-3)


def extremes():
    """Embeddings and labels at which a root, a logarithm or a mean can fail."""
    student, teacher = embeddings(0)
    twice, signs = np.arange(B) // 2 * 2, np.float32(np.where(np.arange(B) % 2, 1, -1))[:, None]
    yield np.zeros_like(student), teacher, LABELS
    yield teacher, teacher, LABELS
    yield student[twice], teacher[twice], LABELS
    yield student[twice], teacher, LABELS
    yield student, teacher[twice], LABELS
    yield np.tile(student[:1], (B, 1)), np.tile(teacher[:1], (B, 1)), LABELS
    yield signs * student[0], signs * teacher[0], LABELS
    yield signs * student[0], teacher, LABELS
    yield student, teacher, np.zeros(B, int)
    yield student, teacher, np.arange(B)
    yield student, teacher, np.full(B, -1)


@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_gradients_are_finite_and_the_teacher_has_none(name):
    for case, (student, teacher, labels) in enumerate(extremes()):
        value, metrics, state, (params, gradient, of_teacher) = evaluated(name, student, teacher, labels=labels)
        assert np.isfinite(value) and value >= -1e-5, case
        for array in jax.tree.leaves((metrics, state, params, gradient)):
            assert np.isfinite(array).all(), case
        assert not np.any(of_teacher), case
        assert np.abs(gradient).max() < 1e3 or not student.any(), case


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_of_bfloat16_embeddings_are_float32(name):
    function, params, state = made(name)
    student, teacher = embeddings(0)
    (value, (metrics, after)), _ = jax.eval_shape(
        function, params, jnp.bfloat16(student), teacher, state, LABELS, INDEX
    )  # fmt: skip
    assert {x.dtype for x in jax.tree.leaves((value, metrics))} == {jnp.dtype("float32")}
    kept = nnx.filter_state(state, State)
    jax.tree.map(lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)), kept, after)


def test_towards_an_assistant_the_figures_have_names_of_their_own():
    loss = registry.losses["assistant_rkd"](registry.losses.settings("assistant_rkd", {}), DataInfo(), rngs=None)
    assert loss.needs == {"embedding", "assistant"} and loss.config == registry.losses["rkd"].Config()
    student, teacher = embeddings(0)
    outputs, batch = Outputs(student, student), {"assistant": np.float16(teacher)}
    _, metrics = jax.eval_shape(lambda: loss(outputs, batch, KEY))
    assert set(metrics) == {"assistant_rkd_distance", "assistant_rkd_angle", "assistant_rkd_spread"}


def rotation(seed):
    return np.float32(np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0])


@pytest.mark.parametrize("name", OF_COSINES)
def test_losses_of_cosines_do_not_depend_on_rotation_and_length(name):
    student, teacher = embeddings(1)
    value = evaluated(name, student, teacher)[0]
    assert evaluated(name, 3 * student @ rotation(0), teacher @ rotation(1))[0] == pytest.approx(value, rel=1e-4)
    assert evaluated(name, student, embeddings(2)[1])[0] != pytest.approx(value, rel=1e-2)


def test_relative_distances_and_angles_do_not_depend_on_rotation_shift_and_scale():
    x = embeddings(0)[0]
    both = jax.jit(lambda x: (pairwise.relative_distances(x), pairwise.angles(x)))
    for found, moved in zip(both(x), both(7 * x @ rotation(0) + x[0])):
        np.testing.assert_allclose(found, moved, atol=1e-5)


@pytest.mark.parametrize("name", ["pkt", "cckd", "mk_mmd", "crd", "ekd_evaluation"])
def test_the_order_of_a_batch_does_not_matter(name):
    student, teacher = embeddings(1)
    order = np.random.default_rng(0).permutation(B)
    value, _, state, _ = evaluated(name, student, teacher)
    found, _, after, _ = evaluated(name, student[order], teacher[order], labels=LABELS[order], index=INDEX[order])
    assert found == pytest.approx(value, rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), state, after)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "crd"])
def test_a_student_like_the_teacher_has_no_loss(name):
    teacher = embeddings(0)[1]
    value, metrics, *_ = evaluated(name, 2 * teacher, teacher)
    assert value == pytest.approx(0, abs=2e-6)
    assert all(found == pytest.approx(1) for key, found in metrics.items() if key.endswith("correlation"))


def test_mk_mmd_compares_sets():
    teacher = embeddings(0)[1]
    assert 0 <= evaluated("mk_mmd", teacher[::-1], teacher)[0] < 1e-6
    assert evaluated("mk_mmd", -teacher, teacher)[0] > 0.1


def test_probabilities_of_pkt_sum_to_1():
    found = jax.jit(pairwise.probabilities)(embeddings(0)[1])
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-6)


def test_the_series_of_cckd_tends_to_the_gaussian_kernel():
    x = embeddings(0)[1]
    kernel = np.exp(-0.4 * np.sum((x[:, None] - x[None]) ** 2, axis=-1))
    series = jax.jit(lambda x: [pairwise.gaussian_series(x, 0.4, degree) for degree in (1, 2, 4, 12)])
    errors = [np.abs(found - kernel).max() for found in series(x)]
    assert errors == sorted(errors, reverse=True) and errors[1] > 0.01 and errors[3] < 1e-6


def test_without_positive_pairs_ekd_learns_from_negative_ones_alone():
    student, teacher = embeddings(0)
    nothing, of_negatives, unlabeled = (
        evaluated("ekd_evaluation", student, teacher, labels=labels)
        for labels in (np.zeros(B, int), np.arange(B), np.full(B, -1))
    )
    assert of_negatives[0] > 0 and of_negatives[1]["ekd_positives"] == 0
    assert nothing[1]["ekd_positives"] == B * (B - 1) / 2
    assert unlabeled[0] == 0 and not np.any(unlabeled[3][1])
    for _, _, state, _ in (nothing, unlabeled):  # without negative pairs there is nothing to learn a threshold from
        assert state["updates"][...] == 0 and not np.any(state["averages"][...])


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("rkd", "distance", -1.0), ("rkd", "images", 2), ("cckd", "gamma", 0.0), ("cckd", "degree", 0),
        ("crd", "negatives", 0), ("crd", "dim", 0), ("crd", "tau", 0.0), ("crd", "momentum", 1.0),
        ("ekd_evaluation", "positive", -0.1), ("ekd_evaluation", "hardest", 0.0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, setting, value):
    with raises("entry-setting", repr(name), setting):
        registry.losses.settings(name, {setting: value})


ROWS = 24
ALL = {
    "embedding_cosine": {}, "assistant_cosine": {}, "rkd": {"images": 6}, "assistant_rkd": {"images": 6}, "pkt": {},
    "cckd": {}, "mk_mmd": {}, "crd": {"negatives": 40, "weight": 0.1}, "ekd_evaluation": {"hardest": 0.3},
}  # fmt: skip


def training_set():
    rng = np.random.default_rng(0)
    return {
        "label": np.repeat(np.arange(-1, 5), 4).astype(np.int32),
        "lr": rng.integers(256, size=(ROWS, 2, 16, 16, 3), dtype=np.uint8),
        "discriminative": np.float16(rng.normal(size=(ROWS, 2, DIM))),
        "assistant": np.float16(rng.normal(size=(ROWS, 2, DIM))),
    }


def stage():
    from gdrd_jax.models.student import make_student
    from gdrd_jax.training.stages import Stage

    student = make_student(resolution=16, width=0.0625, hidden=(), embedding_dim=DIM, rngs=nnx.Rngs(0))
    info = DataInfo(identities=5, images=ROWS, embedding_dim=DIM, feature_shape=(4, 4, 32))
    return Stage(student, ALL, info, rngs=nnx.Rngs(1))


def sampler(data):
    return registry.samplers["half_balanced"](registry.samplers.settings("half_balanced", {}), data["label"], 2)


def curve(t, devices):
    """Metrics of some steps with all losses, and their state afterwards; `t` is test_trainer."""
    data, metrics = training_set(), []
    graphdef, params, rest = t.trainer.split(stage())
    how = t.schedule(steps=6, learning_rate=0.001)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = t.trainer.make_run(graphdef, how, mesh, seed=7, loop=False)
    state = t.class_parallel.to_devices(t.trainer.begin(params, rest, how), mesh)
    for step in range(6):
        rows = sampler(data)(7, range(step, step + 1), 16)
        state, found = run(state, data, rows, np.arange(step, step + 1))
        metrics.append(jax.tree.map(np.asarray, found))
    return metrics, nnx.to_pure_dict(t.class_parallel.to_host(state[1]))["criteria"]


def resumed(t, folder):
    """Weights, states and metrics of a training without and with a stop; `t` is test_trainer."""
    data = training_set()
    fit = lambda name: t.fit(  # noqa: E731
        folder / name, data, {"sampler": sampler(data)}, stage, batch=8, steps=8, learning_rate=0.01
    )
    whole = fit("whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(t.Interrupted):
        t.stopping_at(patch, 4)
        fit("stopped")
    return whole, fit("stopped")


@pytest.mark.slow
def test_four_devices_are_as_one_and_a_resumed_training_is_as_one_without_a_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes most of the time
    script = (
        "sys.path.insert(0, 'tests/losses'); import test_distillers as d\n"
        "close = lambda a, b: t.np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)\n"
        "one, four = (d.curve(t, n) for n in (1, 4))\n"
        "jax.tree.map(close, four, one)\n"
        "whole, stopped = d.resumed(t, pathlib.Path(sys.argv[1]))\n"
        "jax.tree.map(t.np.testing.assert_array_equal, stopped, whole)\n"
        "print(one[1]['ekd_evaluation']['updates'], one[1]['crd']['seen'].any(), sorted(one[0][0]))\n"
    )
    out = finished(run_script(script, tmp_path, devices=4))[0]
    assert out.startswith("6 True") and "assistant_rkd_angle" in out

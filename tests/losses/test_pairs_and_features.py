"""Losses of pairs, triplets and feature maps, and those with networks of their own, against NumPy in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import finished, raises, run_script
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.distributed import class_parallel
from gdrd_jax.losses import DataInfo, Outputs, evolutionary, feature_maps, metric_learning, reweighting
from gdrd_jax.models.student import make_student
from gdrd_jax.models.students.gdrd import GDRDStudent

KEY = jax.random.key(3)
B, D, K = 10, 16, 20
LABELS = np.array([0, 0, 0, 5, 5, 7, 7, -1, 9, 0])
STAGES = ((8, 8, 3), (4, 4, 4), (4, 4, 6))
CHANNELS = 6  # of T_d's maps
STATISTICS = np.random.default_rng(9).normal(size=(CHANNELS, 4, 4)).astype(np.float32), np.float32([1, 2, 0.5, 3, 1, 1])
CENTERS = np.random.default_rng(8).normal(size=(K, D)).astype(np.float32)
CENTERS /= np.linalg.norm(CENTERS, axis=1, keepdims=True)
LENGTHS = np.linspace(1.1, 6, K, dtype=np.float32)  # of the sums of T_d's embeddings
LENGTHS[7] = 1  # an identity of one face
INFO = DataInfo(
    K, 100, D, CENTERS, LENGTHS, feature_shape=STAGES[-1], stage_shapes=STAGES, hr_shape=(CHANNELS, 4, 4),
    hr_statistics=lambda: STATISTICS, hr_small_shape=(16, 16, 3),
)  # fmt: skip
SETTINGS = {"ekd_evolutionary": {"width": 0.0625}}
# Those with networks of their own, and the others.
DRAWN = ("feature_similarity", "wavelet", "bridge", "ekd_evolutionary")
NAMES = (
    *DRAWN, "triplet", "octuplet", "contrastive_pairs", "center_distance", "hint", "attention", "reweighted_attention",
    "reweighted_adaface",
)  # fmt: skip
OF_TEACHER = ("teacher", "second_teacher", "hr_features", "second_hr_features")
OF_STUDENT = ("embedding", "second_embedding", "logits", "stages", "second_features")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def arrays(seed=0):
    """Everything that the losses read; the second images of rows 5 and 6 are the first."""
    rng = np.random.default_rng(seed)
    drawn = lambda *shape: np.float32(rng.normal(size=(B, *shape)))  # noqa: E731
    found = {
        "embedding": 3 * drawn(D), "second_embedding": 3 * drawn(D), "teacher": unit(drawn(D)), "logits": drawn(K),
        "stages": tuple(drawn(*shape) for shape in STAGES), "second_features": drawn(*STAGES[-1]),
        "hr_features": drawn(CHANNELS, 4, 4), "second_hr_features": drawn(CHANNELS, 4, 4),
        "hr_small": rng.integers(256, size=(B, 16, 16, 3), dtype=np.uint8), "label": LABELS,
        "second_label": LABELS.copy(), "has_second": LABELS >= 0, "balanced": np.ones(B, bool),
    }  # fmt: skip
    found["second_teacher"] = unit(found["teacher"] + 0.2 * drawn(D))
    found["has_second"][5:7] = False
    for name in ("embedding", "teacher", "hr_features"):
        found[f"second_{name}"][5:7] = found[name][5:7]
    found["second_features"][5:7] = found["stages"][-1][5:7]
    return found


class TinyBackbone(nnx.Module):
    """Three linear layers, each on means of 2x2 positions of the one before."""

    def __init__(self, rngs):
        self.layers = nnx.List(nnx.Linear(*size, rngs=rngs) for size in ((3, 8), (8, 16), (16, 32)))

    def stages(self, images):
        x, found = images / 127.5 - 1, []
        for layer in self.layers:
            x = x.reshape(B, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean(axis=(2, 4))
            x = x @ layer.kernel[...] + layer.bias[...]
            found.append(x)
        return tuple(found)


class TinyNetwork(nnx.Module):
    """In the place of GDRD's, which takes seconds to compile."""

    Config = GDRDStudent.Config

    def __init__(self, config, shape, *, rngs):
        self.backbone, self.linear = TinyBackbone(rngs), nnx.Linear(32, shape.embedding_dim, rngs=rngs)

    def head(self, features):
        return self.linear(features.mean(axis=(1, 2)))


def called(loss, given):
    second = Outputs(given["second_features"], given["second_embedding"], teacher=given["second_teacher"])
    outputs = Outputs(
        given["stages"][-1], given["embedding"], given["logits"], given["teacher"], given["stages"], second
    )
    return loss(outputs, given, KEY)


def made(name, info=INFO, **settings):
    settings = registry.losses.settings(name, {**SETTINGS.get(name, {}), **settings})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolutionary, "GDRDStudent", TinyNetwork)
        return registry.losses[name](settings, info, rngs=nnx.Rngs(1))


def drawn(name, **settings):
    """With weights from NumPy: JAX would compile a function for each of their shapes."""
    loss, rng = nnx.eval_shape(lambda: made(name, **settings)), np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.normal(scale=len(leaf) ** -0.5, size=leaf.shape), jnp.float32)  # noqa: E731
    nnx.update(loss, jax.tree.map(draw, nnx.state(loss)))
    if hasattr(loss, "teacher_maps"):
        loss.teacher_maps = feature_maps.teacher_maps(INFO)
    return loss


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def without(part, loss):
    setattr(loss, part, Identity())
    return loss


@functools.cache
def all_losses():
    """The losses with their default settings by name, and those of limiting cases."""
    found = {name: drawn(name) if name in DRAWN else made(name) for name in NAMES}
    found |= {"same hint": made("hint"), "same attention": found["attention"]}
    found |= {"adaface": made("adaface"), "constant weights": made("reweighted_adaface", temperature=1e9)}
    found["hint"].regressor = nnx.data(found["feature_similarity"].projection.layers[0])
    return found | {
        "same feature_similarity": without("projection", drawn("feature_similarity")),
        "same wavelet": without("projection", drawn("wavelet")),
        "unadapted bridge": without("adaptor", drawn("bridge", regression=0.0)),
        "untaught student": drawn("ekd_evolutionary", distillation=0.0, guidance=0.0),
    }


@functools.cache
def compiled():
    """All losses and their gradients in one function, which is compiled once."""
    parts = {name: nnx.split(loss, nnx.Param, ...) for name, loss in all_losses().items()}

    def one(name, floats, others):
        graphdef, params, rest = parts[name]

        def value(params, floats):
            return called(nnx.merge(graphdef, params, rest, copy=True), {**floats, **others})

        if name == "untaught student":
            return (), jax.grad(value, argnums=1, has_aux=True)(params, floats)[:1]
        if name not in NAMES:
            return value(params, floats), ()
        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, floats)

    def everything(floats, others):
        return {name: one(name, floats, others) for name in parts}

    return jax.jit(everything)


def evaluate(given):
    """By loss: value, figures, gradients of the parameters, and of the arrays."""
    floats = {name: given[name] for name in (*OF_TEACHER, *OF_STUDENT)}
    others = {name: given[name] for name in given.keys() - floats.keys()}
    found = jax.device_get(compiled()(floats, others))
    return {name: (*values, *gradients) for name, (values, gradients) in found.items()}


@functools.cache
def evaluated(seed=0):
    return evaluate(arrays(seed))


def mean(values):
    return sum(values) / max(len(values), 1)


def semi_hard_triplets(x, label, margin):
    """`[(d_ap, d_an, whether the negative is semi-hard)]`; `margin` as of the loss."""
    d = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
    drawn = np.asarray(jax.random.uniform(KEY, (len(x), len(x))))
    found, missing = [], 0
    for a, p in np.ndindex(len(x), len(x)):
        if a == p or label[a] < 0 or label[a] != label[p]:
            continue
        negatives = [n for n in range(len(x)) if label[n] >= 0 and label[n] != label[a] and d[a, n] >= d[a, p]]
        semi_hard = [n for n in negatives if d[a, p] < d[a, n] < d[a, p] + margin]
        if semi_hard:
            found.append((d[a, p], d[a, max(semi_hard, key=lambda n: drawn[a, n])], True))
        elif negatives:
            found.append((d[a, p], min(d[a, n] for n in negatives), False))
        else:
            missing += 1
    return found, missing


def triplet(given, loss):
    found, missing = semi_hard_triplets(unit(np.float64(given["embedding"])), given["label"], 0.2)
    semi_hard = sum(hard for *_, hard in found) / (len(found) + missing)
    figures = {"semi_hard": semi_hard, "negative_distance": mean([far for _, far, _ in found])}
    return mean([max(near - far + 0.2, 0) for near, far, _ in found]), figures


def octuplet(given, loss):
    student, teacher, label = unit(np.float64(given["embedding"])), np.float64(given["teacher"]), given["label"]
    total, active = 0.0, []
    for u, v in ((student, student), (student, teacher), (teacher, student)):
        terms = []
        for i in range(B):
            near = [np.linalg.norm(u[i] - v[p]) for p in range(B) if p != i and label[p] == label[i] >= 0]
            far = [np.linalg.norm(u[i] - v[n]) for n in range(B) if label[i] >= 0 and 0 <= label[n] != label[i]]
            if near and far:
                terms.append(max(max(near) - min(far) + 0.5, 0))
        total += mean(terms)
        active += [term > 0 for term in terms]
    return total, {"active_triplets": mean(active)}


def contrastive_pairs(given, loss):
    first, second = (unit(np.float64(given[name])) for name in ("embedding", "second_embedding"))
    positives = [np.sum((first[i] - second[i]) ** 2) for i in range(B) if given["has_second"][i]]
    pairs = [(i, (i - 1) % B) for i in range(B)]
    known = [(i, j) for i, j in pairs if LABELS[i] >= 0 and LABELS[j] >= 0 and LABELS[i] != LABELS[j]]
    gaps = [max(1 - np.linalg.norm(first[i] - second[j]), 0) for i, j in known]
    return mean(positives + [gap**2 for gap in gaps]), {"active_negatives": mean([gap > 0 for gap in gaps])}


def projected(features, loss):
    """A 1x1 convolution and batch normalization of a batch."""
    kernel = np.float64(loss.projection.layers[0].kernel[...])[0, 0]
    return normalized(np.float64(features) @ kernel, loss.projection.layers[1])


def normalized(x, norm):
    """Batch normalization in training."""
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axis=axes)) / np.sqrt(x.var(axis=axes) + 1e-5)
    return x * np.float64(norm.scale[...]) + np.float64(norm.bias[...])


def cosine(a, b):
    a, b = np.ravel(a), np.ravel(b)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def standardized(maps):
    return (np.float64(maps) - STATISTICS[0]).transpose(0, 2, 3, 1) / STATISTICS[1]


def hint(given, loss):
    kernel = np.float64(loss.regressor.kernel[...])[0, 0]
    wanted = standardized(given["hr_features"])
    value = np.mean((given["stages"][-1] @ kernel - wanted) ** 2)
    return value, {"hint_r2": 1 - value / np.mean(wanted**2)}


def feature_similarity(given, loss):
    low = projected(np.concatenate([given["stages"][-1], given["second_features"]]), loss)
    high = standardized(np.concatenate([given["hr_features"], given["second_hr_features"]]))
    relations, alike = [], [a @ b for a, b in zip(given["teacher"], given["second_teacher"])]
    for i in range(B):
        if not (given["has_second"][i] and 0 < alike[i] < 0.99):
            continue

        def affinity(u, v, i=i):
            u, v = u[i].reshape(16, -1), v[i + B].reshape(16, -1)
            return np.array([[a @ b for b in v] for a in u]) / (np.linalg.norm(u) * np.linalg.norm(v))

        d = [1 - cosine(affinity(high, high), affinity(*pair)) for pair in ((high, low), (low, high), (low, low))]
        relations.append((d[0] + d[1]) / 2 + d[2])
    distance = mean([1 - cosine(a, b) for a, b in zip(low, high)])
    return 20 * distance + 4 * mean(relations), {"related_pairs": len(relations) / B}


def attention(given, loss):
    maps = given["stages"][-1], standardized(given["hr_features"])
    found, wanted = ((np.float64(x) ** 2).mean(axis=-1) for x in maps)
    others = mean([cosine(found[i], wanted[i - 1]) for i in range(B)])
    return mean([1 - cosine(a, b) for a, b in zip(found, wanted)]), {"attention_of_others": others}


def wavelet(given, loss):
    def low(x):
        return np.array(
            [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum(axis=(0, 1)) / 2 for j in (0, 1)] for i in (0, 1)]
        )

    student = [low(x) for x in projected(given["stages"][-1], loss)]
    teacher = [low(x) for x in standardized(given["hr_features"])]
    others = mean([cosine(student[i], teacher[i - 1]) for i in range(B)])
    return mean([1 - cosine(a, b) for a, b in zip(student, teacher)]), {"wavelet_of_others": others}


def linear(layer, x):
    return x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def entropy(logits, label):
    return mean([-row[y] for row, y in zip(log_softmax(logits), label) if y >= 0])


def accuracy(logits, label):
    return mean([int(np.argmax(row) == y) for row, y in zip(logits, label) if y >= 0])


def bridge(given, loss):
    student, teacher, label = np.float64(given["embedding"]), np.float64(given["teacher"]), given["label"]
    first, norm, _, last = loss.adaptor.layers
    adapted = linear(last, np.maximum(normalized(linear(first, teacher), norm), 0))
    logits = linear(loss.classifier, adapted)
    regression = mean([np.sum((a - b) ** 2) for a, b in zip(linear(loss.regressor, adapted), teacher)])
    distance = mean([np.sum((a - b) ** 2) for a, b in zip(unit(student), unit(adapted))])
    value = entropy(logits, label) + 0.1 * regression + entropy(linear(loss.classifier, student), label) + distance
    return value, {"adapted_accuracy": accuracy(logits, label), "adapted_distance": distance}


def ekd_evolutionary(given, loss):
    x, stages, label = given["hr_small"] / 127.5 - 1, [], given["label"]
    for layer in loss.network.backbone.layers:
        x = linear(layer, (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4)
        stages.append(x)
    logits = linear(loss.classifier, linear(loss.network.linear, x.mean(axis=(1, 2))))

    def guides(modules, stages):
        pooled = [np.float64(x).mean(axis=(1, 2)) for x in stages]
        return [linear(module.second, np.maximum(linear(module.first, x), 0)) for module, x in zip(modules, pooled)]

    own, taught = guides(loss.teacher_modules, stages), guides(loss.student_modules, given["stages"])
    teacher, student = log_softmax(logits / 4), log_softmax(np.float64(given["logits"]) / 4)
    divergence = 16 * mean([np.sum(np.exp(p) * (p - q)) for p, q in zip(teacher, student)])
    guided = mean([mean([np.sum((a - b) ** 2) for a, b in zip(unit(s), unit(t))]) for s, t in zip(taught, own)])
    online = entropy(logits, label) + mean([entropy(linear(loss.classifier, guide), label) for guide in own])
    return online + divergence + guided, {"online_accuracy": accuracy(logits, label), "guided_distance": guided}


def center_distance(given, loss):
    known = [i for i in range(B) if given["label"][i] >= 0]
    student = unit(np.float64(given["embedding"]))
    return mean([np.sum((student[i] - CENTERS[given["label"][i]]) ** 2) for i in known]), {"anchored": len(known) / B}


def weights(given):
    """By T_d's cosine with the mean of the identity's other faces; of the batch's mean where there are none."""
    sums, cosines = CENTERS * LENGTHS[:, None], np.full(B, np.nan)
    for i, (t, y) in enumerate(zip(np.float64(given["teacher"]), given["label"])):
        if y >= 0 and LENGTHS[y] > 1:
            cosines[i] = cosine(t, sums[y] - t)
    cosines = np.where(np.isnan(cosines), np.nan_to_num(np.nanmean(cosines)), cosines)
    shares = [np.exp(c / 0.5) / sum(np.exp(np.array(cosines) / 0.5)) for c in cosines]
    return np.array([min(max(B * share, 0.2), 5) for share in shares])


def reweighted_attention(given, loss):
    maps = given["stages"][-1], standardized(given["hr_features"])
    found, wanted = ((np.float64(x) ** 2).mean(axis=-1) for x in maps)
    _, figures = attention(given, loss)
    value = mean([w * (1 - cosine(a, b)) for w, a, b in zip(weights(given), found, wanted)])
    return value, {**figures, "weight_deviation": np.std(weights(given))}


def reweighted_adaface(given, loss):
    """The figures are those of `adaface`, whose tests have them."""
    label, norms = given["label"], np.linalg.norm(np.float64(given["embedding"]), axis=1)
    known = norms[label >= 0]
    average, deviation = 20 + 0.01 * (known.mean() - 20), 100 + 0.01 * (known.std(ddof=1) - 100)
    classes, terms = unit(np.float64(loss.classes[...])), []
    for x, y, norm, weight in zip(unit(np.float64(given["embedding"])), label, norms, weights(given)):
        if y >= 0:
            logits, scaler = (
                np.clip(classes @ x, -0.999, 0.999),
                np.clip(0.333 * (norm - average) / (deviation + 1e-3), -1, 1),
            )
            logits[y] = np.cos(np.arccos(logits[y]) - 0.4 * scaler) - (0.4 + 0.4 * scaler)
            terms.append(-weight * log_softmax(64 * logits[None])[0, y])
    return mean(terms), {"weight_deviation": np.std(weights(given))}


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_their_formulas(name):
    for seed in range(3):
        value, figures, *_ = evaluated(seed)[name]
        expected, expected_figures = globals()[name](arrays(seed), all_losses()[name])
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        figures = figures if name != "reweighted_adaface" else {key: figures[key] for key in expected_figures}
        assert figures == pytest.approx(expected_figures, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_student_and_no_teacher(name):
    given, (_, _, of_params, of_arrays) = arrays(), evaluated()[name]
    for teacher in OF_TEACHER:
        assert not np.any(of_arrays[teacher])
    assert all(np.any(x) for x in jax.tree.leaves(of_params))
    if name == "reweighted_adaface":  # whose margins follow the embeddings without gradient
        return
    # Along the gradient the loss rises as the gradient says.
    own = {key: of_arrays[key] for key in OF_STUDENT}
    slope = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(own)))
    values = []
    for step in (1e-2, -1e-2):
        moved = jax.tree.map(lambda x, g, step=step: np.float32(x + step * g / slope), {k: given[k] for k in own}, own)
        values.append(evaluate({**given, **moved})[name][0])
    assert slope > 0 and (values[0] - values[1]) / 2e-2 == pytest.approx(slope, rel=2e-2)


def is_zero(tree):
    return not any(np.any(x) for x in jax.tree.leaves(tree))


def at_points(points, **changes):
    """Arrays whose embeddings are rows of the identity matrix with these numbers."""
    points = np.eye(D, dtype=np.float32)[points]
    return {**arrays(), **{name: points for name in ("embedding", "second_embedding", "teacher")}, **changes}


@pytest.mark.parametrize("name, collapsed", [("triplet", 0.2), ("octuplet", 1.5)])
def test_triplets_that_are_apart_have_no_loss_and_those_of_a_collapse_the_margin(name, collapsed):
    value, figures, _, of_arrays = evaluate(at_points(LABELS))[name]
    assert value == 0 and is_zero(of_arrays)
    assert figures.get("semi_hard", 0) == figures.get("active_triplets", 0) == 0
    value, figures, *_ = evaluate(at_points(np.zeros(B, int)))[name]
    assert value == pytest.approx(collapsed, abs=1e-6) and figures.get("negative_distance", 0) == 0


def test_a_semi_hard_negative_is_each_of_several_equally_often():
    # Two faces of an identity at one point, and four others, of which two are semi-hard.
    label, angles = np.array([0, 0, 1, 2, 3, 4]), np.array([0, 0, 0.2, 0.3, 1.5, 3.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    @jax.jit
    def draw(keys):
        distance, masks = metric_learning.squared_distances(x, x), metric_learning.identity_masks(label)
        return jax.vmap(lambda key: metric_learning.semi_hard_negatives(distance, *masks, key, 0.2)[0][0, 1])(keys)

    counts = np.bincount(draw(jax.random.split(KEY, 300)), minlength=6)
    assert counts.sum() == counts[2] + counts[3] and min(counts[2], counts[3]) > 110


def test_equal_pairs_have_no_loss_and_negatives_that_are_apart_none_either():
    value, figures, _, of_arrays = evaluate(at_points(np.arange(B)))["contrastive_pairs"]
    assert value == 0 and is_zero(of_arrays) and figures["active_negatives"] == 0
    # A second view of an unlabeled face is a positive pair, too.
    alone = at_points(np.arange(B), label=np.full(B, -1), second_label=np.full(B, -1), has_second=np.arange(B) == 7)
    alone["second_embedding"] = -alone["embedding"]
    assert evaluate(alone)["contrastive_pairs"][0] == pytest.approx(4)


def test_maps_are_compared_by_the_direction_in_which_they_differ_from_the_mean_map():
    """A T_d whose deviations are 7 times larger is the same, and a student with T_d's own maps, standardized, has
    nothing to learn."""
    given, keys = arrays(), ("hr_features", "second_hr_features")
    scaled = evaluate({**given, **{key: STATISTICS[0] + 7 * (given[key] - STATISTICS[0]) for key in keys}})
    first, second = (standardized(given[key]).astype(np.float32) for key in keys)
    same = evaluate({**given, "stages": (*given["stages"][:2], first), "second_features": second})
    for name in ("feature_similarity", "attention", "wavelet"):
        assert scaled[name][0] == pytest.approx(evaluated()[name][0], rel=1e-5)
        assert same[f"same {name}"][0] == pytest.approx(0, abs=1e-5)


def test_maps_of_other_sizes_are_brought_to_that_of_the_teacher():
    coarse = np.float32(np.random.default_rng(0).uniform(1, 2, (B, 4, 4, 3)))
    fine, wanted = coarse.repeat(2, axis=1).repeat(2, axis=2), np.mean(coarse**2, axis=-1)
    found, six = jax.jit(lambda *maps: [feature_maps.attention(x, (4, 4)) for x in maps])(fine, fine[:, :6, :6])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert six.shape == wanted.shape and np.isfinite(six).all()


def test_a_hint_that_explains_everything_is_worth_nothing():
    given = arrays()
    explained = np.float32(standardized(given["hr_features"]))
    value, figures, *_ = evaluate({**given, "stages": (*given["stages"][:2], explained)})["same hint"]
    assert value == pytest.approx(0, abs=1e-10) and figures["hint_r2"] == pytest.approx(1)


def test_confidence_is_the_cosine_with_the_other_faces():
    """Not with all, of which a face itself is the larger part the fewer there are."""
    faces = unit(np.random.default_rng(0).normal(size=(5, D)) + 0.5)
    whole = faces.sum(axis=0)
    found = reweighting.cosine_with_others(faces, np.tile(whole, (5, 1)))
    wanted = [cosine(face, np.delete(faces, i, axis=0).sum(axis=0)) for i, face in enumerate(faces)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert reweighting.cosine_with_others(faces[:1], faces[:1]) == 0  # no others


def test_constant_weights_leave_adaface_as_it_is():
    assert evaluated()["constant weights"][0] == pytest.approx(evaluated()["adaface"][0], rel=1e-6)


def test_weights_favor_easy_or_hard_faces_and_their_mean_is_one_unless_clipped():
    cosine = np.float32([-0.2, 0, 0.1, 0.5])
    easy, hard = (np.asarray(reweighting.confidence_weights(cosine, 0.5, favor)) for favor in ("easy", "hard"))
    assert list(np.argsort(easy)) == [0, 1, 2, 3] == list(np.argsort(-hard))
    assert np.mean(easy) == pytest.approx(1) == np.mean(hard)
    np.testing.assert_allclose(reweighting.confidence_weights(np.eye(1, 8)[0], 0.1, "easy"), [5] + [0.2] * 7)


def test_a_bridge_with_nothing_to_adapt_is_the_distance_to_the_teacher():
    given, (value, figures, *_) = arrays(), evaluated()["unadapted bridge"]
    expected = mean([np.sum((a - b) ** 2) for a, b in zip(unit(given["embedding"]), given["teacher"])])
    assert figures["adapted_distance"] == pytest.approx(expected, rel=1e-5)
    classifier = all_losses()["unadapted bridge"].classifier
    entropies = [entropy(linear(classifier, given[name]), LABELS) for name in ("teacher", "embedding")]
    assert value == pytest.approx(sum(entropies) + expected, rel=1e-5)


@pytest.mark.parametrize("name", ["bridge", "ekd_evolutionary"])
def test_the_students_part_of_the_loss_changes_nothing_in_the_teachers_part(name):
    given, other = arrays(), arrays(1)
    moved = evaluate({**given, **{key: other[key] for key in ("embedding", "logits", "stages")}})
    before, after = (dict(nnx.to_flat_state(found[name][2])) for found in (evaluated(), moved))
    for path in before:
        assert np.array_equal(before[path], after[path]) != ("student_modules" in path), path


def test_the_online_teachers_part_of_the_loss_gives_the_student_no_gradient():
    (of_arrays,) = evaluated()["untaught student"]
    assert of_arrays.keys() == {*OF_TEACHER, *OF_STUDENT} and is_zero(of_arrays)


@pytest.mark.parametrize("stages, teacher, student", [(2, [16, 32], [4, 6]), (4, [8, 16, 32], [3, 4, 6])])
def test_stages_are_guided_from_the_last_one(stages, teacher, student):
    info = dataclasses.replace(INFO, stage_shapes=((16, 16, 3), *STAGES)[-stages:])
    loss = nnx.eval_shape(lambda: made("ekd_evolutionary", info))
    assert [module.first.kernel.shape[0] for module in loss.teacher_modules] == teacher
    assert [module.first.kernel.shape[0] for module in loss.student_modules] == student


def hard_cases():
    """Arrays at which formulas as they are written divide by 0, take its root, or have nothing to count."""
    given = arrays()
    zero = np.zeros_like(given["embedding"])
    yield {**given, "embedding": zero, "second_embedding": zero}
    yield {**given, "embedding": given["teacher"], "second_embedding": given["teacher"]}
    yield at_points(np.arange(B) // 2)  # cosines of 1, between faces of one identity and of two
    yield at_points(np.zeros(B, int), teacher=-np.eye(D, dtype=np.float32)[np.zeros(B, int)])
    for label, second in ((0, True), (-1, False)):
        labels = np.full(B, label)
        yield {**given, "label": labels, "second_label": labels, "has_second": np.full(B, second)}
    nothing = {name: jax.tree.map(np.zeros_like, given[name]) for name in ("stages", "second_features")}
    yield {**given, **nothing, "hr_features": np.tile(STATISTICS[0], (B, 1, 1, 1))}  # which standardized are 0


@pytest.mark.parametrize("case", range(7))
def test_values_and_gradients_are_finite_in_hard_cases(case):
    found = evaluate(list(hard_cases())[case])
    assert not [name for name in NAMES if not all(np.isfinite(x).all() for x in jax.tree.leaves(found[name]))]


def test_a_student_that_computes_in_bfloat16_has_losses_in_float32():
    given = {**arrays(), "hr_features": arrays()["hr_features"].astype(np.float16)}
    given |= {key: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), given[key]) for key in OF_STUDENT}
    found = jax.eval_shape(lambda: {name: called(nnx.clone(all_losses()[name]), given)[0] for name in NAMES})
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(NAMES, jnp.float32)


@pytest.mark.parametrize(
    "name, setting",
    [
        ("triplet", {"margin": 0.0}), ("octuplet", {"margin": -1.0}), ("contrastive_pairs", {"margin": 0.0}),
        ("feature_similarity", {"relation": -1.0}), ("bridge", {"distance": -1.0}),
        ("ekd_evolutionary", {"temperature": 0.0}), ("ekd_evolutionary", {"guidance": -1.0}),
        ("ekd_evolutionary", {"dtype": "int8"}), ("reweighted_adaface", {"favor": "none"}),
        ("reweighted_attention", {"temperature": 0.0}),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, setting):
    with raises("entry-setting", repr(name), *setting):
        registry.losses.settings(name, setting)


def curves(devices):
    """Figures of three steps of a stage with all losses, and its weights."""
    from gdrd_jax.training import trainer
    from gdrd_jax.training.stages import Stage

    rng = np.random.default_rng(0)
    data = {
        "label": np.repeat(np.arange(-1, 5), 4).astype(np.int32),
        "lr": rng.integers(256, size=(24, 2, 16, 16, 3), dtype=np.uint8),
        "hr_small": rng.integers(256, size=(24, 2, 32, 32, 3), dtype=np.uint8),
        "discriminative": np.float16(rng.normal(size=(24, 2, D)) + 0.5),
        "hr_features": np.float16(rng.normal(size=(24, 2, CHANNELS, 4, 4))),
    }
    shapes = ((16, 16, 8), (8, 8, 16), (4, 4, 32))
    info = dataclasses.replace(INFO, feature_shape=shapes[-1], stage_shapes=shapes, hr_small_shape=(32, 32, 3))
    student = make_student(resolution=16, width=0.0625, hidden=(), embedding_dim=D, rngs=nnx.Rngs(0))
    stage = Stage(student, {name: SETTINGS.get(name, {}) for name in NAMES}, info, rngs=nnx.Rngs(1))
    graphdef, params, rest = trainer.split(stage)
    how = trainer.Schedule(
        steps=3, batch=16, learning_rate=0.001, warmup=0.0, decay_at=(), momentum=0.9, weight_decay=0.0, clip_norm=1.0
    )
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run, pairs = trainer.make_run(graphdef, how, mesh, seed=7, loop=False), registry.samplers["pairs"]
    state, found = class_parallel.to_devices(trainer.begin(params, rest, how), mesh), []
    for step in range(3):
        rows = pairs(pairs.Config(), data["label"], 2)(7, range(step, step + 1), 16)
        rows["balanced"] = np.ones((1, 16), bool)
        state, metrics = run(state, data, rows, np.arange(step, step + 1))
        found.append({name: float(value[0]) for name, value in metrics.items()})
    return found, [nnx.to_pure_dict(part) for part in class_parallel.to_host(state[:2])]


@pytest.mark.slow
def test_four_devices_have_the_same_losses_as_one():
    script = (
        "sys.path.insert(0, 'tests/losses')\n"
        "import test_pairs_and_features as f\n"
        "(one, weights), (four, others) = (f.curves(n) for n in (1, 4))\n"
        "assert {*f.NAMES, 'semi_hard', 'related_pairs'} <= one[0].keys()\n"
        "for expected, found in zip(one, four):\n"
        "    assert found == f.pytest.approx(expected, rel=1e-4, abs=1e-5)\n"
        "f.jax.tree.map(lambda a, b: t.np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), weights, others)\n"
    )
    finished(run_script(script, devices=4))

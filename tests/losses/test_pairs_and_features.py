"""Losses of pairs, triplets and feature maps, and those with networks of their own, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.losses import DataInfo, Outputs, evolutionary, feature_maps
from gdrd_jax.models.students.gdrd import GDRDStudent

KEY = jax.random.key(3)
B, D, K = 10, 16, 20
LABELS = np.array([0, 0, 0, 5, 5, 7, 7, -1, 9, 0])
STAGES = ((8, 8, 3), (4, 4, 4), (4, 4, 6))
CHANNELS = 5  # of T_d's maps
STATISTICS = np.random.default_rng(9).normal(size=(CHANNELS, 4, 4)).astype(np.float32), np.float32([1, 2, 0.5, 3, 1])
CENTERS = np.random.default_rng(8).normal(size=(K, D)).astype(np.float32)
CENTERS /= np.linalg.norm(CENTERS, axis=1, keepdims=True)
INFO = DataInfo(
    K, 100, D, CENTERS, feature_shape=STAGES[-1], stage_shapes=STAGES, hr_shape=(CHANNELS, 4, 4),
    hr_statistics=lambda: STATISTICS, hr_small_shape=(16, 16, 3),
)  # fmt: skip
SETTINGS = {"ekd_evolutionary": {"width": 0.0625}}
NAMES = (
    "triplet", "octuplet", "contrastive_pairs", "hint", "feature_similarity", "attention", "wavelet", "bridge",
    "ekd_evolutionary",
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
        x, found = images.astype(jnp.float32) / 127.5 - 1, []
        for layer in self.layers:
            x = layer(2 * feature_maps.haar_low(x))
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
    settings = {**SETTINGS.get(name, {}), **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolutionary, "GDRDStudent", TinyNetwork)
        return registry.losses[name](registry.losses.settings(name, settings), info, rngs=nnx.Rngs(1))


def differentiated(loss):
    """`(arrays, parameters) -> value, figures, gradients of the parameters and of the arrays`, compiled."""
    graphdef, params, rest = nnx.split(loss, nnx.Param, ...)

    def value(params, floats, others):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        return called(merged, {**floats, **others})

    compiled = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))

    def evaluate(given):
        floats = {name: given[name] for name in (*OF_TEACHER, *OF_STUDENT)}
        others = {name: given[name] for name in given.keys() - floats.keys()}
        (found, figures), (of_params, of_arrays) = compiled(params, floats, others)
        return float(found), {key: float(x) for key, x in figures.items()}, of_params, of_arrays

    return evaluate


@functools.cache
def default(name):
    loss = made(name)
    return loss, differentiated(loss)


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
    x = np.float64(features) @ kernel
    return (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)


def cosine(a, b):
    a, b = np.ravel(a), np.ravel(b)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def channels_last(maps):
    return np.float64(maps).transpose(0, 2, 3, 1)


def hint(given, loss):
    kernel, bias = (np.float64(x[...]) for x in (loss.regressor.kernel, loss.regressor.bias))
    wanted = (channels_last(given["hr_features"]) - STATISTICS[0].transpose(1, 2, 0)) / STATISTICS[1]
    value = np.mean((given["stages"][-1] @ kernel[0, 0] + bias - wanted) ** 2)
    return value, {"hint_r2": 1 - value / np.mean(wanted**2)}


def feature_similarity(given, loss):
    low = projected(np.concatenate([given["stages"][-1], given["second_features"]]), loss)
    high = channels_last(np.concatenate([given["hr_features"], given["second_hr_features"]]))
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
    maps = given["stages"][-1], channels_last(given["hr_features"])
    found, wanted = ((np.float64(x) ** 2).mean(axis=-1) for x in maps)
    others = mean([cosine(found[i], wanted[i - 1]) for i in range(B)])
    return mean([1 - cosine(a, b) for a, b in zip(found, wanted)]), {"attention_of_others": others}


def wavelet(given, loss):
    def low(x):
        return np.array(
            [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum(axis=(0, 1)) / 2 for j in (0, 1)] for i in (0, 1)]
        )

    student = [low(x) for x in projected(given["stages"][-1], loss)]
    teacher = [low(x) for x in channels_last(given["hr_features"])]
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
    first, _, _, last = loss.adaptor.layers
    x = linear(first, teacher)
    adapted = linear(last, np.maximum((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5), 0))
    logits = linear(loss.classifier, adapted)
    regression = mean([np.sum((a - b) ** 2) for a, b in zip(linear(loss.regressor, adapted), teacher)])
    distance = mean([np.sum((a - b) ** 2) for a, b in zip(student, adapted)])
    value = entropy(logits, label) + 0.1 * regression + entropy(linear(loss.classifier, student), label) + distance
    return value, {"adapted_accuracy": accuracy(logits, label), "adapted_distance": distance}


def ekd_evolutionary(given, loss):
    stages, label = loss.network.backbone.stages(given["hr_small"]), given["label"]
    logits = linear(loss.classifier, np.float64(loss.network.head(stages[-1])))

    def guides(modules, stages):
        pooled = [np.float64(x).mean(axis=(1, 2)) for x in stages]
        return [linear(module.second, np.maximum(linear(module.first, x), 0)) for module, x in zip(modules, pooled)]

    own, taught = guides(loss.teacher_modules, stages), guides(loss.student_modules, given["stages"])
    teacher, student = log_softmax(logits / 4), log_softmax(np.float64(given["logits"]) / 4)
    divergence = 16 * mean([np.sum(np.exp(p) * (p - q)) for p, q in zip(teacher, student)])
    guided = mean([mean([np.sum((a - b) ** 2) for a, b in zip(unit(s), unit(t))]) for s, t in zip(taught, own)])
    online = entropy(logits, label) + mean([entropy(linear(loss.classifier, guide), label) for guide in own])
    return online + divergence + guided, {"online_accuracy": accuracy(logits, label), "guided_distance": guided}


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_their_formulas(name):
    loss, evaluate = default(name)
    for seed in range(3):
        given = arrays(seed)
        value, figures, *_ = evaluate(given)
        expected, expected_figures = globals()[name](given, loss)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert figures == pytest.approx(expected_figures, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_student_and_no_teacher(name):
    _, evaluate = default(name)
    given = arrays()
    value, _, of_params, of_arrays = evaluate(given)
    for teacher in OF_TEACHER:
        assert not np.any(of_arrays[teacher])
    assert all(np.any(x) for x in jax.tree.leaves(of_params))
    # Along the gradient the loss rises as the gradient says.
    own = {key: of_arrays[key] for key in OF_STUDENT}
    slope = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(own)))
    values = []
    for step in (1e-2, -1e-2):
        moved = jax.tree.map(lambda x, g, step=step: np.float32(x + step * g / slope), {k: given[k] for k in own}, own)
        values.append(evaluate({**given, **moved})[0])
    assert slope > 0 and (values[0] - values[1]) / 2e-2 == pytest.approx(slope, rel=2e-2)

"""Losses with a margin in NumPy: loops in float64, which share nothing with the package but default settings.

`x` are the arrays of a case, see `random_case`; `x0` are the same where they have no gradient.
"""

import numpy as np

from gdrd_jax import registry

B, D, K = 8, 16, 20
LABELS = np.array([0, 3, 3, 7, -1, 12, 19, 7])
LEARNED = ("cosface", "arcface", "magface", "adaface", "rpcl")  # losses whose classes have gradients


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_case(seed):
    """Embeddings of lengths 4 to 130 between their class and another."""
    rng = np.random.default_rng(seed)
    classes, noise = rng.normal(size=(K, D)), rng.normal(size=(3, B, D))
    own, other = unit(classes)[LABELS], unit(classes)[rng.integers(K - 1, size=B)]
    towards = rng.uniform(-0.2, 1.2, size=(2, B, 1))
    lengths = np.geomspace(4, 130, B)[rng.permutation(B), None]
    embedding = unit(towards[0] * own + towards[1] * other + 0.1 * noise[0]) * lengths
    predictor = {
        "first": rng.normal(size=(D, D)), "second": rng.normal(size=(D, D)), "bias": rng.normal(size=D),
        "norm_scale": rng.uniform(0.5, 2, size=D), "norm_bias": rng.normal(size=D),
    }  # fmt: skip
    return {
        "embedding": embedding, "classes": classes, "teacher": unit(own + 0.15 * noise[1]), "label": LABELS,
        "second": embedding + 5 * noise[2], "has_second": np.arange(B) != 2, "predictor": predictor,
    }  # fmt: skip


def clip(x, low, high):
    return min(max(x, low), high)


def reference(loss, settings, x, x0, share=1):
    """The value of a loss, with a share of the margin of the own class."""
    config = registry.losses.settings(loss, settings)
    classes = x["classes"] if loss in LEARNED else x0["classes"]
    if loss == "ada_distill":
        classes = moved_centers(x0)[0]
    terms = []
    for i, (s, y) in enumerate(zip(x["embedding"], x["label"])):
        if y < 0:
            continue
        cosines, penalty = np.array([unit(s) @ unit(w) for w in classes]), 0.0
        if loss == "adaface":
            cosines = np.clip(cosines, -1 + 1e-3, 1 - 1e-3)
        logits, base = list(cosines), config.base if loss == "rpcl" else loss[:3]
        if loss == "rpcl":
            rival = sorted((k for k in range(K) if k != y), key=lambda k: -cosines[k])[0]
            if cosines[rival] > config.threshold:
                logits[rival] = raised(cosines[rival], base, config)
        if base == "cos":
            logits[y] -= share * config.margin
        elif base == "mag":
            margin, penalty = magnitude(s, config)
            logits[y] = arc(cosines[y], share * margin, config.easy_margin)
        elif loss == "adaface":
            q, m = scalers(x0, config)[0][i], share * config.margin
            logits[y] = np.cos(clip(np.arccos(cosines[y]) - m * q, 1e-3, np.pi - 1e-3)) - (m + m * q)
        elif loss == "ccface":
            t = x0["teacher"][i]
            sure, follows = (clip(unit(v) @ t, 0, 1) for v in (x0["classes"][y], x0["embedding"][i]))
            logits[y] = arc(cosines[y], share * config.margin * sure**config.power * follows)
        elif getattr(config, "gradient", "exact") == "straight":
            before = unit(x0["embedding"][i]) @ unit(x0["classes"][y])
            logits[y] += arc(before, share * config.margin) - before
        else:
            logits[y] = arc(cosines[y], share * config.margin, getattr(config, "easy_margin", False))
        z = config.scale * np.array(logits)
        terms.append(np.log(np.sum(np.exp(z - z.max()))) + z.max() - z[y] + penalty)
    value = sum(terms) / max(len(terms), 1)
    return value + (config.view_weight * view_distance(x, x0) if loss == "ccface" else 0)


def arc(cosine, margin, easy=False):
    theta = np.arccos(clip(cosine, -1, 1))
    if easy:
        return np.cos(theta + margin) if cosine > 0 else cosine
    return np.cos(theta + margin) if theta + margin < np.pi else cosine - margin * np.sin(margin)


def raised(cosine, base, config):
    """RPCL's rival."""
    factor, m = (0.2, config.margin) if config.rival == "repo_scale" else (1.0, config.rival_margin)
    return factor * (cosine + m if base == "cos" else np.cos(max(np.arccos(cosine) - m, 0)))


def magnitude(s, config):
    """MagFace's margin, and its term of the length."""
    low, high = config.min_norm, config.max_norm
    length = clip(np.linalg.norm(s), low, high)
    share = (length - low) / (high - low)
    margin = (1 - share) * config.min_margin + share * config.max_margin
    return margin, config.norm_weight * (length / high**2 + 1 / length)


def scalers(x0, config):
    """AdaFace's q, after the first update of mean and deviation."""
    embedding = np.array(x0["embedding"])
    if config.standardize:
        embedding = (embedding - embedding.mean(axis=0)) / np.sqrt(embedding.var(axis=0) + 1e-5)
    lengths = [clip(np.linalg.norm(s), 1e-3, 100) for s in embedding]
    known = [length for length, y in zip(lengths, x0["label"]) if y >= 0]
    mean, deviation, new = 20.0, 100.0, config.update
    if len(known) > 1:
        mean = new * np.mean(known) + (1 - new) * mean
        deviation = new * np.std(known, ddof=1) + (1 - new) * deviation
    return [clip(config.sharpness * (n - mean) / (deviation + 1e-3), -1, 1) for n in lengths], mean, deviation


def moved_centers(x0):
    """AdaDistill's centers after the update, and the mean of alpha."""
    moved, alphas = {}, []
    for s, t, y in zip(x0["embedding"], x0["teacher"], x0["label"]):
        if y >= 0:
            near = clip(unit(x0["classes"][y]) @ t, 1e-6, 1)
            alphas.append(clip(clip(unit(s) @ t, -1, 1) * near, 1e-6, 1))
            moved.setdefault(y, []).append(alphas[-1] * x0["classes"][y] + (1 - alphas[-1]) * t)
    new = np.array(x0["classes"])
    for y, several in moved.items():
        new[y] = np.mean(several, axis=0)
    return new, np.mean(alphas)


def view_distance(x, x0):
    """CCFace's 1 - cosine between the first view after the predictor and the second, where there is one."""
    predictor, distances = x["predictor"], []
    hidden = x["embedding"] @ predictor["first"]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    hidden = np.maximum(hidden * predictor["norm_scale"] + predictor["norm_bias"], 0)
    for first, second, known in zip(hidden @ predictor["second"] + predictor["bias"], x0["second"], x["has_second"]):
        distances += [1 - unit(first) @ unit(second)] if known else []
    return sum(distances) / max(len(distances), 1)

"""Losses with a margin against loops in NumPy, at the traps of arccos, and in their limiting cases."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import margin_reference as ref
import numpy as np
import pytest
from conftest import raises
from flax import nnx
from margin_reference import LABELS, LEARNED, B, D, K, random_case, reference, unit

from gdrd_jax import losses, registry
from gdrd_jax.losses import DataInfo, Outputs, State

MAG = {"norm_weight": 25.0}
VARIANTS = {
    "cosface": ("cosface", {}),
    "arcface": ("arcface", {"scale": 16.0}),
    "straight": ("arcface", {"gradient": "straight"}),
    "magface": ("magface", {"easy_margin": False, **MAG}),
    "adaface": ("adaface", {"update": 0.3}),
    "adaface of standardized lengths": ("adaface", {"update": 0.3, "standardize": True}),
    "rpcl": ("rpcl", {}),
    "rpcl of arc": ("rpcl", {"base": "arc", "margin": 0.5, "easy_margin": False}),
    "rpcl of arc, straight": ("rpcl", {"base": "arc", "margin": 0.5, "easy_margin": False, "gradient": "straight"}),
    "rpcl of mag": ("rpcl", {"base": "mag", "rival_margin": 0.225, **MAG}),
    "rpcl of the code": ("rpcl", {"rival": "repo_scale"}),
    "rpcl of arc of the code": ("rpcl", {"base": "arc", "margin": 0.5, "rival": "repo_scale"}),
    "arc_distill": ("arc_distill", {}),
    "ada_distill": ("ada_distill", {}),
    "ccface": ("ccface", {"power": 2.0, "view_weight": 3.0}),
}
NOT_CONTINUOUS = {"rpcl of mag", "rpcl of arc of the code"}  # with easy margin, where the cosine is 0
ARRAYS = ("embedding", "classes", "teacher", "second", "predictor")


def total(arrays, numbers, batch, names=tuple(VARIANTS)):
    """The sum of all variants, and of each value, figures and state.

    Numbers among the settings, and the step of a ramp of two steps, are arguments: compiling takes most of the time.
    """
    found, info = {}, DataInfo(identities=K, embedding_dim=D, centers=np.ones((K, D), np.float32))
    for name in names:
        loss, settings = VARIANTS[name]
        own, config = (
            {key: arrays[key][name] for key in ARRAYS},
            registry.losses.settings(loss, {**settings, "ramp": 2}),
        )
        made = registry.losses[loss](config, info, rngs=nnx.Rngs(0))
        made.config = SimpleNamespace(**{**vars(config), **numbers[name]})
        made.classes[...], made.steps[...] = own["classes"], batch["step"]
        if loss == "ccface":
            predictor, given = made.predictor, own["predictor"]
            predictor.first.kernel[...], predictor.second.kernel[...] = given["first"], given["second"]
            predictor.norm.scale[...], predictor.norm.bias[...] = given["norm_scale"], given["norm_bias"]
            predictor.second.bias[...] = given["bias"]
        outputs = Outputs(None, own["embedding"], teacher=own["teacher"], second=Outputs(None, own["second"]))
        found[name] = *made(outputs, batch, jax.random.key(0)), nnx.to_pure_dict(nnx.state(made, State))
    return sum(value for value, *_ in found.values()), found


def arguments(case, step, **changes):
    """Of `total`, for the same case of all variants."""
    arrays = {key: dict.fromkeys(VARIANTS, jax.tree.map(np.float32, case[key])) for key in ARRAYS}
    configs = {name: vars(registry.losses.settings(*variant)).items() for name, variant in VARIANTS.items()}
    numbers = {
        name: {k: np.float32(changes.get(k, v)) for k, v in config if type(v) is float}
        for name, config in configs.items()
    }
    return arrays, numbers, {"label": case["label"], "has_second": case["has_second"], "step": step}


@functools.cache
def compiled():
    return jax.jit(jax.value_and_grad(total, has_aux=True))


def evaluated(case, step=2, **changes):
    """Value, figures, state and gradients of each variant; `changes` of settings."""
    (_, found), gradients = compiled()(*arguments(case, step, **changes))
    return {
        name: SimpleNamespace(
            value=float(value), figures=figures, state=state, gradient={key: gradients[key][name] for key in ARRAYS}
        )
        for name, (value, figures, state) in found.items()
    }  # fmt: skip


@functools.cache
def of_seed(seed):
    return evaluated(random_case(seed))


def check_slope(name, case, own, direction, rtol=1e-3):
    """The gradient along a direction of some arrays against central differences of the reference."""
    values = []
    for h in (1e-6, -1e-6):
        moved = {key: jax.tree.map(lambda x, along: x + h * along, case[key], direction[key]) for key in direction}
        values.append(reference(*VARIANTS[name], {**case, **moved}, case))
    along = jax.tree.map(
        lambda x, y: np.sum(np.float64(x) * y), {key: own.gradient[key] for key in direction}, direction
    )
    assert sum(jax.tree.leaves(along)) == pytest.approx((values[0] - values[1]) / 2e-6, rel=rtol, abs=1e-4), name


@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_are_those_of_loops_in_float64(name):
    for seed in range(3):
        case, own, rng = random_case(seed), of_seed(seed)[name], np.random.default_rng(seed)
        assert own.value == pytest.approx(reference(*VARIANTS[name], case, case), rel=1e-5, abs=1e-5)
        assert not np.any(own.gradient["teacher"]) and not np.any(own.gradient["second"])
        learned = ["embedding"] + ["classes"] * (VARIANTS[name][0] in LEARNED) + ["predictor"] * (name == "ccface")
        for key in learned:
            check_slope(name, case, own, {key: jax.tree.map(lambda x: rng.normal(size=x.shape), case[key])})


def test_gradients_at_the_traps_of_arccos():
    """Own angles of 0.01, pi/2 and pi - 0.01, and a rival at 0.01."""
    rng, case, directions = np.random.default_rng(3), random_case(3), {}
    for row, angle, to in ((0, 0.01, 0), (1, np.pi / 2, 3), (2, np.pi - 0.01, 3), (3, 0.01, 5)):
        towards, across = unit(case["classes"][to]), rng.normal(size=D)
        across = unit(across - across @ towards * towards)
        case["embedding"][row] = 30 * (np.cos(angle) * towards + np.sin(angle) * across)
        directions[row] = np.where(np.arange(B)[:, None] == row, across, 0)
    results = evaluated(case)
    for name in VARIANTS.keys() - NOT_CONTINUOUS:
        for direction in directions.values():
            check_slope(name, case, results[name], {"embedding": direction}, rtol=3e-3)


def traps():
    """What may divide by zero: changes of `random_case(0)`."""
    case = random_case(0)
    own = unit(case["classes"])[LABELS]
    zero, equal, opposite = case["embedding"].copy(), case["embedding"].copy(), 20 * own
    zero[1], equal[5], opposite[::2] = 0, equal[0], -20 * own[::2]
    return {
        "an embedding of zero": {"embedding": zero},
        "all embeddings zero": {"embedding": np.zeros((B, D))},
        "student is teacher": {"embedding": case["teacher"], "second": case["teacher"]},
        "two equal faces": {"embedding": equal},
        "one identity": {"label": np.full(B, 3)},
        "one known face": {"label": np.where(np.arange(B) == 5, 3, -1)},
        "no identity": {"label": np.full(B, -1)},
        "no second view": {"has_second": np.zeros(B, bool)},
        "cosines of 1 and -1": {"embedding": opposite, "teacher": own},
    }


@pytest.mark.parametrize("what", traps())
def test_everything_is_finite(what):
    results = evaluated({**random_case(0), **traps()[what]})
    for name, own in results.items():
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(vars(own))), name
        if what == "no identity" and name != "ccface":
            assert own.value == 0 and not np.any(own.gradient["embedding"]), name
    if what in ("no identity", "one known face"):  # which have no deviation
        assert results["adaface"].state["mean"] == 20 and results["adaface"].state["deviation"] == 100


def test_losses_of_bfloat16_embeddings_are_float32():
    arrays, *others = arguments(random_case(0), 2)
    names = [name for name, (loss, _) in VARIANTS.items() if name == loss]
    for key in ("embedding", "second"):
        arrays[key] = {name: x.astype(jnp.bfloat16) for name, x in arrays[key].items()}
    _, found = jax.eval_shape(lambda *x: total(*x, names), arrays, *others)
    assert {x.dtype for value, figures, _ in found.values() for x in (value, *figures.values())} == {
        jnp.dtype("float32")
    }


def test_the_figures_show_what_is_alive():
    results, case = of_seed(0), random_case(0)
    cosines = (unit(case["embedding"]) @ unit(case["classes"]).T)[LABELS >= 0]
    own = np.take_along_axis(cosines, LABELS[LABELS >= 0, None], axis=1)[:, 0]
    rivals = np.where(np.arange(K) == LABELS[LABELS >= 0, None], -2, cosines).max(axis=1)
    lengths = np.linalg.norm(case["embedding"], axis=1)[LABELS >= 0]
    config = registry.losses.settings(*VARIANTS["magface"])
    margins = [ref.magnitude(s, config)[0] for s in case["embedding"][LABELS >= 0]]
    q = np.array(ref.scalers(case, registry.losses.settings(*VARIANTS["adaface"]))[0])[LABELS >= 0]
    active, of_lengths = np.mean(rivals > 0.7), {
        "norms_inside": np.mean((lengths > 10) & (lengths < 110)), "norm_mean": np.mean(lengths),
        "margin_min": np.min(margins), "margin_mean": np.mean(margins), "margin_max": np.max(margins),
    }  # fmt: skip
    wanted = {
        "cosface": {"own_cosine": np.mean(own), "cosine_accuracy": np.mean(own > rivals)},
        "magface": of_lengths,
        "adaface": {"scaler_mean": np.mean(q), "scaler_deviation": np.std(q)},
        "rpcl": {"active_rivals": active},
        "rpcl of mag": {"active_rivals": active, **of_lengths},
        "ada_distill": {"alpha": ref.moved_centers(case)[1]},
        "ccface": {"view_cosine": 1 - ref.view_distance(case, case)},
    }
    for name, figures in wanted.items():
        for figure, value in figures.items():
            assert results[name].figures[figure] == pytest.approx(value, abs=1e-4), (name, figure)
    assert 0 < active < 1 and 0 < of_lengths["norms_inside"] < 1


def test_state_moves_as_written_whatever_the_order_of_the_batch():
    case, order = random_case(1), np.random.default_rng(0).permutation(B)
    _, mean, deviation = ref.scalers(case, registry.losses.settings(*VARIANTS["adaface"]))
    shuffled = evaluated({**case, **{key: case[key][order] for key in case.keys() - {"classes", "predictor"}}})
    for results in (of_seed(1), shuffled):
        np.testing.assert_allclose(results["ada_distill"].state["classes"], ref.moved_centers(case)[0], atol=1e-5)
        assert results["adaface"].state == pytest.approx({"mean": mean, "deviation": deviation, "steps": 3}, rel=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_margin_rises_over_the_first_steps(name):
    case = random_case(1)
    for step in (0, 1, 3):
        wanted = reference(*VARIANTS[name], case, case, share=min(step / 2, 1))
        assert at_step(step)[name].value == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@functools.cache
def at_step(step):
    return evaluated(random_case(1), step)


@pytest.mark.parametrize(
    "name, changes, other, settings",
    [
        ("arcface", {"margin": 0.0}, "cosface", {"margin": 0.0}),
        ("magface", {"min_margin": 0.5, "max_margin": 0.5, "norm_weight": 0.0}, "arcface", {}),
        ("adaface", {"sharpness": 0.0}, "cosface", {"margin": 0.4}),
        ("rpcl", {"threshold": 1.01}, "cosface", {}),
        ("rpcl of arc", {"threshold": 1.01}, "arcface", {}),
        ("rpcl of mag", {"threshold": 1.01}, "magface", MAG),
        ("rpcl", {"rival_margin": 0.0}, "cosface", {}),
        ("rpcl of arc", {"rival_margin": 0.0}, "arcface", {}),
    ],
)
def test_losses_in_their_limits_are_others(name, changes, other, settings):
    case = random_case(2)
    wanted = reference(other, {"scale": 32.0, **settings}, case, case)
    assert evaluated(case, **{"scale": 32.0, **changes})[name].value == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_adaface_of_embeddings_of_one_length_is_cosface():
    case = random_case(2)
    case["embedding"] = 7 * unit(case["embedding"])
    wanted = reference("cosface", {"margin": 0.4, "scale": 64.0}, case, case)
    assert evaluated(case, update=1.0)["adaface"].value == pytest.approx(wanted, rel=1e-3)


def test_where_student_teacher_and_centers_agree_all_are_arcface_on_fixed_centers():
    case = random_case(2)
    case["classes"] += 2  # cosines of about 0.8 between them
    case["embedding"] = case["teacher"] = unit(case["classes"])[LABELS]
    for margin, rel in ((0.0, 1e-4), (0.45, 0.02)):  # near 1 the error of an angle is the root of that of a cosine
        wanted = reference("arc_distill", {"margin": margin}, case, case)
        results = evaluated(case, margin=margin, power=0.0, view_weight=0.0)
        for name in ("arc_distill", "ada_distill", "ccface"):
            assert results[name].value == pytest.approx(wanted, rel=rel) and wanted > 1e-3, name
    np.testing.assert_allclose(results["ada_distill"].state["classes"][0], case["classes"][0], rtol=1e-5)


def test_formulas_in_their_limits():
    """AdaFace from ArcFace to a negative angle; a straight gradient; the least penalty; centers that stay."""
    cosine, m, case = np.linspace(-0.8, 0.9, 9), 0.4, random_case(2)
    centers, teacher = np.float32(case["classes"]), np.float32(case["teacher"])

    @jax.jit
    def formulas(cosine):
        straight = jax.grad(lambda c: losses.angular_margin(c, m, straight=True).sum())(cosine)
        adaptive = [losses.adaptive_margin(cosine, jnp.full(9, q), m) for q in (-1.0, 0.0, 1.0)]
        penalty = losses.magnitude_penalty(jnp.linspace(10.0, 110.0, 11), 110.0)
        return straight, adaptive, penalty, losses.moved_centers(centers, LABELS, teacher, jnp.ones(B))

    straight, adaptive, penalty, kept = formulas(np.float32(cosine))
    theta = np.arccos(cosine)
    wanted = np.cos(theta + m), cosine - m, np.cos(np.maximum(theta - m, 1e-3)) - 2 * m
    np.testing.assert_allclose(adaptive, wanted, atol=1e-5)
    assert (straight == 1).all() and np.argmin(penalty) == 10
    np.testing.assert_array_equal(kept, centers)


def test_the_rival_is_the_first_of_the_most_similar_others():
    cosines = np.float32([[0.9, 0.5, 0.7, 0.7], [0.1, 0.2, 0.3, 0.8], [-0.5, -0.5, -0.5, -0.5]])
    rivals = jax.jit(lambda labels, classes: losses.rivals(cosines[:, :classes], labels, classes), static_argnums=1)
    np.testing.assert_array_equal(rivals(np.array([0, 3, -1]), 4), [2, 2, 0])
    np.testing.assert_array_equal(rivals(np.array([0, 1, 1]), 2), [1, 0, 0])


@pytest.mark.parametrize(
    "name, settings, facts",
    [
        ("magface", {"scale": 64.0}, ("norm_weight", "22.59")),  # 64 * 0.0035 * 110^2 * 10^2 / (110^2 - 10^2)
        ("magface", {"min_norm": 120.0}, ("120.0", "110.0")),
        ("magface", {"max_margin": 0.4}, ("max_margin", "0.45")),
        ("rpcl", {"base": "mag", "norm_weight": 11.0}, ("norm_weight", "11.29")),
        ("rpcl", {"base": "mag", "rival": "repo_scale"}, ("repo_scale",)),
        ("rpcl", {"base": "arc", "gradient": "none"}, ("'none'", "exact, straight")),
        ("rpcl", {"base": "sphere"}, ("'sphere'", "cos, arc, mag")),
        ("arcface", {"margin": 2.0}, ("margin is 2.0",)),
        ("arcface", {"gradient": "none"}, ("'none'", "exact, straight")),
        ("cosface", {"margin": -0.1}, ("margin is -0.1",)),
        ("cosface", {"scale": 0.0}, ("scale is 0.0",)),
        ("cosface", {"ramp": -1}, ("ramp is -1",)),
        ("adaface", {"update": 0.0}, ("update is 0.0",)),
        ("ccface", {"power": -1.0}, ("power is -1.0",)),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, facts):
    with raises("entry-setting", f"'{name}'", *facts):
        registry.losses.settings(name, settings)

"""Batches of other samplers in training: second images, balanced parts, memory banks; on disk, resumed, on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_trainer as base
import tiny_student  # noqa: F401  registers the students
from conftest import finished, raises, run_script
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.distributed import sharding
from gdrd_jax.losses import DataInfo, Loss, State
from gdrd_jax.models.relation import normalize
from gdrd_jax.models.student import make_student
from gdrd_jax.training import trainer
from gdrd_jax.training.stages import Stage
from gdrd_jax.utils.signals import Interrupted

RNG = np.random.default_rng(5)
ROWS, DIM = 24, 16
DATA = {
    "label": np.repeat(np.arange(-1, 5), 4).astype(np.int32),
    "lr": RNG.integers(256, size=(ROWS, 2, 16, 16, 3), dtype=np.uint8),
    "discriminative": np.float16(RNG.normal(size=(ROWS, 2, DIM))),
}


class Agreement(Loss):
    """One minus the cosine of both images' embeddings, where there are two."""

    needs = frozenset({"embedding", "discriminative", "second", "stages"})

    def __call__(self, outputs, batch, key):
        cosine = jnp.sum(normalize(outputs.embedding) * normalize(outputs.second.embedding), axis=-1)
        known = batch["has_second"]
        loss = sharding.total(jnp.sum((1 - cosine) * known)) / jnp.maximum(sharding.total(known.sum()), 1)
        teacher = jnp.sum(outputs.teacher * outputs.second.teacher, axis=-1)
        same = batch["label"] == batch["second_label"]
        assert [x.shape for x in outputs.stages] == [x.shape for x in outputs.second.stages]
        assert outputs.stages[-1] is outputs.features and len(outputs.stages) == 3
        return loss, {"teacher_cosine": jnp.mean(teacher), "same": jnp.mean(same), "pairs": jnp.mean(known)}


class MemoryBank(Loss):
    """Pulls an embedding to what the bank remembers of its image; a row that is twice in a batch counts by its mean."""

    needs = frozenset({"embedding"})

    def __init__(self, config, info, *, rngs):
        super().__init__(config, info, rngs=rngs)
        self.bank = State(normalize(jax.random.normal(rngs.params(), (info.images, info.embedding_dim))))

    def __call__(self, outputs, batch, key):
        embedding, bank = normalize(outputs.embedding), self.bank[...]
        loss = sharding.mean(jnp.mean(1 - jnp.sum(embedding * bank[batch["index"]], axis=-1)))
        index, found = (sharding.replicated(x) for x in (batch["index"], jax.lax.stop_gradient(embedding)))
        count = jnp.zeros(len(bank)).at[index].add(1.0)
        mean = jnp.zeros_like(bank).at[index].add(found) / jnp.maximum(count, 1)[:, None]
        self.bank[...] = jnp.where(count[:, None] > 0, normalize(0.5 * bank + 0.5 * mean), bank)
        return loss, {"uniform": jnp.mean(~batch["balanced"])} if "balanced" in batch else {}


LOSSES = {"test_agreement": Agreement, "test_bank": MemoryBank}


@pytest.fixture(autouse=True, scope="module")
def registered():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def register(patch):
    for name, loss in LOSSES.items():
        patch.setitem(registry.losses._entries, name, loss)


def stage(degradation=None, **student):
    student = make_student(
        **{"name": "three_stages", **student}, resolution=16, embedding_dim=DIM, rngs=nnx.Rngs(0)
    )  # fmt: skip
    info = DataInfo(identities=5, images=ROWS, embedding_dim=DIM, feature_shape=(4, 4, 32))
    losses = {"test_agreement": {"weight": 1.0}, "test_bank": {"weight": 0.5}, "embedding_cosine": {"weight": 1.0}}
    return Stage(student, losses, info, rngs=nnx.Rngs(1), degradation=degradation)


def convolutional_stage():
    return stage(name="gdrd", width=0.0625)


def bank_stage():
    student = make_student(name="three_stages", resolution=16, embedding_dim=DIM, rngs=nnx.Rngs(0))
    info = DataInfo(identities=5, images=ROWS, embedding_dim=DIM, feature_shape=(4, 4, 32))
    return Stage(student, {"test_bank": {}, "embedding_cosine": {}}, info, rngs=nnx.Rngs(1))


def sampler(name, **settings):
    return registry.samplers[name](registry.samplers.settings(name, settings), DATA["label"], 2)


def fit(folder, name, make=stage, batch=8, steps=12, residency="device", **settings):
    how = {"sampler": sampler(name, **settings), "residency": residency}
    return base.fit(folder, DATA, how, make, batch=batch, steps=steps, learning_rate=0.01)


def test_second_images_are_learned_from_disk_and_from_memory_and_resumed_alike(tmp_path, monkeypatch):
    weights, metrics = fit(tmp_path / "device", "pairs")
    assert metrics["same"] == 1 and 0 < metrics["pairs"] <= 1
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        base.stopping_at(patch, 5)
        fit(tmp_path / "host", "pairs")
    resumed, again = fit(tmp_path / "host", "pairs", residency="host")
    jax.tree.map(np.testing.assert_array_equal, resumed, weights)
    assert again == metrics
    assert "bank" in weights["criteria"]["test_bank"]  # which a checkpoint keeps: the resumed run has the same


def test_the_second_image_is_the_one_that_was_sampled(tmp_path):
    """The metrics of the first step, from the data alone."""
    _, metrics = fit(tmp_path, "pairs", steps=1)
    found = sampler("pairs")(7, range(1), 8)
    unit = lambda rows, views: normalize(DATA["discriminative"][found[rows][0], found[views][0]].astype(np.float32))  # noqa: E731
    cosine = np.sum(unit("rows", "views") * unit("second_rows", "second_views"), axis=-1)
    assert metrics["teacher_cosine"] == pytest.approx(float(np.mean(cosine)), abs=1e-5)
    assert metrics["pairs"] == np.mean(found["has_second"])


def test_two_uses_of_a_face_are_degraded_differently():
    seen = []

    def degradation(small, _, key, first):
        seen.append((small, jax.random.key_data(key)))
        return small[:, ::3, ::3]

    @nnx.jit
    def degraded(stage, batch):
        stage.loss(batch, jax.random.key(0))
        return seen

    small = DATA["lr"].repeat(3, axis=2).repeat(3, axis=3)[:, 0]
    batch = {"label": DATA["label"], "index": np.arange(ROWS), "small": small}
    batch |= {"second_small": small[::-1], "has_second": np.ones(ROWS, bool), "second_label": DATA["label"]}
    batch |= {name: DATA["discriminative"][:, 0] for name in ("discriminative", "second_discriminative")}
    (first, key), (second, other) = degraded(stage(degradation), batch)
    np.testing.assert_array_equal(first, second[::-1])
    assert not np.array_equal(key, other)


def test_the_bank_remembers_the_mean_of_a_row_that_comes_twice():
    make = bank_stage()
    make.eval()
    batch = {"lr": DATA["lr"][[3, 3, 5], [0, 1, 0]], "index": np.array([3, 3, 5]), "label": np.zeros(3, int)}
    batch["discriminative"] = DATA["discriminative"][[3, 3, 5], 0]
    before = np.array(make.criteria["test_bank"].bank[...])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    embedding = unit(np.asarray(nnx.jit(lambda make, faces: make.head(make.backbone(faces)))(make, batch["lr"])))
    nnx.jit(lambda make, batch: make.loss(batch, jax.random.key(0)))(make, batch)
    after = make.criteria["test_bank"].bank[...]
    wanted = before.copy()
    wanted[3] = unit(0.5 * before[3] + 0.25 * (embedding[0] + embedding[1]))
    wanted[5] = unit(0.5 * before[5] + 0.5 * embedding[2])
    np.testing.assert_allclose(after, wanted, atol=1e-6)


class SecondNetwork(Loss):
    """A network of its own at twice the resolution, which learns together with the student."""

    needs = frozenset({"embedding", "hr_small"})

    def __init__(self, config, info, *, rngs):
        super().__init__(config, info, rngs=rngs)
        self.network = make_student(name="three_stages", resolution=32, embedding_dim=info.embedding_dim, rngs=rngs)

    def __call__(self, outputs, batch, key):
        cosine = jnp.sum(normalize(outputs.embedding) * normalize(self.network(batch["hr_small"])), axis=-1)
        return sharding.mean(jnp.mean(1 - cosine)), {}


def test_a_loss_can_own_a_second_network(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.losses._entries, "test_network", SecondNetwork)
    data = {**DATA, "hr_small": DATA["lr"].repeat(2, axis=2).repeat(2, axis=3)}
    info = DataInfo(identities=5, images=ROWS, embedding_dim=DIM, feature_shape=(4, 4, 32))

    def make():
        student = make_student(name="three_stages", resolution=16, embedding_dim=DIM, rngs=nnx.Rngs(0))
        return Stage(student, {"test_network": {}}, info, frozen=("backbone",), rngs=nnx.Rngs(1))

    before = nnx.to_pure_dict(nnx.state(make()))["criteria"]["test_network"]["network"]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        base.stopping_at(patch, 2)
        base.fit(tmp_path, data, {}, make, batch=8, steps=5, learning_rate=0.01)
    weights, _ = base.fit(tmp_path, data, {}, make, batch=8, steps=5, learning_rate=0.01)  # from the checkpoint
    after = weights["criteria"]["test_network"]["network"]
    # Frozen is the backbone of the student, not that of this network.
    first, begun = (network["backbone"]["layers"][0]["kernel"] for network in (after, before))
    assert np.abs(first - begun).max() > 1e-5
    assert np.abs(after["backbone"]["norm"]["mean"] - before["backbone"]["norm"]["mean"]).max() > 1e-5


class Local(Loss):
    """Forgets that each device has a part of the batch."""

    needs = frozenset({"embedding"})
    result = staticmethod(lambda embedding: (jnp.mean(embedding), {}))

    def __call__(self, outputs, batch, key):
        return self.result(outputs.embedding)


class OwnBank(MemoryBank):
    """Forgets that other devices have other rows."""

    def __call__(self, outputs, batch, key):
        self.bank[...] = self.bank[...] + jnp.mean(outputs.embedding)
        return sharding.mean(jnp.mean(outputs.embedding)), {}


@pytest.mark.parametrize(
    "loss, code, facts",
    [
        (Local, "loss-differs", ("'test_wrong'", "sharding.mean(value)")),
        (OwnBank, "loss-differs", ("'test_wrong'", "sharding.replicated")),
        (lambda embedding: sharding.mean(jnp.mean(embedding)), "loss-result", ("'test_wrong'", "()")),
        (lambda embedding: (embedding, {}), "loss-result", ("'test_wrong'", "tuple")),
    ],
)
def test_a_loss_that_is_wrong_is_named(loss, code, facts, monkeypatch):
    if not isinstance(loss, type):
        loss = type("Wrong", (Local,), {"result": staticmethod(loss)})
    monkeypatch.setitem(registry.losses._entries, "test_wrong", loss)
    student = make_student(name="three_stages", resolution=16, embedding_dim=DIM, rngs=nnx.Rngs(0))
    info = DataInfo(identities=5, images=ROWS, embedding_dim=DIM, feature_shape=(4, 4, 32))
    graphdef, params, rest = trainer.split(Stage(student, {"test_wrong": {}}, info, rngs=nnx.Rngs(1)))
    how = base.schedule(steps=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = trainer.make_run(graphdef, how, mesh, seed=7, loop=False)
    rows = sampler("uniform")(7, range(1), 8)
    with raises(code, *facts):
        jax.eval_shape(run, trainer.begin(params, rest, how), DATA, rows, np.arange(1))


def test_balanced_parts_are_marked(tmp_path):
    _, metrics = fit(tmp_path, "half_balanced", bank_stage, batch=8, steps=2, images=2)
    assert metrics["uniform"] == 0.5


def curve(name, devices):
    """Losses of some steps with the bank, and the bank."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        make = convolutional_stage if "second" in registry.samplers[name].gives else bank_stage
        graphdef, params, rest = trainer.split(make())
        how = base.schedule(steps=6, learning_rate=0.001)
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        run = trainer.make_run(graphdef, how, mesh, seed=7, loop=False)
        state, losses = base.class_parallel.to_devices(trainer.begin(params, rest, how), mesh), []
        for step in range(6):
            rows = sampler(name)(7, range(step, step + 1), 16)
            state, metrics = run(state, DATA, rows, np.arange(step, step + 1))
            losses.extend(np.asarray(metrics["loss"]))
        rest = nnx.to_pure_dict(base.class_parallel.to_host(state[1]))
        return np.array(losses), rest["criteria"]["test_bank"]["bank"]


@pytest.mark.slow
def test_four_devices_keep_the_same_bank_as_one():
    script = (
        "import test_batches as b\n"
        "for name in ('pairs', 'balanced'):\n"
        "    (one, bank), (four, banks) = (b.curve(name, n) for n in (1, 4))\n"
        "    t.np.testing.assert_allclose(four, one, rtol=1e-4)\n"
        "    t.np.testing.assert_allclose(banks, bank, atol=1e-4)\n"
    )
    finished(run_script(script, devices=4))

"""The loop: resuming, stopping, refusing, several devices."""

import json
import os
import re
import resource
import signal
import time
import zlib
from functools import partial

import jax
import numpy as np
import pytest
import tiny_student  # noqa: F401  registers the students
from conftest import finished, free_address, raises, run_script, send_while_collecting
from flax import nnx

from gdrd_jax.data import input_pipeline as feeding
from gdrd_jax.data import samplers
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.input_pipeline import Dataset, Subset
from gdrd_jax.data.loader import batch_rows
from gdrd_jax.distributed import class_parallel, sharding  # noqa: F401  some in scripts
from gdrd_jax.losses import DataInfo
from gdrd_jax.models.student import make_student
from gdrd_jax.training import checkpoints, metric_writer, trainer  # noqa: F401  some in scripts
from gdrd_jax.training.stages import Stage
from gdrd_jax.utils.launch import ProcessInfo  # noqa: F401
from gdrd_jax.utils.signals import Interrupted, Signals

RNG = np.random.default_rng(0)
DATA = {
    "label": np.arange(12) % 3,
    "lr": RNG.integers(256, size=(12, 2, 16, 16, 3), dtype=np.uint8),
    "generative": np.float16(RNG.normal(size=(12, 2, 8, 4, 4))),
}
STEPS = 3 * metric_writer.WINDOW - 5


def dataset(folder, data=DATA):
    """Two stores of these arrays, all rows of which are used."""
    stores = {}
    for name in data.keys() - {"label"}:
        array = data[name]
        provenance = {"faces": str(zlib.crc32(array.tobytes()))}
        stores[name] = FeatureStore.create(
            folder / name, rows=len(array), views=array.shape[1], shape=array.shape[2:], dtype=str(array.dtype),
            provenance=provenance,
        )  # fmt: skip
        for view, rows in stores[name].missing():
            stores[name].write(view, rows, array[rows.start : rows.stop, view])
    rows = np.arange(len(data["label"]))
    return Dataset(*(Subset(data["label"][some], stores, some) for some in (rows[:5], rows[5:])))


def schedule(**changes):
    settings = {"steps": STEPS, "batch": 4, "learning_rate": 0.05, "warmup": 0.1, "decay_at": (0.5, 0.8)}
    return trainer.Schedule(**{**settings, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 1.0, **changes})


def stage(student="three_stages"):
    student = make_student(name=student, resolution=16, hidden=(8,), embedding_dim=4, rngs=nnx.Rngs(0))
    info = DataInfo(
        feature_shape=(4, 4, 32), target_shape=(8, 4, 4),
        target_statistics=lambda: (np.zeros((8, 4, 4), np.float32), np.ones(8, np.float32)),
    )  # fmt: skip
    return Stage(student, {"feature_regression": {}}, info, rngs=nnx.Rngs(1))


def convolutional_stage():
    return stage("one_block")


def dis_stage(classes=4):
    student = make_student(
        name="one_block", resolution=16, hidden=(8,), embedding_dim=16, head_stages=1, rngs=nnx.Rngs(0)
    )
    losses = {
        "cls": {"weight": 1.0}, "kd": {"weight": 0.25, "teacher_scale": 8.0}, "rcd": {"weight": 4.0},
        "embedding_cosine": {}, "similarity_preserving": {},
    }  # fmt: skip
    info = DataInfo(classes, 10, 16, np.eye(classes, 16, dtype=np.float32))
    return Stage(student, losses, info, rngs=nnx.Rngs(1))


def five_classes():
    """So many that not every device has equally many."""
    return dis_stage(classes=5)


def fit(directory, data=DATA, how=None, make=stage, **changes):
    directory.mkdir(exist_ok=True)
    model = make()
    metrics = trainer.fit(
        model, dataset(directory / "data", data), schedule(**changes), directory, seed=7, name="test", **how or {}
    )
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model))), metrics


def curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    return *fit(directory), curve(directory)


def test_the_loss_falls(uninterrupted):
    *_, metrics = uninterrupted
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["step"] == STEPS


def stopping_at(monkeypatch, step, number=signal.SIGINT):
    """A signal arrives while the batch of this step is made."""
    original = samplers.batch_rows

    def interrupting(seed, steps, *sizes):
        if step in steps:
            os.kill(os.getpid(), number)
        return original(seed, steps, *sizes)

    monkeypatch.setattr(samplers, "batch_rows", interrupting)


@pytest.mark.parametrize("step", [33, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 19, 20, STEPS - 1))])
def test_a_stopped_run_resumes_to_the_same_weights_and_curve(tmp_path, monkeypatch, uninterrupted, step):
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"step {step + 1} of {STEPS}"):
        stopping_at(patch, step, signal.SIGTERM)
        fit(tmp_path)
    weights, metrics = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]
    assert curve(tmp_path) == uninterrupted[2]


def test_a_signal_that_was_dropped_before_the_training_stops_it_at_its_first_step(tmp_path):
    with pytest.raises(Interrupted, match=f"step 1 of {STEPS}"), Signals(hold=False):
        send_while_collecting()
        fit(tmp_path)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, uninterrupted):
    fit(tmp_path)
    monkeypatch.setattr(samplers, "batch_rows", None)
    weights, metrics = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]


@pytest.mark.parametrize("start", [33, pytest.param(0, marks=pytest.mark.slow)])
def test_data_read_from_disk_give_the_same_run(tmp_path, monkeypatch, uninterrupted, start):
    if start:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stopping_at(patch, start)
            fit(tmp_path)
    weights, metrics = fit(tmp_path, how={"residency": "host"})
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]
    assert curve(tmp_path) == uninterrupted[2]


def learnable(faces=64, people=4):
    """Faces that look like their person, features that follow from their pixels, embeddings that tell who it is."""
    label = np.arange(faces) % people
    lr = RNG.integers(40, 216, size=(people, 1, 4, 4, 3)).repeat(4, 2).repeat(4, 3)[label]
    lr = np.uint8(lr + RNG.integers(-40, 40, size=(faces, 2, 16, 16, 3)))
    cells = lr.reshape(faces, 2, 4, 4, 4, 4, 3).mean(axis=(3, 5)) / 64 - 2
    return {
        "label": label,
        "lr": lr,
        "generative": np.float16(np.moveaxis(cells @ RNG.normal(size=(3, 8)), -1, 2)),
        "discriminative": np.float16(RNG.normal(size=(people, 1, 16))[label] + 0.1 * RNG.normal(size=(faces, 2, 16))),
    }


MANY = learnable()


def some_steps(count, together, stage=stage, devices=1, batch=32, loop=False, rate=0.05):
    """Parameters and losses after `count` steps, `together` in each dispatch."""
    graphdef, params, rest = trainer.split(stage())
    how = schedule(steps=count, learning_rate=rate, shift=1)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = trainer.make_run(graphdef, how, mesh, seed=7, loop=loop)
    state, losses = class_parallel.to_devices(trainer.begin(params, rest, how), mesh), []
    for start in range(0, count, together):
        rows, views = batch_rows(7, range(start, start + together), batch, len(MANY["label"]), 2)
        state, metrics = run(state, MANY, {"rows": rows, "views": views}, np.arange(start, start + together))
        losses.extend(np.asarray(metrics["loss"]))
    return class_parallel.to_host(state[0]), np.array(losses)


@pytest.mark.slow  # a loop of convolutions on a CPU
def test_many_steps_in_one_dispatch_are_those_steps():
    alone, together = (some_steps(3, n, convolutional_stage, batch=2, loop=True) for n in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    np.testing.assert_allclose(some_steps(3, 1, convolutional_stage, batch=2)[1], alone[1], rtol=1e-5)  # as CPUs do it


def test_shifting_moves_each_face_within_its_border_and_differently():
    images = RNG.integers(1, 256, size=(64, 16, 16, 3), dtype=np.uint8)
    moved = np.asarray(jax.jit(trainer._randomly_shifted, static_argnums=2)(images, jax.random.key(0), 2))
    around = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    found = set()
    for image, source in zip(moved, around):
        places = [(y, x) for y in range(5) for x in range(5) if (source[y : y + 16, x : x + 16] == image).all()]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 15


def test_what_is_learned_is_judged_now_and_then_and_at_the_end(tmp_path, uninterrupted):
    seen = []

    def evaluate(stage, step):
        seen.append((step, stage.backbone.norm.use_running_average))
        return {"quality": float(len(seen))}

    weights, metrics = fit(tmp_path, how={"evaluate": evaluate, "evaluate_every": 25})
    assert metrics == {**uninterrupted[1], "quality": 3.0}
    assert fit(tmp_path, how={"evaluate": evaluate})[1] == metrics  # finished: not judged again
    assert seen == [(25, True), (50, True), (STEPS, True)]  # in evaluation mode
    judged = [line for line in curve(tmp_path) if "quality" in line]
    assert judged == [{"step": s, "quality": q} for s, q in ((25, 1.0), (50, 2.0), (STEPS, 3.0))]
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])  # and training does not notice


def test_a_profile_tells_how_busy_the_device_was(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path, how={"profile": True})
    assert re.search(r"device was at work in \d+\.\d % of", caplog.text)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_tensorboard_has_the_curve(tmp_path, monkeypatch, uninterrupted):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping_at(patch, 33)
        fit(tmp_path)
    fit(tmp_path)
    found, begun = {}, []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                begun.append(event.step)
            found.update((event.step, v.simple_value) for v in event.summary.value if v.tag == "loss")
    expected = {line["step"]: pytest.approx(line["loss"], rel=1e-6) for line in uninterrupted[2]}
    assert found == expected
    assert begun == [1, 35]  # TensorBoard drops what an earlier file has of this step and later


def test_too_much_for_the_device_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(feeding, "_free_memory", lambda: 1000)
    with raises("data-residency", "test: ", "free in memory", "--config.data.residency=host"):
        fit(tmp_path, how={"residency": "device"})
    fit(tmp_path, how={"residency": "auto"})


def test_the_limits_of_containers_and_slurm_count(tmp_path, monkeypatch):
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/old\n0::/slurm/job\n")
    (tmp_path / "slurm" / "job").mkdir(parents=True)
    (tmp_path / "slurm" / "memory.max").write_text("1000\n")
    (tmp_path / "slurm" / "job" / "memory.max").write_text("max\n")
    (tmp_path / "slurm" / "memory.stat").write_text("anon 300\nfile 500\n")
    assert feeding.memory_limits(tmp_path, groups) == [700]
    assert feeding.memory_limits(tmp_path, tmp_path / "missing") == []  # not Linux
    monkeypatch.setattr(feeding, "memory_limits", lambda: [700])
    assert feeding._free_memory() == 700


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping_at(patch, 33)
        fit(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
        with raises("not-written", tmp_path, "could not be written"):
            fit(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    weights, _ = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert curve(tmp_path) == uninterrupted[2]


def test_a_damaged_checkpoint_is_told(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping_at(patch, 33)
        fit(tmp_path)
    (checkpoint,) = (tmp_path / "checkpoints").glob("[0-9]*")
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with raises("checkpoint-damaged", checkpoint, "remove"):
        fit(tmp_path)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_faces(tmp_path):
    with raises("loss-not-finite", "learning_rate") as caught:
        fit(tmp_path, learning_rate=1e30)
    assert re.search(r"test is (nan|inf) at step \d+ \(faces \d+, \d+, \d+, \d+\)", str(caught.value))


def test_the_rate_rises_then_falls_by_tens():
    rate = schedule(steps=100).rate()
    assert float(rate(0)) == pytest.approx(0.005)
    assert float(rate(20)) == pytest.approx(0.05)
    assert float(rate(60)) == pytest.approx(0.005)
    assert float(rate(90)) == pytest.approx(0.0005)


def test_the_rate_can_fall_like_a_cosine():
    rate = schedule(decay="cosine", learning_rate=1.0, steps=100, warmup=0.1).rate()
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(50)) == pytest.approx(0.5)
    assert float(rate(99)) < 0.001


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_adamw_goes_its_own_length_whatever_the_gradients_and_decays_apart(size):
    """The first step of Adam is of the rate's length in each weight; the decay is the rate's share of the weight."""
    update = schedule(
        optimizer="adamw", learning_rate=0.1, weight_decay=0.5, warmup=0.0, decay_at=(), clip_norm=9.0
    ).update()
    weights = np.float32([2.0, -3.0])
    change, _ = jax.jit(update.update)(np.float32([size, size]), update.init(weights), weights)
    np.testing.assert_allclose(change, [-0.1 - 0.1 * 0.5 * 2, -0.1 + 0.1 * 0.5 * 3], rtol=1e-3)


def test_adamw_resumes_to_the_same_weights(tmp_path, monkeypatch):
    how = {"optimizer": "adamw", "learning_rate": 0.01, "steps": 12}
    weights, metrics = fit(tmp_path / "whole", **how)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping_at(patch, 5)
        fit(tmp_path / "stopped", **how)
    jax.tree.map(np.testing.assert_array_equal, fit(tmp_path / "stopped", **how)[0], weights)


def test_the_average_of_the_weights_is_kept_and_resumed(tmp_path, monkeypatch, uninterrupted):
    averaged, _ = fit(tmp_path / "averaged", ema=0.9)
    assert curve(tmp_path / "averaged") == uninterrupted[2]  # it changes nothing in training
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping_at(patch, 33)
        fit(tmp_path / "resumed", ema=0.9)
    jax.tree.map(np.testing.assert_array_equal, fit(tmp_path / "resumed", ema=0.9)[0], averaged)


def test_the_average_is_of_the_weights_of_all_steps(tmp_path):
    """More of the new ones at first: 9 / 10, 9 / 11 ... of them, until that is less than 1 - ema."""
    constant, after = {"warmup": 0.0, "decay_at": ()}, []

    def evaluate(stage, step):
        after.append(jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(stage))))
        return {}

    fit(tmp_path / "steps", steps=4, how={"evaluate": evaluate, "evaluate_every": 1}, **constant)
    assert len(after) == 4
    wanted = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(stage())))
    for step, weights in enumerate(after):
        share = max(0.2, 9 / (10 + step))
        wanted = jax.tree.map(lambda average, new: average + share * (new - average), wanted, weights)
    averaged, _ = fit(tmp_path / "averaged", steps=4, ema=0.8, **constant)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), averaged, wanted)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(averaged), jax.tree.leaves(weights)))


def test_weights_that_stay_the_same_are_their_own_average():
    frozen = {"weights": np.float32(RNG.normal(size=1000)), "count": np.int32(7)}
    towards = jax.jit(lambda average, share: jax.tree.map(partial(trainer._towards, share), average, frozen))
    average = {**frozen, "count": np.int32(0)}
    for _ in range(300):
        average = towards(average, np.float32(0.001))
    jax.tree.map(np.testing.assert_array_equal, average, frozen)


def test_a_second_signal_is_not_remembered_but_obeyed():
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("name", "count", "rate"),
    [
        ("stage", 10, 0.001),
        pytest.param("convolutional_stage", 100, 0.001, marks=pytest.mark.slow),
        pytest.param("dis_stage", 20, 0.003, marks=pytest.mark.slow),
    ],
)
def test_four_devices_follow_the_curve_of_one(tmp_path, name, count, rate):
    # So small a network amplifies rounding: a start that differs by 1e-7 leaves the curve as fast, sooner at
    # higher rates and in stage dis.
    script = (
        "name, count, rate = getattr(t, sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])\n"
        "one, four = (t.some_steps(count, 1, name, n, batch=8, rate=rate)[1] for n in (1, 4))\n"
        "assert one[-3:].mean() < one[:3].mean()\n"
        "t.np.testing.assert_allclose(four, one, rtol=1e-4)\n"
        "with t.raises('batch-not-divisible', 'batch 6 of test', '4 devices'):\n"
        "    t.fit(pathlib.Path(sys.argv[4]), batch=6)\n"
    )
    finished(run_script(script, name, count, rate, tmp_path, devices=4))


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_any_number_of_devices(tmp_path, uninterrupted):
    script = (
        "patch = t.pytest.MonkeyPatch()\n"
        "if sys.argv[2] != 'end': t.stopping_at(patch, int(sys.argv[2]))\n"
        "try: t.fit(pathlib.Path(sys.argv[1]))\n"
        "except t.Interrupted: pass\n"
    )
    for devices, until in ((4, 20), (1, 40), (2, "end")):
        finished(run_script(script, tmp_path, until, devices=devices))
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == [line["step"] for line in uninterrupted[2]]
    for ours, one in zip(lines, uninterrupted[2]):
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 8])
def test_two_processes_follow_the_curve_of_one(tmp_path, stop):
    """Where one is stopped on the way, which stops both, together they go on, with data read from disk."""
    where = free_address()
    script = (
        "where, number, folder, residency, stop = sys.argv[1:]\n"
        "t.sharding.start(t.ProcessInfo(int(number), 2, coordinator=where))\n"
        "assert jax.device_count() == 4 and len(jax.local_devices()) == 2\n"
        "patch = t.pytest.MonkeyPatch()\n"
        "if stop: t.stopping_at(patch, int(stop))\n"
        "try: print(t.fit(pathlib.Path(folder), how={'residency': residency}, steps=16)[1])\n"
        "except t.Interrupted as error: print(error)\n"
    )
    for residency, stops in (("device", ("", stop)), ("host", ("", "")))[stop is None :]:
        processes = [run_script(script, where, i, tmp_path / "two", residency, stops[i], devices=2) for i in range(2)]
        printed = [out.splitlines()[-1] for out in finished(*processes)]
        assert printed[0] == printed[1]
        assert bool(stops[1]) == ("test at step 10 of 16" in printed[0])
    fit(tmp_path / "one", steps=16)
    for ours, one in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_divide_the_classes_and_leave_checkpoints_for_one(tmp_path):
    where = free_address()
    script = (
        "where, number, folder = sys.argv[1:]\n"
        "t.sharding.start(t.ProcessInfo(int(number), 2, coordinator=where))\n"
        "patch = t.pytest.MonkeyPatch()\n"
        "t.stopping_at(patch, 4)\n"
        "how = {'data': t.MANY, 'make': t.five_classes, 'steps': 8, 'batch': 8, 'learning_rate': 0.001}\n"
        "try: t.fit(pathlib.Path(folder), **how)\n"
        "except t.Interrupted as error: print(error)\n"
    )
    printed = finished(*(run_script(script, where, i, tmp_path / "two", devices=2) for i in range(2)))
    assert all(re.search("test at step [56] of 8", out) for out in printed)
    for folder in ("two", "one"):
        fit(tmp_path / folder, MANY, make=five_classes, steps=8, batch=8, learning_rate=0.001)
    for ours, one in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert ours["train_accuracy"] == pytest.approx(one["train_accuracy"])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_result(tmp_path, uninterrupted):
    """kill -9 five times, a checkpoint being written all the time."""
    script = "t.checkpoints.SECONDS_BETWEEN_SAVES = 0.0; t.fit(pathlib.Path(sys.argv[1]))"
    random, killed_at = np.random.default_rng(), []

    def saved():
        return max((int(p.name) for p in (tmp_path / "checkpoints").glob("*") if p.name.isdigit()), default=0)

    while len(killed_at) < 5:
        until, process = saved() + random.integers(1, 10), run_script(script, tmp_path, devices=1)
        while process.poll() is None and saved() < until:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it finished first"
        killed_at.append(saved())
    print("newest checkpoint at each kill:", killed_at)
    assert killed_at == sorted(set(killed_at)) and killed_at[-1] < STEPS
    weights, metrics = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]
    assert curve(tmp_path) == uninterrupted[2]


@pytest.mark.parametrize("make", [dis_stage, pytest.param(convolutional_stage, marks=pytest.mark.slow)])
def test_what_a_gpu_is_given_has_no_way_back_to_the_host_and_one_copy_of_the_state(make):
    """Lowered for CUDA on a CPU: as far as can be seen without a GPU."""
    how = schedule(batch=32, ema=0.9)
    graphdef, params, rest = trainer.split(make())
    state = trainer.begin(params, rest, how)
    run = trainer.make_run(graphdef, how, sharding.mesh(), seed=7, loop=True)
    numbers = np.zeros((20, 32), np.int32)
    lowered = run.trace(state, MANY, {"rows": numbers, "views": numbers}, np.arange(20)).lower(
        lowering_platforms=("cuda",)
    )
    text = lowered.as_text()
    assert "callback" not in text and "infeed" not in text and "outfeed" not in text
    assert text.count("stablehlo.while") >= 1  # 20 steps are one loop, not twenty copies
    images = re.findall(r"stablehlo\.convolution.*dim_numbers = (\[[^]]*\])x", text)
    assert images.count("[b, 0, 1, f]") >= len(images) / 3 > 1  # channels last, as tensor cores want them
    donated = len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text))
    assert donated == len(jax.tree.leaves(state))
    gathered = re.findall(r"stablehlo\.all_gather.*-> tensor<([0-9]+)x", text)
    assert set(gathered) <= {"32"}  # faces of the batch, never weights or gradients

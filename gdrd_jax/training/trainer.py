"""One loop for both stages: state, step, checkpoint, log."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from tqdm.contrib.logging import logging_redirect_tqdm

from gdrd_jax.data import input_pipeline as feeding
from gdrd_jax.data.input_pipeline import Dataset
from gdrd_jax.data.samplers import Sampler, Uniform
from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.training.checkpoints import Checkpoints
from gdrd_jax.training.metric_writer import Logbook
from gdrd_jax.training.profiling import Trace
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.signals import Interrupted, Signals

# Steps of one dispatch on a GPU. XLA's CPU backend runs convolutions inside a loop 20 to 40 times slower; a step takes
# long there, and its dispatch does not.
CHUNK = 20
MAX_ROWS_IN_ERROR = 16
SHIFT_KEYS = {"lr": 1, "second_lr": 4}  # folded into a step's key; `training.stages` has 2, 3 and 5
OPTIONS = {
    # By default jaxlib 0.10 gives convolutions and products to YNNPACK on the CPU; Eigen does those of the weights'
    # gradients twice as fast (docs/performance.md).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # Only algorithms that give the same bits each time. Which of these is fastest is measured while compiling and kept
    # by the cache of what is compiled, see `distributed.sharding.start`.
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}
LOG = logging.getLogger(__name__)
State = tuple[nnx.State, nnx.State, Any, tuple]  # see `begin`
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a stage is optimized.

    Attributes:
      steps: number of updates.
      batch: faces an update, over all devices.
      learning_rate: after the warm-up.
      warmup: share of the steps over which the rate rises from 0.
      decay: "steps" multiplies the rate by 0.1 at each of `decay_at` (the paper's); "cosine" lets it fall to 0.
      decay_at: shares of the steps.
      momentum: of SGD, or how much of the gradient's average a step of AdamW leaves.
      weight_decay: of every parameter; SGD adds it to the gradient, AdamW takes it from the parameter.
      clip_norm: gradients longer than this are shortened to it. Not in the paper; without it
        the head's ReLUs die in the first steps of stage dis at rates of 0.02 and more.
      optimizer: "sgd", with Nesterov's momentum, or "adamw" (Loshchilov and Hutter, arXiv 1711.05101).
      shift: every face is moved by up to so many pixels of the low resolution, its border repeated.
      ema: what is evaluated and kept is a moving average of the weights, of which a step leaves so much, as soon as
        that makes sense; 0 keeps the weights themselves.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: float
    decay_at: tuple[float, ...]
    momentum: float
    weight_decay: float
    clip_norm: float
    optimizer: str = "sgd"
    shift: int = 0
    decay: str = "steps"
    ema: float = 0.0

    @classmethod
    def of(cls, section: Mapping) -> "Schedule":
        """The schedule in a section of the config, which has other settings too."""
        return cls(**{field.name: section[field.name] for field in dataclasses.fields(cls)})

    def rate(self) -> optax.Schedule:
        """Learning rate by step."""
        warm = max(1, round(self.warmup * self.steps))
        if self.decay == "cosine":
            decayed = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        else:
            at = {round(share * self.steps): 0.1 for share in self.decay_at}
            decayed = optax.piecewise_constant_schedule(self.learning_rate, at)
        # Not `optax.warmup_cosine_decay_schedule`: its cosine begins after the warm-up, this one at the first step.
        return lambda step: decayed(step) * jnp.minimum(1.0, (step + 1) / warm)

    def update(self) -> optax.GradientTransformation:
        """What makes an update of a gradient."""
        if self.optimizer == "adamw":
            steps = [optax.adamw(self.rate(), b1=self.momentum, weight_decay=self.weight_decay)]
        else:
            descent = optax.sgd(self.rate(), momentum=self.momentum, nesterov=True)
            steps = [optax.add_decayed_weights(self.weight_decay), descent]
        return optax.chain(class_parallel.clip_by_global_norm(self.clip_norm), *steps)


def split(stage: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`(graphdef, trainable parameters, everything else)` of a stage in training mode."""
    stage.train()
    for name in stage.frozen:
        getattr(stage, name).eval()
    # The first name of a path alone: a network that a loss owns has a backbone, too.
    return nnx.split(stage, nnx.All(nnx.Param, lambda path, _: path[0] not in stage.frozen), ...)


def make_run(graphdef: nnx.GraphDef, schedule: Schedule, mesh: Mesh, *, seed: int, loop: bool) -> Callable:
    """The jitted function that runs some steps in one dispatch, each batch shared among the devices of `mesh`.

    Args:
      graphdef: of the stage, from `split`.
      schedule: see `Schedule`.
      mesh: see `distributed.sharding.mesh`.
      seed: of the randomness inside a step.
      loop: compile the steps of a dispatch as a loop: then it does not matter to the result, not to the last bit, how
        many they are.

    Returns:
      `run(state, resident, chosen, steps) -> (state, metrics)`: `state` is that of `begin` and is donated;
      `chosen` and `resident` as of `data.input_pipeline` (`{}` for the latter where `chosen` has the contents);
      `steps` int `[K]`; each metric is float32 `[K]`. State, `resident` and metrics are the same on all devices, but
      for what `class_parallel` divides.
    """
    optimizer, shift = schedule.update(), schedule.shift

    def loss_of(params: nnx.State, rest: nnx.State, batch: feeding.Arrays, key: jax.Array) -> tuple:
        stage = nnx.merge(graphdef, params, rest, copy=True)
        loss, metrics = stage.loss(batch, key)
        return loss, (metrics, split(stage)[2])

    def step(resident: feeding.Arrays, state: State, which: tuple) -> tuple[State, Metrics]:
        params, rest, opt_state, averaged = state
        chosen, number = which
        batch = feeding.contents(chosen, partial(_gather, resident)) if resident else chosen
        key = jax.random.fold_in(jax.random.key(seed), number)
        for name, fold in SHIFT_KEYS.items() if shift else ():
            if name in batch:
                batch = {**batch, name: _randomly_shifted(batch[name], jax.random.fold_in(key, fold), shift)}
        # The parameters are the same on all devices, so JAX itself adds up their gradients over the devices.
        (loss, (metrics, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, rest, batch, key)
        update, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, update)
        if averaged:
            share = jnp.maximum(1 - schedule.ema, 9 / (10 + number))
            averaged = jax.tree.map(partial(_towards, share), averaged, (params, rest))
        return (params, rest, opt_state, averaged), {"loss": loss, **metrics}

    def run(state: State, resident: feeding.Arrays, chosen: feeding.Arrays, steps: jax.Array) -> tuple[State, Metrics]:
        if loop:
            return jax.lax.scan(partial(step, resident), state, (chosen, steps))
        several = []  # not `unroll`: a scan of one step is a loop for XLA all the same
        for i in range(len(steps)):
            state, metrics = step(resident, state, ({name: a[i] for name, a in chosen.items()}, steps[i]))
            several.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *several)

    def on_all_devices(
        state: State, resident: feeding.Arrays, chosen: feeding.Arrays, steps: jax.Array
    ) -> tuple[State, Metrics]:
        everywhere, shared = PartitionSpec(), PartitionSpec(None, sharding.AXIS)
        specs = class_parallel.partition_specs(state)
        mapped = jax.shard_map(
            run, mesh=mesh, in_specs=(specs, everywhere, shared, everywhere), out_specs=(specs, everywhere)
        )
        return mapped(state, resident, chosen, steps)

    return jax.jit(on_all_devices, donate_argnums=0, compiler_options=OPTIONS.get(jax.default_backend()))


def _towards(share: jax.Array, average: jax.Array, value: jax.Array) -> jax.Array:
    # Not `optax.incremental_update`: its weighted sum moves even weights that stay the same, those that are frozen, by
    # 1e-5 of their size over 20,000 steps.
    return average + share * (value - average) if jnp.issubdtype(value.dtype, jnp.inexact) else value


def begin(params: nnx.State, rest: nnx.State, schedule: Schedule) -> State:
    """The state before the first step: `(parameters, rest, optimizer state, average of the first two or ())`."""
    averaged = jax.tree.map(jnp.copy, (params, rest)) if schedule.ema else ()
    return params, rest, schedule.update().init(params), averaged


def averaged_or_raw(state: State) -> tuple:
    """`(parameters, rest)` of a state that are evaluated and kept."""
    return state[3] or state[:2]


def _gather(resident: feeding.Arrays, rows: jax.Array, views: jax.Array) -> feeding.Arrays:
    contents = {name: a[rows] if name == "label" else a[rows, views % a.shape[1]] for name, a in resident.items()}
    if "mixup_partner" in contents:
        contents["mixup_small"] = resident["small"][contents["mixup_partner"], 0]
    return contents | {"view": views, "index": rows}


def _randomly_shifted(images: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """Moves each of `[b, R, R, C]` by up to `most` pixels, alike whatever part of the batch these are."""
    by = jax.random.randint(key, (len(images) * sharding.device_count(), 2), 0, 2 * most + 1)
    around = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    cut = jax.vmap(lambda image, by: jax.lax.dynamic_slice(image, (*by, 0), images.shape[1:]))
    return cut(around, sharding.local_shard(by, len(images)))


def fit(
    stage: nnx.Module, dataset: Dataset, schedule: Schedule, directory: Path, *, seed: int, name: str,
    sampler: Sampler | None = None, residency: str = "auto", profile: bool = False,
    evaluate: Callable[[nnx.Module, int], dict[str, float]] | None = None, evaluate_every: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Trains `stage` in place, going on from the last checkpoint in `directory` if there is one.

    Where several processes share the work (`distributed.sharding.start`) each calls it; the first writes all files.

    Args:
      stage: see `gdrd_jax.training.stages`.
      dataset: see `data.input_pipeline`.
      schedule: see `Schedule`.
      directory: for `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `profile/`.
      seed: of batches and loss.
      name: shown before the progress.
      sampler: of the rows of `dataset`; None is uniform.
      residency: where the data are kept, see `data.input_pipeline.choose_residency`.
      profile: trace some steps.
      evaluate: gives metrics of the stage, in evaluation mode, after so many steps and at the end.
      evaluate_every: after how many steps; 0 is only at the end.

    Returns:
      The metrics of the last step, and in the first process what `evaluate` gave at the end.

    Raises:
      GdrdError: the batch does not fit the devices, the loss is no longer finite, or a checkpoint cannot be written.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    mesh = sharding.mesh()
    check_batch(schedule.batch, name)
    LOG.info("%s: %d faces a step on %d %s device(s)", name, schedule.batch, mesh.size, jax.default_backend())
    first = jax.process_index() == 0
    on_device = feeding.choose_residency(dataset, residency, mesh, name) == "device"
    resident = feeding.load_on_device(dataset, mesh) if on_device else {}
    graphdef, params, rest = split(stage)
    run = make_run(graphdef, schedule, mesh, seed=seed, loop=not _on_cpu())

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints")) if first else None
        saved = jax.device_get(begin(params, rest, schedule))
        done = 0
        record: dict[str, Any] = {"last": {}, "pending": []}
        if checkpoints:
            saved, done, record = checkpoints.restore(saved, record)
        saved, done = sharding.broadcast_from_first((saved, np.int32(done)))
        done = int(done)
        if done:
            LOG.info("%s: goes on after step %d of %d", name, done, schedule.steps)
        state, host = class_parallel.to_devices(saved, mesh), saved
        log = None
        if first:
            stack.enter_context(logging_redirect_tqdm())  # a message has a line of its own
            log = stack.enter_context(Logbook(directory, name, schedule.steps, schedule.batch, done, record["pending"]))
        last = record["last"]
        trace = Trace(directory / "profile" if profile and first else None)
        stack.callback(trace.stop)

        def flush_metrics(steps: range, rows: np.ndarray, metrics: dict[str, jax.Array]) -> dict[str, float]:
            """Waits for some steps, and records and returns their metrics."""
            metrics = {key: np.asarray(value) for key, value in metrics.items()}
            _require_finite(metrics["loss"], steps, rows, name)
            if log:
                log.add(steps, metrics)
            return {key: float(value[-1]) for key, value in metrics.items()}

        dispatches = _dispatches(done, schedule.steps)
        sampler = sampler or Uniform(Uniform.Config(), dataset.labels, dataset.views)
        fed = feeding.batches(dataset, dispatches, mesh, sampler, on_device=on_device, seed=seed, batch=schedule.batch)
        if dispatches:
            LOG.info("%s: compiling, about a minute; progress is shown after it", name)
        before, stop, agreed, asked = None, 0, sharding.DelayedMax(), False
        for steps, rows, chosen in fed:
            state, metrics = run(state, resident, chosen, np.arange(steps.start, steps.stop))
            trace.dispatched(metrics)
            if before:  # looked at while the device is busy with the next
                last = flush_metrics(*before)
            before, done = (steps, rows, metrics), steps.stop
            # All processes save at the same step, for which each of them is needed.
            asked = bool(checkpoints and not asked and checkpoints.due())
            stop, due = divmod(agreed(2 * signals.received + asked), 2)
            asked = asked and not due
            finished = done == schedule.steps
            passed = evaluate_every and done // evaluate_every > steps.start // evaluate_every
            evaluating = evaluate and (finished or passed)
            if not (finished or stop or evaluating or due):
                continue
            last, before = flush_metrics(*before), None
            host = class_parallel.to_host(state)
            if log and checkpoints:
                if finished:
                    log.finish_line(done)
                if evaluate and evaluating:
                    nnx.update(stage, *averaged_or_raw(host))
                    stage.eval()
                    if found := evaluate(stage, done):
                        log.write(done, found)
                        LOG.info("%s: step %d: %s", name, done, ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
                        last |= found if finished else {}
                    split(stage)
                checkpoints.save(done, host, {"last": last, "pending": list(log.pending)})  # written later
            if stop:
                break
        if before:
            last = flush_metrics(*before)
    # After the save: the first process to leave would end the others. A signal may also have come meanwhile.
    stop = sharding.max_over_processes(max(stop, signals.received))
    if stop:
        raise Interrupted(f"{name} at step {done} of {schedule.steps}", stop)
    nnx.update(stage, *averaged_or_raw(host))
    return last


def check_batch(batch: int, name: str) -> None:
    """Raises a `GdrdError` where not every device would have as many faces of a batch of the stage `name`."""
    if batch % jax.device_count():
        raise GdrdError(
            f"batch {batch} of {name} cannot be divided over {jax.device_count()} devices; choose a multiple of "
            f"{jax.device_count()}",
            "batch-not-divisible",
        )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _dispatches(done: int, steps: int) -> list[range]:
    """The steps that are left. They begin at multiples of the same number, so that what is compiled, and its result,
    does not depend on where a run was stopped."""
    size = 1 if _on_cpu() else CHUNK
    bounds = [done, *range(done - done % size + size, steps, size), steps]
    return [range(start, stop) for start, stop in zip(bounds, bounds[1:]) if start < stop]


def _require_finite(losses: np.ndarray, steps: range, rows: np.ndarray, name: str) -> None:
    if np.isfinite(losses).all():
        return
    at = int(np.argmin(np.isfinite(losses)))
    faces = ", ".join(map(str, rows[at][:MAX_ROWS_IN_ERROR])) + (" ..." if len(rows[at]) > MAX_ROWS_IN_ERROR else "")
    raise GdrdError(
        f"the loss of {name} is {losses[at]} at step {steps[at]} (faces {faces}); lower its learning_rate, or check "
        "these faces and their targets",
        "loss-not-finite",
    )

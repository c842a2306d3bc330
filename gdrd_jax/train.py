"""One loop for both stages: state, step, checkpoint, log."""

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from gdrd_jax.checkpoints import Checkpoints
from gdrd_jax.data.loader import batch_rows
from gdrd_jax.errors import GdrdError
from gdrd_jax.interrupt import Interrupted, Signals

# Steps of one dispatch. Chunks begin at its multiples whatever the number of steps, so
# a resumed run executes the same compiled programs as an uninterrupted one.
CHUNK = 20
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a stage is optimised: SGD with momentum, the rate decayed by 0.1 (the paper's).

    Attributes:
      steps: number of updates.
      batch: faces an update, over all devices.
      learning_rate: after the warm-up.
      warmup: share of the steps over which the rate rises from 0.
      decay_at: shares of the steps at which it is multiplied by 0.1.
      momentum, weight_decay: of SGD; the decay is added to the gradient of every parameter.
      clip_norm: gradients longer than this are shortened to it. Not in the paper; without it
        the head's ReLUs die in the first steps of stage dis at rates of 0.02 and more.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: float
    decay_at: tuple[float, ...]
    momentum: float
    weight_decay: float
    clip_norm: float

    def rate(self) -> optax.Schedule:
        """Learning rate by step."""
        warm = max(1, round(self.warmup * self.steps))
        decayed = optax.piecewise_constant_schedule(
            self.learning_rate, {round(share * self.steps): 0.1 for share in self.decay_at}
        )
        return lambda step: decayed(step) * jnp.minimum(1.0, (step + 1) / warm)

    def optimiser(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.rate(), momentum=self.momentum, nesterov=True),
        )


def split(stage: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`(graphdef, trainable parameters, everything else)` of a stage in training mode."""
    stage.train()
    for name in stage.frozen:
        getattr(stage, name).eval()
    frozen = nnx.Any(*(nnx.PathContains(name) for name in stage.frozen)) if stage.frozen else nnx.Nothing()
    return nnx.split(stage, nnx.All(nnx.Param, nnx.Not(frozen)), ...)


def make_run_chunk(graphdef: nnx.GraphDef, optimiser: optax.GradientTransformation, seed: int, batches) -> Callable:
    """The jitted function that runs some steps in one dispatch.

    Args:
      graphdef: of the stage, from `split`.
      optimiser: of its parameters.
      seed: of the randomness inside the loss.
      batches: sharding of a batch.

    Returns:
      `run(state, data, rows, views, steps) -> (state, metrics)`: `state` is
      `(parameters, rest, optimiser state)` and is donated; `data` maps names to arrays
      `[N, ...]` (`label`) or `[N, V, ...]`; `rows`, `views` are int `[K, B]`, `steps`
      int `[K]`; each metric is float32 `[K]`.
    """

    def loss_of(params, rest, batch, key):
        stage = nnx.merge(graphdef, params, rest, copy=True)
        loss, metrics = stage.loss(batch, key)
        return loss, (metrics, split(stage)[2])

    def step(data, state, which):
        params, rest, opt_state = state
        rows, views, number = which
        batch = {name: a[rows] if name == "label" else a[rows, views] for name, a in data.items()}
        batch = jax.lax.with_sharding_constraint(batch, batches)
        key = jax.random.fold_in(jax.random.key(seed), number)
        (loss, (metrics, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, rest, batch, key)
        update, opt_state = optimiser.update(gradient, opt_state, params)
        return (optax.apply_updates(params, update), rest, opt_state), {"loss": loss, **metrics}

    @partial(jax.jit, donate_argnums=0)
    def scanned(state, data, rows, views, steps):
        return jax.lax.scan(partial(step, data), state, (rows, views, steps))

    one = jax.jit(lambda state, data, which: step(data, state, which), donate_argnums=0)

    def looped(state, data, rows, views, steps):
        metrics = []
        for which in zip(rows, views, steps):
            state, of_step = one(state, data, which)
            metrics.append(of_step)
        return state, jax.tree.map(lambda *values: np.stack(values), *metrics)

    # XLA's CPU backend runs convolutions inside a while loop 20 to 40 times slower.
    return looped if jax.default_backend() == "cpu" else scanned


def fit(
    stage: nnx.Module, data: dict[str, np.ndarray], schedule: Schedule, directory: Path, *, seed: int, name: str
) -> dict[str, float]:
    """Trains `stage` in place, going on from the last checkpoint in `directory` if there is one.

    Args:
      stage: see `gdrd_jax.stages`.
      data: `label` int `[N]` and arrays `[N, V, ...]`; kept on the devices.
      schedule: see `Schedule`.
      directory: for `checkpoints/` and `metrics.jsonl`.
      seed: of batches and loss.
      name: shown beside the progress bar.

    Returns:
      The metrics of the last step.

    Raises:
      GdrdError: the batch does not fit the devices, or the loss is no longer finite.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if schedule.batch % mesh.size:
        raise GdrdError(f"batch {schedule.batch} of {name} cannot be divided over {mesh.size} devices")
    LOG.info("%s: %d faces a step on %d %s device(s)", name, schedule.batch, mesh.size, jax.default_backend())
    everywhere = NamedSharding(mesh, PartitionSpec())
    optimiser = schedule.optimiser()
    graphdef, params, rest = split(stage)
    state = jax.device_put((params, rest, optimiser.init(params)), everywhere)
    run_chunk = make_run_chunk(graphdef, optimiser, seed, NamedSharding(mesh, PartitionSpec("data")))
    faces, views = len(data["label"]), next(a.shape[1] for a in data.values() if a.ndim > 1)
    data = jax.device_put(data, everywhere)

    checkpoints = Checkpoints(directory / "checkpoints")
    state, done, last = checkpoints.restore(state)
    log = _Log(directory / "metrics.jsonl", done)
    progress = tqdm(total=schedule.steps, initial=done, desc=name, unit="step")
    with Signals() as signals, checkpoints, log, progress:
        while done < schedule.steps:
            steps = range(done, min(done + CHUNK, schedule.steps))
            rows, chosen_views = batch_rows(seed, steps, schedule.batch, faces, views)
            state, metrics = run_chunk(state, data, rows, chosen_views, np.array(steps))
            metrics = {key: np.asarray(value) for key, value in metrics.items()}
            _require_finite(metrics["loss"], steps, rows, name)
            done = steps.stop
            last = {key: float(value[-1]) for key, value in metrics.items()}
            log.write(done, {key: float(value.mean()) for key, value in metrics.items()})
            progress.update(len(steps))
            progress.set_postfix({key: f"{value:.3f}" for key, value in last.items()})
            if done == schedule.steps or signals.received or checkpoints.due():
                checkpoints.save(done, state, last)
            if signals.received:
                raise Interrupted(f"{name} at step {done} of {schedule.steps}", signals.received)
    nnx.update(stage, *state[:2])
    return last


def _require_finite(losses: np.ndarray, steps: range, rows: np.ndarray, name: str) -> None:
    if np.isfinite(losses).all():
        return
    at = int(np.argmin(np.isfinite(losses)))
    raise GdrdError(
        f"the loss of {name} is {losses[at]} at step {steps[at]} (faces {rows[at].tolist()}); "
        "lower its learning_rate or look at these faces and their targets"
    )


class _Log:
    """`metrics.jsonl`, one line a chunk; lines after the step resumed from are dropped."""

    def __init__(self, path: Path, done: int):
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= done]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends the means over the chunk that ends before `step`."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

"""How fast both stages train, beside the same in PyTorch, and how that grows with data and devices.

  gdrd benchmark train --width 1.0 --batch 96 --out runs/benchmark.json
  gdrd benchmark train --width 1.0 --batch 96 1024 --precision bfloat16 --compile      # on a GPU
  XLA_FLAGS=--xla_force_host_platform_device_count=4 gdrd benchmark train --sweep --width 0.0625

The contenders take turns, in one process, on the same synthetic faces in the device's memory; the share is of what a
large matrix product reaches there in the same precision. That both compute the same is checked first: the losses of
three steps from the same weights.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax import config as settings
from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.data.loader import batch_rows
from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses import DataInfo, relational
from gdrd_jax.models.student import make_student
from gdrd_jax.training import trainer
from gdrd_jax.training.stages import Stage
from gdrd_jax.utils import outputs
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import user_path, write_text
from gdrd_jax.utils.tables import text_table

RESOLUTION, IDENTITIES, DIM, SEED = 16, 1000, 512, 7
CHECKED = 3  # steps whose losses are compared
SIZES = 21_000, 100_000, 500_000, 5_000_000
SECONDS = 1.0  # the least that one measurement takes


def synthetic(stage: str, faces: int, width: float, views: int = 2) -> dict[str, np.ndarray]:
    """Random pixels and targets of a stage."""
    rng = np.random.default_rng(0)
    shape = (max(8, round(512 * width)), 4, 4) if stage == "gen" else (DIM,)
    few = {
        "lr": rng.integers(256, size=(1024, views, RESOLUTION, RESOLUTION, 3), dtype=np.uint8),
        "generative" if stage == "gen" else "discriminative": np.float16(rng.normal(size=(1024, views, *shape))),
    }
    repeated = {name: np.resize(values, (faces, *values.shape[1:])) for name, values in few.items()}
    return {"label": np.int32(rng.integers(IDENTITIES, size=faces)), **repeated}


def make_stage(stage: str, width: float, precision: str):
    """The stage with seeded weights and the paper's settings."""
    student = make_student(
        resolution=RESOLUTION, width=width, hidden=(512,), embedding_dim=DIM, dtype=precision, rngs=nnx.Rngs(0)
    )
    if stage == "gen":
        channels = max(8, round(512 * width))
        mean, std = np.zeros((channels, 1, 1), np.float32), np.ones(channels, np.float32)
        info = DataInfo(
            feature_shape=(4, 4, channels), target_shape=(channels, 4, 4), target_statistics=lambda: (mean, std)
        )
        return Stage(student, {"feature_regression": {}}, info, rngs=nnx.Rngs(1))
    centers = np.random.default_rng(1).normal(size=(IDENTITIES, DIM)).astype(np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    info = DataInfo(IDENTITIES, IDENTITIES, DIM, centers)
    return Stage(student, settings.PAPER_LOSSES, info, frozen=("backbone",), rngs=nnx.Rngs(1))


def schedule(stage: str) -> trainer.Schedule:
    """The paper's."""
    return trainer.Schedule.of(settings.paper()[stage])


class Training:
    """Training on data in the devices' memory; a call trains so many dispatches.

    Args:
      stage: see `gdrd_jax.training.stages`.
      data: arrays `[N]` or `[N, views, ...]`, as the stage's batches have them.
      plan: see `training.trainer.Schedule`.
      devices: how many share a batch.
      together: steps of a dispatch; 0 is what `training.trainer.fit` takes.
    """

    def __init__(self, stage: nnx.Module, data: dict, plan: trainer.Schedule, devices: int = 1, together: int = 0):
        on_cpu = jax.default_backend() == "cpu"
        mesh = jax.make_mesh((devices,), (sharding.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
        self.graphdef, params, rest = trainer.split(stage)
        self.plan, self.batch, self.done = plan, plan.batch, 0
        self.together = together or (1 if on_cpu else trainer.CHUNK)
        self.run = trainer.make_run(self.graphdef, plan, mesh, seed=SEED, loop=not on_cpu)
        self.mesh, self.state = mesh, class_parallel.to_devices(trainer.begin(params, rest, plan), mesh)
        self.data = jax.device_put(data, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        self.views = max(a.shape[1] for name, a in data.items() if name != "label")

    def compile(self) -> "Training":
        """Compiles ahead of the first call."""
        self.run = self.run.lower(self.state, self.data, *_nothing_chosen(self.together, self.batch)).compile()
        return self

    def __call__(self, dispatches: int) -> np.ndarray:
        """Losses of all steps."""
        found = []
        for _ in range(dispatches):
            steps = range(self.done, self.done + self.together)
            rows, views = batch_rows(SEED, steps, self.batch, len(self.data["label"]), self.views)
            numbers = np.arange(steps.start, steps.stop, dtype=np.int32)
            self.state, metrics = self.run(self.state, self.data, {"rows": rows, "views": views}, numbers)
            found.append(metrics["loss"])
            self.done = steps.stop
        jax.block_until_ready(self.state)
        return np.concatenate([np.asarray(losses) for losses in found])

    def rates(self, seconds: float, repeats: int) -> list[float]:
        """Images a second, several times."""
        self(1)
        count = max(1, round(seconds / max(timed(lambda: self(1)), 1e-4)))
        images = count * self.together * self.batch
        return [images / timed(lambda: self(count)) for _ in range(repeats)]

    def to_host_and_back(self) -> None:
        """Takes the state to the host's memory, as a checkpoint does."""
        self.state = class_parallel.to_devices(class_parallel.to_host(self.state), self.mesh)

    def flops(self) -> float:
        """Floating point operations an image, as XLA counts them before it optimizes."""
        # Lowered for a CPU, because the plugins of GPUs do not count.
        mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), sharding.AXIS)
        run = trainer.make_run(self.graphdef, self.plan, mesh, seed=SEED, loop=False)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self.state, self.data))
        return run.lower(*shapes, *_nothing_chosen(1, self.batch)).cost_analysis()["flops"] / self.batch


def _nothing_chosen(steps: int, batch: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arguments of a dispatch, for compiling."""
    zeros = np.zeros((steps, batch), np.int32)
    return {"rows": zeros, "views": zeros}, np.zeros(steps, np.int32)


def ours(stage: str, data: dict, args, batch: int, devices: int = 1, together: int = 0) -> Training:
    """The paper's training of a stage."""
    plan = dataclasses.replace(schedule(stage), batch=batch)
    return Training(make_stage(stage, args.width, args.precision), data, plan, devices, together)


class Theirs:
    """The same in PyTorch, from the same weights."""

    together = 1

    def __init__(self, stage: str, data: dict, args, batch: int, compiled: bool):
        from gdrd_jax.teachers import torch_student

        self.torch = torch = torch_student.torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        ours = make_stage(stage, args.width, args.precision)
        if stage == "gen":
            module = torch_student.Gen(
                args.width, RESOLUTION, *map(np.array, ours.criteria["feature_regression"].statistics())
            )
        else:
            centers = np.array(ours.criteria["kd"].centers[...])
            module = torch_student.Dis(args.width, RESOLUTION, centers, settings.PAPER_LOSSES)
        torch_student.load(module, ours)
        module.to(self.device, memory_format=torch.channels_last)
        self.plan = schedule(stage)
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.weights,
            self.plan.learning_rate,
            self.plan.momentum,
            weight_decay=self.plan.weight_decay,
            nesterov=True,
        )
        self.loss = torch.compile(module, mode="reduce-overhead") if compiled else module
        self.data = {name: torch.tensor(values).to(self.device) for name, values in data.items()}
        self.data["label"] = self.data["label"].long()
        self.target = next(name for name in self.data if name not in ("lr", "label"))
        self.bfloat16, self.batch, self.done = args.precision == "bfloat16", batch, 0

    def __call__(self, steps: int, picks: list | None = None) -> list[float]:
        torch, found = self.torch, []
        for number in range(self.done, self.done + steps):
            chosen = batch_rows(
                SEED, range(number, number + 1), self.batch, len(self.data["label"]), self.data["lr"].shape[1]
            )
            rows, views = (torch.tensor(a[0]).to(self.device).long() for a in chosen)
            if picks is None:  # simpler than ours, which has to do for identities too
                others = torch.randint(1, self.batch, (self.batch, self.batch), device=self.device)
                negatives = (torch.arange(self.batch, device=self.device) + others) % self.batch
            else:
                negatives = torch.tensor(picks[number]).to(self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.learning_rate * min(
                    1.0, (number + 1) / max(1, round(self.plan.warmup * self.plan.steps))
                )
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
                loss = self.loss(
                    self.data["lr"][rows, views],
                    self.data[self.target][rows, views],
                    self.data["label"][rows],
                    negatives,
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, self.plan.clip_norm)
            self.optimizer.step()
            found.append(loss.detach().clone())
        self.done += steps
        return [float(loss) for loss in found]  # waits for the device


def check_same(stage: str, data: dict, args, batch: int) -> float:
    """Largest relative difference between the losses of our first steps and PyTorch's.

    Raises:
      GdrdError: they do not compute the same.
    """
    args = argparse.Namespace(**{**vars(args), "precision": "float32"})
    allowed = ~np.eye(batch, dtype=bool)
    keys = [jax.random.fold_in(jax.random.key(SEED), step) for step in range(CHECKED)]
    picks = [np.array(relational.pick(key, allowed, 0, batch)) for key in keys]
    mine = ours(stage, data, args, batch, together=1)(CHECKED)
    other = Theirs(stage, data, args, batch, compiled=False)(CHECKED, picks)
    difference = float(np.max(np.abs(mine / np.array(other) - 1)))
    if not difference < 1e-3:
        raise GdrdError(f"stage {stage}: our losses {mine.tolist()} are not PyTorch's {other}", "losses-differ")
    return difference


def peak(precision: str) -> float:
    """Floating point operations a second of a large matrix product, the best of ten."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), precision)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    return 2 * size**3 / min(timed(lambda: jax.block_until_ready(product(a))) for _ in range(10))


def timed(work) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def race(stage: str, args, batch: int) -> list[dict]:
    """One row a contender."""
    data = synthetic(stage, args.faces, args.width)
    entries = {"gdrd_jax": ours(stage, data, args, batch)}
    flops = entries["gdrd_jax"].flops()
    row = {"stage": stage, "width": args.width, "batch": batch, "precision": args.precision}
    if not args.alone:
        row["loss_difference"] = check_same(stage, data, args, batch)
        entries["PyTorch eager"] = Theirs(stage, data, args, batch, compiled=False)
        if args.compile:
            entries["PyTorch compile"] = Theirs(stage, data, args, batch, compiled=True)
    counts = {}
    for name, contender in entries.items():
        contender(3)  # compiles
        counts[name] = max(1, round(SECONDS / max(timed(lambda: contender(1)), 1e-4)))
    rates, peaks = {name: [] for name in entries}, []
    for _ in range(args.repeats):
        peaks.append(peak(args.precision))
        for name, contender in entries.items():
            images = counts[name] * contender.together * batch
            rates[name].append(images / timed(lambda: contender(counts[name])))
    best, rows = statistics.median(peaks), []
    for name, found in rates.items():
        middle = statistics.median(found)
        ratios = [mine / other for mine, other in zip(rates["gdrd_jax"], found)]
        rows.append({
            **row, "contender": name, "images_per_second": middle, "lowest": min(found), "highest": max(found),
            "share_of_peak": flops * middle / best,
            "ours_is_faster_by": statistics.median(ratios) if len(rates) > 1 else "",
            "gflops_an_image": flops / 1e9, "peak_gflops": best / 1e9,
        })  # fmt: skip
    return rows


def sweep(args, batch: int) -> list[dict]:
    """Stage dis over sizes of the data set and numbers of devices: one row each."""
    rows = []
    counts = [n for n in (1, 2, 4, 8, 16) if n <= jax.device_count() and batch % n == 0]
    for faces in SIZES:
        data = synthetic("dis", faces, args.width, views=1)
        for devices in counts:
            size = sum(a.nbytes for a in data.values()) / 2**30
            row = {"faces": faces, "devices": devices, "batch": batch, "width": args.width, "gib": size}
            if size * (devices + 1 if jax.default_backend() == "cpu" else 1) > args.gib:
                rows.append({**row, "skipped": f"needs more than {args.gib} GiB"})
                continue
            start = time.perf_counter()
            training = ours("dis", data, args, batch, devices)
            training(1)
            ready, found = time.perf_counter() - start, training.rates(SECONDS, args.repeats)
            rows.append({
                **row, "images_per_second": statistics.median(found), "lowest": min(found), "highest": max(found),
                "seconds_to_first_step": ready, "epoch_seconds": faces / statistics.median(found),
            })  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Aligned text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return text_table([names, *([_cell(row.get(name, "")) for name in names] for row in rows)])


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--stage", nargs="+", choices=("gen", "dis"), default=("gen", "dis"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, nargs="+", default=(96,), help="faces a step, of all devices together")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--faces", type=int, default=4096, help="size of the data set")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too (CUDA graphs on a GPU)")
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument("--sweep", action="store_true", help="sizes of the data set and numbers of devices instead")
    parser.add_argument("--gib", type=float, default=12.0, help="the most memory that a sweep may take")
    parser.add_argument("--out", type=user_path, help="a JSON file for the rows, too")
    return parser.parse_args(argv)


def work(args: argparse.Namespace) -> None:
    """Measures, and prints the rows as they come."""
    if not (args.alone or args.sweep):
        require("torch", "teachers")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        outputs.claim_file(args.out, outputs.is_report, "--out")
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{device}; {' '.join(sys.argv)}", flush=True)
    rows = []
    for batch in args.batch:
        rows += sweep(args, batch) if args.sweep else [row for stage in args.stage for row in race(stage, args, batch)]
        print(table(rows), flush=True)
        if args.out:
            write_text(args.out, json.dumps({"device": device, "command": sys.argv, "rows": rows}, indent=1))

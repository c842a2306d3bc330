"""Everything worth knowing about an accelerator, in a given time, most important first; then trains students on it.

  gdrd benchmark accelerator --minutes 9 --out results --packed a.packed b.packed
  gdrd benchmark accelerator --rehearse --out results                    # the same at tiny sizes, on a CPU

Writes OUT/results.json and OUT/results.txt after each part, whatever happens in the next one:

  device      what it is; a large matrix product, a large copy
  training    robust training as configs/accelerator.py does it, by width, batch and precision: time to the first step,
              images a second, share of the matrix product's rate, seconds for 494,414 faces, memory
  trace       a profile of some steps: share of the time the device is at work, and on which kernels
  resume      whether a state that was taken to the host and back goes on with the same bits
  inference   jitted embeddings of 1 and 1,024 faces; ONNX Runtime where it is installed
  host        what is gained by more steps a dispatch: how long the device waits for the host
  pytorch     stage gen and stage dis of the paper beside PyTorch, see gdrd benchmark train
  students    with --packed, in the time that is left: OUT/NAME, for gdrd export; progress is saved in --workdir

--only takes names of parts. Data, weights and time of each part are printed as they come. `--train NAME:STEPS` trains
for so many steps instead of measuring how many there is time for.
"""

import argparse
import dataclasses
import json
import runpy
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.benchmarks import train as benchmark_train
from gdrd_jax.benchmarks.train import Training, peak, table, timed
from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.cli.train import CONFIGS
from gdrd_jax.config import of_workdir, without_folders
from gdrd_jax.distributed import sharding
from gdrd_jax.export import networks
from gdrd_jax.inference import bundle
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.models import weights
from gdrd_jax.models.student import embed, make_student
from gdrd_jax.pipeline import runner
from gdrd_jax.pipeline.train_stages import make_dis
from gdrd_jax.training import trainer
from gdrd_jax.training.profiling import busy_share, kernel_seconds
from gdrd_jax.utils.errors import first_line
from gdrd_jax.utils.files import user_path, write_json, write_text
from gdrd_jax.utils.launch import SINGLE_PROCESS
from gdrd_jax.utils.outputs import claim_folder

WEBFACE = 494_414  # faces of the paper's training set
DIM, SEED = 512, 7
REPEATS = 5
PARTS = ("device", "training", "trace", "resume", "inference", "host", "pytorch", "students")
COMPILING = 8  # programs at the same time
KERNELS = 15  # the most expensive ones, of a trace
RESERVED = 45.0  # seconds for compiling and saving a student


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: `cases` of width, batch and precision, the most telling first."""

    faces: int
    cases: tuple[tuple[float, int, str], ...]
    pytorch: tuple[tuple[float, int, str], ...]
    seconds: float


REAL = Sizes(
    60_000,
    tuple((w, b, "bfloat16") for b in (1024, 4096, 96) for w in (0.5, 1.0)) + ((1.0, 1024, "float32"),),
    ((1.0, 1024, "bfloat16"), (1.0, 96, "bfloat16"), (0.5, 1024, "bfloat16"), (1.0, 4096, "bfloat16"),
     (1.0, 1024, "float32")),
    2.0,
)  # fmt: skip
SMALL = Sizes(256, ((0.0625, 16, "float32"),), ((0.0625, 16, "float32"),), 0.2)


def _config(student: str):
    """Settings of configs/accelerator.py."""
    return runpy.run_path(str(CONFIGS / "accelerator.py"))["get_config"](student)


def robust_training(resolution: int, width: float, batch: int, precision: str, faces: int, together: int = 0):
    """Training of a student as configs/accelerator.py does it, on synthetic faces."""
    config = _config("gdrd-16")
    config.views.resolution, config.student.width = resolution, width
    config.dis.batch = batch
    rng = np.random.default_rng(0)
    few = rng.integers(256, size=(1024, 1, 3 * resolution, 3 * resolution, 3), dtype=np.uint8)
    data = {
        "label": np.full(faces, -1, np.int32), "small": np.resize(few, (faces, *few.shape[1:])),
        "discriminative": np.float16(np.resize(rng.normal(size=(1024, 1, DIM)), (faces, 1, DIM))),
    }  # fmt: skip
    student = make_student(
        resolution=resolution, width=width, hidden=(), embedding_dim=DIM, dtype=precision, rngs=nnx.Rngs(SEED)
    )
    stage = make_dis(config, student, 1, faces, DIM, centers=np.zeros((1, DIM), np.float32))
    return Training(stage, data, trainer.Schedule.of(config.dis), jax.device_count(), together)


def compiled(trainings: list[Training]) -> list[Training]:
    """Compiles several at the same time."""
    with ThreadPoolExecutor(COMPILING) as pool:
        return [*pool.map(Training.compile, trainings)]


def device(sizes: Sizes, finish: float) -> list[dict]:
    """Matrix product and copy."""
    big = jnp.ones((16 if sizes is SMALL else 512) * 2**20, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(big))
    seconds = min(timed(lambda: jax.block_until_ready(copy(big))) for _ in range(10))
    kinds = {kind: peak(kind) / 1e12 for kind in ("bfloat16", "float32")}
    return [{
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__,
        "python": sys.version.split()[0], **{f"matmul_{kind}_tflops": value for kind, value in kinds.items()},
        "copy_gb_per_s": 2 * big.nbytes / seconds / 1e9,
    }]  # fmt: skip


def training(sizes: Sizes, finish: float):
    """One row a case."""
    cases = [(16, *case) for case in sizes.cases[:2]] + [(8, *case) for case in sizes.cases[:2]]
    cases += [(16, *case) for case in sizes.cases[2:]]
    start = time.perf_counter()
    first = robust_training(*cases[0], sizes.faces).compile()
    first(1)
    seconds = time.perf_counter() - start  # the others are compiled at the same time, which would tell nothing
    peaks = {precision: peak(precision) for *_, precision in cases}
    yield _training_row(cases[0], first, sizes, peaks) | {"seconds_to_first_step": seconds}
    if time.monotonic() < finish:
        others = compiled([robust_training(*case, sizes.faces) for case in cases[1:]])
        for case, one in zip(cases[1:], others):
            if time.monotonic() < finish:
                yield _training_row(case, one, sizes, peaks)


def _training_row(case: tuple, one: Training, sizes: Sizes, peaks: dict[str, float]) -> dict:
    rates, flops = one.rates(sizes.seconds, REPEATS), one.flops()
    middle = statistics.median(rates)
    return {
        **dict(zip(("pixels", "width", "batch", "precision"), case)),
        "images_per_s": middle, "lowest": min(rates), "highest": max(rates),
        "share_of_matmul": flops * middle / peaks[case[-1]], "gflops_an_image": flops / 1e9,
        "seconds_for_webface": WEBFACE / middle,
    }  # fmt: skip


def trace(sizes: Sizes, finish: float):
    """Where the time of a dispatch goes, by kernel; with several devices, all of theirs together."""
    for width in dict.fromkeys(width for width, _, _ in sizes.cases):
        training = robust_training(16, width, *sizes.cases[0][1:], sizes.faces).compile()
        training(2)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                training(1)
            busy = busy_share(Path(folder))
            if not busy:
                yield {"skipped": "the profile has nothing of the device"}
                return
            kernels = kernel_seconds(Path(folder))
        whole = sum(kernels.values())
        yield {"width": width, "kernel": "all", "device_busy": busy[0], "ms_a_step": 1000 * whole / training.together}
        for name, seconds in sorted(kernels.items(), key=lambda item: -item[1])[:KERNELS]:
            yield {"width": width, "kernel": name, "share": seconds / whole}


def host(sizes: Sizes, finish: float):
    """Rates by the number of steps a dispatch."""
    numbers = (1, trainer.CHUNK, 5 * trainer.CHUNK) if sizes is REAL else (1,)
    for training in compiled([robust_training(16, *sizes.cases[0], sizes.faces, together) for together in numbers]):
        rates = training.rates(sizes.seconds, REPEATS)
        yield {"steps_a_dispatch": training.together, "images_per_s": statistics.median(rates)}


def resume(sizes: Sizes, finish: float):
    """Bits of two dispatches, with and without the way over the host between them."""
    width, batch, precision = sizes.cases[0]
    states = []
    for over_host in (False, True):
        training = robust_training(16, width, batch, precision, sizes.faces)
        training(1)
        if over_host:
            training.to_host_and_back()
        training(1)
        states.append(jax.tree.leaves(jax.device_get(training.state)))
    same = all(np.array_equal(a, b) for a, b in zip(*states))
    yield {"steps": 2 * training.together, "same_bits": same}


def inference(sizes: Sizes, finish: float):
    """Faces a second of the jitted student, and of ONNX Runtime."""
    runtime = util.find_spec("onnxruntime") and util.find_spec("onnx")
    for width in dict.fromkeys(width for width, _, _ in sizes.cases):
        student = make_student(resolution=16, width=width, hidden=(), embedding_dim=DIM, rngs=nnx.Rngs(SEED))
        student.eval()
        graphdef, state = nnx.split(student)
        function = jax.jit(lambda state, faces, graphdef=graphdef: embed(nnx.merge(graphdef, state), faces))
        forms = {"jax": lambda faces, state=state, function=function: jax.block_until_ready(function(state, faces))}
        if runtime:
            import onnxruntime

            model = networks.onnx_model(student, layout="nhwc", metadata={})
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            forms["onnxruntime, CPU"] = lambda faces, session=session: session.run(None, {"faces": faces})
        for name, form in forms.items():
            for batch in (1, 1024 if sizes is REAL else 16):
                faces = np.random.default_rng(0).integers(256, size=(batch, 16, 16, 3), dtype=np.uint8)
                form(faces)
                repeats = 3 if batch > 1 and name != "jax" else 20
                seconds = statistics.median(timed(lambda: form(faces)) for _ in range(repeats))
                yield {
                    "form": name, "width": width, "batch": batch, "ms": 1000 * seconds, "faces_per_s": batch / seconds,
                }  # fmt: skip


def pytorch(sizes: Sizes, finish: float):
    """The races of gdrd benchmark train."""
    if not util.find_spec("torch"):
        yield {"skipped": "torch is not installed"}
        return
    for width, batch, precision in sizes.pytorch:
        args = argparse.Namespace(
            width=width, precision=precision, repeats=3 if sizes is REAL else 1, faces=4096 if sizes is REAL else 256,
            compile=sizes is REAL, alone=False,
        )  # fmt: skip
        for stage in ("dis", "gen"):
            if time.monotonic() > finish:
                return
            yield from benchmark_train.race(stage, args, batch)


def students(given: argparse.Namespace, finish: float):
    """Trains the students in the time that is left, each a share of it."""
    names = list(given.train)
    for number, (name, steps) in enumerate(names):
        left = (finish - time.monotonic()) / (len(names) - number) - RESERVED * (not given.rehearse)
        config = _config(name)
        if given.rehearse:
            config.student.width, config.dis.batch = 0.0625, 16
        if not steps:
            steps = _affordable(config, left)
            if steps < trainer.CHUNK:
                yield {"student": name, "skipped": f"{left:.0f} seconds are too few"}
                continue
        config.dis.steps = 20 if given.rehearse else steps
        config.data.packed = ",".join(map(str, given.packed))
        workdir, start = given.workdir / name, time.monotonic()
        runner.run(config, workdir)
        save_student(workdir, given.out / name)
        yield {
            "student": name, "steps": config.dis.steps, "batch": config.dis.batch, "seconds": time.monotonic() - start,
            **json.loads((workdir / "dis" / "metrics.json").read_text(encoding="utf-8")),
        }  # fmt: skip


def _affordable(config, seconds: float) -> int:
    """How many steps there is time for."""
    case = config.views.resolution, config.student.width, config.dis.batch, config.student.dtype
    rate = min(robust_training(*case, 4096).rates(0.5, 3))
    return int(seconds * rate / config.dis.batch) // trainer.CHUNK * trainer.CHUNK


def save_student(workdir: Path, folder: Path) -> None:
    """Writes weights in float16 and a manifest without thresholds: what gdrd export takes."""
    recognizer = Recognizer.load(workdir)
    description = describe_student(find_student(workdir))
    weights.round_weights(recognizer.student)
    folder.mkdir(parents=True, exist_ok=True)
    weights.save_safetensors(recognizer.student, folder / bundle.WEIGHTS, {}, half=True)
    manifest = bundle.described(
        description["student"], recognizer.kernel, recognizer.fingerprint(), None, [folder / bundle.WEIGHTS],
        recognizer.teacher,
    )  # fmt: skip
    about = {"training": without_folders(of_workdir(workdir)), "best_at_step": None, "evaluations": []}
    write_json(folder / bundle.MANIFEST, manifest | about)


def _to_train(text: str) -> tuple[str, int]:
    name, _, steps = text.partition(":")
    _config(name)  # a name that does not exist ends here
    return name, int(steps or 0)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="for everything, default 9")
    add("--out", type=user_path, required=True)
    add("--packed", type=user_path, nargs="+", default=[], help="files of gdrd pack")
    both = [("gdrd-16-wide", 0), ("gdrd-8-wide", 0)]
    name = "NAME[:STEPS]"
    add("--train", nargs="+", type=_to_train, default=both, metavar=name, help="students of configs/accelerator.py")
    add("--share", type=float, default=0.6, help="of the minutes that are kept for the students, default 0.6")
    add("--workdir", type=user_path, default=Path("runs/accelerator"), help="of the students' training")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--rehearse", action="store_true", help="tiny sizes")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Runs the parts; one that fails is recorded and does not stop the others."""
    claim_folder(given.out, "a benchmark of an accelerator", "--out")
    start, sizes = time.monotonic(), SMALL if given.rehearse else REAL
    sharding.start(SINGLE_PROCESS)
    end = start + 60 * given.minutes
    training_takes = given.share if given.packed and "students" in given.only else 0.0
    measured_by = start + 60 * given.minutes * (1 - training_takes)
    given.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {"command": [{"command": " ".join(sys.argv)}]}
    # The students come after the most important figures, so that they do not suffer from slow others.
    order = [part for part in PARTS if part in given.only and (part != "students" or given.packed)]
    for part in order:
        limit = end if part == "students" else measured_by
        if time.monotonic() > limit:
            results[part] = [{"skipped": "no time was left"}]
            _write(given.out, results)
            continue
        rows = results.setdefault(part, [])
        try:
            for row in students(given, end) if part == "students" else globals()[part](sizes, limit):
                rows.append(row)
                _write(given.out, results)
        except Exception as error:  # whatever it is, the next part may still tell something
            rows.append({"failed": f"{type(error).__name__}: {first_line(error)}"})
        _write(given.out, results)
        print(f"== {part}, {time.monotonic() - start:.0f} s\n{table(rows)}", flush=True)


def _write(folder: Path, results: dict[str, list[dict]]) -> None:
    write_json(folder / "results.json", results)
    write_text(folder / "results.txt", "\n\n".join(f"{part}\n{table(rows)}" for part, rows in results.items()) + "\n")

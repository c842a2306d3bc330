"""Small faces and settings that run in seconds."""

import contextlib
import functools
import gc
import importlib.metadata
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

# Many tests, and the processes that they start, compile the same; before JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Threads that wait for each other in a loop take most of the time where each core has a process of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import simplejpeg

from gdrd_jax.config import paper
from gdrd_jax.data import recordio
from gdrd_jax.utils.errors import GdrdError

# What takes long to import, or needs more than the core dependencies, is imported where it is used.

pytest_plugins = ("runs", "postgres_server")
TESTS = Path(__file__).parent
# Folders and files whose tests need torch, ONNX or other extras, or run whole commands; all others are `unit`.
INTEGRATION = (
    "benchmarks", "cli", "distributed", "export", "pipeline", "server", "teachers", "tools", "test_extending.py",
    "test_real.py", "test_tutorial.py", "test_zoo.py", "data/test_packed.py", "data/test_packed_mixup.py",
    "evaluation/test_fed_wrongly.py", "evaluation/test_protocols.py", "evaluation/test_tap_study.py",
    "evaluation/test_templates.py", "galleries/test_postgresql.py", "inference/test_embedders.py",
    "inference/test_pretrained.py", "utils/test_outputs.py",
)  # fmt: skip

# One compilation of a program, not one for each of its parts; and, before jaxlib 0.11, which has no other, the older
# code generator, which takes half the time.
QUICK_TO_COMPILE = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")


def add_xla_flags(environment, *flags):
    environment["XLA_FLAGS"] = " ".join((environment.get("XLA_FLAGS", ""), *flags)).strip()


def pytest_configure(config):
    if config.option.markexpr == "not slow":  # where compiling takes most of the time, not what is compiled
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        add_xla_flags(os.environ, *QUICK_TO_COMPILE)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config):
    """One process for a single file; otherwise one for each core, as far as memory is likely to suffice."""
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if all(file.endswith(".py") for file in files) and len(files) == 1 else min(os.cpu_count() or 1, 4)


@functools.cache
def is_integration(path):
    return any(path.relative_to(TESTS).is_relative_to(place) for place in INTEGRATION)


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr.startswith("unit") and collection_path != TESTS and is_integration(collection_path):
        return True  # it may import what is not installed


def pytest_collection_modifyitems(items):
    for item in items:
        integration = is_integration(item.path) or {"shared", "aligner"} & set(item.fixturenames)
        item.add_marker("integration" if integration or item.get_closest_marker("integration") else "unit")


def pytest_collection_finish():
    """Collects garbage less often, and never among the million objects of imported modules: a twelfth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    """Trainings of equal networks and settings share one compiled function, whose tracing takes longer than they do."""
    trainer = sys.modules.get("gdrd_jax.training.trainer")
    if not trainer:
        yield
        return
    make_run, made = trainer.make_run, {}

    def shared(graphdef, schedule, mesh, *, seed, loop):
        known = made.setdefault((schedule, mesh, seed, loop), [])  # a graphdef has no hash
        for other, run in known:
            if other == graphdef:
                return run
        known.append((graphdef, make_run(graphdef, schedule, mesh, seed=seed, loop=loop)))
        return known[-1][1]

    trainer.make_run = shared
    yield
    trainer.make_run = make_run


@contextlib.contextmanager
def raises(code, *facts, kind=GdrdError):
    """Expects a `GdrdError` of this code whose message holds these facts: names, paths and numbers, not sentences."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, f"[{caught.value.code}] {caught.value}"
    absent = [str(fact) for fact in facts if str(fact) not in str(caught.value)]
    assert not absent, f"{absent} not in: {caught.value}"


def make_faces(root, people, images, *, size=112):
    """Writes `root/pN/M.png`: a smooth random picture a person, with noise an image."""
    rng = np.random.default_rng(0)
    for person in range(people):
        base = cv2.resize(
            rng.integers(40, 216, size=(6, 6, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
        (root / f"p{person}").mkdir(parents=True)
        for image in range(images):
            noisy = base + rng.normal(scale=12, size=base.shape)
            cv2.imwrite(str(root / f"p{person}" / f"{image}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
    return root


def make_lfw(root):
    """Writes `root/lfw/pN/pN_000M.png`, faces of eight people, and `root/pairs.txt`, two folds; returns `root/lfw`."""
    lfw = make_faces(root / "lfw", people=8, images=3)
    for path in list(lfw.glob("*/*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{int(path.stem) + 1:04d}.png"))
    lines = ["2\t3"]
    for fold in (0, 1):
        people = range(4 * fold, 4 * fold + 3)
        lines += [f"p{i}\t1\t2" for i in people] + [f"p{i}\t1\tp{i + 1}\t3" for i in people]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return lfw


def jpeg(value):
    return simplejpeg.encode_jpeg(np.full((112, 112, 3), value, np.uint8), quality=90, colorspace="RGB")


def write_records(path, payloads, labels, *, header=True, index=True):
    """A file as InsightFace's tools write it: header, images, a range of keys for each identity."""
    records = [recordio.pack_range(len(payloads) + 1, len(payloads) + 1 + len(set(labels)), 0)] if header else []
    first = len(records)
    records += [recordio.pack_image(label, i + first, data) for i, (data, label) in enumerate(zip(payloads, labels))]
    if header:
        for person in sorted(set(labels)):
            keys = [i + 1 for i, label in enumerate(labels) if label == person]
            records.append(recordio.pack_range(keys[0], keys[-1] + 1, len(records)))
    starts = np.cumsum([0, *map(len, records)])
    path.write_bytes(b"".join(records))
    if index:
        path.with_suffix(".idx").write_text("".join(f"{key}\t{start}\n" for key, start in enumerate(starts[:-1])))
    return starts


PAYLOADS = [jpeg(v) for v in (10, 60, 110, 160, 210)]
LABELS = [0, 0, 0, 1, 7]


PLUGINS = Path(__file__).parent / "plugins"  # modules for `config.plugins`; a process of its own needs PYTHONPATH
sys.path.append(str(PLUGINS))


def use_tiny_teachers(config):
    """Makes both teachers those of plugins/tiny_teachers.py, which need no torch, no ONNX Runtime and no training."""
    config.plugins = (*config.plugins, "tiny_teachers")
    config.generative.kind = config.discriminative.kind = "tiny"
    config.discriminative.path = ""
    return config


def use_tiny_student(config):
    """Makes the student that of plugins/tiny_student.py, which compiles in a moment."""
    config.plugins = (*config.plugins, "tiny_student")
    config.student.name = "colors"
    return config


def tiny_config(path):
    """Every step, as small as it goes; SFace is the discriminative teacher."""
    config = paper()
    config.name = "tiny"
    config.data.update(path=str(path), test_people=2, calibration_people=2)
    config.discriminative.path = "sface"
    config.sr.update(size=16, channels=(8, 16, 16), steps=4, batch=2)
    config.student.update(width=0.0625, hidden=(16,), head_stages=1)
    config.gen.update(steps=45, batch=8)
    config.dis.update(steps=45, batch=8)
    return config


def save_recognizer(path, cells=4, size=112, free=False):
    """An ONNX recognizer without weights: the colors of `cells` x `cells` parts of the face, their mean taken off.

    Its input is of `size` pixels; `free` leaves that open in the graph.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    side, sides = size // cells, ["H", "W"] if free else [size, size]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[side, side], strides=[side, side]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("ReduceMean", ["f", "axis"], ["m"], keepdims=1),
        helper.make_node("Sub", ["f", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, ["N", 3, *sides])], [value("y", TensorProto.FLOAT, ["N", 3 * cells * cells])],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def save_linear_recognizer(path, size, dtype=1, dim=6):
    """An ONNX recognizer that torch can run, too: `dim` random weights of all pixels; returns its path and weights.

    `dtype` is that of its pixels, a number of `onnx.TensorProto`, by default float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(dim, 3 * size**2)).astype(np.float32) / size
    value, node = helper.make_tensor_value_info, helper.make_node
    graph = helper.make_graph(
        [node("Cast", ["x"], ["c"], to=TensorProto.FLOAT), node("Flatten", ["c"], ["f"]),
         node("Gemm", ["f", "w"], ["y"], transB=1)],
        "g", [value("x", dtype, ["N", 3, size, size])], [value("y", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, weight


def save_student(workdir, resolution=16, seed=0, dim=24, teacher=None, name="colors"):
    """What a run leaves of its student, here with random weights.

    Args:
      teacher: an ONNX file.
      name: of the student; "gdrd" is written without, as by version 0.4.
    """
    import jax
    import tiny_student  # noqa: F401
    from flax import nnx

    from gdrd_jax.inference import student_files
    from gdrd_jax.models.student import abstract_student
    from gdrd_jax.teachers import load_discriminative

    settings = {"resolution": resolution, "width": 0.0625, "hidden": [], "head_stages": 0, "embedding_dim": dim}
    settings |= {} if name == "gdrd" else {"name": name}
    student, rng = abstract_student(settings), np.random.default_rng(seed)

    def drawn(leaf):
        if leaf.ndim < 2:
            low, high = (0.5, 1.5) if name == "gdrd" else (-0.1, 0.1)  # variances, or biases
            return np.float32(rng.uniform(low, high, leaf.shape))
        return np.float32(rng.normal(scale=np.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape))

    nnx.update(student, jax.tree.map(drawn, nnx.state(student)))
    (workdir / "dis").mkdir(parents=True, exist_ok=True)
    about = (
        {"teacher": {"name": teacher.stem, "fingerprint": load_discriminative(teacher).fingerprint}} if teacher else {}
    )
    student_files.save(student, settings, "area", workdir / "dis" / "student", **about)
    return workdir


def save_calibrated(workdir, faces):
    """A student as of `save_student`, with thresholds learned on `faces`, a folder PERSON/IMAGE; its own folder."""
    from gdrd_jax.inference import bundle
    from gdrd_jax.inference.recognizer import Recognizer
    from gdrd_jax.inference.template_scores import TemplateScores
    from gdrd_jax.inference.thresholds import Thresholds

    folder = save_student(workdir) / "dis" / "student"
    files = sorted(faces.glob("*/*.png"))
    labels = np.unique([file.parent.name for file in files], return_inverse=True)[1]
    known = Recognizer.load(folder).embed(files), labels, "made faces"
    learned = {"thresholds": vars(Thresholds.learn(*known)), "template_scores": vars(TemplateScores.learn(*known))}
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest | learned))
    return folder


def guided_diffusion(
    seed=0, channels=(32, 64), counts=(1, 1), attended=(1,), decoder=False, *, updown=False, scale_shift=True
):
    """A state_dict of a network of that family.

    Args:
      channels: one number a level.
      counts: residual blocks a level.
      attended: the levels with attention.
      decoder: make that, too; only its keys and shapes matter.
      updown: guided-diffusion's `resblock_updown`.
      scale_shift: guided-diffusion's `use_scale_shift_norm`.
    """
    import torch

    random, weights = torch.Generator().manual_seed(seed), {}

    def layer(name, *shape):
        weights[f"{name}.weight"] = torch.randn(shape, generator=random) / max(1, np.prod(shape[1:])) ** 0.5
        weights[f"{name}.bias"] = torch.randn(shape[:1], generator=random) * 0.1

    def residual(name, before, after):
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", (1 + scale_shift) * after, 128)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 128, 32)
    layer("time_embed.2", 128, 128)
    layer("input_blocks.0.0", channels[0], 3, 3, 3)
    width, number, skips = channels[0], 1, [channels[0]]
    for level, (after, count) in enumerate(zip(channels, counts)):
        if level:
            if updown:
                residual(f"input_blocks.{number}.0", width, width)
            else:
                layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number, skips = number + 1, [*skips, width]
        for _ in range(count):
            residual(f"input_blocks.{number}.0", width, after)
            if level in attended:
                attention(f"input_blocks.{number}.1", after)
            width, number, skips = after, number + 1, [*skips, after]
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    layer("out.2", 6, channels[0], 3, 3)
    number = 0
    for level in reversed(range(len(channels) if decoder else 0)):
        for i in range(counts[level] + 1):
            residual(f"output_blocks.{number}.0", width + skips.pop(), channels[level])
            width = channels[level]
            if level in attended:
                attention(f"output_blocks.{number}.1", width)
            if level and i == counts[level]:
                above = f"output_blocks.{number}.{1 + (level in attended)}"
                if updown:
                    residual(above, width, width)
                else:
                    layer(f"{above}.conv", width, width, 3, 3)
            number += 1
    return weights


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"), people=7, images=3)


@pytest.fixture
def no_figures(monkeypatch):
    """The figures of reports are one pixel each; drawing them takes as long as all else in a small evaluation."""
    from gdrd_jax.evaluation import report

    pixel = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    monkeypatch.setattr(report, "saved", lambda figure: report.plt.close(figure) or pixel)


@pytest.fixture(scope="module")
def quick_speeds():
    """Exports measure the speed of each form once, for the tests that are not about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdrd_jax.export.verify.TURNS", 1)
        patch.setattr("gdrd_jax.export.verify.SINGLE_FACES", 1)
        yield


@pytest.fixture(scope="session")
def shared():
    """Real faces and teachers beside the project, which stands alone without them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: real data for measuring is not part of the project")
    return folder


class GoogleCloudStorage(BaseHTTPRequestHandler):
    """As much of its JSON API as TensorStore needs to write, read and list the objects of one bucket."""

    bucket, objects = "", {}

    def do_POST(self):
        url = urlsplit(self.path)
        query, body = parse_qs(url.query), self.rfile.read(int(self.headers["Content-Length"]))
        if url.path != f"/upload/storage/v1/b/{self.bucket}/o":
            return self.answer(404, {"error": {"code": 404, "message": "not found"}})
        self.objects[query["name"][0]] = body
        self.answer(200, {"name": query["name"][0], "generation": "1", "size": str(len(body))})

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        bucket, _, name = url.path.removeprefix("/storage/v1/b/").partition("/o")
        name = unquote(name.removeprefix("/"))
        if bucket != self.bucket or (name and name not in self.objects):
            self.answer(404, {"error": {"code": 404, "message": "not found"}})
        elif name:
            self.answer(200, self.objects[name])
        else:
            first, last = query.get("startOffset", ""), query.get("endOffset", chr(0x10FFFF))
            found = [{"name": name} for name in sorted(self.objects) if first <= name < last]
            self.answer(200, {"items": found})

    def answer(self, status: int, content: dict | bytes) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def bucket(monkeypatch):
    """URL of an empty bucket."""
    monkeypatch.setattr(GoogleCloudStorage, "objects", {})
    with ThreadingHTTPServer(("localhost", 0), GoogleCloudStorage) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
        # Of its own name, because TensorStore keeps a bucket that is in use open, with the port of its server.
        monkeypatch.setattr(GoogleCloudStorage, "bucket", f"faces-{server.server_port}")
        yield f"gs://{GoogleCloudStorage.bucket}"
        server.shutdown()


def called(main, *arguments, status=0):
    """What a command that runs in this process prints to stderr and logs."""
    log, level = logging.getLogger("gdrd_jax"), logging.getLogger("gdrd_jax").level
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stderr(printed):
            assert main([str(argument) for argument in arguments]) == status
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert status == 0 or "Traceback" not in printed.getvalue()
    return printed.getvalue()


def run_script(script, *arguments, devices):
    """Starts a script, in which `t` is test_trainer, with this many virtual devices."""
    environment = dict(os.environ)
    add_xla_flags(environment, f"--xla_force_host_platform_device_count={devices}")
    path = ["tests", "tests/plugins", "tests/training"]
    head = f"import sys, pathlib, jax; sys.path[:0] = {path}; import test_trainer as t\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip


def free_address():
    """Where processes can meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def finished(*processes):
    """What they print, once they have ended well."""
    found = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, found):
        assert process.returncode == 0, errors
    return [out for out, _ in found]


def interrupted(batches, number):
    """The function `batches`, where SIGTERM arrives before the batch of this number."""

    def stream(*args):
        for i, batch in enumerate(batches(*args)):
            if i == number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return stream


def send_while_collecting(number=signal.SIGINT):
    """A signal arrives in a callback of the garbage collector, whose exceptions Python drops."""

    def callback(_phase, _info):
        gc.callbacks.remove(callback)
        signal.raise_signal(number)

    gc.callbacks.append(callback)
    gc.collect()

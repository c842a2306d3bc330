"""The rehearsal of what runs on an accelerator."""

import json
import sys

import numpy as np
import pytest
from conftest import make_faces

from gdrd_jax.benchmarks import accelerator
from gdrd_jax.cli import benchmark
from gdrd_jax.data import packed
from gdrd_jax.data.packed import Stored
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.inference.recognizer import Recognizer


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    faces = checked(open_faces(make_faces(root / "faces", people=16, images=2)))
    targets = Stored(np.random.default_rng(0).normal(size=(len(faces), 1, 512)).astype(np.float16))
    teacher = {"name": "t", "fingerprint": "f" * 64}
    parts = [(faces, np.arange(len(faces)), faces.labels, targets)]
    packed.pack(parts, [root / "a.packed"], teacher=teacher, faces="x", size=48, quality=60)
    return root / "a.packed"


@pytest.mark.slow
def test_the_rehearsal_measures_and_trains(packed_file, tmp_path):
    words = ["--rehearse", "--minutes", 30, "--out", tmp_path / "out", "--packed", packed_file, "--train", "gdrd-8"]
    words += ["--workdir", tmp_path / "runs", "--only", "device", "training", "resume", "inference", "students"]
    assert benchmark.main(["accelerator", *map(str, words)]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [row for part in results.values() for row in part]
    assert not [row for row in rows if "failed" in row or "skipped" in row], rows
    assert results["device"][0]["matmul_float32_tflops"] > 0
    assert [row["pixels"] for row in results["training"]] == [16, 8]
    assert all(row["images_per_s"] > 0 and row["seconds_for_webface"] > 0 for row in results["training"])
    assert results["resume"] == [{"steps": 2, "same_bits": True}]
    assert {row["form"] for row in results["inference"]} == {"jax", "onnxruntime, CPU"}
    assert results["students"][0]["steps"] == 20 and results["students"][0]["embedding_cosine"] > 0
    recognizer = Recognizer.load(tmp_path / "out" / "gdrd-8")
    assert recognizer.resolution == 8 and recognizer.teacher["name"] == "t" and recognizer.thresholds is None
    assert "seconds_to_first_step" in (tmp_path / "out" / "results.txt").read_text()


def test_a_part_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    def broken(sizes, finish):
        yield {"before": 1}
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(accelerator, "resume", broken)
    monkeypatch.setattr(accelerator, "inference", lambda sizes, finish: [{"after": 1}])
    words = ["--rehearse", "--out", str(tmp_path / "out"), "--only", "resume", "inference"]
    assert benchmark.main(["accelerator", *words]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["resume"] == [{"before": 1}, {"failed": "RuntimeError: out of memory"}]
    assert results["inference"] == [{"after": 1}]


def test_no_time_is_no_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gdrd benchmark", "accelerator", "--of-the-shell"])
    words = ["--rehearse", "--minutes", "0", "--out", str(tmp_path / "out"), "--only", "training", "host"]
    assert benchmark.main(["accelerator", *words]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["training"] == results["host"] == [{"skipped": "no time was left"}]
    assert results["command"] == [{"command": f"gdrd benchmark accelerator {' '.join(words)}"}]


def test_the_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert benchmark.main(["accelerator", "--rehearse", "--out", str(tmp_path / "out")]) == 2
    assert "holds other things, such as thesis.tex" in capsys.readouterr().err

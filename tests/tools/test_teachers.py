"""train_sr_teacher.py and study_taps.py as their users call them."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import called, make_lfw, save_linear_recognizer, save_recognizer

from gdrd_jax.cli import train_sr_teacher
from gdrd_jax.teachers import load_generative, load_super_resolver

ROOT = Path(__file__).parents[2]
SMALL = ("--size", "16", "--channels", "8", "16", "--batch", "4", "--resolution", "8", "--test-people", "2")


def run(tool, *arguments, status=0):
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert status == 0 or "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def teacher(faces_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    recognizer = save_recognizer(folder / "arcface.onnx")
    words = ("--steps", 3, "--recognizer", recognizer)
    return folder / "sr", called(train_sr_teacher.main, faces_folder, folder / "sr", *SMALL, *words)


@pytest.mark.slow
def test_a_trained_teacher_loads_and_tells_how_good_it_is(teacher, faces_folder):
    folder, text = teacher
    assert re.search(r"step 3: sr PSNR .* dB, identity cosine .*; bicubic PSNR .* dB, identity cosine", text)
    assert load_generative("diffusers", folder).size == 16
    assert (folder / "samples" / "step_000003.png").exists()
    assert json.loads((folder / "samples" / "quality.json").read_text())["3"]["faces"] == 6
    assert "done before" in called(train_sr_teacher.main, faces_folder, folder, *SMALL, "--steps", 3)


def test_mistakes_end_in_one_sentence(teacher, faces_folder, tmp_path):
    run = partial(called, train_sr_teacher.main)
    folder, _ = teacher
    wrong = run(faces_folder, folder, *SMALL, "--steps", 4, status=2)
    assert "made from other settings" in wrong and "[sr-other-training]" in wrong
    people = run(faces_folder, tmp_path / "a", *SMALL[:-1], "7", status=2)
    assert "--test-people 7" in people and "7 people" in people
    nothing = run(tmp_path / "none", tmp_path / "a", *SMALL, status=2)
    assert str(tmp_path / "none") in nothing and "[path-missing]" in nothing
    odd = run(faces_folder, tmp_path / "a", *SMALL, "--size", 17, status=2)
    assert "size 17 must be divisible by 2" in odd and "[sr-size]" in odd
    recognizer = run(faces_folder, tmp_path / "a", *SMALL, "--recognizer", "x.onnx", status=2)
    assert "error: --recognizer x.onnx: there is no file" in recognizer
    assert not (tmp_path / "a").exists()


def test_a_network_is_trained_through_a_recognizer(faces_folder, tmp_path):
    run, out = partial(called, train_sr_teacher.main, faces_folder, tmp_path / "sr"), tmp_path / "sr"
    path, _ = save_linear_recognizer(tmp_path / "linear.onnx", 16)
    small = ("--resolution", 8, "--size", 20, "--channels", 8, "--layers", 1, "--batch", 2, "--test-people", 2)
    command = (*small, "--steps", 2, "--identity", f"{path}:arcface", "--recognizer", f"{path}:arcface")
    assert "step 2: sr PSNR" in run(*command) and load_super_resolver(out).size == 20
    record = json.loads((out / "training.json").read_text())
    assert record["kind"] == "iasr" and record["teacher"]["name"] == "linear"
    assert "done before" in run(*command)
    assert "[sr-resolution]" in run(*small, "--resolution", 32, "--identity", path, status=2)
    unlike = save_recognizer(tmp_path / "colors.onnx")  # AveragePool of opset 19, which onnx2torch does not know
    refused = run(*command, "--identity", unlike, status=2)
    assert f"error: {unlike}" in refused and "[teacher-no-gradients]" in refused
    whole = train_sr_teacher.arguments(["faces", "out", "--identity", str(path)])
    assert (whole.size, whole.channels, whole.layers) == (112, (64,), 8)
    assert train_sr_teacher.arguments(["faces", "out"]).size == 64


@pytest.mark.slow
def test_taps_are_compared(teacher, faces_folder, tmp_path):
    folder, _ = teacher
    run("train_sr_teacher.py", faces_folder, tmp_path / "untrained", *SMALL, "--steps", 0)
    lfw = make_lfw(tmp_path)
    command = (
        "study_taps.py", "--train", faces_folder, "--data", lfw, "--pairs", tmp_path / "pairs.txt",
        "--resolution", 8, "--teacher", f"sr=diffusers:{folder}", "--teacher", f"no=diffusers:{tmp_path / 'untrained'}",
        "--recognizer", folder.parent / "arcface.onnx", "--timestep", 0, 999, "--out", tmp_path / "out",
    )  # fmt: skip
    run(*command)
    rows = json.loads((tmp_path / "out" / "taps.json").read_text())["rows"]
    assert len(rows) == 2 + 1 + 2 * 2 * 3
    assert rows["sr/999/mid"]["shape"] == [16, 8, 8] and 0 <= rows["no/0/down0"]["accuracy"] <= 100
    assert (tmp_path / "out" / "taps.md").read_text().count("\n") == 2 + len(rows)
    assert (tmp_path / "out" / "taps.png").stat().st_size > 10_000
    assert "features, train" not in run(*command)  # nothing is measured twice
    assert "NAME=KIND:PATH" in run(*command, "--teacher", "x=diffusers:none", status=2)
    unknown = run(*command, "--teacher", f"x=y:{folder}", status=2)
    assert "'y'" in unknown and "diffusers, onnx, pgdiff" in unknown and "[entry-unknown]" in unknown

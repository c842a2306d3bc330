"""The real command: killed, shared by processes, verified."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces, save_recognizer

from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.utils.files import locked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def many_faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("many"), people=30, images=20)


def start(faces, workdir, *flags, **environment):
    command = [
        sys.executable, ROOT / "tools/precompute_teacher.py", f"--config={ROOT / 'configs/stage_dis.py'}",
        f"--workdir={workdir}", f"--config.data.path={faces}", "--config.data.test_people=2",
        f"--config.discriminative.path={workdir.parent / 'arcface.onnx'}", "--config.sr.size=16",
        "--config.sr.channels=(8,16)", "--config.sr.steps=3", "--config.views.count=4", *flags,
    ]  # fmt: skip
    if not (workdir.parent / "arcface.onnx").exists():
        save_recognizer(workdir.parent / "arcface.onnx")
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def finish(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def targets(workdir):
    return {
        (step, split): FeatureStore.open(workdir / step / split).read_all()
        for step in ("views", "discriminative", "generative") for split in ("train", "test", "mixup")
        if (step, split) != ("generative", "mixup")
    }  # fmt: skip


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=str(key))


@pytest.fixture(scope="module")
def whole(many_faces, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("precompute") / "whole"
    return finish(start(many_faces, workdir, "--verify")), targets(workdir), workdir


@pytest.mark.slow
def test_both_caches_are_made_verified_and_say_what_made_them(tmp_path):
    faces, workdir = make_faces(tmp_path / "faces", people=8, images=4), tmp_path / "w"
    text = finish(start(faces, workdir, "--verify", "--config.data.calibration_people=2"))
    found = targets(workdir)
    assert text.count("every checksum is right") == 5
    assert found["discriminative", "train"].shape == (24, 4, 48)
    assert found["discriminative", "mixup"].shape == (1.5 * 4 * 4, 4, 48)  # of those who choose no thresholds
    assert found["generative", "test"].shape[:3] == (8, 2, 16)
    manifest = json.loads((workdir / "generative/train/manifest.json").read_text())
    assert manifest["about"]["teacher"]["tap"] == "mid" and manifest["about"]["views"]["resolution"] == 16
    assert len(manifest["about"]["teacher"]["sha256"]["diffusion_pytorch_model.safetensors"]) == 64
    assert manifest["about"]["versions"]["torch"]


@pytest.mark.slow
def test_two_ranks_fill_what_one_does(whole, many_faces, tmp_path):
    ranks = [start(many_faces, tmp_path / "w", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in (1, 0)]
    texts = [finish(process) for process in ranks]
    assert_equal(targets(tmp_path / "w"), whole[1])
    assert "rank 0 of 2: " in texts[1]  # the other may come too late to find work


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(whole, many_faces, tmp_path):
    kills, seconds = 0, 2.0
    while True:
        process = start(many_faces, tmp_path / "w")
        try:
            process.communicate(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills, seconds = kills + 1, seconds + 0.7
    assert process.returncode == 0 and kills >= 3
    assert_equal(targets(tmp_path / "w"), whole[1])


def test_people_need_no_identities_and_two_runs_do_not_share_a_workdir(tmp_path):
    faces = make_faces(tmp_path / "faces", people=1, images=4)
    command = faces, tmp_path / "w", "--teacher=discriminative", "--config.data.test_people=0"
    (tmp_path / "w").mkdir()
    with locked(tmp_path / "w"):  # as another run has it
        second = start(*command)
        text = second.communicate(timeout=300)[0]
    assert second.returncode == 2 and "[folder-in-use]" in text and str(tmp_path / "w") in text
    finish(start(*command))
    assert not (tmp_path / "w" / "generative").exists()
    assert FeatureStore.open(tmp_path / "w/discriminative/train").read_all().shape == (4, 4, 48)

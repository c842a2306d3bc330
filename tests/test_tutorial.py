"""The commands of docs/tutorial.md, run one after the other, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# A training of seconds in place of the quickstart's; all other commands are the page's own.
SHORTER = (
    "--config.sr.channels='(8,16,16)' --config.sr.size=16 --config.sr.steps=4 "
    "--config.gen.steps=20 --config.dis.steps=60"
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    for name in ("configs", "tools", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = tmp_path / "bin" / "gdrd"  # as an installation makes it
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gdrd_jax.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    student, faces, search, verify, browser = blocks("sh")
    installing, train, export = student.strip().splitlines()
    assert installing.startswith("python -m pip install") and train == "gdrd train --config=quickstart"
    run("bash", "-ec", f"{train} {SHORTER}\n{export}")
    run("bash", "-ec", faces)
    out = run("bash", "-ec", search)
    assert "50 faces of 10 people" in out and "left out: 1" in out and "broken.jpg" in out
    assert out.count("crops/s") == 10 and (tmp_path / "matches.png").stat().st_size > 10_000
    out = run("bash", "-ec", verify)
    assert out.count("similarity") == 2
    ours, others = blocks("python")
    out = run(sys.executable, "-c", ours)
    assert "(2, 128)" in out and "Verification(same=" in out and "Match(id='s" in out
    cv2.imwrite(str(tmp_path / "face_112.png"), np.full((112, 112, 3), 90, np.uint8))
    assert "(1, 128)" in run(sys.executable, "-c", others)
    assert "127.0.0.1:7860" in run("bash", "-ec", browser.split("\n", 1)[1])

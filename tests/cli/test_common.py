"""What all commands do with arguments, errors, signals and output."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import make_faces, make_lfw, raises, save_recognizer, save_student

from gdrd_jax.cli import common, export, list_entries
from gdrd_jax.galleries import enroll
from gdrd_jax.galleries.gallery import Match
from gdrd_jax.inference.pretrained import describe_student, find_student, list_pretrained
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils import errors, files
from gdrd_jax.utils.errors import GdrdError

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "torch_student")


def shell(text, **environment):
    """Runs a line of bash; status of its first command, stdout and stderr."""
    line = f"set -o pipefail; {text}"
    found = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, env={**os.environ, **environment}, check=False
    )
    return found.returncode, found.stdout, found.stderr.decode()


def python(*words):
    return shlex.join(map(str, (sys.executable, *words)))


def stopped():
    raise KeyboardInterrupt


@pytest.mark.parametrize("resumes", [True, False])
def test_only_what_resumes_is_promised_to(resumes, capsys):
    assert common.guarded(stopped, resumes=resumes) == 130
    assert ("the same command continues" in capsys.readouterr().err) == resumes


def test_output_may_go_anywhere_and_names_be_of_any_bytes():
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert common.guarded(lambda: print("done")) == 0
    assert told.getvalue() == "done\n"
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    with contextlib.redirect_stdout(plain):
        assert common.guarded(lambda: print("\udcff", file=sys.stdout, flush=True)) == 0
    assert plain.buffer.getvalue() == b"\\udcff\n"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing_file(tmp_path / "x") as file:
        file.write(b"ne")
        1 / 0  # noqa: B018
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with files.replacing_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "folder").mkdir()
    with raises("not-written", tmp_path / "folder", "Is a directory"):
        with files.replacing_file(tmp_path / "folder") as file:
            file.write(b"new")


def test_a_match_whose_metadata_name_no_file_has_no_face():
    for metadata in ({}, {"path": None}, {"path": 3}):
        assert enroll.enrolled(Recognizer, Match("x", 0.5, metadata)) is None


HELP = """import os, runpy, sys
import jax, numpy  # once for all
sys.path.insert(0, "tools")  # as Python does for a script
for tool in sys.argv[1:]:
    if not (child := os.fork()):
        sys.argv = [f"tools/{tool}.py", "--help"]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        sys.stdout.flush()  # as Python does when it ends
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 141): sys.exit(f"{tool}: status {status}")
"""


@pytest.mark.slow
def test_help_of_any_tool_into_a_closed_pipe_ends_quietly(tmp_path):
    """Each tool in a process of its own, which is forked because starting Python takes longer."""
    (tmp_path / "help.py").write_text(HELP)
    line = f"{python('-W', 'ignore::RuntimeWarning', tmp_path / 'help.py', *TOOLS)} | true"
    status, _, error = shell(line, PYTHONUNBUFFERED="", PYTHONPATH=str(ROOT))
    assert status == 0 and not error, error


@pytest.mark.parametrize("words", [("tools/evaluate.py",), ("-m", "gdrd_jax.cli")])
def test_help_of_a_tool_into_a_closed_pipe_ends_quietly(words):
    status, _, error = shell(f"{python(*words, '--help')} | true", PYTHONUNBUFFERED="")
    assert status in (0, 141) and not error, error


WRITES = """import sys
from gdrd_jax.cli.common import guarded
from tqdm import tqdm
def work():
    for _ in tqdm(range(3000), mininterval=0): print("x" * 100)
sys.exit(guarded(work))"""


@pytest.mark.parametrize("redirect", ["2>/dev/null | head -1", "2>&1 >/dev/null | head -c 10", "2>&1 | head -1"])
def test_a_closed_pipe_ends_the_command_quietly(redirect, tmp_path):
    (tmp_path / "tool.py").write_text(WRITES)
    status, _, error = shell(f"{python(tmp_path / 'tool.py')} {redirect}", PYTHONPATH=str(ROOT))
    assert status == 141 and not error, error


def test_a_broken_pipe_of_a_worker_is_not_quiet(capsys):
    def work():
        raise BrokenPipeError(32, "Broken pipe")

    assert common.guarded(work) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Broken pipe") and error.endswith(" [connection-lost]\n")


def test_every_error_ends_with_its_code(capsys, tmp_path):
    def print_error_of(error):
        def work():
            raise error

        assert common.guarded(work) == 2
        return capsys.readouterr().err

    assert print_error_of(GdrdError("no; do so", "some-code")) == "error: no; do so [some-code]\n"
    missing = FileNotFoundError(2, "No such file", str(tmp_path / "x"))
    assert print_error_of(missing) == f"error: No such file: {tmp_path / 'x'} [system]\n"
    assert print_error_of(OSError("odd")) == "error: odd [system]\n"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ([], ["STUDENT, FOLDER"]),
        (["a", "b", "--formta", "onnx"], ["--formta"]),
        (["a", "b", "--calibration"], ["--calibration"]),
    ],
)
def test_wrong_arguments_are_an_error_like_others(words, facts, capsys):
    assert export.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("--help explains the arguments [command-usage]\n")
    assert error.count("\n") == 1 and all(fact in error for fact in facts), error


def test_a_value_of_a_wrong_type_names_its_option(capsys):
    parser = common.ArgumentParser("About.\n\nExamples:\n  gdrd x 1\n", prog="gdrd x")
    parser.add_argument("--far", type=float)
    with raises("command-usage", "--far", "'y'", "gdrd x --help"):
        parser.parse_args(["--far", "y"])
    assert parser.format_help().startswith("usage: gdrd x") and "\nAbout.\n" in parser.format_help()
    assert parser.format_help().endswith("examples:\n  gdrd x 1\n")


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_obstacle(redirect, tmp_path):
    (tmp_path / "tool.py").write_text(WRITES)
    status, _, error = shell(f"{python(tmp_path / 'tool.py')} {redirect}", PYTHONPATH=str(ROOT))
    assert status == 0 and "Traceback" not in error, error


@pytest.mark.parametrize(
    "platform", [pytest.param(name, marks=pytest.mark.slow) for name in ("cuda", "cpu,nonsense", "nonsense", "tpu")]
)
def test_a_platform_that_jax_cannot_use_is_one_sentence(platform, tmp_path):
    save_student(tmp_path / "run", name="gdrd")
    make_faces(tmp_path / "faces", 2, 2)
    tool = python(
        "tools/recognize.py", "embed", tmp_path / "faces", "--model", tmp_path / "run", "--out", tmp_path / "x"
    )
    status, _, error = shell(tool, JAX_PLATFORMS=platform)
    assert status == 2 and error.startswith("error: ") and error.endswith(" [jax-platform]\n"), error
    assert error.count("\n") == 1 and f"{platform!r}" in error and "unset JAX_PLATFORMS" in error


def test_training_finds_a_platform_that_jax_cannot_use_before_any_work(tmp_path):
    make_faces(tmp_path / "faces", 7, 3)
    flags = {
        "data.path": tmp_path / "faces", "data.test_people": 2, "data.calibration_people": 2,
        "discriminative.path": save_recognizer(tmp_path / "r.onnx"),
    }  # fmt: skip
    words = [f"--config.{key}={value}" for key, value in flags.items()]
    main = python("-m", "gdrd_jax.main", "--config=configs/paper.py", f"--workdir={tmp_path / 'run'}", *words)
    status, _, error = shell(main, JAX_PLATFORMS="cuda")
    assert status == 2 and error.startswith("error: ") and "'cuda'" in error and "unset JAX_PLATFORMS" in error, error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_locale_that_is_not_utf8_changes_nothing(tmp_path):
    """The report has signs beyond ASCII in it; so has what is printed."""
    lfw = make_lfw(tmp_path)
    save_recognizer(tmp_path / "r.onnx")
    found = {}
    for name, locale in (
        ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}),
        ("utf8", {"LC_ALL": "C.UTF-8"}),
    ):
        tool = python(
            "-X", "warn_default_encoding", "-W", "error::EncodingWarning:gdrd_jax", "tools/evaluate.py",
            "--protocol", "lfw", "--data", lfw, "--pairs", tmp_path / "pairs.txt", "--model", tmp_path / "r.onnx",
            "--resolution", "native", "16", "--out", tmp_path / name,
        )  # fmt: skip
        status, _, error = shell(tool, **locale)
        assert status == 0 and "Traceback" not in error, error
        found[name] = (tmp_path / name / "report.html").read_bytes()
    assert found["ascii"].decode("utf-8").endswith("</html>\n") and "–" in found["ascii"].decode("utf-8")
    assert len(found["ascii"]) == len(found["utf8"])


def test_what_is_not_installed_is_one_sentence(tmp_path):
    (tmp_path / "hide.py").write_text(
        "import sys, importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name in ('simplejpeg', 'ml_collections') else found(name, *a)\n"
        "import runpy\nrunpy.run_module('gdrd_jax.main', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "hide.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == (
        "error: not installed: ml-collections, simplejpeg; python -m pip install ml-collections simplejpeg "
        "[package-missing]\n"
    )


def test_the_packages_that_are_looked_for_are_those_of_the_plain_installation():
    text = (ROOT / "pyproject.toml").read_text()
    listed = {re.split("[><=]", name)[0] for name in tomllib.loads(text)["project"]["dependencies"]}
    assert set(errors.PIP.values()) == listed - {"grain"}
    assert errors.PIP.keys() - errors.CORE.keys() == {"faiss"}  # which only galleries need


def test_pretrained_students_are_listed_with_the_figures_of_their_manifests(capsys):
    assert list_entries.main(["pretrained"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_pretrained() and "LFW" in heading
    manifest = describe_student(find_student("gdrd-8"))
    (clean,) = (e for e in manifest["evaluations"] if e["protocol"] == "lfw" and not e["degraded"])
    figures = next(row["accuracy"] for row in clean["rows"] if row["row"] == "gdrd-8_8")
    assert lines[-1].split()[1:5] == ["8", "4.88", "M", "w600k_mbf"]
    assert "{:.1f} ({:.1f}-{:.1f})".format(*figures) in lines[-1]


def test_a_wrong_choice_is_answered_with_the_nearest(capsys):
    assert list_entries.main(["studnets"]) == 2
    assert "did you mean 'students'" in capsys.readouterr().err

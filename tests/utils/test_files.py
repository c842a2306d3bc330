"""Paths as people have them, causes of failed writes, and text that is UTF-8 whatever the locale."""

import ast
import errno
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import raises, save_student
from flax import nnx

from gdrd_jax import config
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.training.checkpoints import save_weights
from gdrd_jax.utils import files
from gdrd_jax.utils.files import listed_paths

ROOT = Path(__file__).parents[2]
ODD_NAMES = ["a b", "a=b", "a:b", "a#b", "a%20b", "a?b", "é", "a,b", "-x", "{x}", "*", "~", "$HOME", "tr ", "'q\""]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def write(path):
    cache = FeatureStore.create(path, rows=3, views=1, shape=(2,), dtype="float32", provenance={"faces": "x"})
    cache.write(0, range(3), np.ones((3, 2), np.float32))


@pytest.mark.parametrize("place", ["../out", "a/../../out", "link/../out", "link", "plain/", "./x/./y"])
def test_arrays_and_weights_are_stored_under_any_path(here, place):
    (here / "elsewhere" / "deep").mkdir(parents=True)
    Path("link").symlink_to("../elsewhere/deep")
    if place.startswith("a/"):
        Path("a").mkdir()
    write(Path(place) / "cache")
    assert FeatureStore.open(Path(place) / "cache").read(0).sum() == 6
    expected = {"../out": "out", "a/../../out": "out", "link/../out": "elsewhere/out", "link": "elsewhere/deep"}
    if place in expected:
        assert (here / expected[place] / "cache" / "manifest.json").exists()
    student = save_student(Path(place) / "run")
    assert Recognizer.load(f"{place}/run").fingerprint() == Recognizer.load(student.resolve()).fingerprint()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_arrays_are_stored_under_odd_names(tmp_path, name):
    write(tmp_path / name / "cache")
    assert FeatureStore.open(tmp_path / name / "cache").read(0).sum() == 6


def test_weights_are_stored_under_odd_names(tmp_path):
    name = "é a=b:c#d,e %20?{f}*'\"~"
    save_student(tmp_path / name)
    assert Recognizer.load(tmp_path / name).resolution == 16


@pytest.mark.parametrize("name", ["a\\b", "[1]", os.fsdecode(b"\xff")])
def test_checkpoints_are_refused_where_they_could_not_be_found_again_and_students_are_not(tmp_path, name):
    with raises("path-character", tmp_path / name):
        save_weights(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), tmp_path / name, {})
    assert not list(tmp_path.rglob("weights"))
    save_student(tmp_path / name)
    assert Recognizer.load(tmp_path / name).resolution == 16


def test_a_name_beyond_ascii_in_another_locale_is_told_apart_from_one_that_is_not_utf8(tmp_path):
    """In the locale C Python holds the two bytes of an é as two surrogates."""
    with raises("path-locale", "PYTHONUTF8=1"):
        files.storable(tmp_path / "\udcc3\udca9")
    with raises("path-character", "not UTF-8"):
        files.storable(tmp_path / "\udcff")
    assert files.storable(tmp_path / "é") == tmp_path / "é"


def test_a_tilde_is_the_home_folder_and_an_existing_path_wins(here):
    home = here / "home"
    assert files.user_path("~/x") == home / "x" and files.user_path("~") == home
    assert files.user_path("a/~/x") == Path("a/~/x") and files.user_path("x~") == Path("x~")
    assert files.user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    Path("~").mkdir()
    assert files.user_path("~") == Path("~")
    assert files.user_path("../x") == here / "x" and files.user_path("x/y/") == Path("x/y")
    given = config.default()
    given.data.path, given.dev.pairs, given.discriminative.path = "~/faces", "pairs.txt", "sface"
    given.data.unlabeled = "~/a,b,~/c"
    given.stages = {"a": config.stage(student={"init": "~/student"}), "b": config.stage(student={"init": "gdrd-16"})}
    config.expand_paths(given)
    assert [given.stages[name].student.init for name in "ab"] == [str(home / "student"), "gdrd-16"]
    assert (given.data.path, given.dev.pairs) == (str(home / "faces"), "pairs.txt")
    assert given.data.unlabeled == f"{home / 'a'},b,{home / 'c'}" and given.discriminative.path == "sface"


def test_a_base_with_a_comma_in_its_path_is_found(here):
    for name in ("a", "b,c", "d"):
        Path(name).mkdir()
    given = config.default()
    for text, expected in {
        "a,b,c,d": ["a", "b,c", "d"], "a": ["a"], "": [], "b,c": ["b,c"], "a,nothing,d": ["a", "nothing", "d"],
    }.items():  # fmt: skip
        given.data.unlabeled = text
        assert listed_paths(given.data.unlabeled) == [Path(each) for each in expected]


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "make room on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded", "within the disk quota"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied", "get write access"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system", "not read-only"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long", "shorter"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "Not a directory", "does not lead through a file"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing /x/0.0: No space left on device"), "No space", "make room"),
        (ValueError("Error opening 'file' driver: Invalid file path: '/x/../y'"), "'/x/../y'", "fix that, and run"),
    ],
)
def test_only_a_full_disk_is_called_full(tmp_path, error, cause, remedy):
    with (
        raises("not-written", tmp_path, cause, remedy, "run the same command again") as caught,
        files.writing(tmp_path),
    ):
        raise error
    assert ("make room" in str(caught.value)) == ("No space" in str(error) or "quota" in str(error))


def calls_without_encoding(path):
    """`line: call` of each call that reads or writes text and leaves its encoding to the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        words = ast.unparse(node.func)
        given = [part for each in (*node.args[-1:], *node.keywords) for part in ast.walk(each)]
        modes = [part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if words.endswith((".read_text", ".write_text", "NamedTemporaryFile", "fdopen", "TextIOWrapper")):
            odd = words != "files.write_text"
        elif words == "open" or (
            words.endswith(".open") and words.split(".")[0] not in ("os", "ts", "Image", "tarfile")
        ):
            odd = not words[:1].isupper() and not any("b" in mode for mode in modes) and not words.endswith("].open")
        else:
            odd = words.startswith("subprocess.") and any(
                k.arg in ("text", "universal_newlines") for k in node.keywords
            )
        if odd:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def test_no_text_depends_on_the_locale(tmp_path):
    sources = [path for folder in ("gdrd_jax", "tools", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    assert [call for path in sources for call in calls_without_encoding(path)] == []
    this = Path(__file__)
    (tmp_path / "x").write_text("this call has to be found")
    assert any("this call has to be found" in call for call in calls_without_encoding(this))


def test_text_with_names_of_any_bytes_is_written(tmp_path):
    files.write_text(tmp_path / "x", "é \udcff")
    assert (tmp_path / "x").read_bytes() == "é \\udcff".encode()


def _hold(folder, held):
    with files.locked(folder):
        held.set()
        time.sleep(600)


def test_a_lock_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "w", held))
    process.start()
    try:
        assert held.wait(60) and files.is_locked(tmp_path / "w")
        with raises("folder-in-use", tmp_path / "w"), files.locked(tmp_path / "w"):
            pass
    finally:
        process.kill()
        process.join()
    assert not files.is_locked(tmp_path / "w")
    with files.locked(tmp_path / "w"):
        pass


def test_a_folder_survives_a_kill_between_two_renames(tmp_path):
    (tmp_path / "dis").mkdir()
    (tmp_path / "dis" / "weights").write_text("first", encoding="utf-8")
    os.rename(tmp_path / "dis", tmp_path / "dis.old.123")  # as a process that was killed leaves it
    with pytest.raises(OSError, match="No space"), files.replacing(tmp_path / "dis"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "dis" / "weights").read_text(encoding="utf-8") == "first"
    with files.replacing(tmp_path / "dis") as new:
        (new / "weights").write_text("second", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["dis"]
    assert (tmp_path / "dis" / "weights").read_text(encoding="utf-8") == "second"

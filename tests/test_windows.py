"""The package does without what only POSIX systems have, so that Windows can import it and compare faces."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from conftest import make_faces

from gdrd_jax.data.file_tree import scan
from gdrd_jax.data.readers import open_faces

ROOT = Path(__file__).parents[1]
# Modules and attributes that Windows lacks. Other packages bring replacements of their own, so modules are hidden from
# this package alone.
WINDOWS = """
import builtins, os, select, signal
MODULES = {"fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "curses", "readline"}
imported = builtins.__import__

def without_posix(name, globals=None, *rest, **more):
    if name in MODULES and (globals or {}).get("__name__", "").startswith("gdrd_jax"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return imported(name, globals, *rest, **more)

import cv2, flax, jax, numpy, optax, orbax.checkpoint, PIL, psutil, tensorstore
builtins.__import__ = without_posix
for module, names in {
    os: ("pread", "pwrite", "sched_getaffinity", "fork", "getuid", "geteuid", "mkfifo", "statvfs", "killpg", "setsid"),
    signal: ("SIGPIPE", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGXFSZ", "pause"),
    select: ("poll",),
}.items():
    for name in names:
        delattr(module, name)
"""


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS + script, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported():
    script = """
import importlib, pkgutil, gdrd_jax
names = [module.name for module in pkgutil.walk_packages(gdrd_jax.__path__, "gdrd_jax.")]
for name in names:
    if not name.startswith("gdrd_jax.weights") and not name.endswith("__main__"):
        importlib.import_module(name)
from gdrd_jax.cli import common
from gdrd_jax.utils import files
assert common.CLOSED_PIPE == 141 and common._output_is_closed()  # a closed pipe, since there is no way to ask
print(len(names))
"""
    assert int(run(script)) > 80


def test_faces_are_compared(tmp_path):
    make_faces(tmp_path, people=1, images=2)
    face = cv2.imread(str(tmp_path / "p0" / "0.png"))
    cv2.imwrite(str(tmp_path / "same.png"), face)
    script = "import sys\nfrom gdrd_jax.cli.__main__ import main\nsys.exit(main(['verify', *sys.argv[1:]]))\n"
    assert "similarity 1.000" in run(script, tmp_path / "p0" / "0.png", tmp_path / "same.png")


def test_a_folder_is_locked(tmp_path):
    script = """
import pathlib, sys
from gdrd_jax.utils import errors, files
folder = pathlib.Path(sys.argv[1])
with files.locked(folder):
    assert files.is_locked(folder)
    try:
        with files.locked(folder):
            print("not locked")
    except errors.GdrdError as error:
        print(error.code)
assert not files.is_locked(folder)
"""
    assert run(script, tmp_path / "w").split() == ["folder-in-use"]


def test_faces_in_a_tar_are_read_without_pread(tmp_path, faces_folder, monkeypatch):
    import tarfile

    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        archive.add(faces_folder, "faces")
    expected = open_faces(tmp_path / "f.tar")
    expected = [(expected.read(row), expected.head(row)) for row in range(len(expected))]
    monkeypatch.delattr(os, "pread")
    found, _ = scan(tmp_path / "f.tar")
    assert [(found.read(row), found.head(row)) for row in range(len(found))] == expected
    np.testing.assert_array_equal(found[3], open_faces(faces_folder)[3])

"""Made-up galleries, and how they are checked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from gdrd_jax.galleries.address import parse_address
from gdrd_jax.galleries.gallery import Gallery

ROOT = Path(__file__).parents[2]
DIM, FACES = 16, 60
DIE = """
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

gallery = Gallery.load(sys.argv[1])
"""


def shown(place):
    """A gallery's place as messages name it."""
    return str(parse_address(place))


def unit(values):
    return np.float32(values / np.linalg.norm(values, axis=-1, keepdims=True))


def embeddings(count=FACES, dim=DIM, seed=0, shift=0.0):
    return unit(np.random.default_rng(seed).normal(size=(count, dim)) + shift)


def names(count=FACES):
    return [f"p{i // 3}" for i in range(count)]


def made(values=None, ids=None, metadata=None):
    values = embeddings() if values is None else values
    gallery = Gallery(values.shape[1], "f" * 64)
    gallery.add(values, names(len(values)) if ids is None else ids, metadata)
    return gallery


def numbered(values):
    """A gallery whose metadata are the faces' rows."""
    return made(values, metadata=[{"row": row} for row in range(len(values))])


def check_exact(gallery, values, k, probes=None, gone=()):
    """Checks that the search finds what a comparison with all values finds, except for the rows in `gone`."""
    probes = embeddings(7, values.shape[1], seed=9) if probes is None else probes
    expected = probes @ values.T
    expected[:, list(gone)] = -2
    order = np.argsort(-expected, axis=1)[:, :k]
    found = gallery.search(probes, k)
    np.testing.assert_array_equal([[match.metadata["row"] for match in matches] for matches in found], order)
    similarities = [[match.similarity for match in matches] for matches in found]
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    assert [[match.id for match in matches] for matches in found] == [[f"p{row // 3}" for row in r] for r in order]


def check_equal(found, expected):
    """Checks that two searches found the same; databases round similarities differently."""
    assert [[(m.id, m.metadata) for m in line] for line in found] == [
        [(m.id, m.metadata) for m in line] for line in expected
    ]
    similarities = [[[match.similarity for match in line] for line in lines] for lines in (found, expected)]
    np.testing.assert_allclose(*similarities, atol=1e-6)


def stored(value):
    """The bytes of an embedding as a gallery stores it."""
    return (value / np.linalg.norm(value[None], axis=1)).tobytes()


def content(folder):
    """The bytes of all files in a folder."""
    return b"\n".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def run_python(script, *arguments):
    """Starts a script in another process."""
    head = (
        "import os, signal, sys, numpy as np\n"
        "from gdrd_jax.galleries import sqlite, sqlite_connection\n"
        "from gdrd_jax.galleries.gallery import Gallery\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def killed(script, *arguments):
    process = run_python(DIE + script, *arguments)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

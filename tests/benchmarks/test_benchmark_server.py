import json
import os
import threading

import psutil
import pytest
from conftest import raises

testclient = pytest.importorskip("fastapi.testclient")
uvicorn = pytest.importorskip("uvicorn")

from gdrd_jax.benchmarks import server as benchmark  # noqa: E402
from gdrd_jax.utils.ports import listening  # noqa: E402


@pytest.fixture
def address():
    """Of a server that answers every upload after it has read it."""
    sizes = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        more = True
        while more:
            message = await receive()
            sizes.append(len(message.get("body", b"")))
            more = message.get("more_body", False)
        status = 404 if scope["path"] == "/v1/none" else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    listener = listening("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", sizes
    running.should_exit = True
    thread.join()
    listener.close()


def test_requests_are_counted_and_timed(address, monkeypatch):
    monkeypatch.setattr(benchmark, "WARM_UP", 0.05)
    url, sizes = address
    found = benchmark.load(url, "embed", 3, 0.2, psutil.Process(os.getpid()))
    assert (found["endpoint"], found["clients"]) == ("embed", 3) and 0 < found["p50_ms"] <= found["p99_ms"]
    assert 3 <= found["requests"] < len(sizes) and found["requests_per_second"] == found["requests"] / 0.2
    assert max(sizes) > 1000 and found["cpu_ms"] > 0
    with raises("benchmark-server", "/v1/none", 404):
        benchmark.load(url, "none", 1, 0.1, psutil.Process(os.getpid()))
    assert "| /v1/embed | 3 |" in benchmark.table([found])


def test_nothing_to_measure_is_refused():
    with raises("benchmark-numbers", "--faces"):
        benchmark.work(benchmark.arguments(["--faces", "0"]))


@pytest.mark.slow
def test_a_server_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "WARM_UP", 0.5)
    benchmark.work(benchmark.arguments(["--faces", "50", "--seconds", "1", "--out", str(tmp_path / "o.json")]))
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [(row["endpoint"], row["clients"]) for row in rows] == [
        (endpoint, clients) for endpoint in benchmark.ENDPOINTS for clients in benchmark.CLIENTS
    ]
    assert all(row["requests"] > 0 for row in rows) and "faces a batch" in capsys.readouterr().out

"""A server as a process of its own: killed while people are enrolled, and stopped while it works."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PLUGINS, make_faces, save_student

from gdrd_jax.galleries.gallery import Gallery

pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENTS = 8


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = make_faces(tmp_path_factory.mktemp("people"), 4, 1)
    return [base64.b64encode(file.read_bytes()).decode() for file in sorted(folder.rglob("*.png"))]


@pytest.fixture
def start(workdir):
    """Starts a server; its process and its address."""
    processes = []

    def started(place):
        command = [sys.executable, "-m", "gdrd_jax.cli", "--plugin", "tiny_student", "serve", "--model", str(workdir)]
        process = subprocess.Popen(
            [*command, "--gallery", str(place), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGINS}"},
        )  # fmt: skip
        processes.append(process)
        for line in process.stdout:
            if found := re.search(r"http://\S+:\d+", line):
                return process, found[0]
        pytest.fail(f"the server ended with {process.wait()}")

    yield started
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def post(address, path, **body):
    request = urllib.request.Request(
        f"{address}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def enroll_until_it_fails(address, pictures, acknowledged, enough):
    """Several clients enroll one person after another; returns when the server has gone."""

    def work(client):
        number = 0
        while True:
            person = f"{client}-{number}"
            try:
                post(address, "enroll", person=person, images=[pictures[number % 4]] * 2)
            except (OSError, http.client.HTTPException):  # also of a connection that was cut
                return
            acknowledged.append(person)
            if len(acknowledged) >= 60:
                enough.set()
            number += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_that_was_acknowledged_is_lost(start, place, pictures, number):
    process, address = start(place)
    acknowledged, enough = [], threading.Event()
    with ThreadPoolExecutor(1) as pool:
        enrolling = pool.submit(enroll_until_it_fails, address, pictures, acknowledged, enough)
        assert enough.wait(300)
        process.send_signal(number)
        status = process.wait(60)
        enrolling.result()
    counts = Gallery.load(place).counts()
    assert len(acknowledged) >= 60 and not set(acknowledged) - set(counts)
    assert set(counts.values()) == {2} and len(counts) <= len(acknowledged) + CLIENTS
    if number == signal.SIGTERM:  # what had arrived was answered
        assert status == 0 and set(counts) == set(acknowledged)
    process, address = start(place)
    found = post(address, "search", images=[pictures[1]], k=1)["probes"][0]["matches"][0]
    assert found["similarity"] == pytest.approx(1, abs=1e-5)


def test_two_servers_share_a_gallery(start, schema, pictures):
    (_, one), (_, other) = start(schema), start(schema)
    with ThreadPoolExecutor(2) as pool:  # both make it
        list(pool.map(lambda server: post(server, "enroll", person=server, images=[pictures[0]]), (one, other)))
    assert set(Gallery.load(schema).counts().values()) == {1} and set(Gallery.load(schema).people()) == {one, other}
    post(one, "remove", people=[other])
    assert [m["id"] for m in post(other, "search", images=[pictures[0]])["probes"][0]["matches"]] == [one]

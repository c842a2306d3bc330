"""How many requests a server answers, and how fast, by the number of clients.

Starts gdrd serve on this computer, with a gallery of made-up faces, and sends pictures of 112x112 pixels (JPEG, one a
request) to /v1/embed and /v1/search. Each client sends its next request when it has the answer to the last one. The
clients are threads of this process, so they take part of the cores that the server could use. CPU is the server's time
for a request, which other work on the computer changes less than the rest.

Examples:
  gdrd benchmark server --faces 10000 --seconds 15 --out runs/server.json
"""

import argparse
import http.client
import json
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import psutil

from gdrd_jax.benchmarks.gallery import built
from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils import outputs
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import user_path, write_text
from gdrd_jax.utils.tables import markdown_table

CLIENTS = (1, 8, 64)
ENDPOINTS = ("embed", "search")
WARM_UP = 2.0  # seconds before those that are measured
SIDE, QUALITY = 112, 90
BOUNDARY = "gdrd-benchmark"


def picture() -> bytes:
    """A smooth random picture, as JPEG."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    large = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def upload(data: bytes) -> bytes:
    """The body of a request with one picture."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def started(model: str, gallery: Path) -> tuple[subprocess.Popen, str]:
    """A server's process, and its address.

    Raises:
      GdrdError: it ended at once.
    """
    command = [sys.executable, "-m", "gdrd_jax.cli", "serve", "--model", model, "--gallery", str(gallery)]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, encoding="utf-8")
    for line in process.stdout or ():
        if found := re.search(r"http://\S+:\d+", line):
            return process, found[0]
    raise GdrdError(f"gdrd serve ended with status {process.wait()}; see above", "benchmark-server")


def load(address: str, endpoint: str, clients: int, seconds: float, server: psutil.Process) -> dict:
    """Sends requests for some seconds: `requests_per_second`, `p50_ms`, `p99_ms`; `cpu_ms` is the server's for one."""
    body, begin = upload(picture()), threading.Barrier(clients)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def work(_: int) -> list[tuple[bool, float]]:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        found: list[tuple[bool, float]] = []
        begin.wait()
        first = time.perf_counter() + WARM_UP
        while (start := time.perf_counter()) < first + seconds:
            connection.request("POST", f"/v1/{endpoint}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise GdrdError(f"/v1/{endpoint} answered {answer.status}: {content.decode()}", "benchmark-server")
            found.append((start >= first, time.perf_counter() - start))
        connection.close()
        return found

    before = server.cpu_times()
    with ThreadPoolExecutor(clients) as pool:
        done = np.concatenate(list(pool.map(work, range(clients))))
    after, times = server.cpu_times(), done[done[:, 0] == 1, 1]
    cpu = after.user + after.system - before.user - before.system
    return {
        "endpoint": endpoint, "clients": clients, "requests": len(times), "requests_per_second": len(times) / seconds,
        "p50_ms": 1000 * float(np.percentile(times, 50)), "p99_ms": 1000 * float(np.percentile(times, 99)),
        "cpu_ms": 1000 * cpu / len(done),
    }  # fmt: skip


def batch_sizes(address: str) -> float:
    """The mean number of faces in a batch since the server started."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    total, count = (float(re.search(rf"^gdrd_batch_faces_{n} (\S+)", text, re.M)[1]) for n in ("sum", "count"))
    return total / count


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        [f"/v1/{row['endpoint']}", str(row["clients"]), f"{row['requests_per_second']:.0f}", f"{row['p50_ms']:.1f}",
         f"{row['p99_ms']:.1f}", f"{row['cpu_ms']:.1f}"]
        for row in rows
    ]  # fmt: skip
    return markdown_table([["endpoint", "clients", "requests/s", "p50, ms", "p99, ms", "CPU, ms"], *lines])


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", default=DEFAULT, help="student, see gdrd verify (default: %(default)s)")
    parser.add_argument("--faces", type=int, default=10_000, help="faces in the gallery (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="for each number of clients (default: %(default)s)")
    parser.add_argument("--out", type=user_path, help="write the figures to this JSON file, too")
    return parser.parse_args(argv)


def work(args: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    if args.faces < 1 or args.seconds <= 0:
        raise GdrdError("--faces or --seconds is too small; give numbers above 0", "benchmark-numbers")
    for package in ("fastapi", "uvicorn", "onnxruntime"):
        require(package, "server")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        outputs.claim_file(args.out, outputs.is_report, "--out")
    print(f"{platform.processor() or platform.machine()}; {' '.join(sys.argv)}", flush=True)
    recognizer = Recognizer.load(args.model)
    with tempfile.TemporaryDirectory() as folder:
        made = Gallery(recognizer.dim, recognizer.fingerprint())
        for _, block in built(args.faces, recognizer.dim).blocks():
            made.add(block, [f"person {number // 5}" for number in range(len(block))])
        made.save(Path(folder) / "gallery")
        process, address = started(args.model, Path(folder) / "gallery")
        watched = psutil.Process(process.pid)
        try:
            rows = [
                load(address, endpoint, count, args.seconds, watched) for endpoint in ENDPOINTS for count in CLIENTS
            ]
            faces = batch_sizes(address)
        finally:
            process.terminate()
            process.wait()
    print(f"{table(rows)}\n\n{faces:.1f} faces a batch on average")
    if args.out:
        write_text(args.out, json.dumps({"command": sys.argv, "rows": rows, "faces_a_batch": faces}, indent=1))

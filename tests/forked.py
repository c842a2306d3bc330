"""Command lines in forks of one process that has imported the package: starting Python anew for each takes longer."""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = "import sys; from gdrd_jax.cli.train import run; sys.exit(run(sys.argv))"  # as gdrd_jax/main.py
SERVER = """
import json, os, sys, traceback
import gdrd_jax.cli.train
for line in sys.stdin:
    program, argv, cwd, folder = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    status = 1
    try:
        os.chdir(cwd)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv[:] = argv
        exec(program, {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
"""


@functools.cache
def _server() -> subprocess.Popen:
    """It ends with its input, when this process ends."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def call(*arguments, program: str = TRAIN, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs a program of the package with `sys.argv[1:]` given; by default that of `gdrd train`."""
    argv, server = ["main.py", *map(str, arguments)], _server()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([program, argv, str(cwd), folder]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(argv, status, out, err)

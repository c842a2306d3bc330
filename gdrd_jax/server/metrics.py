"""Metrics for Prometheus."""

import math
from collections.abc import Callable

from gdrd_jax.utils.errors import GdrdError, require

prometheus = require("prometheus_client", "server")

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
ENDPOINTS = ("/health", *(f"/v1/{name}" for name in ("embed", "verify", "enroll", "search", "remove", "gallery")))
FACES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        """Makes empty ones."""
        prometheus.disable_created_metrics()
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "gdrd_requests", "Requests, by endpoint and HTTP status.", ["endpoint", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "gdrd_request_seconds", "Time from a request's first byte to its answer's last.", ["endpoint"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = prometheus.Histogram(
            "gdrd_batch_faces", "Faces that went through the network together.", buckets=FACES, registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        endpoint = path if path in ENDPOINTS else "other"
        self._requests.labels(endpoint, status).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, faces: int) -> None:
        """Counts a batch."""
        self._batches.observe(faces)

    def gallery(self, count: Callable[[], int]) -> None:
        """Shows the faces in the gallery, whose number `count` returns when metrics are read; NaN if it fails."""

        def counted() -> float:
            try:
                return count()
            except GdrdError:  # the database cannot be reached, which is when the other metrics matter
                return math.nan

        gauge = prometheus.Gauge("gdrd_gallery_faces", "Faces in the gallery.", registry=self._registry)
        gauge.set_function(counted)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return prometheus.generate_latest(self._registry)

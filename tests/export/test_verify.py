"""How fast the forms of a student are."""

import numpy as np
import pytest

from gdrd_jax.export import verify
from gdrd_jax.inference.embedders import Embedder


def test_speeds_are_medians_of_what_each_form_takes(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(verify.time, "perf_counter", lambda: now[0])

    def taking(seconds):
        def forward(faces):
            calls.append(len(faces))
            now[0] += seconds * len(faces) * (100 if len(calls) in (1, 50) else 1)  # compiling, and a pause

        return forward

    embedders = [Embedder(name, 16, taking(seconds)) for name, seconds in (("slow", 0.002), ("fast", 0.0002))]
    slow, fast = verify.speeds(embedders, np.zeros((3, 16, 16, 3), np.uint8))
    assert slow == {"faces_per_second": pytest.approx(500), "one_face_ms": pytest.approx(2.0)}
    assert fast == {"faces_per_second": pytest.approx(5000), "one_face_ms": pytest.approx(0.2)}
    assert len(calls) > 50

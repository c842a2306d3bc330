"""Small faces and settings that run in seconds."""

import cv2
import numpy as np
import pytest

from gdrd_jax.config import default


def make_faces(root, people, images, *, size=112):
    """Writes `root/pN/M.png`: a smooth random picture a person, with noise an image."""
    rng = np.random.default_rng(0)
    for person in range(people):
        base = cv2.resize(
            rng.integers(40, 216, size=(6, 6, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
        (root / f"p{person}").mkdir(parents=True)
        for image in range(images):
            noisy = base + rng.normal(scale=12, size=base.shape)
            cv2.imwrite(str(root / f"p{person}" / f"{image}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
    return root


def tiny_config(path):
    """Every step, as small as it goes; SFace is the discriminative teacher."""
    config = default()
    config.name = "tiny"
    config.data.update(path=str(path), test_people=2, calibration_people=2)
    config.discriminative.update(path="sface", mean=0.0, std=1.0)
    config.sr.update(size=16, channels=(8, 16, 16), steps=4, batch=2)
    config.student.update(width=0.0625, hidden=(16,), head_stages=1)
    config.gen.update(steps=45, batch=8)
    config.dis.update(steps=45, batch=8)
    return config


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"), people=7, images=3)

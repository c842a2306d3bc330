"""Mixup images as the discriminative teacher sees them."""

import cv2
import numpy as np
import pytest

from gdrd_jax.teachers.mixup_targets import embed_mixup

RNG = np.random.default_rng(0)


class Seen:
    """Stands for a teacher and gives back what it is fed with."""

    def __init__(self, side):
        self.input_size = side

    def embed_tensor(self, faces):
        return faces.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size, side", [(48, 112), (112, 112), (48, 160)])
def test_the_teacher_sees_the_mixup_image_enlarged(size, side):
    faces, others = (RNG.integers(256, size=(4, size, size, 3), dtype=np.uint8) for _ in range(2))
    mirrored, share = np.array([True, False, True, False]), np.float32([0.3, 0.5, 0.7, 1.0])
    found = embed_mixup(Seen(side), faces, others, mirrored, share)
    for number in range(4):
        other = others[number][:, ::-1] if mirrored[number] else others[number]
        mixed = np.rint(share[number] * np.float32(faces[number]) + (1 - share[number]) * np.float32(other))
        large = cv2.resize(mixed, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        np.testing.assert_allclose(found[number], large, atol=0.01)

"""T_d's embeddings of mixup images of packed faces, made and enlarged on the device that runs T_d."""

import numpy as np

from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.arcface import ArcFace
from gdrd_jax.utils.errors import require


def embed_mixup(
    teacher: ArcFace, small: np.ndarray, partner: np.ndarray, mirrored: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Embeds mixup images, enlarged by bicubic interpolation.

    Args:
      teacher: T_d.
      small, partner: faces and those they are mixed with, uint8 RGB `[N, S, S, 3]`.
      mirrored: which partners are mirrored, bool `[N]`.
      share: of the faces' own pixels, `[N]`.

    Returns:
      float32 `[N, D]`, not normalized.
    """
    torch = require("torch", "teachers")
    with torch.inference_mode():
        own, other, turned, share = (
            torch.as_tensor(a).to(torch_network.device()) for a in (small, partner, mirrored, np.float32(share))
        )
        other = torch.where(turned[:, None, None, None], other.flip(2), other)
        share = share[:, None, None, None]
        mixed = torch.round(share * own + (1 - share) * other).permute(0, 3, 1, 2)
        large = torch.nn.functional.interpolate(mixed, size=(teacher.input_size,) * 2, mode="bicubic").clamp(0, 255)
        return teacher.embed_tensor(large)

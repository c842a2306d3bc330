"""The paper's generative teacher T_g: the encoder of PGDiff's face diffusion model.

PGDiff (arXiv 2309.10810) uses DifFace's unconditional face DDPM, `iddpm_ffhq512_ema500000.pth`: a UNet of the
guided-diffusion family. Other networks of that family load, too; see `guided_diffusion`. The decoder is left out.
"""

import logging
import os
from pathlib import Path

import numpy as np

from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.checkpoint import read_state_dict
from gdrd_jax.teachers.guided_diffusion import HEAD_CHANNELS, Heads, encoder
from gdrd_jax.teachers.sr_diffusion import enlarged
from gdrd_jax.teachers.torch_network import FeatureExtractor
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import sha256

# Beside a network's keys: what is not fed with pixels.
FOREIGN = {"first_stage_model.": "a latent diffusion network, which is not fed with pixels"}
LOG = logging.getLogger(__name__)


class PGDiff(FeatureExtractor):
    """T_g from a guided-diffusion checkpoint, run by torch, on a GPU if there is one.

    Args:
      path: a state_dict, alone or in a trainer's checkpoint, keys with or without "module." or the like.
      tap: "block0", "block1", ... (the published network has 23 input blocks, to "block22") or "middle".
      input_size: side in pixels to which a face is enlarged (Pillow's bicubic) before the encoder.
      timestep: at which the encoder is asked, 0 (clean) to 999.
      precision: "float32" or "bfloat16".
      head_channels, heads, attention_order: of the attention, see `teachers.load_generative`.

    Attributes:
      taps: all there are, in order.
      conditional: False; it cannot super-resolve.
      settings: the file's sha256 and every setting above.
      fingerprint: of these.

    Raises:
      GdrdError: no such file, keys or shapes that do not fit (naming the first), an architecture that they do not
        prove, no such tap, or bfloat16 changes its features.
    """

    conditional = False

    def __init__(
        self, path: str | os.PathLike, *, tap: str, input_size: int, timestep: int, precision: str = "float32",
        head_channels: int = 0, heads: int = 0, attention_order: str = "",
    ):  # fmt: skip
        path, self._torch = Path(path), require("torch", "teachers")
        chosen = _heads(head_channels, heads, attention_order, path)
        weights = read_state_dict(path, "input_blocks.0.0.", FOREIGN)
        self._device = torch_network.device()
        time_embed, blocks = encoder(weights, chosen, path)
        self._time_embed = time_embed.to(self._device).eval()
        self.taps = (*(f"block{i}" for i in range(len(blocks) - 1)), "middle")
        if tap not in self.taps:
            raise GdrdError(
                f"config.generative.tap is {tap!r}; {path} has block0 to {self.taps[-2]}, and middle", "teacher-tap"
            )
        # What convolutions like best, on CPUs and GPUs alike.
        how = {"device": self._device, "memory_format": self._torch.channels_last}
        self._blocks = [[layer.to(**how).eval() for layer in block] for block in blocks[: self.taps.index(tap) + 1]]
        self._size, self._timestep = input_size, timestep
        self.settings = {
            "kind": "pgdiff", "tap": tap, "input_size": input_size, "timestep": timestep, "precision": precision,
            **({"heads": heads} if heads else {"head_channels": chosen.channels}),
            **({"attention_order": "new"} if chosen.new_order else {}), "sha256": sha256(path),
        }  # fmt: skip
        self._ready(str(path))

    def _encode(self, lr: np.ndarray, precision: str, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
        with torch_network.precision(precision, self._device):
            x = enlarged(lr, self._size).to(self._device, memory_format=self._torch.channels_last)
            time, found = self._time(len(x)), {}
            for name, block in zip(self.taps, self._blocks):
                x = _run(block, x, time)
                if name in taps:
                    found[name] = x.float().cpu().numpy()
            return found

    def _time(self, count: int):
        from diffusers.models.embeddings import get_timestep_embedding

        channels = self._time_embed[0].in_features
        steps = self._torch.full((count,), self._timestep, device=self._device)
        waves = get_timestep_embedding(steps, channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self._time_embed(waves)


def _heads(channels: int, count: int, order: str, path: Path) -> Heads:
    """What is asked for; the log says what is assumed."""
    assumed = [] if channels or count else [f"heads of {HEAD_CHANNELS} channels"]
    assumed += [] if order else ["the legacy order of queries, keys and values"]
    if assumed:
        LOG.info(
            "%s: no key says how the attention is split; taken for granted: %s. If it was trained with another "
            "num_head_channels, num_heads or use_new_attention_order, set generative.head_channels, heads or "
            "attention_order", path, " and ".join(assumed),
        )  # fmt: skip
    return Heads(channels or HEAD_CHANNELS, count, order == "new")


def _run(block: list, x, time):
    for layer in block:
        x = layer(x, time) if hasattr(layer, "time_emb_proj") else layer(x)
    return x

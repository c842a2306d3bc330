"""The paper's generative teacher T_g: the encoder of PGDiff's face diffusion model.

PGDiff (arXiv 2309.10810) uses DifFace's unconditional face DDPM, `iddpm_ffhq512_ema500000.pth`: a UNet of the
guided-diffusion family. Other networks of that family load, too; see `guided_diffusion`. The decoder is left out.
"""

import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.registry import generative_teachers
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.checkpoint import check_weights, read_state_dict
from gdrd_jax.teachers.guided_diffusion import HEAD_CHANNELS, Heads, encoder
from gdrd_jax.teachers.interface import GenerativeOptions
from gdrd_jax.teachers.sr_diffusion import LAST_TIMESTEP, enlarged
from gdrd_jax.teachers.torch_network import FeatureExtractor
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import sha256

# Beside a network's keys: what is not fed with pixels.
FOREIGN = {"first_stage_model.": "a latent diffusion network, which is not fed with pixels"}
ATTENTION_ORDERS = ("legacy", "new")
LOG = logging.getLogger(__name__)


@generative_teachers.register("pgdiff")
class PGDiff(FeatureExtractor):
    """The encoder of a guided-diffusion checkpoint such as PGDiff's `iddpm_ffhq512_ema500000.pth`.

    A state_dict, alone or in a trainer's checkpoint, keys with or without "module." or the like; run by torch, on a GPU
    if there is one. Its taps are "block0", "block1", ... (the published network has 23 input blocks, to "block22") and
    "middle"; those after the one that it is loaded with are left out.

    Raises:
      GdrdError: no such file, keys or shapes that do not fit (naming the first), an architecture that they do not
        prove, no such tap, or bfloat16 changes its features.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          timestep: of the diffusion, 0 (clean) to 999.
          head_channels: channels of each attention head, `num_head_channels` of guided-diffusion, which no checkpoint
            states; 0 is 64, as in the published network, and the log says so.
          heads: number of attention heads at every level, `num_heads`, instead of `head_channels`.
          attention_order: order of the rows of queries, keys and values, which no checkpoint states either: "legacy"
            (head by head) or "new" (`use_new_attention_order`); "" is "legacy", and the log says so.
        """

        timestep: int = 0
        head_channels: int = 0
        heads: int = 0
        attention_order: str = ""

        def __post_init__(self) -> None:
            if not 0 <= self.timestep <= LAST_TIMESTEP:
                raise ValueError(f"timestep is {self.timestep}; it can be 0 (no noise) to {LAST_TIMESTEP}")
            split = self.head_channels >= 0 and self.heads >= 0 and not (self.head_channels and self.heads)
            if not split or self.attention_order not in ("", *ATTENTION_ORDERS):
                raise ValueError(
                    f"head_channels {self.head_channels}, heads {self.heads} and attention_order "
                    f"{self.attention_order!r}: give head_channels or heads, not both, and "
                    f"{' or '.join(ATTENTION_ORDERS)} as attention_order"
                )

    default_tap, default_input_size = "block17", 128  # measured in docs/studies/taps.md
    takes = frozenset({"input_size", "precision"})
    packages = ("torch", "diffusers", "safetensors")

    @classmethod
    def check(cls, options: GenerativeOptions) -> None:
        if options.path is None:
            raise GdrdError(
                "config.generative.path is not set; give PGDiff's checkpoint, iddpm_ffhq512_ema500000.pth",
                "generative-none",
            )
        check_weights(options.path)
        if not re.fullmatch(r"block\d+|middle", options.tap):
            raise GdrdError(
                f"config.generative.tap is {options.tap!r}; of the kind 'pgdiff' it is block0, block1, ... or middle",
                "teacher-tap",
            )

    @classmethod
    def recorded(cls, config: Any) -> dict[str, object]:
        """An assumed value of the attention must not change a run's fingerprint."""
        return {name: value for name, value in asdict(config).items() if value or name == "timestep"}

    @classmethod
    def load(cls, options: GenerativeOptions) -> "PGDiff":
        return cls(options)

    def __init__(self, options: GenerativeOptions):
        path, tap, config, self._torch = options.path, options.tap, options.config, require("torch", "teachers")
        chosen = _heads(config, path)
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
        self._size, self._timestep = options.input_size, config.timestep
        self.settings = {
            "kind": "pgdiff", "tap": tap, "input_size": self._size, "timestep": self._timestep,
            "precision": options.precision,
            **({"heads": config.heads} if config.heads else {"head_channels": chosen.channels}),
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


def _heads(config: Any, path: Path) -> Heads:
    """What is asked for; the log says what is assumed."""
    assumed = [] if config.head_channels or config.heads else [f"heads of {HEAD_CHANNELS} channels"]
    assumed += [] if config.attention_order else ["the legacy order of queries, keys and values"]
    if assumed:
        LOG.info(
            "%s: no key says how the attention is split; taken for granted: %s. If it was trained with another "
            "num_head_channels, num_heads or use_new_attention_order, set head_channels, heads or attention_order in "
            "config.generative.settings", path, " and ".join(assumed),
        )  # fmt: skip
    return Heads(config.head_channels or HEAD_CHANNELS, config.heads, config.attention_order == "new")


def _run(block: list, x, time):
    for layer in block:
        x = layer(x, time) if hasattr(layer, "time_emb_proj") else layer(x)
    return x

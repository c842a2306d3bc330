"""The paper's generative teacher T_g: the encoder of PGDiff's face diffusion model.

PGDiff (arXiv 2309.10810) uses DifFace's unconditional face DDPM, `iddpm_ffhq512_ema500000.pth`: a UNet of the
guided-diffusion family. Its encoder is composed here of diffusers' blocks, as the checkpoint's keys tell, so other
widths and depths of that family load, too; the decoder is left out.
"""

from pathlib import Path

import numpy as np

from gdrd_jax.errors import GdrdError, first_line, require
from gdrd_jax.files import sha256
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.checkpoint import load, part, read_state_dict
from gdrd_jax.teachers.sr_diffusion import enlarged
from gdrd_jax.teachers.torch_network import Tapped

GROUPS, EPSILON = 32, 1e-5
# guided-diffusion's names of the layers of a residual block, and diffusers'.
RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


class PGDiff(Tapped):
    """T_g from a guided-diffusion checkpoint, run by torch, on a GPU if there is one.

    Args:
      path: a state_dict, flat or under "state_dict", keys with or without "module.".
      tap: "block0", "block1", ... (the published network has 23 input blocks, to "block22") or "middle".
      input_size: side in pixels to which a face is enlarged (Pillow's bicubic) before the encoder.
      timestep: at which the encoder is asked, 0 (clean) to 999.
      precision: "float32" or "bfloat16".
      head_channels: of the attention; the checkpoint does not tell (64 in the published network).

    Attributes:
      taps: all there are, in order.
      conditional: False; it cannot super-resolve.
      settings: the file's sha256 and every setting above.
      fingerprint: of these.

    Raises:
      GdrdError: no such file, keys or shapes that do not fit (naming the first), no such tap, or
        bfloat16 changes its features.
    """

    conditional = False

    def __init__(
        self, path: Path, *, tap: str, input_size: int, timestep: int, precision: str = "float32",
        head_channels: int,
    ):  # fmt: skip
        self._torch = require("torch", "teachers")
        weights = read_state_dict(path)
        count = _blocks(weights, "input_blocks", path)
        if not count or not {"time_embed.0.weight", "time_embed.2.weight"} <= weights.keys():
            raise GdrdError(f"{path} is no guided-diffusion UNet: it has no input_blocks or no time_embed")
        if _blocks(weights, "output_blocks", path) not in (0, count):
            raise GdrdError(f"{path} does not fit: it has {count} input_blocks and not as many output_blocks")
        self.taps = (*(f"block{i}" for i in range(count)), "middle")
        if tap not in self.taps:
            raise GdrdError(f"config.generative.tap is {tap!r}; {path} has block0 to {self.taps[-2]}, and middle")
        self._device = torch_network.device()
        # All of them, the tap or not: a checkpoint that does not fit must not pass for one that does.
        try:
            blocks = [_input_block(weights, number, head_channels, path) for number in range(count)]
            blocks.append(_middle_block(weights, head_channels, path))
            self._time_embed = _time_embed(weights, path).to(self._device).eval()
        except (ValueError, TypeError, IndexError) as error:  # of tensors with too many or too few dimensions
            raise GdrdError(f"{path} is no guided-diffusion UNet that fits: {first_line(error)}") from error
        # What convolutions like best, on CPUs and GPUs alike.
        how = {"device": self._device, "memory_format": self._torch.channels_last}
        self._blocks = [[layer.to(**how).eval() for layer in block] for block in blocks[: self.taps.index(tap) + 1]]
        self._size, self._timestep = input_size, timestep
        self.settings = {
            "kind": "pgdiff", "tap": tap, "input_size": input_size, "timestep": timestep, "precision": precision,
            "head_channels": head_channels, "sha256": sha256(path),
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


def _blocks(weights: dict, prefix: str, path: Path) -> int:
    """How many blocks there are, numbered from 0."""
    numbers = {key.split(".")[1] for key in weights if key.startswith(prefix + ".")}
    missing = [str(number) for number in range(len(numbers)) if str(number) not in numbers]
    if missing:
        raise GdrdError(f"{path} does not fit: {prefix}.{missing[0]} is missing")
    return len(numbers)


def _only(own: dict, layers: int, where: str) -> None:
    more = [key for key in own if key.split(".")[0] not in map(str, range(layers))]
    if more:
        raise GdrdError(f"{where} does not fit: {more[0]} is not expected")


def _run(block: list, x, time):
    for layer in block:
        x = layer(x, time) if hasattr(layer, "time_emb_proj") else layer(x)
    return x


def _time_embed(weights: dict, path: Path):
    nn = require("torch.nn", "teachers")
    wide, narrow = weights["time_embed.0.weight"].shape
    layers = nn.Sequential(nn.Linear(narrow, wide), nn.SiLU(), nn.Linear(wide, wide))
    return load(layers, part(weights, "time_embed"), f"{path}: time_embed")


def _input_block(weights: dict, number: int, head_channels: int, path: Path) -> list:
    """The layers of an input block: a convolution, a strided one, or a residual block with or without attention."""
    nn, resnet = require("torch.nn", "teachers"), require("diffusers.models.resnet", "teachers")
    own, where = part(weights, f"input_blocks.{number}"), f"{path}: input_blocks.{number}"
    if "0.op.weight" in own:
        layer = resnet.Downsample2D(own["0.op.weight"].shape[1], use_conv=True, padding=1, name="op")
        return [load(layer, own, where, {"0.op": "conv"})]
    if "0.weight" in own:
        layer = nn.Sequential(nn.Conv2d(3, len(own["0.weight"]), 3, padding=1))
        return [load(layer, own, where)]
    _only(own, 2, where)
    layers = [_residual(part(own, "0"), f"{where}.0")]
    if part(own, "1"):
        layers.append(_attention(part(own, "1"), head_channels, f"{where}.1"))
    return layers


def _middle_block(weights: dict, head_channels: int, path: Path) -> list:
    own, where = part(weights, "middle_block"), f"{path}: middle_block"
    _only(own, 3, where)
    return [
        _residual(part(own, "0"), f"{where}.0"), _attention(part(own, "1"), head_channels, f"{where}.1"),
        _residual(part(own, "2"), f"{where}.2"),
    ]  # fmt: skip


def _residual(weights: dict, where: str):
    resnet = require("diffusers.models.resnet", "teachers")
    if not {"in_layers.2.weight", "emb_layers.1.weight"} <= weights.keys():
        raise GdrdError(f"{where} is no residual block: in_layers.2.weight or emb_layers.1.weight is missing")
    after, before = weights["in_layers.2.weight"].shape[:2]
    block = resnet.ResnetBlock2D(
        in_channels=before, out_channels=after, temb_channels=weights["emb_layers.1.weight"].shape[1],
        groups=GROUPS, eps=EPSILON, time_embedding_norm="scale_shift",
    )  # fmt: skip
    return load(block, weights, where, RESIDUAL)


def _attention(weights: dict, head_channels: int, where: str):
    """Attention in guided-diffusion's older order: head by head, each q, k and v together."""
    attention = require("diffusers.models.attention_processor", "teachers")
    channels = len(weights.get("norm.weight", ()))
    expected = {"norm.bias": (channels,), "qkv.weight": (3 * channels, channels, 1), "qkv.bias": (3 * channels,)}
    odd = [key for key, shape in expected.items() if key not in weights or tuple(weights[key].shape) != shape]
    if not channels or odd or channels % head_channels:
        raise GdrdError(
            f"{where} is no attention with heads of {head_channels} channels: "
            + (f"{', '.join(odd)} is missing or of another shape" if odd else f"it has {channels} channels")
        )
    heads = channels // head_channels
    packed = weights["qkv.weight"].reshape(heads, 3, head_channels, channels)
    biases = weights["qkv.bias"].reshape(heads, 3, head_channels)
    rest = {key: value for key, value in weights.items() if not key.startswith("qkv.")}
    if "proj_out.weight" in rest:  # a convolution over one dimension, of size 1
        rest["proj_out.weight"] = rest["proj_out.weight"].squeeze(-1)
    for i, name in enumerate("qkv"):
        rest[f"to_{name}.weight"] = packed[:, i].reshape(channels, channels)
        rest[f"to_{name}.bias"] = biases[:, i].reshape(channels)
    layer = attention.Attention(
        channels, heads=heads, dim_head=head_channels, norm_num_groups=GROUPS, eps=EPSILON, bias=True,
        residual_connection=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    return load(layer, rest, where, {"norm": "group_norm", "proj_out": "to_out.0"})

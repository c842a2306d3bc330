"""The encoder of guided-diffusion's `UNetModel`, built from diffusers' blocks according to a checkpoint's keys.

Some arguments of `UNetModel` leave no key. `resblock_updown` and `conv_resample` are inferred from the decoder, which
mirrors the encoder. Of the others, the attention heads are options, and the rest is refused.
"""

from pathlib import Path
from typing import NamedTuple

from gdrd_jax.teachers.checkpoint import load, part
from gdrd_jax.utils.errors import GdrdError, first_line, require

GROUPS, EPSILON = 32, 1e-5
HEAD_CHANNELS = 64  # assumed where nothing else is said: those of PGDiff's published network, and of most others
PARTS = {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
# guided-diffusion's names of the layers of a residual block, and diffusers'.
RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


class Heads(NamedTuple):
    """Attention settings, which cannot be inferred from a checkpoint's keys.

    Attributes:
      channels: channels of each head; ignored if `count` is above 0.
      count: number of heads at every level, or 0.
      new_order: whether `qkv` holds all queries, then all keys, then all values (`use_new_attention_order`), instead of
        these three head by head.
    """

    channels: int = HEAD_CHANNELS
    count: int = 0
    new_order: bool = False


def encoder(weights: dict, heads: Heads, path: Path) -> tuple:
    """Builds the time embedding, the input blocks and the middle block of a checkpoint, with its weights.

    Args:
      weights: key to tensor, as guided-diffusion names them; the decoder may be missing.
      heads: attention settings.
      path: the checkpoint's file, named in errors.

    Returns:
      The time embedding as a torch module, and one list of modules a block, the middle block last.

    Raises:
      GdrdError: keys or shapes do not fit, the network is class-conditional, or its architecture is ambiguous.
    """
    count = _blocks(weights, "input_blocks", path)
    if not count or not {"time_embed.0.weight", "time_embed.2.weight"} <= weights.keys():
        raise GdrdError(
            f"{path} is not a guided-diffusion UNet: it has no input_blocks or no time_embed", "unet-unknown"
        )
    if "label_emb.weight" in weights:
        raise GdrdError(
            f"{path} is class-conditional (label_emb), and a face has no class; give an unconditional network",
            "unet-class-conditional",
        )
    more = [key for key in weights if key.split(".")[0] not in PARTS]
    if more:
        raise GdrdError(
            f"{path} does not fit: {more[0]} is not expected in a guided-diffusion UNet", "unet-unexpected-key"
        )
    if _blocks(weights, "output_blocks", path) not in (0, count):
        raise GdrdError(
            f"{path} does not fit: it has {count} input_blocks and another number of output_blocks",
            "unet-output-blocks",
        )
    # Build all blocks, not only those before the tap, so that every mismatch is found.
    try:
        halving = _halving_residuals(weights, count, path)
        blocks = [_input_block(weights, number, number in halving, heads, path) for number in range(count)]
        blocks.append(_middle_block(weights, heads, path))
        return _time_embed(weights, path), blocks
    except (ValueError, TypeError, IndexError) as error:  # of tensors with too many or too few dimensions
        raise GdrdError(
            f"{path} is not a guided-diffusion UNet that fits: {first_line(error)}", "unet-shapes"
        ) from error


def _blocks(weights: dict, prefix: str, path: Path) -> int:
    """How many blocks there are, numbered from 0."""
    numbers = {key.split(".")[1] for key in weights if key.startswith(prefix + ".")}
    missing = [str(number) for number in range(len(numbers)) if str(number) not in numbers]
    if missing:
        raise GdrdError(
            f"{path} does not fit: {prefix}.{missing[0]} is missing; the file is incomplete, or the network was made "
            "with conv_resample=False, which is not supported",
            "unet-block-missing",
        )
    return len(numbers)


def _halving_residuals(weights: dict, count: int, path: Path) -> set[int]:
    """Indices of the residual input blocks that downsample (`resblock_updown`).

    Their keys look like those of any residual block. But input block i feeds output block count - 1 - i, which
    upsamples if and only if input block i downsamples: both by a convolution, or both by a residual block.
    """
    convolutions = {number for number in range(count) if f"input_blocks.{number}.0.op.weight" in weights}
    if not part(weights, "output_blocks"):
        if not convolutions:
            raise GdrdError(
                f"{path} has neither output_blocks nor a convolution that halves the sides (input_blocks.N.0.op), so "
                "it is unknown which blocks halve them; give the complete checkpoint",
                "unet-halving-unknown",
            )
        return set()  # one argument of UNetModel decides for all levels
    found, width = set(), len(_tensor(weights, "middle_block.2.out_layers.3.weight", path))
    for number in reversed(range(count)):
        mirror = f"output_blocks.{count - 1 - number}"
        own = part(weights, mirror)
        enlarging = {key.split(".")[1] for key in own if key[0] != "0" and "." in key} & {"conv", "in_layers"}
        expected = {"conv"} if number in convolutions else enlarging & {"in_layers"}
        residual = f"input_blocks.{number}.0.in_layers.2.weight" in weights
        if enlarging != expected or ("in_layers" in enlarging and not residual):
            raise GdrdError(
                f"{path} does not fit: input_blocks.{number} and {mirror} do not mirror each other, so it is unclear "
                "which blocks change the resolution",
                "unet-not-mirrored",
            )
        after, before = _tensor(weights, f"{mirror}.0.in_layers.2.weight", path).shape[:2]
        skipped = _width(weights, number)
        if before != width + skipped:
            raise GdrdError(
                f"{path} does not fit: {mirror} takes {before} channels, but the block before it and "
                f"input_blocks.{number} give {width} and {skipped}",
                "unet-channels",
            )
        width = after
        if "in_layers" in enlarging:
            found.add(number)
    return found


def _tensor(weights: dict, key: str, path: Path):
    if key not in weights:
        raise GdrdError(f"{path} does not fit: {key} is missing", "unet-tensor-missing")
    return weights[key]


def _width(weights: dict, number: int) -> int:
    """How many channels an input block puts out."""
    names = (f"input_blocks.{number}.{name}.weight" for name in ("0", "0.op", "0.out_layers.3"))
    return next((len(weights[name]) for name in names if name in weights), 0)


def _only(own: dict, layers: int, where: str) -> None:
    more = [key for key in own if key.split(".")[0] not in map(str, range(layers))]
    if more:
        raise GdrdError(f"{where} does not fit: {more[0]} is not expected", "unet-unexpected-key")


def _time_embed(weights: dict, path: Path):
    nn = require("torch.nn", "teachers")
    wide, narrow = weights["time_embed.0.weight"].shape
    layers = nn.Sequential(nn.Linear(narrow, wide), nn.SiLU(), nn.Linear(wide, wide))
    return load(layers, part(weights, "time_embed"), f"{path}: time_embed")


def _input_block(weights: dict, number: int, halving: bool, heads: Heads, path: Path) -> list:
    """The layers of an input block: a convolution, a strided one, or a residual block with or without attention."""
    nn, resnet = require("torch.nn", "teachers"), require("diffusers.models.resnet", "teachers")
    own, where = part(weights, f"input_blocks.{number}"), f"{path}: input_blocks.{number}"
    if "0.op.weight" in own:
        layer = resnet.Downsample2D(own["0.op.weight"].shape[1], use_conv=True, padding=1, name="op")
        return [load(layer, own, where, {"0.op": "conv"})]
    if "0.weight" in own:
        layer = nn.Sequential(nn.Conv2d(3, len(own["0.weight"]), 3, padding=1))
        return [load(layer, own, where)]
    _only(own, 1 if halving else 2, where)
    layers = [_residual(part(own, "0"), f"{where}.0", halving)]
    if part(own, "1"):
        layers.append(_attention(part(own, "1"), heads, f"{where}.1"))
    return layers


def _middle_block(weights: dict, heads: Heads, path: Path) -> list:
    own, where = part(weights, "middle_block"), f"{path}: middle_block"
    _only(own, 3, where)
    return [
        _residual(part(own, "0"), f"{where}.0"), _attention(part(own, "1"), heads, f"{where}.1"),
        _residual(part(own, "2"), f"{where}.2"),
    ]  # fmt: skip


def _residual(weights: dict, where: str, halving: bool = False):
    """A residual block; `halving` takes the mean of 2x2 positions before its first convolution and on its skip."""
    resnet = require("diffusers.models.resnet", "teachers")
    if not {"in_layers.2.weight", "emb_layers.1.weight"} <= weights.keys():
        raise GdrdError(
            f"{where} is not a residual block: in_layers.2.weight or emb_layers.1.weight is missing",
            "unet-tensor-missing",
        )
    after, before = weights["in_layers.2.weight"].shape[:2]
    rows, time = weights["emb_layers.1.weight"].shape
    block = resnet.ResnetBlock2D(
        in_channels=before, out_channels=after, temb_channels=time, groups=GROUPS, eps=EPSILON, down=halving,
        time_embedding_norm="default" if rows == after else "scale_shift",  # use_scale_shift_norm doubles the rows
    )  # fmt: skip
    return load(block, weights, where, RESIDUAL)


def _attention(weights: dict, heads: Heads, where: str):
    attention = require("diffusers.models.attention_processor", "teachers")
    channels = len(weights.get("norm.weight", ()))
    expected = {"norm.bias": (channels,), "qkv.weight": (3 * channels, channels, 1), "qkv.bias": (3 * channels,)}
    odd = [key for key, shape in expected.items() if key not in weights or tuple(weights[key].shape) != shape]
    said = f"{heads.count} heads" if heads.count else f"heads of {heads.channels} channels"
    if not channels or odd or channels % (heads.count or heads.channels):
        raise GdrdError(
            f"{where} is not an attention with {said}: "
            + (f"{', '.join(odd)} is missing or of another shape" if odd else f"it has {channels} channels")
            + "; set head_channels or heads in config.generative.settings",
            "unet-attention",
        )
    count = heads.count or channels // heads.channels
    split = (3, count) if heads.new_order else (count, 3)
    packed = {name: weights[f"qkv.{name}"].reshape(*split, channels // count, -1) for name in ("weight", "bias")}
    rest = {key: value for key, value in weights.items() if not key.startswith("qkv.")}
    if "proj_out.weight" in rest:  # a convolution over one dimension, of size 1
        rest["proj_out.weight"] = rest["proj_out.weight"].squeeze(-1)
    for i, name in enumerate("qkv"):
        for kind, values in packed.items():
            own = values[i] if heads.new_order else values[:, i]
            rest[f"to_{name}.{kind}"] = own.reshape(channels, -1) if kind == "weight" else own.reshape(channels)
    layer = attention.Attention(
        channels, heads=count, dim_head=channels // count, norm_num_groups=GROUPS, eps=EPSILON, bias=True,
        residual_connection=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    return load(layer, rest, where, {"norm": "group_norm", "proj_out": "to_out.0"})

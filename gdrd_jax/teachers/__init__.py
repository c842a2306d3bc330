"""The frozen teachers; the only part of the project that imports torch, diffusers and ONNX Runtime."""

import os
from typing import NamedTuple

from gdrd_jax.teachers.file_kind import ONNX, file_kind
from gdrd_jax.utils.errors import GdrdError

PRECISIONS = ("float32", "bfloat16")
LAST_TIMESTEP = 999
ATTENTION_ORDERS = ("legacy", "new")


class TapDefaults(NamedTuple):
    """What a kind of generative teacher is asked for where nothing else is said; see `load_generative`.

    Measured in docs/studies/taps.md. An input size of 0 and a timestep of -1 are the network's own.
    """

    tap: str
    input_size: int
    timestep: int


GENERATIVE = {"diffusers": TapDefaults("mid", 0, -1), "pgdiff": TapDefaults("block17", 128, 0)}


def load_generative(
    kind: str, path: str | os.PathLike, *, tap: str = "", input_size: int = 0, timestep: int = -1,
    precision: str = "float32", head_channels: int = 0, heads: int = 0, attention_order: str = "",
):  # fmt: skip
    """T_g: the encoder of a face diffusion model.

    Args:
      kind: "diffusers", a folder of a `UNet2DModel`, or "pgdiff", a guided-diffusion checkpoint.
      path: of the folder or file.
      tap: the block whose output is taken: "down0", ... or "mid" of a UNet2DModel, "block0", ... or
        "middle" of PGDiff; "" is the kind's own.
      input_size: side to which a low-resolution face is enlarged first; 0 is the kind's own.
      timestep: of the diffusion, 0 (clean) to 999; -1 is the kind's own.
      precision: "float32", or "bfloat16", which is refused where it changes the features.
      head_channels, heads: of PGDiff's attention, which its checkpoint does not say: so many channels a head
        (`num_head_channels` of guided-diffusion), or so many heads at every level (`num_heads`), not both. 0 and 0
        mean heads of 64 channels, as in the published network, and the log says so.
      attention_order: of the rows of its queries, keys and values, which the checkpoint does not say either: "legacy"
        (head by head), "new" (`use_new_attention_order`); "" is "legacy", and the log says so.

    Returns:
      An object with `features(uint8 RGB [N, H, W, 3]) -> float32 [N, C, h, w]`, `conditional` (it has
      `super_resolve`), `settings` and `fingerprint`.

    Raises:
      GdrdError: no such kind, file or tap, or not such a network.
    """
    if kind not in GENERATIVE:
        raise GdrdError(
            f"unknown kind {kind!r} of generative teacher; choose {' or '.join(GENERATIVE)}", "teacher-kind"
        )
    own = GENERATIVE[kind]
    if not -1 <= timestep <= LAST_TIMESTEP:
        raise GdrdError(
            f"timestep {timestep} is out of range; give 0 (no noise) to {LAST_TIMESTEP}, or -1 for the default of the "
            "kind of teacher",
            "teacher-timestep",
        )
    if input_size < 0:
        raise GdrdError(
            f"input size {input_size} is negative; give a side in pixels, or 0 for the default of the kind of teacher",
            "teacher-input-size",
        )
    asked = {
        "tap": tap or own.tap, "input_size": input_size or own.input_size,
        "timestep": own.timestep if timestep < 0 else timestep, "precision": precision,
    }  # fmt: skip
    attention = {"head_channels": head_channels, "heads": heads, "attention_order": attention_order}
    check_attention(kind, **attention)
    if kind == "pgdiff":
        from gdrd_jax.teachers.pgdiff import PGDiff

        return PGDiff(path, **attention, **asked)
    from gdrd_jax.teachers.sr_diffusion import SrDiffusion

    return SrDiffusion(path, **asked)


def check_attention(kind: str, head_channels: int, heads: int, attention_order: str) -> None:
    """Raises GdrdError where `load_generative` is asked for an attention that cannot be."""
    if kind != "pgdiff" and (head_channels or heads or attention_order):
        raise GdrdError(
            "generative.head_channels, heads and attention_order are settings of the kind 'pgdiff' only; leave them "
            "out, since a diffusers folder contains its own",
            "teacher-attention-kind",
        )
    if head_channels < 0 or heads < 0 or (head_channels and heads) or attention_order not in ("", *ATTENTION_ORDERS):
        raise GdrdError(
            f"generative.head_channels {head_channels}, heads {heads} and attention_order {attention_order!r}: give "
            f"head_channels or heads, not both, and {' or '.join(ATTENTION_ORDERS)} as attention_order",
            "teacher-attention",
        )


def load_discriminative(
    path: str | os.PathLike, *, preprocessing: str = "auto", precision: str = "float32", output: str = ""
):
    """T_d: a face recognizer.

    Args:
      path: an ONNX file, or weights of InsightFace's iresnet in a PyTorch or safetensors file, alone or in a trainer's
        checkpoint. The content counts, not the suffix.
      preprocessing: see `teachers.arcface.parse_preprocessing`.
      precision: "float32", or "bfloat16", which is refused where it changes the embeddings; ONNX Runtime, which
        runs ONNX files where there is no GPU, takes no notice of it.
      output: name of an ONNX file's output that is the embedding; "" is the only one that can be.

    Returns:
      An object with `embed(uint8 RGB [N, 112, 112, 3]) -> float32 [N, D]`, `dim` (D), `preprocessing` ("auto"
      resolved), `warnings` (sentences on what may be wrong), `settings` and `fingerprint`.

    Raises:
      GdrdError: no such file, or not such a network.
    """
    if file_kind(path) == ONNX:
        from gdrd_jax.teachers.arcface import ArcFace

        return ArcFace(path, preprocessing=preprocessing, precision=precision, output=output)
    if output:
        raise GdrdError(
            f"{path} holds weights, not an ONNX graph, so there is no output to choose; leave out {output!r}",
            "teacher-output-of-weights",
        )
    from gdrd_jax.teachers.iresnet import IResNet

    return IResNet(path, preprocessing=preprocessing, precision=precision)

"""The frozen teachers; the only part of the project that imports torch, diffusers and ONNX Runtime."""

from pathlib import Path
from typing import NamedTuple

from gdrd_jax.errors import GdrdError

PRECISIONS = ("float32", "bfloat16")
LAST_TIMESTEP = 999
WEIGHTS = frozenset({".pth", ".pt", ".safetensors"})
HEAD_CHANNELS = 64  # of PGDiff's attention


class Asked(NamedTuple):
    """What a kind of generative teacher is asked for where nothing else is said; see `load_generative`.

    Measured in docs/teachers.md. An input size of 0 and a timestep of -1 are the network's own.
    """

    tap: str
    input_size: int
    timestep: int


GENERATIVE = {"diffusers": Asked("mid", 0, -1), "pgdiff": Asked("block17", 128, 0)}


def load_generative(
    kind: str, path: Path, *, tap: str = "", input_size: int = 0, timestep: int = -1, precision: str = "float32",
    head_channels: int = HEAD_CHANNELS,
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
      head_channels: of PGDiff's attention, which its checkpoint does not tell.

    Returns:
      An object with `features(uint8 RGB [N, H, W, 3]) -> float32 [N, C, h, w]`, `conditional` (it has
      `super_resolve`), `settings` and `fingerprint`.

    Raises:
      GdrdError: no such kind, file or tap, or not such a network.
    """
    if kind not in GENERATIVE:
        raise GdrdError(f"the generative teacher's kind {kind!r} is not known; it can be {' or '.join(GENERATIVE)}")
    own = GENERATIVE[kind]
    if not -1 <= timestep <= LAST_TIMESTEP or input_size < 0:
        raise GdrdError(
            f"timestep {timestep} and input size {input_size}: a timestep is 0 to {LAST_TIMESTEP}, a size above 0"
        )
    asked = {
        "tap": tap or own.tap, "input_size": input_size or own.input_size,
        "timestep": own.timestep if timestep < 0 else timestep, "precision": precision,
    }  # fmt: skip
    if kind == "pgdiff":
        from gdrd_jax.teachers.pgdiff import PGDiff

        return PGDiff(path, head_channels=head_channels, **asked)
    from gdrd_jax.teachers.sr_diffusion import SrDiffusion

    return SrDiffusion(path, **asked)


def load_discriminative(path: Path, *, preprocessing: str = "auto", precision: str = "float32"):
    """T_d: a face recogniser.

    Args:
      path: an ONNX file, or weights of InsightFace's iresnet (`.pth`, `.pt`, `.safetensors`).
      preprocessing: see `teachers.arcface.parse_preprocessing`.
      precision: "float32", or "bfloat16", which is refused where it changes the embeddings; ONNX Runtime, which
        runs ONNX files where there is no GPU, takes no notice of it.

    Returns:
      An object with `embed(uint8 RGB [N, 112, 112, 3]) -> float32 [N, D]`, `dim` (D), `preprocessing` ("auto"
      resolved), `settings` and `fingerprint`.

    Raises:
      GdrdError: no such file, or not such a network.
    """
    if path.suffix.lower() in WEIGHTS:
        from gdrd_jax.teachers.iresnet import IResNet

        return IResNet(path, preprocessing=preprocessing, precision=precision)
    from gdrd_jax.teachers.arcface import ArcFace

    return ArcFace(path, preprocessing=preprocessing, precision=precision)

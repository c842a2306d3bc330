"""The frozen teachers; the only part of the project that imports torch, diffusers and ONNX Runtime."""

from pathlib import Path

from gdrd_jax.errors import GdrdError

PRECISIONS = ("float32", "bfloat16")
WEIGHTS = frozenset({".pth", ".pt", ".safetensors"})
# Of each kind of generative teacher: the tap and input size of a config that names none.
GENERATIVE = {"diffusers": ("mid", 0), "pgdiff": ("block17", 128)}


def load_generative(
    kind: str, path: Path, *, tap: str = "", input_size: int = 0, timestep: int = 0, precision: str = "float32"
):
    """T_g: the encoder of a face diffusion model.

    Args:
      kind: "diffusers", a folder of a `UNet2DModel`, or "pgdiff", a guided-diffusion checkpoint.
      path: of the folder or file.
      tap: the block whose output is taken: "down0", ... or "mid" of a UNet2DModel, "block0", ... or
        "middle" of PGDiff; "" is "mid" or "block17".
      input_size: side to which a low-resolution face is enlarged first; 0 is the network's own, or 128.
      timestep: of the diffusion, 0 (clean) to 999.
      precision: "float32", or "bfloat16", which is refused where it changes the features.

    Returns:
      An object with `features(uint8 RGB [N, H, W, 3]) -> float32 [N, C, h, w]`, `conditional` (it has
      `super_resolve`), `settings` and `fingerprint`.

    Raises:
      GdrdError: no such kind, file or tap, or not such a network.
    """
    if kind not in GENERATIVE:
        raise GdrdError(f"the generative teacher's kind {kind!r} is not known; it can be {' or '.join(GENERATIVE)}")
    tap, input_size = tap or GENERATIVE[kind][0], input_size or GENERATIVE[kind][1]
    if kind == "pgdiff":
        from gdrd_jax.teachers.pgdiff import PGDiff as Network
    else:
        from gdrd_jax.teachers.sr_diffusion import SrDiffusion as Network
    return Network(path, tap=tap, input_size=input_size, timestep=timestep, precision=precision)


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

"""The frozen teachers; the only part of the project that imports torch, diffusers and ONNX Runtime."""

from pathlib import Path

WEIGHTS = frozenset({".pth", ".pt", ".safetensors"})


def load_discriminative(path: Path, *, preprocessing: str = "auto"):
    """T_d: a face recogniser.

    Args:
      path: an ONNX file, or weights of InsightFace's iresnet (`.pth`, `.pt`, `.safetensors`).
      preprocessing: see `teachers.arcface.parse_preprocessing`.

    Returns:
      An object with `embed(uint8 RGB [N, 112, 112, 3]) -> float32 [N, D]`, `dim` (D), `preprocessing` ("auto"
      resolved) and `fingerprint`.

    Raises:
      GdrdError: no such file, or not such a network.
    """
    if path.suffix.lower() in WEIGHTS:
        from gdrd_jax.teachers.iresnet import IResNet

        return IResNet(path, preprocessing=preprocessing)
    from gdrd_jax.teachers.arcface import ArcFace

    return ArcFace(path, preprocessing=preprocessing)

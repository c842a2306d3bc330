"""The teachers of this package, imported so that they are registered."""

from gdrd_jax.teachers import arcface, iresnet, onnx_encoder, pgdiff, sr_diffusion

__all__ = ["arcface", "iresnet", "onnx_encoder", "pgdiff", "sr_diffusion"]

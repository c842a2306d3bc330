"""The teachers of this package, imported so that they are registered."""

from gdrd_jax.teachers import arcface, iresnet, pgdiff, sr_diffusion

__all__ = ["arcface", "iresnet", "pgdiff", "sr_diffusion"]

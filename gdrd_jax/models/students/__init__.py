"""This package's students, see `gdrd_jax.registry.students`."""

from gdrd_jax.models.students import gdrd, resnet

__all__ = ["gdrd", "resnet"]

"""This package's students, see `gdrd_jax.registry.students`."""

from gdrd_jax.models.students import directcaps, gdrd, mobilenet, mobilenet_v3, resnet, siamese, wave

__all__ = ["directcaps", "gdrd", "mobilenet", "mobilenet_v3", "resnet", "siamese", "wave"]

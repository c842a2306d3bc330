"""GDRD (arXiv 2409.06371) in JAX: recognises people from faces only 16x16 pixels large."""

__version__ = "0.4.0"

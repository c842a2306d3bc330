"""GDRD (arXiv 2409.06371) in JAX: recognizes people from faces only 16x16 pixels large."""

from gdrd_jax.version import __version__ as __version__


def __getattr__(name: str):
    # JAX and Flax take seconds, which only those who ask for these have to wait.
    if name == "Recognizer":
        from gdrd_jax.inference.recognizer import Recognizer as found
    elif name == "Gallery":
        from gdrd_jax.inference.gallery import Gallery as found
    elif name == "list_pretrained":
        from gdrd_jax.inference.pretrained import list_pretrained as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found

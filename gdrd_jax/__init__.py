"""GDRD (arXiv 2409.06371) in JAX: face recognition at 8 to 32 pixels."""

from gdrd_jax.version import __version__ as __version__


def __getattr__(name: str):
    # Importing JAX and Flax takes seconds, so it waits until one of these names is used.
    if name == "Recognizer":
        from gdrd_jax.inference.recognizer import Recognizer as found
    elif name == "Gallery":
        from gdrd_jax.inference.gallery import Gallery as found
    elif name == "list_pretrained":
        from gdrd_jax.inference.pretrained import list_pretrained as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found

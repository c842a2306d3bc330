"""GDRD (arXiv 2409.06371) in JAX: face recognition at 8 to 32 pixels."""

from typing import TYPE_CHECKING, Any

from gdrd_jax.version import __version__ as __version__

if TYPE_CHECKING:  # for type checkers and editors; imported on first use otherwise
    from gdrd_jax.galleries.gallery import Gallery as Gallery
    from gdrd_jax.inference.pretrained import list_pretrained as list_pretrained
    from gdrd_jax.inference.recognizer import Recognizer as Recognizer


def __getattr__(name: str) -> Any:
    # Importing JAX and Flax takes seconds, so it waits until one of these names is used.
    if name == "Recognizer":
        from gdrd_jax.inference.recognizer import Recognizer

        return Recognizer
    if name == "Gallery":
        from gdrd_jax.galleries.gallery import Gallery

        return Gallery
    if name == "list_pretrained":
        from gdrd_jax.inference.pretrained import list_pretrained

        return list_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""This package's own protocols, by name in `gdrd_jax.registry.protocols`. A new one is a file and an import here."""

from gdrd_jax.evaluation import (
    ar,
    cfp,
    classification,
    ijb,
    lfw,
    open_set,
    scface,
    survface,
    template_search,
    templates,
    tinyface,
    uccs,
)  # fmt: skip

__all__ = [
    "ar", "cfp", "classification", "ijb", "lfw", "open_set", "scface", "survface", "template_search", "templates",
    "tinyface", "uccs",
]  # fmt: skip

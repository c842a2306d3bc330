"""This package's own protocols, by name in `gdrd_jax.registry.protocols`. A new one is a file and an import here."""

from gdrd_jax.evaluation import ar, classification, lfw, open_set, template_search, templates, tinyface, uccs

__all__ = ["ar", "classification", "lfw", "open_set", "template_search", "templates", "tinyface", "uccs"]

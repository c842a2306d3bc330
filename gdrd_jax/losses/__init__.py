"""Losses by name, see `gdrd_jax.registry.losses`, and their formulas as pure functions of arrays.

Symbols are those of the paper (arXiv 2409.06371). Losses are float32 scalars of the whole batch, even if each device
has only a part of it. A new loss is one file: a subclass of `Loss` with `@losses.register("name")`, see
docs/extending.md.
"""

from gdrd_jax.losses import (  # noqa: F401  register losses
    arcface,
    bridge,
    evaluation_oriented,
    evolutionary,
    memory_bank,
    metric_learning,
    pairwise,
    reweighting,
)
from gdrd_jax.losses.adaface import adaptive_margin, quality_scaler
from gdrd_jax.losses.ccface import milder_margins
from gdrd_jax.losses.embeddings import contrastive_loss, embedding_cosine, similarity_preserving
from gdrd_jax.losses.feature_regression import TeacherFeatures, generative_loss
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs, State
from gdrd_jax.losses.logits import accuracy, center_logits, classification_loss, distillation_loss
from gdrd_jax.losses.magface import magnitude_margin, magnitude_penalty
from gdrd_jax.losses.margin import angular_margin, class_cosines, margin_loss
from gdrd_jax.losses.margin_distillation import center_alpha, moved_centers
from gdrd_jax.losses.relational import relation_loss, relation_scores
from gdrd_jax.losses.rpcl import rivals

__all__ = [
    "Batch", "DataInfo", "Fixed", "Loss", "Metrics", "Outputs", "State", "TeacherFeatures",
    "accuracy", "adaptive_margin", "angular_margin", "center_alpha", "center_logits", "class_cosines",
    "classification_loss", "contrastive_loss", "distillation_loss", "embedding_cosine", "generative_loss",
    "magnitude_margin", "magnitude_penalty", "margin_loss", "milder_margins", "moved_centers", "quality_scaler",
    "relation_loss", "relation_scores", "rivals", "similarity_preserving",
]  # fmt: skip

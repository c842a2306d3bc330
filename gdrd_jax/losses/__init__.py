"""Losses by name, see `gdrd_jax.registry.losses`, and the formulas behind them as pure functions of arrays.

Symbols as in the paper (arXiv 2409.06371). Losses are float32 scalars of the whole batch, also where each device has a
part of it. A new loss is one file: a subclass of `Loss` with `@losses.register("name")`, see docs/extending.md.
"""

from gdrd_jax.losses import evaluation_oriented, memory_bank, pairwise
from gdrd_jax.losses.embeddings import contrastive_loss, embedding_cosine, similarity_preserving
from gdrd_jax.losses.feature_regression import TeacherFeatures, generative_loss
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs, State
from gdrd_jax.losses.logits import accuracy, center_logits, classification_loss, distillation_loss
from gdrd_jax.losses.relational import relation_loss, relation_scores

__all__ = [
    "Batch", "DataInfo", "Fixed", "Loss", "Metrics", "Outputs", "State", "TeacherFeatures", "accuracy",
    "center_logits", "classification_loss", "contrastive_loss", "distillation_loss", "embedding_cosine",
    "evaluation_oriented", "generative_loss", "memory_bank", "pairwise", "relation_loss", "relation_scores",
    "similarity_preserving",
]  # fmt: skip

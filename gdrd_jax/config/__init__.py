"""All settings and their checks. A file in `configs/` starts from `default()` or `paper()` and changes some of them."""

from gdrd_jax.config.checks import ABOVE_ZERO, AT_LEAST, AT_MOST, BELOW_ONE, CHOICES, check
from gdrd_jax.config.defaults import OUR_LOSSES, default, stage
from gdrd_jax.config.losses import LOSS_DEFAULTS, set_loss, used_losses
from gdrd_jax.config.names_v04 import FLAT_LOSSES, RENAMED
from gdrd_jax.config.recipes import PAPER_LOSSES, check_mode, paper, robust
from gdrd_jax.config.recorded import of_workdir, with_current_names, without_folders
from gdrd_jax.config.sections import Config, expand_paths, keys, set_open, unknown_key, value_of

__all__ = [
    "ABOVE_ZERO", "AT_LEAST", "AT_MOST", "BELOW_ONE", "CHOICES", "Config", "FLAT_LOSSES", "LOSS_DEFAULTS", "OUR_LOSSES",
    "PAPER_LOSSES", "RENAMED", "check", "check_mode", "default", "expand_paths", "keys", "of_workdir", "paper",
    "robust", "set_loss", "set_open", "stage", "unknown_key", "used_losses", "value_of", "with_current_names",
    "without_folders",
]  # fmt: skip

"""The losses of a stage, as a section of its config."""

from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.utils.errors import GdrdError

# The default settings of the losses that version 0.4 had; other settings of a loss are recorded where they are given.
LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "cls": {}, "kd": {"temperature": 4.0, "teacher_scale": 32.0},
    "rcd": {"tau": 0.4, "positive": "pair", "pairs": "gathered"}, "embedding_cosine": {},
    "similarity_preserving": {"normalize_rows": False}, "nce": {"scale": 16.0},
}  # fmt: skip


class MissingLoss(GdrdError, AttributeError):
    """A loss was accessed that the config does not have."""


class Losses(ConfigDict):
    """The losses of a stage by name, to which others can be added."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):  # Python's own look-ups, such as for copying
                raise
            raise MissingLoss(
                f'the losses of the config are {", ".join(self)}; add another one by losses.{name} = {{"weight": 1.0}}',
                "loss-not-in-config",
            ) from None

    def lock(self) -> "Losses":
        """Does nothing: which names and settings exist is known to the losses themselves."""
        return self


def set_loss(stage: ConfigDict, loss: str, setting: str, value: object) -> None:
    """Changes a setting of a loss in a stage's section of the config; a loss is added with weight 0."""
    losses = stage["losses"].to_dict()
    losses[loss] = {**losses.get(loss, {"weight": 0.0}), setting: value}
    with stage.unlocked():
        stage["losses"] = losses


def used_losses(losses: ConfigDict | dict) -> dict[str, dict]:
    """The losses of a stage with a weight, each with its weight and the settings that are not the default of 0.4.

    The order of a config's keys does not matter: the losses of 0.4 come first, in its order, then others by name.

    Raises:
      GdrdError: a loss has a number or text in place of settings.
    """
    order, found = list(LOSS_DEFAULTS), {}
    for name in sorted(losses, key=lambda name: (order.index(name) if name in order else len(order), name)):
        settings = losses[name]
        if not isinstance(settings, ConfigDict | dict):
            raise GdrdError(
                f"the loss {name!r} of the config is {settings!r}; it must be its settings, such as "
                f'{{"weight": {settings!r}}}',
                "loss-settings",
            )
        if settings.get("weight", 1.0):
            default = LOSS_DEFAULTS.get(name, {})
            changed = {key: value for key, value in settings.items() if key not in default or default[key] != value}
            found[name] = {**changed, "weight": settings.get("weight", 1.0)}
    return found

"""Names and values that settings had up to version 0.4. To be removed with version 0.6."""

import logging

from gdrd_jax.utils.errors import GdrdError

LOG = logging.getLogger(__name__)
# Settings of stage dis of versions up to 0.4, and the loss and setting that each is today.
FLAT_LOSSES = {
    "cls": ("cls", "weight"), "kd": ("kd", "weight"), "temperature": ("kd", "temperature"),
    "teacher_scale": ("kd", "teacher_scale"), "rcd": ("rcd", "weight"), "tau": ("rcd", "tau"),
    "positive": ("rcd", "positive"), "pairs": ("rcd", "pairs"), "embedding_cosine": ("embedding_cosine", "weight"),
    "similarity_preserving": ("similarity_preserving", "weight"), "nce": ("nce", "weight"),
    "nce_scale": ("nce", "scale"),
}  # fmt: skip
# Settings of section `generative` of versions up to 0.4, which are in its `settings` today, and the values that meant
# the default of the kind of teacher.
FLAT_TEACHER: dict[str, int | str] = {"timestep": -1, "head_channels": 0, "heads": 0, "attention_order": ""}
# Names of versions up to 0.4, in configs, flags and workdirs, and the names of today; accepted until 0.6.
RENAMED = {
    "unlabelled": "unlabeled", "blends": "mixup_per_face", "optimiser": "optimizer", "nameless": "use_unlabeled",
    "cos": "embedding_cosine", "sim": "similarity_preserving",
}  # fmt: skip
# Values of dis.backbone, of versions up to 0.4, and the settings of today.
RANDOM = {"init": "random", "freeze": ()}
BACKBONES = {
    "frozen": {"init": "gen", "freeze": ("backbone",)}, "tuned": {"init": "gen", "freeze": ()}, "scratch": RANDOM,
}  # fmt: skip


def warn_of_name(before: str, today: str) -> None:
    """Says that a setting has another name today."""
    LOG.warning("the setting %r is now called %r; the earlier name will be refused from 0.6 on", before, today)


def current_settings(name: str, value: object) -> dict[str, object]:
    """The settings of today that a setting means."""
    if name == "backbone":
        if value not in BACKBONES:
            raise GdrdError(
                f"config.dis.backbone={value} is gone; " + (
                    "set config.student.name=teacher_features" if value == "teacher"
                    else "set config.dis.init (gen or random) and config.dis.freeze"
                ),
                "setting-gone",
            )  # fmt: skip
        today: dict[str, object] = {**BACKBONES[value]}
        LOG.warning(
            'the setting dis.backbone is now two, here --config.dis.init=%s --config.dis.freeze="%s"; the earlier name '
            "will be refused from 0.6 on",
            today["init"],
            today["freeze"],
        )
        return today
    if name in RENAMED:
        warn_of_name(name, RENAMED[name])
    return {RENAMED.get(name, name): value}

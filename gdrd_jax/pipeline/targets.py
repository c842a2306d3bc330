"""Feature stores of the teachers' targets."""

import platform
from importlib import metadata, util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.extract import Extraction, extract
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.task import FACES
from gdrd_jax.pipeline import inputs, stages, teacher_options, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.registry import load_plugins
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.version import __version__

PACKAGES = ("torch", "diffusers", "onnxruntime")


def target_extraction(
    run: Run, step: str, split: str, shape: tuple[int, ...], count: int, network, load, compute
) -> Extraction:  # fmt: skip
    """How the targets of a split are computed.

    Args:
      run: the run that they are for.
      step: "discriminative", "hr_features" or "generative".
      split: of the faces.
      shape: of one target.
      count: number of views; of test images only those that are not random are used.
      network: the teacher.
      load: see `Extraction`.
      compute: see `Extraction`.
    """
    config, faces, views = run.config, run.faces(split), view_settings.views(run.config)
    versions = {"gdrd_jax": __version__} | {name: metadata.version(name) for name in PACKAGES if util.find_spec(name)}
    store = FeatureStore.create(
        run.path(step, split), rows=len(faces), views=view_settings.view_count(split, count, views.exact), shape=shape,
        dtype="float16",
        provenance={"faces": faces.fingerprint, "teacher": network.fingerprint},
        about={
            "teacher": network.settings, "views": views.settings(), "versions": versions,
            "data": config.data.path, "machine": platform.platform(),
        },
        arrays=view_settings.array_url(config, step, split, views),
    )  # fmt: skip
    return Extraction(store, load, compute, f"{step} targets, {split}")


def embed_stage(run: Run, name: str) -> None:
    """Stores the embeddings of a stage's student, as they are compared: the sum over image and mirror image."""
    from gdrd_jax.distributed import sharding  # which imports JAX
    from gdrd_jax.inference.recognizer import Recognizer

    sharding.start(run.process)  # which has to come before JAX is used, and later stages may train
    config, step = stages.stage_config(run.config, name), stages.embeddings_step(name)
    recognizer = Recognizer.load(run.folder(name) / "student")
    for split in view_settings.splits(run.config):
        if split == "test" or not len(run.faces(split)):
            continue
        images, faces = run.store(stages.images_step(config), split), run.faces(split)
        store = FeatureStore.create(
            run.path(step, split), rows=len(faces), views=view_settings.target_views(run.config),
            shape=(recognizer.dim,), dtype="float16",
            provenance={"faces": faces.fingerprint, "teacher": recognizer.fingerprint()},
            about={"student": name, "images": images.manifest["provenance"] | images.manifest["about"]},
        )  # fmt: skip
        read = lambda view, rows, images=images: images.read(view, np.asarray(rows))  # noqa: E731
        extract(Extraction(store, read, recognizer.embed, f"{step}, {split}"), process=run.process)


def training_faces(workdir: Path) -> tuple[list[tuple[Faces, np.ndarray, np.ndarray, FeatureStore]], dict, str]:
    """What stage dis learns from in a workdir, whatever its inputs.

    Returns:
      Parts of faces: the faces, their rows, the labels of these rows (-1 for none), and the store of T_d's embeddings;
      then `name` and `fingerprint` of T_d, and a fingerprint of the faces.

    Raises:
      GdrdError: it is no workdir, or the steps `faces` and `discriminative` are not finished.
    """
    run = Run.open(workdir)
    load_plugins(run.config.plugins)
    if not (run.folder("faces") / "train.json").exists():
        raise GdrdError(f"{workdir} has no output of the step `faces`; run gdrd precompute first", "step-missing")
    if inputs.task(run.config) != FACES:
        raise GdrdError(
            f"{workdir} has images of another task than RGB faces with {FACES.image_size} pixels, which cannot be "
            "packed; train in the workdir itself",
            "task-packed",
        )
    parts, known = [], run.faces("train")
    identities = len(known.identities) - run.config.data.calibration_people
    for split, rows in (("train", np.flatnonzero(known.labels < identities)), ("unlabeled", None)):
        faces = run.faces(split)
        rows = np.arange(len(faces)) if rows is None else rows
        if len(rows):
            parts.append((faces, rows, faces.labels[rows], run.store("discriminative", split)))
    return parts, teacher_of(run.config, parts[0][3]), ":".join(faces.fingerprint for faces, _, _, _ in parts)


def teacher_of(config: ConfigDict, targets: FeatureStore) -> dict[str, str]:
    """`name` and `fingerprint` of the T_d, or assistant, that made these targets of stage dis."""
    return {
        "name": config.dis.teacher or teacher_options.discriminative_name(config),
        "fingerprint": targets.manifest["provenance"]["teacher"],
    }

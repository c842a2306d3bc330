"""Workdirs of version 0.4, whose output was in `WORKDIR/STEP` itself. To be removed with version 0.6."""

import errno
import os
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.pipeline import records
from gdrd_jax.pipeline.planning import StepState, place
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.workdir import is_link, link
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import write_json

# Rare cases in which versions up to 0.4.0, whose output is used all the same, did otherwise.
READ_OTHERWISE = {
    "views": "ignored EXIF behind other segments and the range of 16-bit images: use a new workdir for such faces",
    "discriminative": (
        "guessed a graph's preprocessing from the names of its operations: use a new workdir if the log of "
        "gdrd evaluate shows another preprocessing than `teacher` in discriminative/train/manifest.json"
    ),
}


def adopt(step: Step, config: ConfigDict, workdir: Path) -> None:
    """Moves what version 0.4 wrote to `WORKDIR/STEP` to where this version looks for it."""
    before = workdir / step.name
    if is_link(before):
        return
    record = records.read(before)
    if not record:
        return
    folder = place(step, records.recorded_origin(record), config, workdir)
    if folder.exists():
        if before.is_symlink():
            before.unlink()
            return
        if not folder.samefile(before):
            return
        folder.unlink()  # another workdir's link to this output, made before this workdir was used again
    if step.publishes and not before.is_symlink():
        for name in step.publishes:
            if (workdir / name).exists():
                shutil.copyfile(workdir / name, before / name)
        record["outputs"] = [*records.output_names(step.name, record), *step.publishes]  # also those that are missing
        write_json(before / records.NAME, record)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(before, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise GdrdError(
            f"{before}, which version 0.4 wrote, cannot be moved to {folder.parent} on another file system; run the "
            "same command without config.outputs once",
            "outputs-other-device",
        ) from error
    link(step.name, folder, workdir)


def drop_foreign_link(state: StepState) -> None:
    """Removes a link of version 0.4 to another workdir's output that is gone by now, or of another origin."""
    if state.folder.is_symlink() and not records.is_of(records.read(state.folder), state.origin):
        state.folder.unlink()


def remark(step: str, record: dict) -> str:
    """What version 0.4 did otherwise in output of it; empty for other output."""
    if "version" not in record["origin"] or step not in READ_OTHERWISE:
        return ""
    return f"by version {record['origin']['version']}, which {READ_OTHERWISE[step]}"

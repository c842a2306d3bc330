"""Rows of a grid for which nothing is trained: recognizers that are fed with enlarged or super-resolved faces."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gdrd_jax.data.degradation import Degradation
from gdrd_jax.evaluation import judges
from gdrd_jax.evaluation.grid_rows import DEV, Row
from gdrd_jax.evaluation.judges import Judge
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.run import open_models
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path


def opened(texts: Sequence[str], super_resolver: str = "") -> tuple[dict[str, list[Row]], list[Embedder]]:
    """What a command line names: the rows that are stored in outputs of `gdrd evaluate`, by name, and models.

    Args:
      texts: folders of such outputs, or models as `inference.embedders.open_model` takes them.
      super_resolver: see `Settings`.

    Raises:
      GdrdError: there is no such model, or two have one name; or an output has no pairs of LFW.
    """
    stored: dict[str, list[Row]] = {}
    models = []
    for text in texts:
        if (user_path(text) / "scores.npz").exists():
            stored |= judges.of_evaluation(user_path(text))
        else:
            models.append(text)
    settings = Settings("lfw", Path(), tuple(models), (), super_resolver=super_resolver)
    return stored, open_models(settings) if models else []


def check_sizes(models: Sequence[Embedder], hows: Sequence[Degradation]) -> None:
    """Makes sure that no model would reduce the dev pairs' faces a second time.

    Args:
      models: of `opened`.
      hows: what the faces of the dev pairs go through.

    Raises:
      GdrdError: one would.
    """
    largest = max(how.resolution for how in hows)
    for model in models:
        if model.reduces(largest):
            raise GdrdError(
                f"--baseline: {model.name} takes {model.input_size}x{model.input_size} pixels, and the runs have faces "
                f"of {largest}; give another student, or another network with --super-resolve",
                "baseline-size",
            )


def judged(embedder: Embedder, how: Degradation, pairs: PairList, others: Sequence[Judge], folder: Path) -> Row:
    """The row of a model, which is stored; what is stored of the same model already is not computed again.

    Args:
      embedder: the model.
      how: what the faces of the dev pairs go through.
      pairs: the dev pairs.
      others: further protocols. Those with larger faces than the dev pairs are left out, as for a student.
      folder: of the rows.
    """
    about = {"resolution": how.resolution, "model": embedder.fingerprint, "dev_faces": str(how)}
    about |= {"super_resolution": embedder.super_resolution} if embedder.super_resolution else {}
    row = Row(f"{embedder.name}_{how.resolution}" + ("_degraded" if how.degraded else ""), None, {}, about)
    path = folder / row.file
    before = Row.load(path) if path.exists() else row
    found = dict(before.judged) if before.about == about else {}
    if DEV not in found:
        found[DEV] = judges.of_model(embedder, pairs, how)
    smaller = [judge for judge in others if judge.resolution != "native" and judge.fits(how.resolution)]
    row = dataclasses.replace(row, judged=judges.columns(embedder, smaller, found))
    row.save(folder)
    return row

"""Lists of templates, of pairs of templates and of single templates, as plain text.

One entry a line, its fields separated by tabs, by commas, or else by blanks (as in the first line), without quotes:

    IMAGE TEMPLATE MEDIUM SUBJECT     an image of a template; MEDIUM is the photograph or video that it comes from
    TEMPLATE TEMPLATE                 a pair: the enrolled template and the probe
    TEMPLATE                          a template of a gallery, or a probe

Templates, media and subjects are any names. Empty lines, and lines that begin with "#", are ignored.
"""

import dataclasses
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.evaluation.pair_files import image_name
from gdrd_jax.utils.errors import GdrdError

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TemplateList:
    """Which images belong to which template: M memberships of T templates; an image may be in several.

    Attributes:
      names: of the templates, T, in the order of the list.
      subjects: who is in each template, T names.
      images: paths without the suffix of an image, M.
      templates: of each membership, int32 `[M]`, below T.
      media: of each membership, int32 `[M]`; one number is one medium.
      weights: how much each image counts in its template, float32 `[M]`; None where all count alike.
    """

    names: tuple[str, ...]
    subjects: tuple[str, ...]
    images: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray
    weights: np.ndarray | None = None


def read_templates(path: Path) -> TemplateList:
    """Reads lines `IMAGE TEMPLATE MEDIUM SUBJECT`.

    Raises:
      GdrdError: missing or malformed, an image twice in a template, or a template of two subjects.
    """
    number: dict[str, int] = {}
    subjects: list[str] = []
    media: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    images, templates, of_media = [], [], []
    for line, (image, template, medium, subject) in _lines(path, 4, "IMAGE TEMPLATE MEDIUM SUBJECT"):
        row = number.setdefault(template, len(number))
        if row == len(subjects):
            subjects.append(subject)
        if subjects[row] != subject:
            raise GdrdError(
                f"{path}, line {line}: the template {template!r} is of {subject!r} here and of {subjects[row]!r} "
                "before; give each subject templates of its own",
                "template-two-subjects",
            )
        image = image_name(image)
        if (image, row) in seen:
            raise GdrdError(
                f"{path}, line {line}: {image} is in the template {template!r} already; remove the line",
                "template-image-twice",
            )
        seen.add((image, row))
        images.append(image)
        templates.append(row)
        of_media.append(media.setdefault(medium, len(media)))
    return TemplateList(
        tuple(number), tuple(subjects), tuple(images), np.array(templates, np.int32), np.array(of_media, np.int32)
    )


def read_template_pairs(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Reads lines `TEMPLATE TEMPLATE`, one after the other, because a list may have millions.

    Args:
      path: of the list.
      names: of all templates.

    Returns:
      Numbers of the templates of each pair, int32 `[P, 2]`.

    Raises:
      GdrdError: missing or malformed, or a template that is none of `names`.
    """
    pairs = _numbers(path, names, 2, "TEMPLATE TEMPLATE").reshape(-1, 2)
    codes = pairs.min(axis=1).astype(np.int64) * len(names) + pairs.max(axis=1)
    repeated, alone = len(codes) - len(np.unique(codes)), int((pairs[:, 0] == pairs[:, 1]).sum())
    if repeated or alone:
        LOG.warning(
            "%s: pairs that are listed more than once: %d; that compare a template with itself: %d",
            path,
            repeated,
            alone,
        )
    return pairs


def read_template_names(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Reads lines `TEMPLATE`: numbers of the templates, int32 `[K]`; arguments and errors as of `read_template_pairs`.

    Raises:
      GdrdError: a template is listed twice.
    """
    chosen = _numbers(path, names, 1, "TEMPLATE")
    values, counts = np.unique(chosen, return_counts=True)
    if (counts > 1).any():
        raise GdrdError(
            f"{path} lists the template {names[values[np.argmax(counts)]]!r} twice; remove one of the lines",
            "template-twice",
        )
    return chosen


def _numbers(path: Path, names: tuple[str, ...], count: int, form: str) -> np.ndarray:
    number, found = {name: row for row, name in enumerate(names)}, array("i")
    for line, fields in _lines(path, count, form):
        try:
            found.extend([number[name] for name in fields])
        except KeyError as error:
            raise GdrdError(
                f"{path}, line {line}: there is no template {error.args[0]!r} in the list of templates",
                "template-unknown",
            ) from None
    return np.frombuffer(found, np.int32)


def _lines(path: Path, count: int, form: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line."""
    separator: str | None = ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                if separator == "":
                    separator = next((mark for mark in "\t," if mark in line), None)
                fields = line.split(separator)
                if separator is not None:
                    fields = [field.strip() for field in fields]
                if len(fields) != count or "" in fields:
                    raise GdrdError(f"{path}, line {number}: {line.strip()!r} is not `{form}`", "template-line")
                yield number, fields
    except FileNotFoundError:
        raise GdrdError(f"there is no list {str(path)!r}", "template-list-missing") from None
    except UnicodeDecodeError as error:
        raise GdrdError(f"{path} is not text in UTF-8: {error}; save it as UTF-8", "text-not-utf-8") from error
    if separator == "":
        raise GdrdError(f"{path} lists nothing; lines are `{form}`", "template-list-empty")

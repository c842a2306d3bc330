"""What `gdrd check-thresholds` finds: a student's thresholds at the faces of other people, and of groups of them."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.data.degradation import Degradation
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation.threshold_check import RATES, realized
from gdrd_jax.inference.embedders import embed_faces, student_embedder
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import LEAST_PEOPLE, compared
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import text_table

LOG = logging.getLogger(__name__)
ALL = "all people"


def check(
    data: Path, model: str, fars: Sequence[float] | None = None, *, teacher: str = "", groups: Path | None = None,
    strengths: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Judges the thresholds of a student by faces of people whom it was not trained on.

    Args:
      data: aligned faces, see `data.readers.open_faces`.
      model: see `Recognizer.load`.
      fars: nominal false accept rates; None takes those of `RATES` that the thresholds support.
      teacher: `FILE.onnx`, which embeds the faces that probes are compared with; "" compares the student's.
      groups: a csv with lines PERSON,GROUP; None takes the folders above those of the people, if there are any.
      strengths: of blur, motion, noise and jpeg, see `Degradation`.

    Returns:
      "rows", for all people and for each group a row for each rate: "group", "far" (nominal), "threshold", "people",
      "genuine" (pairs of one person), "realized_far" and "realized_tar" with "far_interval" and "tar_interval", and
      "holds": whether the interval contains the nominal rate, None where there are too few people to judge.

    Raises:
      GdrdError: there are no such faces, thresholds, rates or groups.
    """
    recognizer = Recognizer.load(model)
    native = bool(teacher)
    recognizer.threshold(0.5, native=native)  # refuses a student without thresholds
    learned = recognizer.native_thresholds if native else recognizer.thresholds
    assert learned
    fars = fars or [far for far in RATES if learned.supports(far)]
    thresholds = [recognizer.threshold(far, native=native) for far in fars]
    network = NativeRecognizer.load(teacher, recognizer, option="--teacher").model if native else None
    faces = open_faces(data, task=recognizer.task)
    people = len(faces.identities)
    if people < LEAST_PEOPLE:
        raise GdrdError(f"{data} has faces of {people} people; at least {LEAST_PEOPLE} are needed", "check-too-few")
    rows_of = _rows_of(faces, _groups(faces, groups))
    embedded = np.unique(np.concatenate(list(rows_of.values())))
    faces = checked(faces.take(embedded), stretch=True)
    how = Degradation(recognizer.resolution, recognizer.kernel, **strengths) if any(strengths.values()) else None
    probes = embed_faces(student_embedder(model, recognizer), faces, how)
    enrolled = embed_faces(network, faces) if network else None
    rows = []
    for group, own in rows_of.items():
        chosen = np.searchsorted(embedded, own)
        judged = realized(
            probes[chosen], faces.labels[chosen], thresholds, None if enrolled is None else enrolled[chosen]
        )  # fmt: skip
        rows += [
            {
                "group": group, "far": far, "threshold": threshold, "people": found.people, "genuine": found.genuine,
                "realized_far": found.far, "far_interval": found.far_interval,
                "realized_tar": found.tar if found.genuine else None,
                "tar_interval": found.tar_interval if found.genuine else None, "holds": found.holds(far),
            }
            for far, threshold, found in zip(fars, thresholds, judged)
        ]  # fmt: skip
    about = {"model": model, "teacher": teacher, "faces": len(faces), "learned_on": learned.name}
    return {**about, "degraded": {name: value for name, value in strengths.items() if value}, "rows": rows}


def verdicts(found: dict[str, Any]) -> list[bool]:
    """Whether the thresholds of `check` hold that could be judged."""
    return [row["holds"] for row in found["rows"] if row["holds"] is not None]


def text(found: dict[str, Any]) -> str:
    """A table for the terminal, and what it means."""
    lines = [["group", "people", "nominal FAR", "threshold", "FAR (95 %)", "TAR % (95 %)", ""]]
    for row in found["rows"]:
        low, high = row["far_interval"]
        tar = ""
        if row["realized_tar"] is not None:
            tar = "{:.1f} ({:.1f}-{:.1f})".format(*(100 * x for x in (row["realized_tar"], *row["tar_interval"])))
        side = "too loose" if low > row["far"] else "too strict"
        ratio = row["realized_far"] / row["far"]
        verdict = {True: "holds", False: f"{side} ({ratio:.2g}x)", None: "too few people"}[row["holds"]]
        lines.append([
            row["group"], f"{row['people']:,}", f"{row['far']:g}", f"{row['threshold']:.3f}",
            f"{row['realized_far']:.2g} ({low:.2g}-{high:.2g})", tar, verdict,
        ])  # fmt: skip
    judged = verdicts(found)
    end = "all thresholds that could be judged hold." if judged else "too few people to judge any threshold."
    if drifted := judged.count(False):
        end = (
            f"{drifted} of {len(judged)} rows that could be judged do not hold. Learn thresholds on faces like these: "
            "gdrd export STUDENT OUT --calibration FOLDER"
        )
    return f"{text_table(lines)}\nthresholds learned on {found['learned_on']}; {end}"


def _rows_of(faces: Faces, group_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The faces of all people, and of each group, that are compared, see `compared`; small groups are left out."""
    rows_of = {}
    for group in [ALL, *dict.fromkeys(group_of.values())]:
        inside = np.array([group in (ALL, group_of.get(person)) for person in faces.identities])
        if inside.sum() < LEAST_PEOPLE:
            LOG.warning("left out: group %s, which has %d of the at least %d people", group, inside.sum(), LEAST_PEOPLE)
            continue
        rows = np.flatnonzero(inside[faces.labels])
        rows_of[group] = rows[compared(faces.labels[rows])]
    return rows_of


def _groups(faces: Faces, listed: Path | None) -> dict[str, str]:
    """Person to group; nothing where there are no groups."""
    people = faces.identities
    if listed is None:
        return {person: person.split("/")[0] for person in people} if all("/" in person for person in people) else {}
    try:
        with listed.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise GdrdError(f"{listed} cannot be read as lines PERSON,GROUP: {error}", "groups-unreadable") from error
    lines = [[cell.strip() for cell in line] for line in lines]
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != 2 or not all(line)), None)
    if wrong or not lines:
        raise GdrdError(f"{listed}: line {wrong or 1} is not PERSON,GROUP", "groups-line")
    known = set(people)
    found: dict[str, str] = {}
    for person, group in lines:
        if person in known and found.setdefault(person, group) != group:
            raise GdrdError(f"{listed}: {person} is in the groups {found[person]} and {group}", "groups-twice")
    if not found:
        raise GdrdError(
            f"{listed} names none of the {len(people)} people, such as {people[0]!r}; PERSON is the name of a folder",
            "groups-unknown",
        )
    if alone := len(known) - len(found):
        LOG.warning("%s has no group of %d of the %d people", listed, alone, len(known))
    return found

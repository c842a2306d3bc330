"""Compare the taps of generative teachers for recognition, in a table and a picture to choose a tap from.

For every teacher (KIND is diffusers or pgdiff; gdrd train-sr-teacher --steps 0 makes an untrained one), tap and
timestep: how well a linear probe, fitted on the people of --train, names other images of theirs and verifies the pairs
of --data (people it has not seen), and how much of the features a linear map of the low-resolution pixels predicts.
Rows of the raw pixels, and of the recognizer on enlarged faces, stand beside them. Writes taps.json, taps.md and
taps.png. It can be stopped at any time; the same command continues.

Examples:
  gdrd study-taps --train TRAIN.rec --data LFW --pairs pairs.txt --teacher sr64=diffusers:runs/sr64 \\
      --teacher untrained=diffusers:runs/untrained --timestep 0 500 999 --recognizer ARCFACE.onnx --out results/taps
"""

import argparse
import functools
import json
import logging
from pathlib import Path

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.study_taps")
PIXELS, ENLARGED = "pixels", 32  # side to which raw pixels are enlarged for their second row


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--train", required=True, type=user_path, help="aligned faces of people")
    add("--data", required=True, type=user_path, help="LFW, see gdrd evaluate")
    add("--pairs", required=True, type=user_path, help="LFW's pairs.txt")
    add("--teacher", required=True, action="append", metavar="NAME=KIND:PATH", help="repeat for several")
    add("--tap", nargs="+", help="only these; all otherwise")
    add("--timestep", nargs="+", type=int, default=[0], help="default 0")
    add("--input-size", type=int, default=0, help="pixels to which faces are enlarged; 0 is the network's own")
    add("--recognizer", metavar="PATH[:PREPROCESSING]", help="a discriminative teacher, for comparison")
    add("--resolution", type=int, default=16, choices=(8, 16, 32), help="default 16")
    add("--kernel", default="area", choices=KERNELS, help="default area")
    add("--images", type=int, default=20, help="at most so many of each training person (20)")
    add("--seed", type=int, default=0, help="(0)")
    add("--out", required=True, type=user_path)
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Measures what is not measured yet, then writes the table and the picture."""
    from gdrd_jax.data.degradation import Views
    from gdrd_jax.data.readers import open_faces
    from gdrd_jax.evaluation import tap_study
    from gdrd_jax.evaluation.lfw import LFW
    from gdrd_jax.utils.errors import GdrdError
    from gdrd_jax.utils.files import digest, locked, write_json, write_text
    from gdrd_jax.utils.outputs import claim_folder

    teachers = dict(_parse(text) for text in given.teacher)
    if len(teachers) < len(given.teacher):
        raise GdrdError("two --teacher have one name; the table needs a name for each", "teacher-twice")
    if given.images < 2:
        raise GdrdError(
            f"--images {given.images}: the probe needs at least 2 of each person, one to learn from", "probe-images"
        )
    claim_folder(given.out, "a study of taps", "--out")
    _check_teachers(teachers, given)
    views = Views.plain(given.resolution, given.kernel)
    train = open_faces(given.train)
    pairs = LFW.open(given.data, LFW.Config(str(given.pairs)))
    faces = tap_study.studied(train, pairs, views, given.images)
    compared = digest({"": [x.tolist() for x in (pairs.first, pairs.second, pairs.same, pairs.folds)]})
    settings = {
        "train": train.signature(), "test": pairs.faces.fingerprint, "pairs": compared,
        "resolution": given.resolution, "kernel": given.kernel, "images": given.images, "seed": given.seed,
    }  # fmt: skip
    with locked(given.out):
        path = given.out / "taps.json"
        rows = _rows_before(path, settings)

        def missing(name: str, timestep: int | None, tap: str, source: str) -> bool:
            return rows.get(f"{name}/{timestep}/{tap}", {}).get("source") != source

        def keep(name: str, timestep: int | None, source: str, found: dict) -> None:
            for tap, figures in found.items():
                row = {"name": name, "timestep": timestep, "tap": tap, "source": source, **figures}
                rows[f"{name}/{timestep}/{tap}"] = row
            write_json(path, {"settings": settings, "rows": rows})

        for name, tap, source, measure in _references(given, faces):
            if missing(name, None, tap, source):
                keep(name, None, source, {tap: measure()})
        for name, load in teachers.items():
            for timestep in given.timestep:
                network = load(timestep=timestep, input_size=given.input_size)
                taps, source = given.tap or network.taps, network.fingerprint
                taps = tuple(tap for tap in taps if missing(name, timestep, tap, source))
                if taps:
                    LOG.info("%s at timestep %d: %s", name, timestep, ", ".join(taps))
                    keep(name, timestep, source, tap_study.study(network, taps, faces, seed=given.seed))
        write_text(given.out / "taps.md", tap_study.table(rows))
        (given.out / "taps.png").write_bytes(tap_study.picture(rows))
    LOG.info("%s\n%s", given.out / "taps.md", tap_study.table(rows))


def _check_teachers(teachers: dict, given: argparse.Namespace) -> None:
    """Loads every teacher once, so that a mistake in the last one is found before the first one is measured."""
    from gdrd_jax.inference.embedders import open_model
    from gdrd_jax.utils.errors import GdrdError

    for name, load in teachers.items():
        for timestep in given.timestep:
            network = load(timestep=timestep, input_size=given.input_size)
            if unknown := [tap for tap in given.tap or () if tap not in network.taps]:
                raise GdrdError(f"--tap {unknown[0]}: {name} has {', '.join(network.taps)}", "tap-unknown")
    if given.recognizer:
        open_model(given.recognizer, option="--recognizer")


def _rows_before(path: Path, settings: dict) -> dict:
    from gdrd_jax.utils.errors import GdrdError

    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = ", ".join(key for key in settings if before["settings"].get(key) != settings[key])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError) as error:
        raise GdrdError(f"{path} is damaged; remove it", "study-damaged") from error
    if differing:
        raise GdrdError(
            f"{path} was measured with other settings ({differing}); choose another --out", "study-settings"
        )
    return before["rows"]


def _parse(text: str):
    """Name and loader of a `--teacher`."""
    from gdrd_jax.teachers import load_generative
    from gdrd_jax.utils.errors import GdrdError

    name, _, rest = text.partition("=")
    kind, _, path = rest.partition(":")
    path = str(user_path(path))
    if not path or not Path(path).exists():
        raise GdrdError(
            f"--teacher {text}: there is no {path!r}; it is NAME=KIND:PATH, such as sr64=diffusers:runs/sr64",
            "teacher-missing",
        )
    last = {"tap": "middle"} if kind == "pgdiff" else {}  # whatever comes after its tap is not loaded
    return name, functools.partial(load_generative, kind, Path(path), **last)


def _references(given: argparse.Namespace, faces):
    """Name, what is taken, and measurement of what needs no generative teacher."""
    import numpy as np

    from gdrd_jax.data.align import FACE_SIZE
    from gdrd_jax.data.degradation import resize_all
    from gdrd_jax.evaluation import tap_study
    from gdrd_jax.inference.embedders import parse_model
    from gdrd_jax.teachers import load_discriminative
    from gdrd_jax.utils.files import sha256

    def of_pixels(size: int):
        flat = [resize_all(x, size).reshape(len(x), -1).astype(np.float32) for x in (faces.train, faces.test)]
        return {"shape": [3, size, size], **tap_study.worth(*flat, faces, seed=given.seed)}

    yield PIXELS, "as they are", "", lambda: of_pixels(given.resolution)
    yield PIXELS, f"enlarged to {ENLARGED}", "", lambda: of_pixels(ENLARGED)
    if given.recognizer:
        name, path, preprocessing = parse_model(given.recognizer, "--recognizer")

        def of_recognizer():
            network = load_discriminative(path, preprocessing=preprocessing)
            both = [
                np.concatenate([network.embed(resize_all(x[i : i + 256], FACE_SIZE)) for i in range(0, len(x), 256)])
                for x in (faces.train, faces.test)
            ]
            return {"shape": [network.dim], **tap_study.worth(*both, faces, seed=given.seed)}

        yield name, "embedding", sha256(path) + preprocessing, of_recognizer


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))

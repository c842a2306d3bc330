"""Compare the taps of generative teachers for recognition, in a table and a picture to choose a tap from.

For every teacher (KIND is one of gdrd list generative_teachers; gdrd train-sr-teacher --steps 0 makes an untrained
diffusion network), tap and, of diffusion networks, timestep: how well a linear probe, fitted on the people of --train,
names other images of theirs and verifies the pairs of --data (people it has not seen), and how much of the features a
linear map of the low-resolution pixels predicts. Rows of the raw pixels, and of the recognizer on enlarged faces, stand
beside them. Writes taps.json, taps.md and taps.png. It can be stopped at any time; the same command continues.

Examples:
  gdrd study-taps --train TRAIN.rec --data LFW --pairs pairs.txt --teacher sr64=diffusers:runs/sr64 \\
      --teacher untrained=diffusers:runs/untrained --timestep 0 500 999 --recognizer ARCFACE.onnx --out results/taps
"""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import NamedTuple

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.study_taps")
PIXELS, ENLARGED = "pixels", 32  # side to which raw pixels are enlarged for their second row


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--train", required=True, type=user_path, metavar="FACES", help="aligned faces of people, for the probe")
    add("--data", required=True, type=user_path, metavar="LFW", help="aligned faces of LFW, see gdrd evaluate")
    add("--pairs", required=True, type=user_path, metavar="FILE", help="pairs.txt of LFW")
    add(
        "--teacher", required=True, action="append", metavar="NAME=KIND:PATH",
        help="a generative teacher; repeat for several",
    )  # fmt: skip
    add("--tap", nargs="+", metavar="T", help="taps to compare (default: all)")
    add("--timestep", nargs="+", type=int, default=[0], metavar="T", help="of diffusion networks (default: 0)")
    add(
        "--input-size",
        type=int,
        default=0,
        metavar="S",
        help="pixels of the enlarged faces (default: the network's own)",
    )
    add("--recognizer", metavar="PATH[:PREPROCESSING[:SIZE]]", help="discriminative teacher for comparison")
    add("--resolution", type=int, default=16, choices=RESOLUTIONS, help="pixels of the faces (default: 16)")
    add("--kernel", default="area", choices=KERNELS, help="downsampling: area (OpenCV, default) or bicubic (Pillow)")
    add("--images", type=int, default=20, help="maximum images of a training person (default: 20)")
    add("--seed", type=int, default=0, help="of the choice of held-out images, and of the bootstrap (default: 0)")
    add("--out", required=True, type=user_path, help="folder to write")
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
    taps_of = _check_teachers(teachers, given)
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

        def keep(name: str, timestep: int | None, source: str, found: dict, **about: str) -> None:
            for tap, figures in found.items():
                row = {"name": name, "timestep": timestep, "tap": tap, "source": source, **about, **figures}
                rows[f"{name}/{timestep}/{tap}"] = row
            write_json(path, {"settings": settings, "rows": rows})

        for name, tap, source, measure in _references(given, faces):
            if missing(name, None, tap, source):
                keep(name, None, source, {tap: measure()})
        for (name, timestep), all_taps in taps_of.items():
            # The last one: a teacher may leave out what comes after its tap.
            network = teachers[name].load(timestep, all_taps[-1], given.input_size)
            source = network.fingerprint
            taps = tuple(tap for tap in given.tap or all_taps if missing(name, timestep, tap, source))
            if taps:
                LOG.info("%s%s: %s", name, "" if timestep is None else f" at timestep {timestep}", ", ".join(taps))
                found = tap_study.study(network, taps, faces, seed=given.seed)
                keep(name, timestep, source, found, kind=teachers[name].kind)
        write_text(given.out / "taps.md", tap_study.table(rows))
        (given.out / "taps.png").write_bytes(tap_study.picture(rows))
    LOG.info("%s\n%s", given.out / "taps.md", tap_study.table(rows))


class Teacher(NamedTuple):
    """A generative teacher of the command line.

    Attributes:
      kind: name in `registry.generative_teachers`.
      path: of its file or folder.
    """

    kind: str
    path: Path

    def load(self, timestep: int | None, tap: str, input_size: int):
        """See `teachers.load_generative`."""
        from gdrd_jax.teachers import load_generative

        settings = {} if timestep is None else {"timestep": timestep}
        return load_generative(self.kind, self.path, tap=tap, input_size=input_size, **settings)

    def timesteps(self, wanted: list[int]) -> list[int] | list[None]:
        """The timesteps to study; None alone where this kind has no such setting."""
        from gdrd_jax.registry import generative_teachers

        names = [field.name for field in dataclasses.fields(generative_teachers[self.kind].Config)]
        return wanted if "timestep" in names else [None]


def _check_teachers(teachers: dict[str, Teacher], given: argparse.Namespace) -> dict:
    """Loads every teacher once, so that a mistake in the last one is found before the first one is measured.

    Returns:
      Name and timestep to the network's taps.
    """
    from gdrd_jax.inference.embedders import open_model
    from gdrd_jax.utils.errors import GdrdError

    found = {}
    for name, teacher in teachers.items():
        for timestep in teacher.timesteps(given.timestep):
            network = teacher.load(timestep, given.tap[0] if given.tap else "", given.input_size)
            if unknown := [tap for tap in given.tap or () if tap not in network.taps]:
                raise GdrdError(f"--tap {unknown[0]}: {name} has {', '.join(network.taps)}", "tap-unknown")
            found[name, timestep] = network.taps
    if given.recognizer:
        open_model(given.recognizer, option="--recognizer")
    return found


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


def _parse(text: str) -> tuple[str, Teacher]:
    """Name and teacher of a `--teacher`."""
    from gdrd_jax.registry import generative_teachers
    from gdrd_jax.utils.errors import GdrdError

    name, _, rest = text.partition("=")
    kind, _, path = rest.partition(":")
    path = str(user_path(path))
    if not path or not Path(path).exists():
        raise GdrdError(
            f"--teacher {text}: there is no {path!r}; it is NAME=KIND:PATH, such as sr64=diffusers:runs/sr64",
            "teacher-missing",
        )
    generative_teachers[kind]  # which names what there is
    return name, Teacher(kind, Path(path))


def _references(given: argparse.Namespace, faces):
    """Name, what is taken, and measurement of what needs no generative teacher."""
    import numpy as np

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
        name, path, preprocessing, size = parse_model(given.recognizer, "--recognizer")

        def of_recognizer():
            network = load_discriminative(path, preprocessing=preprocessing, input_size=size)
            side = network.input_size
            both = [
                np.concatenate([network.embed(resize_all(x[i : i + 256], side)) for i in range(0, len(x), 256)])
                for x in (faces.train, faces.test)
            ]
            return {"shape": [network.dim], **tap_study.worth(*both, faces, seed=given.seed)}

        yield name, "embedding", sha256(path) + preprocessing + (str(size) if size else ""), of_recognizer


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))

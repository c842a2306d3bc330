"""Any recognizer, ours or an ONNX file, as one function from faces to embeddings."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.data.extract import Extraction, extract
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.inference.pretrained import WEIGHTS, find_student, is_pretrained, list_pretrained
from gdrd_jax.teachers import load_discriminative
from gdrd_jax.teachers.arcface import parse_preprocessing
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

FORMAT = 1  # of embeddings; to be raised when the same model and faces would give others


@dataclasses.dataclass(frozen=True)
class Model:
    """A recognizer under test.

    Attributes:
      name: of its rows.
      size: side of its input in pixels.
      kernel: with which larger faces are reduced to its input, when nothing else reduces them.
      embed: uint8 RGB `[N, size, size, 3]` -> float32 `[N, D]`, unit length, summed over mirror images.
      settings: where it came from, its fingerprint, its preprocessing, and "warnings" on it if there are any.
      student: one of ours.
    """

    name: str
    size: int
    kernel: str
    embed: Callable[[np.ndarray], np.ndarray]
    settings: dict
    student: bool

    def see(self, faces: Faces, row: int, how: Degradation | None, seed: int) -> np.ndarray:
        """What it is fed with: a face degraded or (None) as it is, brought to `size`, uint8 RGB.

        Noise and direction come from `seed` and the face's name, whatever other faces there are.
        """
        if how is None:
            return resize(faces[row], self.size, self.kernel)
        return resize(how.of_named(faces[row], faces.names[row], seed), self.size, how.kernel)


def open_model(text: str, output: str = "", *, option: str = "--model") -> Model:
    """Loads a recognizer.

    Args:
      text: `[NAME=]PATH[:PREPROCESSING]`. PATH is the name of a pretrained student, a workdir of `gdrd train`, an
        exported student, an ONNX file or weights of an iresnet; PREPROCESSING, for the latter two, as
        `teachers.arcface.parse_preprocessing` reads it.
      output: name of an ONNX file's output that is the embedding; "" is the only one that can be. A workdir has none.
      option: of the command line that the text was given with, for errors.

    Raises:
      GdrdError: neither of both, or it cannot be loaded.
    """
    name, path, preprocessing = parse_model(text, option)
    if path.is_dir():
        from gdrd_jax.inference.recognizer import Recognizer  # JAX and Flax, which an ONNX file does not need

        recognizer = Recognizer.load(path)
        settings = {
            "path": path.name if path.parent == WEIGHTS else str(path), "fingerprint": recognizer.fingerprint(),
            "trained_with": recognizer.kernel, "teacher": recognizer.teacher,
        }  # fmt: skip
        return Model(name, recognizer.student.resolution, recognizer.kernel, recognizer.embed, settings, True)
    network = load_discriminative(path, preprocessing=preprocessing, output=output)
    settings = {
        "path": str(path), "fingerprint": network.fingerprint, "preprocessing": network.preprocessing,
        "enlarged_by": "bicubic", **({"output": output} if output else {}),
        **({"warnings": list(network.warnings)} if network.warnings else {}),
    }  # fmt: skip
    return Model(name, FACE_SIZE, "area", lambda faces: embed_both(network, faces), settings, False)


def parse_model(text: str, option: str = "--model") -> tuple[str, Path, str]:
    """Name, path and preprocessing that `open_model`'s text means; loads nothing.

    A path may have "=" and ":" in it: of all ways to read the text, the one whose path exists counts, and of several
    the one that takes the most of the text for the path.

    Raises:
      GdrdError: there is no such file or workdir, or no such preprocessing.
    """
    name, path, preprocessing = next((r for r in _readings(text) if r[1] and _exists(r[1])), _as_described(text))
    if not path or not _exists(path):
        names = list_pretrained()
        known = f"; pretrained students are {', '.join(names)}" if names else ""
        raise GdrdError(f"{option} {text}: there is no file or workdir {path!r}{known}")
    parse_preprocessing(preprocessing)
    named = path if is_pretrained(path) else ""
    path = find_student(path) if named else user_path(path)
    if path.is_dir() and preprocessing != "auto":
        raise GdrdError(f"{option} {text}: a student knows its preprocessing; give its workdir alone")
    return name or named or re.sub(r"\W+", "_", path.stem), path, preprocessing


def _exists(path: str) -> bool:
    return user_path(path).exists() or is_pretrained(path)


def _readings(text: str) -> Iterator[tuple[str, str, str]]:
    """Every `(name, path, preprocessing)` that a text can mean: without a name first, without a preprocessing first."""
    ends = [i for i, character in enumerate(text) if character == "="]
    for name, rest in [("", text), *((text[:i], text[i + 1 :]) for i in ends)]:
        yield name, rest, "auto"
        if ":" in rest:
            path, _, preprocessing = rest.rpartition(":")
            yield name, path, preprocessing


def _as_described(text: str) -> tuple[str, str, str]:
    """What a text means whose path is missing, for the error."""
    name, _, rest = text.rpartition("=") if "=" in text else ("", "", text)
    path, _, preprocessing = rest.partition(":")
    return name, path, preprocessing or "auto"


def embed_both(network, faces: np.ndarray) -> np.ndarray:
    """Unit-length embeddings, summed over each face and its mirror image; uint8 RGB `[N, 112, 112, 3]`."""
    return unit(network.embed(faces) + network.embed(faces[:, :, ::-1]))


def embed_faces(model: Model, faces: Faces, how: Degradation | None, *, seed: int, cache: Path) -> np.ndarray:
    """Embeddings of all faces, float32 `[N, D]`; kept under `cache`, so that an interrupted call goes on.

    Args:
      model: the recognizer.
      faces: checked.
      how: the degradation; None feeds them as they are.
      seed: of the degradation's noise, with the face's name.
      cache: folder.
    """
    made_from = {
        "faces": faces.fingerprint, "model": model.settings["fingerprint"], "kernel": model.kernel, "seed": seed,
        "names": hashlib.sha256(os.fsencode("\0".join(faces.names))).hexdigest(),  # noise is drawn by name
        "how": None if how is None else dataclasses.asdict(how), "format": FORMAT,
    }  # fmt: skip

    def load(_view: int, rows: range) -> np.ndarray:
        return np.stack(list(in_parallel(lambda row: model.see(faces, row, how, seed), rows)))

    key = hashlib.sha256(repr(sorted(made_from.items())).encode()).hexdigest()[:16]
    dim = model.embed(np.zeros((1, model.size, model.size, 3), np.uint8)).shape[1]
    targets = FeatureStore.create(
        cache / key, rows=len(faces), views=1, shape=(dim,), dtype="float32", made_from=made_from
    )
    size = "native size" if how is None else f"{how.resolution} pixels"
    extract(Extraction(targets, load, model.embed, f"{model.name} at {size}"))
    return targets.read(0)

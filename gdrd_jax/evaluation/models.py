"""Any recogniser, ours or an ONNX file, as one function from faces to embeddings."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degrade import Degradation, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.targets import Cache
from gdrd_jax.errors import GdrdError
from gdrd_jax.teachers.arcface import ArcFace, parse_preprocessing
from gdrd_jax.teachers.precompute import fill


@dataclasses.dataclass(frozen=True)
class Model:
    """A recogniser under test.

    Attributes:
      name: of its rows.
      size: side of its input in pixels.
      kernel: with which larger faces are reduced to its input, when nothing else reduces them.
      embed: uint8 RGB `[N, size, size, 3]` -> float32 `[N, D]`, unit length, summed over mirror images.
      settings: where it came from, its fingerprint, its preprocessing.
    """

    name: str
    size: int
    kernel: str
    embed: Callable[[np.ndarray], np.ndarray]
    settings: dict

    def see(self, image: np.ndarray, how: Degradation | None, random: np.random.Generator) -> np.ndarray:
        """What it is fed with: uint8 RGB of any size, degraded or (None) as it is, brought to `size`."""
        if how is None:
            return resize(image, self.size, self.kernel)
        return resize(how(image, random), self.size, how.kernel)


def open_model(text: str) -> Model:
    """Loads a recogniser.

    Args:
      text: `[NAME=]PATH[:PREPROCESSING]`. PATH is a workdir of `gdrd_jax.main` or an ONNX file;
        PREPROCESSING, for ONNX files, as `teachers.arcface.parse_preprocessing` reads it.

    Raises:
      GdrdError: neither of both, or it cannot be loaded.
    """
    name, path, preprocessing = _parts(text)
    if path.is_dir():
        from gdrd_jax.recognizer import Recognizer  # JAX and Flax, which an ONNX file does not need

        recognizer = Recognizer.load(path)
        settings = {"path": str(path), "fingerprint": recognizer.fingerprint(), "trained_with": recognizer.kernel}
        return Model(name, recognizer.student.resolution, recognizer.kernel, recognizer.embed, settings)
    if not path.is_file():
        raise GdrdError(f"--model {text}: there is no file or workdir {str(path)!r}")
    network = ArcFace(path, preprocessing=preprocessing)
    settings = {
        "path": str(path), "fingerprint": network.fingerprint, "preprocessing": network.preprocessing,
        "enlarged_by": "bicubic",
    }  # fmt: skip
    return Model(
        name, FACE_SIZE, "area", lambda faces: unit(network.embed(faces) + network.embed(_mirror(faces))), settings
    )


def _parts(text: str) -> tuple[str, Path, str]:
    name, _, rest = text.rpartition("=")
    path, _, preprocessing = rest.rpartition(":")
    if not path:
        path, preprocessing = rest, "auto"
    parse_preprocessing(preprocessing)
    return name or re.sub(r"\W+", "_", Path(path).stem), Path(path), preprocessing


def _mirror(faces: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(faces[:, :, ::-1])


def unit(x: np.ndarray) -> np.ndarray:
    """Flattens all but the first axis and scales rows to unit length."""
    flat = x.reshape(len(x), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def embed_faces(model: Model, faces: Faces, how: Degradation | None, *, seed: int, cache: Path) -> np.ndarray:
    """Embeddings of all faces, float32 `[N, D]`; kept under `cache`, so that an interrupted call goes on.

    Args:
      model: the recogniser.
      faces: checked.
      how: the degradation; None feeds them as they are.
      seed: of the degradation's noise, with the face's number.
      cache: folder.
    """
    made_from = {
        "faces": faces.fingerprint, "model": model.settings["fingerprint"], "seed": seed,
        "how": None if how is None else dataclasses.asdict(how), "kernel": model.kernel,
    }  # fmt: skip

    def seen(row: int) -> np.ndarray:
        return model.see(faces[row], how, np.random.default_rng([seed, row, 0]))

    def compute(_view: int, rows: range) -> np.ndarray:
        return model.embed(np.stack(list(in_parallel(seen, rows))))

    key = hashlib.sha256(repr(sorted(made_from.items())).encode()).hexdigest()[:16]
    dim = model.embed(np.zeros((1, model.size, model.size, 3), np.uint8)).shape[1]
    targets = Cache.create(
        cache / key, rows=len(faces), views=1, shape=(dim,), dtype="float32", made_from=made_from
    )  # fmt: skip
    fill(targets, compute, f"{model.name} at {'native size' if how is None else f'{how.resolution}x{how.resolution}'}")
    return targets.read(0)

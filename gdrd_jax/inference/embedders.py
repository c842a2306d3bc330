"""One type for all recognizers: it maps uint8 faces of any size to unit-length embeddings."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degradation import Degradation, resize, resize_all
from gdrd_jax.data.extract import Extraction, extract
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.inference.pretrained import WEIGHTS, find_student, is_pretrained, list_pretrained
from gdrd_jax.teachers import SuperResolver, load_discriminative
from gdrd_jax.teachers.preprocessing import parse_preprocessing
from gdrd_jax.utils.arrays import to_rgb, unit
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.files import digest, user_path
from gdrd_jax.utils.signals import check_signals

FORMAT = 1  # of stored embeddings; raised when the same model and faces would give others
BATCH = 128  # faces embedded at once
SEED = 0  # of super-resolution


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A recognizer: a student, an ONNX file, an exported file, or raw pixels for comparison.

    Attributes:
      name: name of its rows in tables.
      input_size: side of the faces that its network takes, in pixels.
      forward: function from uint8 RGB `[N, input_size, input_size, 3]` to float32 `[N, D]`, unit length. A student's
        network scales its embeddings itself; those of any other network pass through `add_flips`.
      kernel: kernel with which larger faces are reduced to the input, see `data.degradation.resize`; smaller faces are
        enlarged.
      fingerprint: fingerprint of the network and its preprocessing; "" if its embeddings are not cached.
      space: fingerprint of the recognizer whose galleries its probes can be compared with: a student's teacher, or the
        network itself without any super-resolution; "" if it is not known.
      is_student: whether this program trained it.
      mirror: whether an embedding is that of an image and its mirror image.
      channels: number of channels of the images that its network takes; None takes any number, see
        `utils.arrays.to_rgb`.
      image_size: side in pixels of the images from which a student's inputs were reduced in training.
      scored: like `forward`, but `[N, D + 1]`: the last number of each face is its quality, see `inference.quality`.
        None if the model has no quality score.
      super_resolution: method of the SR network that enlarges its input, see `teachers.SuperResolver`; "" if faces are
        enlarged by interpolation.
      settings: where it came from, its fingerprint, its preprocessing, and "warnings" if there are any.
    """

    name: str
    input_size: int
    forward: Callable[[np.ndarray], np.ndarray]
    kernel: str = "area"
    fingerprint: str = ""
    space: str = ""
    is_student: bool = False
    settings: dict = dataclasses.field(default_factory=dict)
    mirror: bool = True
    channels: int | None = None
    image_size: int | None = None
    super_resolution: str = ""
    scored: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def is_for_small(self) -> bool:
        """Whether it is made for faces of `input_size` and reduces larger ones."""
        return self.is_student or bool(self.super_resolution)

    def reduces(self, side: int) -> bool:
        """Whether it is made for smaller faces and would reduce faces of `side` pixels."""
        return self.is_for_small and side > self.input_size

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embeds faces of any size, uint8 RGB `[N, S, S, 3]`: float32 `[N, D]`, unit length."""
        return self.forward(resize_all(faces, self.input_size, self.kernel))

    def input_of(self, faces: Faces, row: int, degradation: Degradation | None, seed: int) -> np.ndarray:
        """A face as the network gets it, degraded or (None) as it is: uint8 RGB `[input_size, input_size, 3]`.

        Noise and the direction of motion blur depend only on `seed` and the face's name, not on other faces.
        """
        if degradation is None:
            return resize(faces[row], self.input_size, self.kernel)
        degraded = degradation.of_named(faces[row], faces.names[row], seed)
        return resize(degraded, self.input_size, degradation.kernel)


def student_embedder(name: str, recognizer: Any, *, path: str = "") -> Embedder:
    """A student, loaded as an `inference.recognizer.Recognizer`."""
    fingerprint, kernel, teacher = recognizer.fingerprint(), recognizer.kernel, recognizer.teacher
    settings = {"path": path, "fingerprint": fingerprint, "trained_with": kernel, "teacher": teacher}
    settings |= {"quality": dataclasses.asdict(recognizer.quality)} if recognizer.quality else {}
    space, shape = teacher["fingerprint"] if teacher else "", recognizer.student.shape
    scored = (lambda faces: np.column_stack(recognizer.embed(faces, quality=True))) if recognizer.quality else None
    return Embedder(
        name, recognizer.resolution, recognizer.embed, kernel, fingerprint, space, True, settings, shape.mirror,
        shape.channels, recognizer.task.image_size, scored=scored,
    )  # fmt: skip


def network_embedder(
    name: str, network: Any, *, path: str = "", output: str = "", mirror: bool = True,
    super_resolver: SuperResolver | None = None,
) -> Embedder:  # fmt: skip
    """A recognizer of full-size images, see `teachers.load_discriminative`; smaller images are enlarged for it.

    With `super_resolver` it is fed with what that draws of an image, and of its mirror image, and its name ends in
    the super-resolver's method.
    """
    settings = {
        "path": path, "fingerprint": network.fingerprint, "preprocessing": network.preprocessing,
        "enlarged_by": "bicubic", **({"output": output} if output else {}),
        **({"warnings": list(network.warnings)} if network.warnings else {}),
    }  # fmt: skip
    embed, fingerprint, size, method = network.embed, network.fingerprint, network.input_size, ""
    if super_resolver:
        drawn_by = {"super_resolver": super_resolver.fingerprint, "super_resolution_seed": SEED}
        settings |= drawn_by
        fingerprint, size = digest({"network": fingerprint, **drawn_by}), super_resolver.low_size
        name, method = f"{name}_{super_resolver.method}", super_resolver.method

        def embed(faces: np.ndarray) -> np.ndarray:
            drawn = super_resolver.super_resolve(faces, SEED)
            return network.embed(resize_all(drawn, network.input_size, "bicubic"))

    forward = _prepared(embed, mirror)
    return Embedder(
        name, size, forward, "area", fingerprint, network.fingerprint, settings=settings, mirror=mirror,
        super_resolution=method,
    )  # fmt: skip


def pixel_embedder(name: str, size: int, *, mirror: bool = True) -> Embedder:
    """The pixels themselves, for comparison."""
    flatten = lambda faces: faces.reshape(len(faces), -1).astype(np.float32)  # noqa: E731
    forward = with_flips(flatten) if mirror else lambda faces: unit(flatten(faces))
    return Embedder(name, size, forward, fingerprint=f"pixels-{size}", mirror=mirror)


def _prepared(network: Callable[[np.ndarray], np.ndarray], mirror: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A network of RGB images as `Embedder.forward` of images with 1 to 4 channels."""
    forward = with_flips(network) if mirror else lambda faces: unit(network(faces))
    return lambda faces: forward(to_rgb(faces))


def with_flips(network: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A network's embeddings of each face and of its mirror image, see `add_flips`."""
    return lambda faces: add_flips(network(faces), network(faces[:, :, ::-1]))


def add_flips(embeddings: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Raw embeddings `[N, D]` of faces and of their mirror images -> their sums, scaled to unit length."""
    return unit(embeddings + flipped)


def open_model(
    text: str, output: str = "", *, option: str = "--model", mirror: bool = True,
    super_resolver: SuperResolver | None = None,
) -> Embedder:  # fmt: skip
    """Loads a recognizer.

    Args:
      text: `[NAME=]PATH[:PREPROCESSING[:SIZE]]`. PATH is the name of a pretrained student, a workdir of `gdrd train`,
        an exported student, an ONNX file or weights of an iresnet; for the latter two PREPROCESSING is as
        `teachers.preprocessing.parse_preprocessing` reads it, and SIZE the side of the input in pixels, if the ONNX
        file leaves it free.
      output: name of the output of an ONNX file that is the embedding; "" if only one output can be.
      option: command-line option that the text was given with, for error messages.
      mirror: whether a network's embedding is that of an image and its mirror image; a student stores this itself.
      super_resolver: see `network_embedder`; a student takes small faces as they are.

    Raises:
      GdrdError: there is no such recognizer, or it cannot be loaded.
    """
    name, path, preprocessing, size = parse_model(text, option)
    if path.is_dir():
        from gdrd_jax.inference.recognizer import Recognizer  # JAX and Flax, which an ONNX file does not need

        return student_embedder(name, Recognizer.load(path), path=path.name if path.parent == WEIGHTS else str(path))
    network = load_discriminative(path, preprocessing=preprocessing, output=output, input_size=size)
    return network_embedder(
        name, network, path=str(path), output=output, mirror=mirror, super_resolver=super_resolver
    )  # fmt: skip


def parse_model(text: str, option: str = "--model") -> tuple[str, Path, str, int]:
    """Name, path, preprocessing and input size (0: the network's own) that `open_model`'s text means; loads nothing.

    A path may have "=" and ":" in it: of all ways to read the text, the one whose path exists counts, and of several
    the one that takes the most of the text for the path.

    Raises:
      GdrdError: there is no such file or workdir, or no such preprocessing.
    """
    found = next((r for r in _readings(text) if r[1] and _exists(r[1])), _as_described(text))
    name, given, preprocessing, size = found
    if not given or not _exists(given):
        names = list_pretrained()
        known = f"a pretrained student ({', '.join(names)}), " if names else ""
        raise GdrdError(
            f"{option} {text}: there is no file or workdir {given!r}; {did_you_mean(given, names)}give {known}a "
            "workdir, an exported folder, or a recognizer's file",
            "model-missing",
        )
    parse_preprocessing(preprocessing)
    named = given if is_pretrained(given) else ""
    path = find_student(given) if named else user_path(given)
    if path.is_dir() and (preprocessing != "auto" or size):
        raise GdrdError(
            f"{option} {text}: a student knows its preprocessing; give its workdir alone", "student-preprocessing"
        )
    return name or named or re.sub(r"\W+", "_", path.stem), path, preprocessing, size


def _exists(path: str) -> bool:
    return user_path(path).exists() or is_pretrained(path)


def _readings(text: str) -> Iterator[tuple[str, str, str, int]]:
    """Every `(name, path, preprocessing, size)` that a text can mean: without a name first, the longest path first."""
    ends = [i for i, character in enumerate(text) if character == "="]
    for name, rest in [("", text), *((text[:i], text[i + 1 :]) for i in ends)]:
        yield name, rest, "auto", 0
        path, _, last = rest.rpartition(":")
        yield name, path, last, 0
        if last.isdecimal():
            path, _, preprocessing = path.rpartition(":")
            yield name, path, preprocessing, int(last)


def _as_described(text: str) -> tuple[str, str, str, int]:
    """What a text means whose path is missing, for the error."""
    name, _, rest = text.rpartition("=") if "=" in text else ("", "", text)
    path, _, preprocessing = rest.partition(":")
    return name, path, preprocessing or "auto", 0


def embed_and_score(
    embedder: Embedder, faces: Faces | np.ndarray, degradation: Degradation | None, *, seed: int, cache: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """`embed_faces` of a recognizer with `scored`, and the quality of each face, float32 `[N]`, in [0, 1]."""
    if embedder.scored is None:
        raise ValueError(f"{embedder.name} has no quality score")
    fingerprint = digest({"model": embedder.fingerprint, "quality": embedder.settings["quality"]})
    both = dataclasses.replace(embedder, forward=embedder.scored, fingerprint=fingerprint)
    found = embed_faces(both, faces, degradation, seed=seed, cache=cache)
    return np.ascontiguousarray(found[:, :-1]), found[:, -1]


def embed_faces(
    embedder: Embedder,
    faces: Faces | np.ndarray,
    degradation: Degradation | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> np.ndarray:
    """Embeddings of all faces, float32 `[N, D]`, unit length.

    Args:
      embedder: the recognizer.
      faces: checked faces, or an array of faces, uint8 RGB `[N, S, S, 3]`.
      degradation: degradation of `Faces`; None takes them as they are. An array cannot be degraded here.
      seed: seed of the degradation's noise, together with the face's name.
      cache: folder in which the embeddings of `Faces` are cached, so that an interrupted call can be continued; None
        caches nothing.
    """
    if isinstance(faces, np.ndarray) and degradation is not None:
        raise ValueError("an array of faces has no names, by which noise is drawn; degrade it first")

    def load(_view: int, rows: np.ndarray | range) -> np.ndarray:
        check_signals()
        if isinstance(faces, np.ndarray):
            return resize_all(faces[np.asarray(rows)], embedder.input_size, embedder.kernel)
        return np.stack(list(in_parallel(lambda row: embedder.input_of(faces, row, degradation, seed), list(rows))))

    if cache is None or isinstance(faces, np.ndarray):
        parts = [range(start, min(start + BATCH, len(faces))) for start in range(0, len(faces), BATCH)]
        shown = tqdm(parts, desc=embedder.name, unit="batch", disable=len(parts) < 2)
        return np.concatenate([embedder.forward(load(0, part)) for part in shown])
    if not embedder.fingerprint:
        raise ValueError(f"embeddings of {embedder.name} cannot be stored: it has no fingerprint")
    provenance = {
        "faces": faces.fingerprint, "model": embedder.fingerprint, "kernel": embedder.kernel, "seed": seed,
        "names": hashlib.sha256(os.fsencode("\0".join(faces.names))).hexdigest(),  # noise is drawn by name
        "how": None if degradation is None else dataclasses.asdict(degradation), "format": FORMAT,
    }  # fmt: skip
    provenance |= {} if embedder.mirror else {"mirror": False}
    key = hashlib.sha256(repr(sorted(provenance.items())).encode()).hexdigest()[:16]
    side = embedder.input_size
    dim = embedder.forward(np.zeros((1, side, side, faces.task.channels), np.uint8)).shape[1]
    targets = FeatureStore.create(
        cache / key, rows=len(faces), views=1, shape=(dim,), dtype="float32", provenance=provenance
    )
    size = "native size" if degradation is None else f"{degradation.resolution} pixels"
    extract(Extraction(targets, load, embedder.forward, f"{embedder.name} at {size}"))
    return targets.read(0)

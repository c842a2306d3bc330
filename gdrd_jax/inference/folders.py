"""Embeds folders of pictures; unusable ones are reported, not fatal."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gdrd_jax.inference import preprocess
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.recognizer import BATCH, Recognizer
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import replacing_file


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of some pictures.

    Attributes:
      paths: the N usable pictures.
      embeddings: float32 `[N, D]`, unit length.
      bad: `(path, reason)` of the others.
      quality: how recognizable each face is, float32 `[N]`, in [0, 1]; None where the recognizer does not say.
      replaced_people, replaced_faces: numbers of people, and of their earlier faces, that these replaced in a gallery.
    """

    paths: list[Path]
    embeddings: np.ndarray
    bad: list[tuple[Path, str]]
    quality: np.ndarray | None = None
    replaced_people: int = 0
    replaced_faces: int = 0


def embed(recognizer: Recognizer, path: Path, *, align: bool) -> Embedded:
    """Embeds the pictures in a folder, or a single one.

    Raises:
      GdrdError: there are no pictures, or none is usable.
    """
    return embed_files(recognizer, preprocess.find(path), align=align)


def embed_files(recognizer: Recognizer | NativeRecognizer, found: list[Path], *, align: bool) -> Embedded:
    """Embeds some pictures.

    Raises:
      GdrdError: none is usable.
    """
    used, bad, embeddings, scores = [], [], [], []
    scorer = recognizer if isinstance(recognizer, Recognizer) and recognizer.quality else None
    if align:
        recognizer.require_aligner()
    one = lambda file: recognizer.preprocess(file, align=align)  # noqa: E731
    with tqdm(total=len(found), desc="embedding", unit="face", disable=len(found) == 1) as progress:
        for start in range(0, len(found), BATCH):
            files = found[start : start + BATCH]
            faces = list(preprocess.map_images(one, files))
            bad += [(file, face) for file, face in zip(files, faces) if isinstance(face, GdrdError)]
            good = [(file, face) for file, face in zip(files, faces) if not isinstance(face, GdrdError)]
            used += [file for file, _ in good]
            ready = np.stack([face for _, face in good]) if good else None
            if ready is not None and scorer:
                both = scorer.embed(ready, quality=True)
                embeddings.append(both[0])
                scores.append(both[1])
            elif ready is not None:
                embeddings.append(recognizer.embed(ready))
            progress.update(len(files))
    if not used:
        first = bad[0][1]
        if len(bad) == 1:
            raise first
        raise GdrdError(f"none of the {len(bad)} pictures is usable; the first: {first}", "images-unusable")
    reasons = [(file, str(error)) for file, error in bad]
    return Embedded(used, np.concatenate(embeddings), reasons, np.concatenate(scores) if scorer else None)


def save(found: Embedded, path: Path) -> None:
    """Writes `paths` (text), `embeddings`, and `quality` where there is any, to an `.npz` file.

    Raises:
      GdrdError: the file cannot be written.
    """
    quality: dict[str, Any] = {} if found.quality is None else {"quality": found.quality}
    with replacing_file(path) as file:  # np.savez would add a suffix to a name
        np.savez(file, paths=np.array([*map(str, found.paths)]), embeddings=found.embeddings, **quality)

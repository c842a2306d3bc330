"""Galleries as version 0.4 wrote them: `gallery.json` names a folder `gallery.XXXXXXXX` beside it with

  embeddings.f32   float32 `[N, D]`, unit length, little endian
  faces.jsonl      a line for each face: its id and metadata

and files for searching that are not read any more.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.galleries.checks import UNIT, damaged
from gdrd_jax.utils.errors import GdrdError

MANIFEST = "gallery.json"
VERSION = re.compile(r"gallery\.[0-9a-f]{8}")
BLOCK = 16_384  # faces read at once


def files(folder: Path) -> list[Path]:
    """The files and folders of a gallery of version 0.4 in `folder`; empty if there are none."""
    if not folder.is_dir():
        return []
    found = sorted(entry for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and entry.is_dir())
    return [folder / MANIFEST, *found] if (folder / MANIFEST).exists() else found


def read_manifest(folder: Path) -> dict:
    """`fingerprint`, `dim`, `faces`, `version` and `sizes` of a gallery.

    Raises:
      GdrdError: "gallery-format": not the manifest of a gallery of version 0.4.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != 1:
            raise ValueError(f"format {manifest['format']}")
        for key, kind in {"fingerprint": str, "dim": int, "faces": int, "version": str, "sizes": dict}.items():
            if not isinstance(manifest[key], kind):
                raise ValueError(f"{key} is {manifest[key]!r}")
        if not VERSION.fullmatch(manifest["version"]):
            raise ValueError(f"version {manifest['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"{folder / MANIFEST} does not describe a gallery; choose the folder of a gallery", "gallery-format"
        ) from error
    return manifest


def read(folder: Path, manifest: dict) -> Iterator[tuple[list[str], list[dict], np.ndarray]]:
    """All faces in order, in blocks: ids, metadata and embeddings float32 `[n, D]`.

    Raises:
      GdrdError: "gallery-damaged": a file is missing or damaged.
    """

    version, count, dim = folder / manifest["version"], manifest["faces"], manifest["dim"]
    for name in ("embeddings.f32", "faces.jsonl"):
        file, expected = version / name, manifest["sizes"].get(name)
        if not file.exists():
            raise damaged(folder, f"{file} is missing")
        if (size := file.stat().st_size) != expected:
            raise damaged(folder, f"{file} has {size} bytes of {expected}")
    if manifest["sizes"]["embeddings.f32"] != 4 * count * dim:
        raise damaged(folder, f"{version / 'embeddings.f32'} does not hold {count} faces of {dim} numbers")
    number = 0
    with (version / "embeddings.f32").open("rb") as embeddings, (version / "faces.jsonl").open("rb") as lines:
        while len(block := np.frombuffer(embeddings.read(4 * dim * BLOCK), "<f4").reshape(-1, dim)):
            if not (np.abs(np.linalg.norm(block, axis=1) - 1) <= UNIT).all():
                raise damaged(folder, "an embedding is not of unit length")
            ids, metadata = [], []
            for _ in block:
                number += 1
                try:
                    name, about = json.loads(lines.readline())
                except (ValueError, TypeError) as error:
                    raise damaged(folder, f"line {number} of {version / 'faces.jsonl'} cannot be read") from error
                ids.append(name)
                metadata.append(about)
            yield ids, metadata, block

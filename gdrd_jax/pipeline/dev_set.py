"""The dev set that a config names: its files, checked and fingerprinted, and what its faces go through."""

from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import STRENGTHS, Degradation
from gdrd_jax.data.readers import open_faces
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256


def check(config: ConfigDict) -> None:
    """Refuses a dev set that is missing or incomplete."""
    degradation(config)
    for key in ("path", "pairs"):
        if config.dev[key] and not Path(config.dev[key]).exists():
            raise GdrdError(f"config.dev.{key}: there is no {config.dev[key]!r}", "dev-missing")
    if config.dev.pairs and not config.dev.path:
        raise GdrdError(
            "config.dev.pairs is set, but config.dev.path, the faces of these pairs, is not", "dev-path-unset"
        )
    if config.dev.path and not config.dev.pairs and not config.dev.path.endswith(".bin"):
        raise GdrdError(
            "config.dev.path holds LFW's faces, so set config.dev.pairs, its pairs.txt; or give a .bin",
            "dev-pairs-unset",
        )


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of the dev set's contents: no training is lost because its files were copied or touched."""
    if not config.dev.path:
        return {}
    path = Path(config.dev.path)
    files = {"dev.path": sha256(path) if path.suffix == ".bin" else open_faces(path).contents()}
    degraded = degradation(config)
    files |= {"dev.degradation": str(degraded)} if degraded.degraded else {}
    return files | ({"dev.pairs": sha256(Path(config.dev.pairs))} if config.dev.pairs else {})


def degradation(config: ConfigDict) -> Degradation:
    """What the faces of the dev set go through."""
    strengths = {name: config.dev[name] for name in STRENGTHS}
    return Degradation(config.views.resolution, config.views.kernel, **strengths)

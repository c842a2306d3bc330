"""The settings of an evaluation: protocol, data, models, resolutions and degradation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degradation import STRENGTHS, Degradation
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError

SIDES = ("native", *(str(side) for side in reversed(RESOLUTIONS)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes the numbers.

    Attributes:
      protocol: a name in `registry.protocols`.
      data: see the protocol.
      models: see `inference.embedders.open_model`.
      resolutions: of `SIDES`, or "PROBE:GALLERY", two of them. Probes are compared with a gallery
        of the same faces, embedded by the same model, or for a student by its teacher, one of `models`.
      kernel, blur, motion, noise, jpeg: see `data.degradation.Degradation`; "native" is degraded, not reduced. Those
        in a gallery of another resolution are reduced alone.
      stretch: take faces that are not 112x112, stretched; TinyFace's always are.
      skip_bad: leave bad input out, counted and listed, instead of stopping.
      seed: of noise, directions and bootstrap.
      output: name of the ONNX models' output that is the embedding; "" is the only one that can be.
      mirror: whether networks embed the mirror image, too; a student knows it by itself.
      super_resolver: folder of an SR network, see `teachers.load_super_resolver`; every model that is no student then
        has another row, NAME_METHOD, of the faces that this network draws. "" has none.
      protocol_settings: the protocol's own, see its `Config`; others have their defaults.
    """

    protocol: str
    data: Path
    models: tuple[str, ...]
    resolutions: tuple[str, ...]
    kernel: str = "area"
    blur: float = 0.0
    motion: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    stretch: bool = False
    skip_bad: bool = False
    seed: int = 0
    output: str = ""
    mirror: bool = True
    super_resolver: str = ""
    protocol_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def degradation(self, resolution: str) -> Degradation | None:
        """What a probe goes through at one of `resolutions`."""
        resolution = resolution.partition(":")[0]
        if resolution == "native" and not self.degraded:
            return None
        own = protocols.settings(self.protocol, self.protocol_settings)
        side = getattr(own, "image_size", FACE_SIZE) if resolution == "native" else int(resolution)
        return Degradation(side, self.kernel, self.blur, self.motion, self.noise, self.jpeg)

    def gallery_degradation(self, resolution: str) -> Degradation | None:
        """What a face of the gallery goes through where `resolution` names the gallery's, too."""
        gallery = resolution.partition(":")[2]
        return None if gallery == "native" else Degradation(int(gallery), self.kernel)

    @property
    def degraded(self) -> dict[str, float]:
        """Which strengths are above 0."""
        strengths = {name: getattr(self, name) for name in STRENGTHS}
        return {name: value for name, value in strengths.items() if value}


def check_resolution(text: str) -> None:
    """Raises GdrdError unless a text is one of `SIDES`, or two of them, "PROBE:GALLERY"."""
    sides = text.split(":")
    if len(sides) > 2 or not set(sides) <= set(SIDES):
        raise GdrdError(
            f"the resolution {text!r} is not known; it can be {', '.join(SIDES)}, or PROBE:GALLERY such as 16:native",
            "resolution-unknown",
        )

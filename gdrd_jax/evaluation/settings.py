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
    """The settings that determine the results.

    Attributes:
      protocol: a name in `registry.protocols`.
      data: the images; which layout they have depends on the protocol.
      models: recognizers as `inference.embedders.open_model` takes them.
      resolutions: each is one of `SIDES`, or two of them as "PROBE:GALLERY". Probes are then compared with a gallery of
        the same faces, embedded by the same model, or for a student by its teacher, which must be one of `models`.
      kernel, blur, motion, noise, jpeg: see `data.degradation.Degradation`. At "native", faces are degraded but not
        reduced. Faces in a gallery of another resolution are reduced but not degraded.
      stretch: accept faces that are not 112x112 and stretch them; TinyFace's always are.
      skip_bad: leave out bad input, counted and listed, instead of stopping.
      seed: seed of the noise, the directions of motion blur, and the bootstrap.
      output: name of the output of ONNX models that is the embedding; "" if only one output can be.
      mirror: whether networks embed the mirror image, too; a student stores this itself.
      super_resolver: folder of an SR network, see `teachers.load_super_resolver`. Every model that is not a student
        then gets another row, NAME_METHOD, for faces that this network super-resolves. "" means none.
      protocol_settings: the protocol's own settings, see its `Config`; settings that are not given have their defaults.
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
        """The degradation of a probe at one of `resolutions`."""
        resolution = resolution.partition(":")[0]
        if resolution == "native" and not self.degraded:
            return None
        own = protocols.settings(self.protocol, self.protocol_settings)
        side = getattr(own, "image_size", FACE_SIZE) if resolution == "native" else int(resolution)
        return Degradation(side, self.kernel, self.blur, self.motion, self.noise, self.jpeg)

    def gallery_degradation(self, resolution: str) -> Degradation | None:
        """The degradation of a gallery face if `resolution` also names that of the gallery."""
        gallery = resolution.partition(":")[2]
        return None if gallery == "native" else Degradation(int(gallery), self.kernel)

    @property
    def degraded(self) -> dict[str, float]:
        """The degradation strengths that are above 0."""
        strengths = {name: getattr(self, name) for name in STRENGTHS}
        return {name: value for name, value in strengths.items() if value}


def check_resolution(text: str) -> None:
    """Raises GdrdError unless a text is one of `SIDES`, or two of them as "PROBE:GALLERY"."""
    sides = text.split(":")
    if len(sides) > 2 or not set(sides) <= set(SIDES):
        raise GdrdError(
            f"the resolution {text!r} is not known; it can be {', '.join(SIDES)}, or PROBE:GALLERY such as 16:native",
            "resolution-unknown",
        )

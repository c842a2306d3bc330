"""What the images show: faces of people, or objects of classes; and their size, channels and words."""

import dataclasses
import hashlib

from ml_collections import ConfigDict

from gdrd_jax.registry import tasks

MAX_CHANNELS = 4
SIZES = (8, 512)  # smallest and largest side in pixels
LARGEST_SAMPLE = 65535
READ_AS = ("image_size", "channels", "maximum", "aligned", "mirror")  # fields on which the pixels of images depend


@dataclasses.dataclass(frozen=True)
class Task:
    """What the images show, how they are read, and what they are called in messages.

    A class of `gdrd_jax.registry.tasks` derives from this and gives the fields its own values; `config.task` may
    change the first four.

    Attributes:
      image_size: side S in pixels of an image before it is reduced: what the teacher and every degradation see.
      channels: 1 (gray: thermal, near infrared, depth), 2 (gray and one more), 3 (RGB) or 4 (RGB and one more).
      mirror: whether the mirror image shows the same; if not, as of digits and text, no mirror image is used.
      maximum: sample of a 16-bit image that becomes 255, larger ones as well; 0 is what the file declares, or 65535.
        Of images with 2 or 4 channels it is for the last one.
      aligned: images must have `image_size` already, as aligned faces have; otherwise the middle square of an image is
        brought to that size.
      label, labels: what a label means, for messages.
      image, images: what an image is called, for messages.

    Raises:
      ValueError: a size or number of channels that no image can have here.
    """

    image_size: int = 64
    channels: int = 3
    mirror: bool = True
    maximum: int = 0
    aligned: bool = False
    label: str = "class"
    labels: str = "classes"
    image: str = "image"
    images: str = "images"

    def __post_init__(self):
        if not SIZES[0] <= self.image_size <= SIZES[1]:
            raise ValueError(f"image_size is {self.image_size}; it can be {SIZES[0]} to {SIZES[1]}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"channels is {self.channels}; it can be 1 to {MAX_CHANNELS}")
        if not 0 <= self.maximum <= LARGEST_SAMPLE:
            raise ValueError(f"maximum is {self.maximum}; it can be 0 to {LARGEST_SAMPLE}")

    def __init_subclass__(cls):
        cls.Config = cls  # the settings of an entry are its fields

    def recorded(self) -> dict[str, object]:
        """The fields of every task, by which `Task(**fields)` is equal in what counts, without the plugin behind it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Task)}

    def of_contents(self, fingerprint: str) -> str:
        """Fingerprint of images as this task reads them, given that of their files."""
        read_as = (self.image_size, self.channels, self.maximum, self.aligned)
        known = (FACES.image_size, FACES.channels, FACES.maximum, FACES.aligned)
        if read_as == known:
            return fingerprint
        return hashlib.sha256(f"{fingerprint}:{read_as}".encode()).hexdigest()


@tasks.register("faces")
@dataclasses.dataclass(frozen=True)
class FaceTask(Task):
    """Aligned faces of people, 112x112 RGB."""

    image_size: int = 112
    aligned: bool = True
    label: str = "person"
    labels: str = "people"
    image: str = "face"
    images: str = "faces"


@tasks.register("objects")
@dataclasses.dataclass(frozen=True)
class ObjectTask(Task):
    """Objects of classes, of any size and shape; the middle square of an image is brought to 64x64."""


FACES = FaceTask()


def of_config(config: ConfigDict) -> Task:
    """The task of a config.

    Raises:
      GdrdError: there is no such task, or it cannot have these settings.
    """
    given = {name: config.task[name] for name in ("image_size", "channels", "maximum") if config.task[name]}
    if not config.task.mirror:
        given["mirror"] = False
    return tasks.settings(config.task.name, given)

"""Low-resolution views of a face: mirrored or moved a little, then reduced and degraded.

Every view is a pure function of (face, seed, index, view), so it never depends on
the order in which faces are read.
"""

import dataclasses
import os
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from gdrd_jax.data.loader import in_parallel
from gdrd_jax.utils.errors import GdrdError

# Blur, motion and shifts are in pixels of an image of this side; in images of other sizes they grow or shrink with it.
REFERENCE_SIZE = 112
KERNELS = ("area", "bicubic")
STRENGTHS = ("blur", "motion", "noise", "jpeg")


@dataclasses.dataclass(frozen=True)
class Degradation:
    """What a camera does to a face, in this order.

    Attributes:
      resolution: side of the low-resolution face in pixels.
      kernel: how it is reduced: "area" (OpenCV INTER_AREA) or "bicubic" (Pillow, antialiased).
      blur: standard deviation of a Gaussian blur before reducing, in pixels of a 112x112 image; in an image of
        another size it is the same share of its side.
      motion: length of a straight motion blur of random direction, in the same pixels.
      noise: standard deviation of Gaussian noise after reducing, of 255.
      jpeg: quality (1 to 100) with which the reduced face is compressed; 0 does not.
    """

    resolution: int
    kernel: str
    blur: float = 0.0
    motion: float = 0.0
    noise: float = 0.0
    jpeg: int = 0

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise GdrdError(
                f"unknown downsampling kernel {self.kernel!r}; choose {' or '.join(KERNELS)}", "degradation-kernel"
            )
        strengths = (self.blur, REFERENCE_SIZE), (self.motion, REFERENCE_SIZE), (self.noise, 255), (self.jpeg, 100)
        if not all(0 <= strength <= most for strength, most in strengths):  # nor NaN
            raise GdrdError(
                f"a degradation is out of range: blur {self.blur}, motion {self.motion}, noise {self.noise}, jpeg "
                f"{self.jpeg}; blur and motion can be 0 to {REFERENCE_SIZE} pixels, noise 0 to 255, and jpeg a quality "
                "from 1 to 100, or 0 for none",
                "degradation-strength",
            )

    def __call__(self, face: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """uint8 `[H, W, C]` -> `[resolution, resolution, C]`; `random` draws direction and noise."""
        direction = random.uniform(0, np.pi)
        scale = max(face.shape[:2]) / REFERENCE_SIZE
        channels = face.shape[2]
        if self.blur:
            face = cv2.GaussianBlur(face, (0, 0), self.blur * scale, borderType=cv2.BORDER_REPLICATE)
        if self.motion * scale > 1:
            face = cv2.filter2D(face, -1, _line(self.motion * scale, direction), borderType=cv2.BORDER_REPLICATE)
        face = resize(_with_channels(face, channels), self.resolution, self.kernel)
        if self.noise:
            noisy = face + random.normal(scale=self.noise, size=face.shape)
            face = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if self.jpeg:
            face = _compressed(face, self.jpeg)
        return face

    @property
    def degraded(self) -> bool:
        """Whether it does more than reduce."""
        return any(getattr(self, name) for name in STRENGTHS)

    def of_named(self, face: np.ndarray, name: str, seed: int) -> np.ndarray:
        """Degrades a face; noise and direction come from `seed` and the face's name, whatever other faces there are."""
        return self(face, np.random.default_rng([seed, zlib.crc32(os.fsencode(name))]))

    def weakened(self, random: np.random.Generator) -> "Degradation":
        """The same with every strength drawn between nothing and its value."""
        share = random.uniform(size=4)
        return dataclasses.replace(
            self, blur=self.blur * share[0], motion=self.motion * share[1], noise=self.noise * share[2],
            jpeg=round(100 - (100 - self.jpeg) * share[3]) if self.jpeg else 0,
        )  # fmt: skip


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """`[H, W]`, as OpenCV gives images of one channel, or `[H, W, C]` -> `[H, W, C]`."""
    return image.reshape(*image.shape[:2], channels)


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """An image `[H, W, C]` as JPEG gives it back: RGB as colors, every other channel as a gray image of its own."""
    if image.shape[2] == 3:
        given, flag = cv2.cvtColor(image, cv2.COLOR_RGB2BGR), cv2.IMREAD_COLOR
    elif image.shape[2] == 1:
        given, flag = image, cv2.IMREAD_GRAYSCALE
    else:
        parts = np.split(image, [3] if image.shape[2] == 4 else [1], axis=2)
        return np.concatenate([_compressed(np.ascontiguousarray(part), quality) for part in parts], axis=2)
    coded = cv2.imdecode(cv2.imencode(".jpg", given, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], flag)
    return coded[..., None] if flag == cv2.IMREAD_GRAYSCALE else cv2.cvtColor(coded, cv2.COLOR_BGR2RGB)


def _line(length: float, direction: float) -> np.ndarray:
    """Kernel of a motion blur: an antialiased line of weight 1, direction in radians."""
    side = 2 * int(np.ceil(length / 2)) + 1
    x = np.arange(side) - side // 2
    y = x[:, None]
    along, across = x * np.cos(direction) + y * np.sin(direction), -x * np.sin(direction) + y * np.cos(direction)
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return kernel / kernel.sum()


@dataclasses.dataclass(frozen=True)
class Views:
    """How the views of a face are made. View 0 is the face itself, view 1 its mirror image.

    Later views are moved, turned and scaled at random, every second one mirrored. Without `mirror` no view is mirrored,
    and view 1 is a random one, too.

    Attributes:
      resolution: side of a low-resolution view in pixels.
      kernel: "area" (OpenCV INTER_AREA) or "bicubic" (Pillow, antialiased).
      count: number of views.
      shift: largest displacement of random views, in pixels of a 112x112 image.
      rotate: largest rotation, degrees.
      scale: largest relative change of size.
      light: largest relative change of contrast, and of brightness as a share of 255.
      blur, motion, noise, jpeg: largest strengths of the degradation of random views, see `Degradation`.
      seed: of the random views.
      mirror: whether the mirror image shows the same.
    """

    resolution: int
    kernel: str
    count: int
    shift: float
    rotate: float
    scale: float
    light: float
    blur: float
    motion: float
    noise: float
    jpeg: int
    seed: int
    mirror: bool = True

    def __post_init__(self):
        self.degradation()
        if self.count < 1:
            raise GdrdError(f"views.count is {self.count}; it must be at least 1", "views-count")

    @classmethod
    def plain(cls, resolution: int, kernel: str) -> "Views":
        """The face and its mirror image, reduced and nothing else."""
        still = dict.fromkeys(("shift", "rotate", "scale", "light", "blur", "motion", "noise"), 0.0)
        return cls(resolution, kernel, count=2, jpeg=0, seed=0, **still)

    @property
    def exact(self) -> int:
        """Number of views that are not random: the face, and its mirror image."""
        return 2 if self.mirror else 1

    def settings(self) -> dict:
        """The attributes; without `mirror` where it is true, as versions up to 0.4 recorded them."""
        found = dataclasses.asdict(self)
        if self.mirror:
            del found["mirror"]
        return found

    def augment(self, face: np.ndarray, index: int, view: int) -> np.ndarray:
        """View `view` of face number `index` at full size: uint8 `[H, W, C]` -> the same shape."""
        mirrored = face[:, ::-1] if self.mirror and view % 2 else face
        if view < self.exact:
            return np.ascontiguousarray(mirrored)
        random = np.random.default_rng([self.seed, index, view]).uniform(-1, 1, 6)
        size = face.shape[0]
        center = ((size - 1) / 2, (size - 1) / 2)
        matrix = cv2.getRotationMatrix2D(center, self.rotate * random[0], 1 + self.scale * random[1])
        matrix[:, 2] += self.shift * (size / REFERENCE_SIZE) * random[2:4]
        moved = cv2.warpAffine(mirrored, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        contrast, brightness = 1 + self.light * random[4], 255 * self.light * random[5]
        lit = (np.arange(256, dtype=np.float32) - 127.5) * contrast + 127.5 + brightness
        return _with_channels(cv2.LUT(moved, np.clip(np.rint(lit), 0, 255).astype(np.uint8)), face.shape[2])

    def degradation(self) -> Degradation:
        """The strongest that a view meets."""
        return Degradation(self.resolution, self.kernel, self.blur, self.motion, self.noise, self.jpeg)

    def degrade(self, face: np.ndarray, index: int, view: int) -> np.ndarray:
        """Reduces what `augment` made, uint8 `[H, W, C]`, to `[resolution, resolution, C]`; degrades random views."""
        if view < self.exact:
            return resize(face, self.resolution, self.kernel)
        random = np.random.default_rng([self.seed, index, view, 1])
        return self.degradation().weakened(random)(face, random)


def resize(face: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Brings uint8 `[H, W, C]` to `[size, size, C]` without aliasing; what has to grow grows by Pillow's bicubic."""
    channels = face.shape[2]
    if face.shape[:2] == (size, size):
        return face
    if kernel == "area" and min(face.shape[:2]) >= size:
        return _with_channels(cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA), channels)
    if channels != 3:  # Pillow would weight colors by the fourth channel, which it takes for transparency
        planes = [Image.fromarray(np.ascontiguousarray(face[..., c])) for c in range(channels)]
        return np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in planes], axis=2)
    return np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC))


def resize_all(faces: Sequence[np.ndarray] | np.ndarray, size: int, kernel: str = "area") -> np.ndarray:
    """`resize` of many faces, such as an array `[N, H, W, C]` or `data.faces.Faces`: uint8 `[N, size, size, C]`."""
    if isinstance(faces, np.ndarray) and faces.shape[1:3] == (size, size):
        return faces
    return np.stack(list(in_parallel(lambda row: resize(faces[row], size, kernel), range(len(faces)))))

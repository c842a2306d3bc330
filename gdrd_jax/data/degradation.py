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

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.utils.errors import GdrdError

KERNELS = ("area", "bicubic")
STRENGTHS = ("blur", "motion", "noise", "jpeg")


@dataclasses.dataclass(frozen=True)
class Degradation:
    """What a camera does to a face, in this order.

    Attributes:
      resolution: side of the low-resolution face in pixels.
      kernel: how it is reduced: "area" (OpenCV INTER_AREA) or "bicubic" (Pillow, antialiased).
      blur: standard deviation of a Gaussian blur before reducing, in pixels of a 112x112 face.
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
        strengths = (self.blur, FACE_SIZE), (self.motion, FACE_SIZE), (self.noise, 255), (self.jpeg, 100)
        if not all(0 <= strength <= most for strength, most in strengths):  # nor NaN
            raise GdrdError(
                f"a degradation is out of range: blur {self.blur}, motion {self.motion}, noise {self.noise}, jpeg "
                f"{self.jpeg}; blur and motion can be 0 to {FACE_SIZE} pixels, noise 0 to 255, and jpeg a quality from "
                "1 to 100, or 0 for none",
                "degradation-strength",
            )

    def __call__(self, face: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """uint8 RGB `[H, W, 3]` -> `[resolution, resolution, 3]`; `random` draws direction and noise."""
        direction = random.uniform(0, np.pi)
        scale = max(face.shape[:2]) / FACE_SIZE
        if self.blur:
            face = cv2.GaussianBlur(face, (0, 0), self.blur * scale, borderType=cv2.BORDER_REPLICATE)
        if self.motion * scale > 1:
            face = cv2.filter2D(face, -1, _line(self.motion * scale, direction), borderType=cv2.BORDER_REPLICATE)
        face = resize(face, self.resolution, self.kernel)
        if self.noise:
            noisy = face + random.normal(scale=self.noise, size=face.shape)
            face = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if self.jpeg:
            coded = cv2.imencode(".jpg", cv2.cvtColor(face, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            face = cv2.cvtColor(cv2.imdecode(coded[1], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
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

    Later views are moved, turned and scaled at random, every second one mirrored.

    Attributes:
      resolution: side of a low-resolution view in pixels.
      kernel: "area" (OpenCV INTER_AREA) or "bicubic" (Pillow, antialiased).
      count: number of views.
      shift: largest displacement of views >= 2, in pixels of the 112x112 face.
      rotate: largest rotation, degrees.
      scale: largest relative change of size.
      light: largest relative change of contrast, and of brightness as a share of 255.
      blur, motion, noise, jpeg: largest strengths of the degradation of views >= 2, see `Degradation`.
      seed: of the random views.
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

    def __post_init__(self):
        self.degradation()
        if self.count < 1:
            raise GdrdError(f"views.count is {self.count}; it must be at least 1", "views-count")

    @classmethod
    def plain(cls, resolution: int, kernel: str) -> "Views":
        """The face and its mirror image, reduced and nothing else."""
        still = dict.fromkeys(("shift", "rotate", "scale", "light", "blur", "motion", "noise"), 0.0)
        return cls(resolution, kernel, count=2, jpeg=0, seed=0, **still)

    def augment(self, face: np.ndarray, index: int, view: int) -> np.ndarray:
        """View `view` of face number `index` at full size: uint8 `[H, W, 3]` -> the same shape."""
        mirrored = face[:, ::-1] if view % 2 else face
        if view < 2:
            return np.ascontiguousarray(mirrored)
        random = np.random.default_rng([self.seed, index, view]).uniform(-1, 1, 6)
        size = face.shape[0]
        center = ((size - 1) / 2, (size - 1) / 2)
        matrix = cv2.getRotationMatrix2D(center, self.rotate * random[0], 1 + self.scale * random[1])
        matrix[:, 2] += self.shift * random[2:4]
        moved = cv2.warpAffine(mirrored, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        contrast, brightness = 1 + self.light * random[4], 255 * self.light * random[5]
        lit = (np.arange(256, dtype=np.float32) - 127.5) * contrast + 127.5 + brightness
        return cv2.LUT(moved, np.clip(np.rint(lit), 0, 255).astype(np.uint8))

    def degradation(self) -> Degradation:
        """The strongest that a view meets."""
        return Degradation(self.resolution, self.kernel, self.blur, self.motion, self.noise, self.jpeg)

    def degrade(self, face: np.ndarray, index: int, view: int) -> np.ndarray:
        """Reduces what `augment` made, uint8 `[H, W, 3]`, to `[resolution, resolution, 3]`; views >= 2 are degraded."""
        if view < 2:
            return resize(face, self.resolution, self.kernel)
        random = np.random.default_rng([self.seed, index, view, 1])
        return self.degradation().weakened(random)(face, random)


def resize(face: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Brings uint8 `[H, W, 3]` to `[size, size, 3]` without aliasing; what has to grow grows by Pillow's bicubic."""
    if face.shape[:2] == (size, size):
        return face
    if kernel == "area" and min(face.shape[:2]) >= size:
        return cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC))


def resize_all(faces: Sequence[np.ndarray] | np.ndarray, size: int, kernel: str = "area") -> np.ndarray:
    """`resize` of many faces, such as an array `[N, H, W, 3]` or `data.faces.Faces`: uint8 `[N, size, size, 3]`."""
    if isinstance(faces, np.ndarray) and faces.shape[1:3] == (size, size):
        return faces
    return np.stack(list(in_parallel(lambda row: resize(faces[row], size, kernel), range(len(faces)))))

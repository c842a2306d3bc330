"""Views of a face: mirrored or moved a little at high resolution, then reduced.

Every view is a pure function of (face, seed, index, view), so it never depends on
the order in which faces are read.
"""

import dataclasses

import cv2
import numpy as np
from PIL import Image

from gdrd_jax.errors import GdrdError

KERNELS = ("area", "bicubic")


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
      seed: of the random views.
    """

    resolution: int
    kernel: str
    count: int
    shift: float
    rotate: float
    scale: float
    light: float
    seed: int

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise GdrdError(f"views.kernel is {self.kernel!r}; it can be {' or '.join(KERNELS)}")
        if self.count < 2:
            raise GdrdError(f"views.count is {self.count}; it must be at least 2, the face and its mirror image")

    def high(self, face: np.ndarray, index: int, view: int) -> np.ndarray:
        """View `view` of face number `index` at full size: uint8 `[H, W, 3]` -> the same shape."""
        mirrored = face[:, ::-1] if view % 2 else face
        if view < 2:
            return np.ascontiguousarray(mirrored)
        random = np.random.default_rng([self.seed, index, view]).uniform(-1, 1, 6)
        size = face.shape[0]
        centre = ((size - 1) / 2, (size - 1) / 2)
        matrix = cv2.getRotationMatrix2D(centre, self.rotate * random[0], 1 + self.scale * random[1])
        matrix[:, 2] += self.shift * random[2:4]
        moved = cv2.warpAffine(mirrored, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        contrast, brightness = 1 + self.light * random[4], 255 * self.light * random[5]
        lit = (moved.astype(np.float32) - 127.5) * contrast + 127.5 + brightness
        return np.clip(np.rint(lit), 0, 255).astype(np.uint8)

    def low(self, face: np.ndarray) -> np.ndarray:
        """Reduces uint8 `[H, W, 3]` to uint8 `[resolution, resolution, 3]`."""
        return reduce(face, self.resolution, self.kernel)


def reduce(face: np.ndarray, resolution: int, kernel: str) -> np.ndarray:
    """Downsamples uint8 `[H, W, 3]` to `[resolution, resolution, 3]` without aliasing."""
    if kernel == "area":
        return cv2.resize(face, (resolution, resolution), interpolation=cv2.INTER_AREA)
    return np.asarray(Image.fromarray(face).resize((resolution, resolution), Image.Resampling.BICUBIC))


def enlarge(face: np.ndarray, size: int) -> np.ndarray:
    """Enlarges uint8 `[h, w, 3]` to `[size, size, 3]` with Pillow's bicubic kernel."""
    return np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC))

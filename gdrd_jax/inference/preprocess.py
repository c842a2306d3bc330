"""Turns pictures of any source into a student's input."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from gdrd_jax.data.align import Aligner
from gdrd_jax.data.decoding import decode
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import middle_square, same_name
from gdrd_jax.data.file_tree import is_image, why_unreadable
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.readers import MANIFEST, list_files
from gdrd_jax.data.task import FACES, Task
from gdrd_jax.utils.errors import GdrdError, no_file, nothing_at

LOG = logging.getLogger(__name__)
Image = str | os.PathLike | np.ndarray | PIL.Image.Image
MODES = ("L", "LA", "RGB", "RGBA")  # of PIL images with 1 to 4 channels
PIL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel
LEAST = 0.5  # smallest accepted face, as a share of the student's resolution


def model_input(
    image: Image, resolution: int, kernel: str, aligner: Aligner | None = None, task: Task = FACES
) -> np.ndarray:  # fmt: skip
    """The student's input for one picture.

    Args:
      image, aligner, task: see `face`.
      resolution: of the student, in pixels.
      kernel: reduces larger faces, see `data.degradation.resize`; smaller ones are enlarged.

    Returns:
      uint8 `[R, R, C]`.

    Raises:
      GdrdError: as `face`, or the face is too small.
    """
    found = face(image, aligner, task)
    if not task.aligned and len(found) > resolution:  # as in training
        found = resize(found, task.image_size, "area")
    largest = min(resolution, task.image_size)  # that images of the task's size must have, whatever takes them
    if len(found) < LEAST * largest:
        raise too_small(_name(image), len(found), largest)
    return resize(found, resolution, kernel)


def too_small(name: str, side: int, resolution: int) -> GdrdError:
    """The error for a face, called `name`, of fewer pixels than a student can use."""
    return GdrdError(
        f"{name} is {side}x{side}, too small for a student of {resolution}x{resolution} pixels; give at least "
        f"{math.ceil(LEAST * resolution)}x{math.ceil(LEAST * resolution)}",
        "face-too-small",
    )


def face(image: Image, aligner: Aligner | None = None, task: Task = FACES) -> np.ndarray:
    """The face of a picture, in its own size: uint8 `[S, S, C]`; of other tasks the middle square of the picture.

    Args:
      image: a file, a PIL image, or uint8 `[H, W, C]`, colors as RGB (OpenCV's are BGR: `image[..., ::-1]`), or
        `[H, W]` gray: an aligned, square face of any size, or with `aligner` a photograph of one person.
      aligner: finds the face and aligns it.
      task: what the picture shows, with C channels.

    Raises:
      GdrdError: the picture cannot be read, has no face or several faces, or is not square.
    """
    pixels = _pixels(image, task)
    if not task.aligned:
        return middle_square(pixels)
    if aligner is not None:
        return aligner.only(pixels, _name(image))
    height, width = pixels.shape[:2]
    if height != width:
        raise GdrdError(
            f"{_name(image)} is {width}x{height}, but aligned faces are square; align photos (--align, align=True)",
            "face-not-square",
        )
    return pixels


def _name(image: Image) -> str:
    if isinstance(image, np.ndarray):
        return "an image given as an array"
    return os.fspath(image) if isinstance(image, str | os.PathLike) else "a PIL image"


def _pixels(image: Image, task: Task) -> np.ndarray:
    if isinstance(image, PIL.Image.Image):
        mode = MODES[task.channels - 1]
        if image.mode not in (PIL_MODES if mode == "RGB" else (mode,)):
            raise GdrdError(f"a PIL image of mode {image.mode!r} is not supported; convert it to {mode}", "image-mode")
        try:
            pixels = np.asarray(PIL.ImageOps.exif_transpose(image).convert(mode))
            return pixels.reshape(*pixels.shape[:2], task.channels)
        except OSError as error:  # PIL reads the file only now, and it may be truncated
            raise GdrdError(
                f"the file of a PIL image cannot be read: {error}; replace it or remove it", "image-unreadable"
            ) from error
    if not isinstance(image, str | os.PathLike | np.ndarray):
        raise GdrdError(
            f"an image cannot be of type {type(image).__name__}; give a file, uint8 RGB [H, W, 3], or a PIL image",
            "image-type",
        )
    if not isinstance(image, np.ndarray):
        path = Path(image)
        if problem := why_unreadable(path):
            if not os.path.lexists(path):
                raise no_file(path)
            raise GdrdError(f"{path} cannot be read: {problem}", "file-unreadable")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise GdrdError(f"{path} cannot be read: {error.strerror}", "file-unreadable") from error
        return decode(data, path, task.channels, task.maximum)
    if image.ndim == 2 and task.channels in (1, 3):
        image = np.repeat(image[..., None], task.channels, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != task.channels or 0 in image.shape:
        colors = " RGB" if task.channels == 3 else ""
        raise GdrdError(
            f"an image is {image.dtype} {list(image.shape)}; give uint8{colors} [H, W, {task.channels}]", "array-shape"
        )
    return image


def map_images(
    function: Callable[[Image], np.ndarray], images: Sequence[Image] | np.ndarray
) -> Iterator[np.ndarray | GdrdError]:
    """Results of a function for all images, in order, computed by several threads; or its `GdrdError`."""

    def tried(number: int) -> np.ndarray | GdrdError:
        try:
            return function(images[number])
        except GdrdError as error:
            return error

    return in_parallel(tried, range(len(images)))


def find(path: Path) -> list[Path]:
    """The images in a folder, at any depth, in natural order, or a single file. Other files are counted in the log.

    Raises:
      GdrdError: the path is missing, or holds no images.
    """
    if not path.exists():
        raise GdrdError(nothing_at(path, "there is no file or folder"), "path-missing")
    if path.is_file():
        return [path]
    if (path / MANIFEST).exists():
        raise GdrdError(
            f"{path} is a store of gdrd prepare, not a folder of pictures; give the pictures that it was made from",
            "input-is-store",
        )
    files = list_files(path)
    images = [is_image(files, row) for row in range(len(files))]
    if not any(images):
        raise GdrdError(f"{path} holds no images; give an image, or a folder of images", "images-missing")
    others = [name for name, image in zip(files.names, images) if not image]
    if others:
        LOG.info("%s: %d files are not images and are left out, such as %s", path, len(others), others[0])
    return [path / name for name, image in zip(files.names, images) if image]


def person(path: Path, root: Path) -> str:
    """The person in a picture: its folder below `root`, or, for a file directly in `root`, its own name."""
    folder = path.parent.relative_to(root)
    return same_name(path.stem if folder == Path() else folder.as_posix())

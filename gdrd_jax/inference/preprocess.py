"""Pictures as people have them, brought to what a student sees."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from gdrd_jax.data.align import Aligner
from gdrd_jax.data.decoding import decode
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import same_name
from gdrd_jax.data.file_tree import is_image, why_unreadable
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.readers import MANIFEST, list_files
from gdrd_jax.utils.errors import GdrdError

LOG = logging.getLogger(__name__)
Image = str | os.PathLike | np.ndarray | PIL.Image.Image
PIL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel
LEAST = 0.5  # of the student's resolution; a smaller crop holds no face


def see(image: Image, resolution: int, kernel: str, aligner: Aligner | None = None) -> np.ndarray:
    """One picture as the student is fed with it.

    Args:
      image, aligner: see `face`.
      resolution: of the student, in pixels.
      kernel: reduces larger faces, see `data.degradation.resize`; smaller ones are enlarged.

    Returns:
      uint8 RGB `[R, R, 3]`.

    Raises:
      GdrdError: as `face`, or it is too small to hold a face.
    """
    found = face(image, aligner)
    if len(found) < LEAST * resolution:
        side = len(found)
        raise GdrdError(f"{_name(image)} is {side}x{side}, too small for a student of {resolution}x{resolution} pixels")
    return resize(found, resolution, kernel)


def face(image: Image, aligner: Aligner | None = None) -> np.ndarray:
    """The face of a picture, at the size it has: uint8 RGB `[S, S, 3]`.

    Args:
      image: a file, a PIL image, or uint8 `[H, W, 3]` RGB (OpenCV's are BGR: `image[..., ::-1]`) or `[H, W]` gray: an
        aligned face, square, of any size, or with `aligner` a photograph of one person.
      aligner: finds the face and aligns it.

    Raises:
      GdrdError: no picture, no face or several faces in it, or not square.
    """
    pixels = _pixels(image)
    if aligner is not None:
        return aligner.only(pixels, _name(image))
    height, width = pixels.shape[:2]
    if height != width:
        raise GdrdError(
            f"{_name(image)} is {width}x{height}; an aligned face is square: align photographs (--align, or align=True)"
        )
    return pixels


def _name(image: Image) -> str:
    if isinstance(image, np.ndarray):
        return "an image given as an array"
    return os.fspath(image) if isinstance(image, str | os.PathLike) else "a PIL image"


def _pixels(image: Image) -> np.ndarray:
    if isinstance(image, PIL.Image.Image):
        if image.mode not in PIL_MODES:
            raise GdrdError(f"a PIL image of mode {image.mode!r} is not supported; convert it to RGB")
        try:
            return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))
        except OSError as error:  # of a file that is cut short
            raise GdrdError(f"a PIL image cannot be read: {error}") from error
    if not isinstance(image, str | os.PathLike | np.ndarray):
        raise GdrdError(
            f"an image cannot be a {type(image).__name__}; give a file, uint8 RGB [H, W, 3], or a PIL image"
        )
    if not isinstance(image, np.ndarray):
        path = Path(image)
        if problem := why_unreadable(path):
            missing = not os.path.lexists(path)
            raise GdrdError(f"there is no file {str(path)!r}" if missing else f"{path} cannot be read: {problem}")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise GdrdError(f"{path} cannot be read: {error.strerror}") from error
        return decode(data, path)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise GdrdError(f"an image is {image.dtype} {list(image.shape)}; give uint8 RGB [H, W, 3]")
    return image


def seen(images: Sequence[Image], one: Callable[[Image], np.ndarray]) -> Iterator[np.ndarray | GdrdError]:
    """`one` of every image, in order, by several threads; where it raised a GdrdError that error in its place."""

    def tried(number: int) -> np.ndarray | GdrdError:
        try:
            return one(images[number])
        except GdrdError as error:
            return error

    return in_parallel(tried, range(len(images)))


def find(path: Path) -> list[Path]:
    """The images in a folder, at any depth, in natural order; of a file itself. Other files are counted and told.

    Raises:
      GdrdError: there is nothing, or no image in it.
    """
    if not path.exists():
        raise GdrdError(f"there is no file or folder {str(path)!r}")
    if path.is_file():
        return [path]
    if (path / MANIFEST).exists():
        raise GdrdError(f"{path} is a store of gdrd prepare; give the pictures that it was made of")
    files = list_files(path)
    images = [is_image(files, row) for row in range(len(files))]
    if not any(images):
        raise GdrdError(f"{path} holds no images")
    others = [name for name, image in zip(files.names, images) if not image]
    if others:
        LOG.info("%s: %d files are not images and are left out, such as %s", path, len(others), others[0])
    return [path / name for name, image in zip(files.names, images) if image]


def person(path: Path, root: Path) -> str:
    """Whose picture it is: its folder below `root`, or, right in `root`, its own name."""
    folder = path.parent.relative_to(root)
    return same_name(path.stem if folder == Path() else folder.as_posix())

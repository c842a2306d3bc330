"""Pictures of faces."""

import io
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gdrd_jax.utils.arrays import to_rgb

CELL, GAP = 72, 4  # pixels of a face in a grid, and between two


Frame = tuple[int, int, int] | None  # its color, RGB


def grid(lines: Sequence[Sequence[np.ndarray]], frames: Sequence[Sequence[Frame]] | None = None) -> np.ndarray:
    """Lays faces out in lines, enlarged to one size without smoothing.

    Args:
      lines: uint8 images `[h, w, C]` of any size, with 1 to 4 channels.
      frames: for each face the color of its frame, or None.

    Returns:
      uint8 RGB `[H, W, 3]`, white between the faces.
    """
    width = max(map(len, lines)) * (CELL + GAP) + GAP
    canvas = np.full((len(lines) * (CELL + GAP) + GAP, width, 3), 255, np.uint8)
    for y, line in enumerate(lines):
        for x, face in enumerate(line):
            top, left = GAP + y * (CELL + GAP), GAP + x * (CELL + GAP)
            frame = frames[y][x] if frames else None
            if frame:
                canvas[top - 3 : top + CELL + 3, left - 3 : left + CELL + 3] = frame
            interpolation = cv2.INTER_AREA if face.shape[0] > CELL else cv2.INTER_NEAREST
            canvas[top : top + CELL, left : left + CELL] = cv2.resize(
                to_rgb(face), (CELL, CELL), interpolation=interpolation
            )
    return canvas


def with_line(image: bytes, text: str) -> bytes:
    """A PNG with a line of text below it."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    size = max(picture.width // 70, 9)
    font = ImageFont.load_default(size)
    lines = textwrap.wrap(text, max(int(picture.width / font.getlength("x" * 10) * 10), 10))
    whole = Image.new("RGB", (picture.width, picture.height + 2 * size * len(lines)), "white")
    whole.paste(picture)
    ImageDraw.Draw(whole).multiline_text((size, picture.height), "\n".join(lines), "#444", font, spacing=size // 2)
    file = io.BytesIO()
    whole.save(file, "png")
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    """uint8 RGB `[H, W, 3]` as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()

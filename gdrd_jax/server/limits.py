"""How much a client may ask for at once."""

import asyncio
import dataclasses
import io
import warnings
from collections.abc import AsyncIterator

import PIL.Image

from gdrd_jax.utils.errors import GdrdError

RETRY_AFTER = 1  # seconds after which a client may try again


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
      megabytes: size of a request's body, in 10^6 bytes.
      megapixels: size of a picture, in 10^6 pixels; what its header says, before it is decoded.
      pictures: number of pictures in a request.
      requests: number of requests that are worked on or wait at the same time.
      seconds: time in which a request's body has to arrive.
    """

    megabytes: float = 16
    megapixels: float = 25
    pictures: int = 32
    requests: int = 128
    seconds: float = 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise GdrdError(
                    f"--max-{field.name} is {getattr(self, field.name):g}; give a number above 0", "server-limit"
                )

    async def body(self, chunks: AsyncIterator[bytes], announced: str | None) -> AsyncIterator[bytes]:
        """A request's body as it arrives.

        Args:
          chunks: its parts.
          announced: its size as the header Content-Length says.

        Raises:
          GdrdError: "request-too-large" or "request-slow".
        """
        size, largest = 0, int(1e6 * self.megabytes)
        if announced and announced.isdecimal() and int(announced) > largest:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.seconds):
                async for chunk in chunks:
                    size += len(chunk)
                    if size > largest:
                        raise self._too_large()
                    yield chunk
        except TimeoutError as error:
            raise GdrdError(
                f"the request did not arrive within {self.seconds:g} seconds; send fewer or smaller pictures",
                "request-slow",
            ) from error

    def _too_large(self) -> GdrdError:
        return GdrdError(
            f"the request has more than {self.megabytes:g} MB; send fewer or smaller pictures", "request-too-large"
        )

    def check_pictures(self, count: int) -> None:
        """Checks the number of pictures in a request.

        Raises:
          GdrdError: "pictures-missing" or "pictures-too-many".
        """
        if not count:
            raise GdrdError("the request has no pictures; send at least one as `images`", "pictures-missing")
        if count > self.pictures:
            raise GdrdError(
                f"the request has {count} pictures; send at most {self.pictures} at once", "pictures-too-many"
            )

    def check_size(self, data: bytes, name: str) -> None:
        """Checks, by its header, that a picture will not fill the memory when it is decoded.

        Raises:
          GdrdError: "picture-too-large".
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
                width, height = PIL.Image.open(io.BytesIO(data)).size
        except PIL.Image.DecompressionBombError:
            width, height = int(1e6 * self.megapixels) + 1, 1
        except Exception:  # Pillow raises whatever its parsers met; the decoder says why it cannot be read
            return
        if width * height > 1e6 * self.megapixels:
            raise GdrdError(
                f"{name} has more than {self.megapixels:g} million pixels; send a smaller one", "picture-too-large"
            )

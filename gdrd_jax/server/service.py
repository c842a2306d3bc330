"""What the endpoints of a server do, without HTTP."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gdrd_jax.data.decoding import decode
from gdrd_jax.data.faces import same_name
from gdrd_jax.export import networks
from gdrd_jax.galleries.address import Address
from gdrd_jax.inference.recognizer import FAR, Recognizer, Verification
from gdrd_jax.server.batching import Batcher
from gdrd_jax.server.limits import Limits
from gdrd_jax.server.people import People
from gdrd_jax.utils.errors import GdrdError, require

DATABASE_THREADS = 8


def network(recognizer: Recognizer) -> Callable[[np.ndarray], np.ndarray]:
    """The student in ONNX Runtime: uint8 `[N, R, R, C]` -> float32 `[N, D]`, unit length.

    If the student has a quality score, it is one more column, `[N, D + 1]`.

    Raises:
      GdrdError: onnx or onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "server")
    model = networks.onnx_model(recognizer.student, layout="nhwc", metadata={}, quality=recognizer.quality)
    options = runtime.SessionOptions()
    # Its threads would wait for work in a loop, which takes as much of the cores as the network: 11 ms for 5.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda faces: np.column_stack(session.run(None, {networks.INPUT: faces}))


def _search_alone() -> None:
    """Makes faiss search in the calling thread alone; several requests are searched for side by side."""
    require("faiss").omp_set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of pictures.

    Attributes:
      embeddings: float32 `[N, D]`, unit length.
      quality: float32 `[N]`, in [0, 1]; None if the student has no quality score.
    """

    embeddings: np.ndarray
    quality: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Found:
    """A face of the gallery that is like a probe.

    Attributes:
      person: whose it is.
      similarity: cosine of the two embeddings, -1 to 1.
      accepted: whether the similarity reaches the threshold; None without one.
    """

    person: str
    similarity: float
    accepted: bool | None


class Service:
    """A student, its gallery and its threads; `async with service.running():` surrounds all calls.

    Attributes:
      recognizer: the student.
      people: its gallery.
      limits: on pictures.
      far: false accept rate of decisions where a request names no rate; None: `search` decides nothing then.
      fpir: of a search where a request names no rate, instead of `far`.
    """

    def __init__(
        self, recognizer: Recognizer, place: Address | None = None, *, limits: Limits | None = None,
        far: float | None = None, fpir: float | None = None, seen: Callable[[int], None] = lambda _: None,
    ):  # fmt: skip
        """Loads the network and the gallery.

        Args:
          recognizer: the student.
          place: of the gallery, see `People`.
          limits, far, fpir: see the class.
          seen: is called with the number of faces of each batch.

        Raises:
          GdrdError: as `network` and `People`, there is no threshold at `far` or `fpir`, or no gallery for `fpir`.
        """
        if fpir is not None and place is None:
            raise GdrdError("--fpir is of searches, which need a gallery; give --gallery too", "fpir-without-gallery")
        self.recognizer, self.limits, self.far, self.fpir = recognizer, limits or Limits(), far, fpir
        self.people = People(recognizer, place)
        if far is not None:
            recognizer.threshold(far, native=place is not None and self.people.is_native())
        if fpir is not None:
            size = max(self.people.count(), 1)
            recognizer.threshold(fpir=fpir, gallery=size, native=self.people.is_native())
        self._batcher = Batcher(network(recognizer), seen)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which it can be used."""
        with ThreadPoolExecutor(os.cpu_count(), "pictures") as self._pictures:
            with ThreadPoolExecutor(DATABASE_THREADS, "gallery", _search_alone) as self._database:
                async with self._batcher:
                    yield

    def _threshold(self, far: float | None, fpir: float | None) -> float | None:
        """The similarity at which a search accepts a face of the gallery; None without a rate, or an empty gallery."""
        size = self.people.count() if fpir is not None else None
        if size == 0 or (far is None and fpir is None):
            return None
        return self.recognizer.threshold(far, fpir=fpir, gallery=size, native=self.people.is_native())

    async def embed(self, pictures: list[bytes], *, align: bool) -> Embedded:
        """Embeddings of picture files, and their quality.

        Args:
          pictures: contents of image files: aligned faces, or with `align` photographs of one person each.
          align: find the faces and align them.

        Raises:
          GdrdError: too many pictures, or one that cannot be used; the message has its number.
        """
        self.limits.check_pictures(len(pictures))
        if align:
            self.recognizer.require_aligner()
        run, loop = self._prepared, asyncio.get_running_loop()
        names = [f"picture {number}" for number in range(len(pictures))] if len(pictures) > 1 else ["the picture"]
        faces = await asyncio.gather(
            *(loop.run_in_executor(self._pictures, run, data, name, align) for data, name in zip(pictures, names))
        )
        found = await self._batcher.embed(np.stack(faces))
        dim = self.recognizer.dim
        return Embedded(found[:, :dim], found[:, dim] if self.recognizer.quality else None)

    def _prepared(self, data: bytes, name: str, align: bool) -> np.ndarray:
        self.limits.check_size(data, name)
        pixels = decode(data, name, self.recognizer.task.channels, self.recognizer.task.maximum)
        try:
            return self.recognizer.preprocess(pixels, align=align)
        except GdrdError as error:
            raise GdrdError(str(error).replace("an image given as an array", name), error.code) from error

    async def verify(self, first: bytes, second: bytes, *, align: bool, far: float | None) -> Verification:
        """Decides whether two pictures are of the same person; arguments as of `embed` and `Recognizer.verify`."""
        far = far or self.far or FAR
        threshold = self.recognizer.threshold(far)
        one, other = (await self.embed([first, second], align=align)).embeddings
        similarity = float(one @ other)
        return Verification(similarity >= threshold, similarity, threshold, far)

    async def search(
        self, pictures: list[bytes], *, align: bool, k: int, far: float | None, fpir: float | None
    ) -> tuple[list[list[Found]], float | None, np.ndarray | None]:
        """Searches the gallery for the faces that are most like each picture.

        Args:
          pictures, align: as of `embed`.
          k: how many for each picture.
          far, fpir: see `Recognizer.threshold`; if neither is given, they are the server's, `fpir` before `far`.

        Returns:
          The faces of each picture, the most similar first; the threshold, if there is a rate; and the pictures'
          quality, see `Embedded`.
        """
        if far is fpir is None:
            far, fpir = (self.far, None) if self.fpir is None else (None, self.fpir)
        threshold = await self._with_gallery(self._threshold, far, fpir)
        probes = await self.embed(pictures, align=align)
        matches = await self._with_gallery(self.people.search, probes.embeddings, k)
        found = [
            [Found(m.id, m.similarity, None if threshold is None else m.similarity >= threshold) for m in line]
            for line in matches
        ]
        return found, threshold, probes.quality

    async def enroll(self, person: str, pictures: list[bytes], *, align: bool, update: bool) -> int:
        """Adds faces of a person to the gallery, all or none; they are on disk when it returns.

        Args:
          person: the id.
          pictures, align: as of `embed`.
          update: these faces replace those that the person has.

        Returns:
          How many faces were replaced.
        """
        embeddings = (await self.embed(pictures, align=align)).embeddings
        name, about = same_name(person), {"align": align}
        return await self._with_gallery(lambda: self.people.enroll(embeddings, name, about, update=update))

    async def remove(self, people: list[str]) -> int:
        """Removes people with all their faces, all or none; the number of faces."""
        return await self._with_gallery(self.people.remove, [same_name(person) for person in people])

    async def counts(self) -> dict[str, int]:
        """The number of faces of each person."""
        return await self._with_gallery(self.people.counts)

    async def _with_gallery(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._database, work, *arguments)

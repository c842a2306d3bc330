"""The gallery of a server: opened or made when it is first needed, and shared with other servers."""

import threading

import numpy as np

from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.gallery import Gallery, Match, is_gallery
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils.errors import GdrdError


class People:
    """What a server does with its gallery; any number of threads may use one object.

    Attributes:
      place: where the gallery is, or None if the server has none.
    """

    def __init__(self, recognizer: Recognizer, place: Address | None):
        """Opens the gallery if there is one at `place`; otherwise the first `enroll` makes it.

        Raises:
          GdrdError: as `Gallery.load`.
        """
        self.place, self._recognizer = place, recognizer
        self._gallery: Gallery | None = None
        self._making = threading.Lock()
        if place is not None:
            self._open()

    def _open(self) -> Gallery | None:
        if self.place is None:
            raise GdrdError(
                "this server has no gallery; start it with gdrd serve --gallery FOLDER", "server-without-gallery"
            )
        if self._gallery is None and is_gallery(self.place):  # another server may have made it
            self._gallery = Gallery.load(self.place, self._recognizer.comparable())
        return self._gallery

    def is_native(self) -> bool:
        """Whether the recognizer's teacher embedded the gallery."""
        gallery = self._open()
        return gallery is not None and gallery.fingerprint != self._recognizer.fingerprint()

    def count(self) -> int:
        """The number of faces."""
        return len(self._open() or ())

    def counts(self) -> dict[str, int]:
        """The number of faces of each person."""
        gallery = self._open()
        return gallery.counts() if gallery else {}

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        """See `Gallery.search`."""
        gallery = self._open()
        if gallery is None:
            raise GdrdError("the gallery is empty; enroll people before searching", "gallery-empty")
        return gallery.search(embeddings, k)

    def enroll(self, embeddings: np.ndarray, person: str, metadata: dict, *, update: bool) -> int:
        """Adds faces of a person, which are on disk when it returns; the number of faces that they replace.

        Args:
          embeddings: float32 `[N, D]`, unit length.
          person: the id.
          metadata: of each face.
          update: these faces replace those that the person has.

        Raises:
          GdrdError: as `Gallery.add`, or "gallery-space": the gallery is the teacher's.
        """
        if self.is_native():
            raise GdrdError(
                f"the gallery {self.place} was embedded by the student's teacher, at full size; enroll with gdrd "
                "enroll --with, which embeds by it",
                "gallery-space",
            )
        ids, about = [person] * len(embeddings), [metadata] * len(embeddings)
        with self._making:
            gallery = self._open()
            if gallery is None:
                self._make(embeddings, ids, about)
                return 0
        if update:
            return gallery.update(embeddings, ids, about)
        gallery.add(embeddings, ids, about)
        return 0

    def _make(self, embeddings: np.ndarray, ids: list[str], metadata: list[dict]) -> None:
        gallery = Gallery(self._recognizer.dim, self._recognizer.fingerprint())
        gallery.add(embeddings, ids, metadata)
        try:
            gallery.save(self.place, new=True)
        except GdrdError as error:
            if error.code not in ("gallery-exists", "folder-in-use"):  # another server makes it
                raise
            gallery = Gallery.load(self.place, self._recognizer.fingerprint())
            gallery.add(embeddings, ids, metadata)
        self._gallery = gallery

    def remove(self, people: list[str]) -> int:
        """See `Gallery.remove`."""
        gallery = self._open()
        if gallery is None:
            raise GdrdError(f"there is no person {people[0]!r} in the gallery; it is empty", "gallery-person-unknown")
        return gallery.remove(*people)

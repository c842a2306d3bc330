"""Made-up faces, and embeddings of people."""

import cv2
import numpy as np

SHARP = 8  # dimensions of made embeddings


def face(person, image=0, size=112):
    coarse = np.random.default_rng([person]).integers(40, 216, size=(6, 6, 3)).astype(np.float32)
    coarse += np.random.default_rng([person, image, 1]).normal(scale=12, size=coarse.shape)
    return cv2.resize(coarse.clip(0, 255), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


def cells(names):
    found = np.empty((len(names), 1), object)
    found[:, 0] = names
    return found


def made(people, noise, seed=0):
    """Embeddings of people (-1: a stranger each), unit length."""
    random = np.random.default_rng(seed)
    centers, people = random.normal(size=(max(people) + 1, SHARP)), np.array(people)
    own = np.where(people[:, None] >= 0, centers[people.clip(0)], random.normal(size=(len(people), SHARP)))
    found = own + noise * random.normal(size=own.shape)
    return np.float32(found / np.linalg.norm(found, axis=1, keepdims=True))

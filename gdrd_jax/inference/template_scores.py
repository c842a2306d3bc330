"""Thresholds of templates, means of several faces, from those of single faces."""

import dataclasses
import math

import numpy as np

from gdrd_jax.utils.errors import GdrdError

LEAST_PEOPLE = 10  # with two faces or more


@dataclasses.dataclass(frozen=True)
class TemplateScores:
    """How similarities of templates of different people are distributed, by the similarities of their faces.

    A template is the mean of the embeddings of n faces, scaled to unit length. The similarity of two templates, of p
    and g faces, is the mean of the p g similarities of their faces divided by the lengths of both means. The former
    varies less than one similarity, the less the more the faces of a person differ, and the latter are below 1. A
    threshold t of single faces becomes the one that is as many standard deviations above the mean m of impostors:

        t(p, g) = (m + (t - m) sqrt(V(p, g) / V(1, 1))) / (L(p) L'(g))
        V(p, g) = (v + (p - 1) c + (g - 1) c' + (p - 1)(g - 1) c'') / (p g)
        L(p) = sqrt((1 + (p - 1) w) / p), and L'(g) with w'

    These are the first two moments of a mean of exchangeable similarities. That the tail keeps its shape is an
    assumption; docs/thresholds.md has the false accept rates that were measured.

    Attributes:
      people: number of those with at least two faces.
      mean, variance: of the similarities of faces of different people: m and v.
      of_probes: covariance of the similarities of two faces of one person to the same face of another: c.
      of_gallery: of those of one face to two faces of another person in the gallery: c'.
      of_both: of those of two faces of one person to two different faces of another: c''.
      probe_cosine, gallery_cosine: mean similarity of two faces of one person, both as probes and both as in the
        gallery: w and w'.
      name: name of the faces.
    """

    people: int
    mean: float
    variance: float
    of_probes: float
    of_gallery: float
    of_both: float
    probe_cosine: float
    gallery_cosine: float
    name: str

    @classmethod
    def learn(
        cls, embeddings: np.ndarray, labels: np.ndarray, name: str, gallery: np.ndarray | None = None
    ) -> "TemplateScores | None":
        """Compares all faces with each other.

        The mean is over pairs of faces, as FAR is; in the other moments every pair of people counts alike.

        Args:
          embeddings: float `[N, D]`, unit length.
          labels: identities, int `[N]`.
          name: name of the faces.
          gallery: embeddings of the same faces by a gallery's recognizer, `[N, D]`; None where they are the same.

        Returns:
          None where fewer than `LEAST_PEOPLE` people have two faces.
        """
        enrolled = embeddings if gallery is None else gallery
        _, person, faces = np.unique(labels, return_inverse=True, return_counts=True)
        several = faces > 1
        if several.sum() < LEAST_PEOPLE:
            return None
        of = (person[:, None] == np.arange(len(faces))).astype(np.float32)
        scores = embeddings @ enrolled.T
        impostor = person[:, None] != person
        mean = float(scores[impostor].mean(dtype=np.float64))
        scores = np.where(impostor, scores - mean, 0).astype(np.float32)
        # Sums over the pairs of faces of every two people, [K, K]: of products of similarities that share both faces,
        # the face in the gallery, the probe, or neither.
        both = of.T @ scores**2 @ of
        gallery_face = (of.T @ scores) ** 2 @ of - both
        probe = of.T @ (scores @ of) ** 2 - both
        neither = (of.T @ scores @ of) ** 2 - gallery_face - probe - both
        pairs = faces * (faces - 1.0)
        apart = ~np.eye(len(faces), dtype=bool)

        def average(sums: np.ndarray, probes: np.ndarray, enrolled: np.ndarray) -> float:
            counts = probes[:, None] * enrolled
            return float((sums[apart & (counts > 0)] / counts[apart & (counts > 0)]).mean(dtype=np.float64))

        def within(of_faces: np.ndarray) -> float:
            lengths = np.square(of.T[several] @ of_faces).sum(axis=1, dtype=np.float64)
            return float(((lengths - faces[several]) / pairs[several]).mean())

        return cls(
            int(several.sum()), mean, average(both, faces, faces), average(gallery_face, pairs, faces),
            average(probe, faces, pairs), average(neither, pairs, pairs), within(embeddings), within(enrolled), name,
        )  # fmt: skip

    def threshold(self, single: float, probe_faces: int, gallery_faces: int) -> float:
        """The threshold of templates that belongs to one of single faces.

        Args:
          single: threshold of single faces.
          probe_faces, gallery_faces: numbers of faces, p and g.

        Raises:
          GdrdError: a number is below 1.
        """
        p, g = probe_faces, gallery_faces
        if p < 1 or g < 1:
            raise GdrdError(f"a template is of {min(p, g)} faces; it must be at least 1", "template-faces")
        moments = (self.variance, (p - 1) * self.of_probes, (g - 1) * self.of_gallery, (p - 1) * (g - 1) * self.of_both)
        spread = math.sqrt(max(sum(moments), 0) / (p * g * self.variance))
        lengths = (1 + (p - 1) * self.probe_cosine) / p * (1 + (g - 1) * self.gallery_cosine) / g
        return (self.mean + (single - self.mean) * spread) / math.sqrt(lengths)

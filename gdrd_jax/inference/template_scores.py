"""Thresholds of templates, means of several faces, from those of single faces."""

import dataclasses
import math

import numpy as np

from gdrd_jax.utils.errors import GdrdError

LEAST_PEOPLE = 10  # with two faces or more


@dataclasses.dataclass(frozen=True)
class TemplateScores:
    """The distribution of similarities between templates of different people, derived from single faces.

    A template is the mean of the embeddings of n faces, scaled to unit length. The similarity of two templates, of p
    and g faces, is the mean of the p g similarities of their faces, divided by the lengths of both means. The mean
    varies less than a single similarity, and all the less the more the faces of a person differ; the lengths are below
    1. A threshold t for single faces becomes the one that is as many standard deviations above the impostors' mean m:

        t(p, g) = (m + (t - m) sqrt(V(p, g) / V(1, 1))) / (L(p) L'(g))
        V(p, g) = (v + (p - 1) c + (g - 1) c' + (p - 1)(g - 1) c'') / (p g)
        L(p) = sqrt((1 + (p - 1) w) / p), and L'(g) with w'

    The formulas are exact for the first two moments of a mean of exchangeable similarities. They assume that the tail
    of the distribution keeps its shape; docs/thresholds.md has measured false accept rates.

    Attributes:
      people: number of people with at least two faces.
      mean, variance: m and v, of the similarities between faces of different people.
      of_probes: c, the covariance of the similarities of two faces of one person to the same face of another.
      of_gallery: c', the covariance of the similarities of one face to two faces of another person in the gallery.
      of_both: c'', the covariance of the similarities of two faces of one person to two different faces of another.
      probe_cosine, gallery_cosine: w and w', the mean similarity of two faces of one person, both embedded as probes
        or both embedded as in the gallery.
      name: name of the data set.
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
        """Learns the moments by comparing all faces with each other.

        The mean is over pairs of faces, as FAR is; in the other moments every pair of people has the same weight.

        Args:
          embeddings: float `[N, D]`, unit length.
          labels: identities, int `[N]`.
          name: name of the data set.
          gallery: embeddings of the same faces, computed by the recognizer of a gallery, `[N, D]`; None if it is the
            same recognizer.

        Returns:
          The moments, or None if fewer than `LEAST_PEOPLE` people have two faces.
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
        """The threshold for templates that corresponds to a threshold for single faces.

        Args:
          single: threshold for single faces.
          probe_faces, gallery_faces: p and g, the numbers of faces in the two templates.

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

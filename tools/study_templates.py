"""Measure templates of several degraded faces: how many, and by which weights, on people with many images.

Of each person with four images or more, half the images (at most eight) are the probe's and the others the gallery's,
which are reduced and not degraded. A track has 1, 4 or 16 frames: the probe's images in turn, moved by up to 4 of 112
pixels and degraded anew, either by `fixed` strengths (blur 2, motion 8, noise 8, JPEG 50) or by `random` ones (up to
blur 4, motion 16, noise 16 and JPEG 25, each between nothing and all of it). The probe is compared with one entry of
every person: a single face, or the template of all gallery faces.

Printed as Markdown, in percent with 95 % intervals from a bootstrap of people: TAR, at the threshold whose FAR on all
comparisons is 1e-2, and rank-1; and the difference to uniform weights.

Examples:
  python tools/study_templates.py --data lfw_dev.tar --model gdrd-16 gdrd-8 --out study
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import Degradation, Views, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import bootstrap
from gdrd_jax.inference.quality import mean_embedding
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.tables import markdown_table

LEAST, MOST = 4, 8  # images of a person, and of one side of the comparison
FRAMES = (1, 4, 16)
FAR = 1e-2
STRENGTHS = {"random": (4.0, 16.0, 16.0, 25), "fixed": (2.0, 8.0, 8.0, 50)}
WEIGHTS = {
    "uniform": lambda lengths, quality: np.ones(len(lengths)),
    "quality": lambda lengths, quality: quality,
    "quality squared": lambda lengths, quality: quality**2,
    "length": lambda lengths, quality: lengths,
    "best frame": lambda lengths, quality: quality == quality.max(),
}


def frames_of(faces: Faces, sources: Sequence[np.ndarray], degradation: Degradation, weaken: bool) -> np.ndarray:
    """uint8 `[P, 16, R, R, 3]` of P people, whose probe images are the rows `sources`."""
    moves = Views(
        degradation.resolution, degradation.kernel, 3, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, seed=0, mirror=False
    )

    def one(number: int) -> np.ndarray:
        person, frame = divmod(number, FRAMES[-1])
        random = np.random.default_rng([0, person, frame])
        row = sources[person][frame % len(sources[person])]
        moved = moves.augment(faces[row], number, 2)
        return (degradation.weakened(random) if weaken else degradation)(moved, random)

    found = np.stack(list(in_parallel(one, range(len(sources) * FRAMES[-1]))))
    return found.reshape(len(sources), FRAMES[-1], *found.shape[1:])


def judged(probes: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each person is accepted at FAR 1e-2, and whether found at rank 1: bool `[P]` each."""
    similarity = probes @ gallery.T
    own, others = np.diag(similarity), similarity[~np.eye(len(probes), dtype=bool)]
    threshold = np.sort(others)[::-1][int(FAR * len(others))]
    return own > threshold, similarity.argmax(axis=1) == np.arange(len(probes))


def cell(values: np.ndarray, reference: np.ndarray | None = None) -> str:
    """A share in percent with its interval; of a difference with its sign."""
    people = np.arange(len(values))
    shift = np.zeros(len(values)) if reference is None else reference
    low, high = bootstrap.of_mean(values - shift, people)
    form = ".1f" if reference is None else "+.1f"
    return f"{100 * (values - shift).mean():{form}} ({100 * low:{form}} to {100 * high:{form}})"


def study(name: str, data: Path, out: Path) -> str:
    """The table of one student."""
    recognizer = Recognizer.load(name)
    score = recognizer.require_quality()
    faces = open_faces(data)
    rows = [np.flatnonzero(faces.labels == label) for label in range(len(faces.identities))]
    rows = [own for own in rows if len(own) >= LEAST]
    sources, known = [own[: len(own) // 2][:MOST] for own in rows], [own[len(own) // 2 :][:MOST] for own in rows]
    clean = [np.stack([resize(faces[row], recognizer.resolution, recognizer.kernel) for row in own]) for own in known]
    file = out / f"{Path(name).name}_gallery.npz"
    if not file.exists():
        np.savez(file, embeddings=recognizer.embed(np.concatenate(clean)))
    enrolled = np.load(file)["embeddings"]
    ends = np.cumsum([len(own) for own in known])
    parts = np.split(enrolled, ends[:-1])
    galleries = {
        "one face": np.stack([own[0] for own in parts]),
        "template": unit(np.stack([own.mean(0) for own in parts])),
    }
    table = [["strengths", "gallery", "frames", "weights", "TAR at FAR 1e-2", "rank-1", "TAR, difference to uniform"]]
    for strengths, values in STRENGTHS.items():
        degradation = Degradation(recognizer.resolution, recognizer.kernel, *values)
        file = out / f"{Path(name).name}_{strengths}.npz"
        if not file.exists():
            frames = frames_of(faces, sources, degradation, strengths == "random")
            embeddings, lengths = recognizer.embed_with_lengths(frames.reshape(-1, *frames.shape[2:]))
            shape = frames.shape[:2]
            np.savez(file, embeddings=embeddings.reshape(*shape, -1), lengths=lengths.reshape(shape))
        stored = np.load(file)
        embeddings, lengths = stored["embeddings"], stored["lengths"]
        for gallery, entries in galleries.items():
            for count in FRAMES:
                uniform = None
                for weights, weigh in WEIGHTS.items():
                    if count == 1 and weights != "uniform":
                        continue
                    probes = np.stack([
                        mean_embedding(own[:count], weigh(length[:count], score(length[:count])))
                        for own, length in zip(embeddings, lengths)
                    ])  # fmt: skip
                    accepted, first = judged(probes, entries)
                    uniform = accepted if uniform is None else uniform
                    difference = "" if weights == "uniform" else cell(accepted, uniform.astype(float))
                    table.append([strengths, gallery, str(count), weights, cell(accepted), cell(first), difference])
    return f"{name}, {len(rows)} people\n\n{markdown_table(table)}\n"


def main(argv: list[str]) -> int:
    """Prints the tables; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        parser.add_argument("--data", type=user_path, required=True, help="aligned faces, PERSON/IMAGE")
        parser.add_argument("--model", nargs="+", required=True, help="students with a quality score")
        parser.add_argument("--out", type=user_path, required=True, help="folder where the frames' embeddings are kept")
        given = parser.parse_args(argv)
        given.out.mkdir(parents=True, exist_ok=True)
        for name in given.model:
            print(study(name, given.data, given.out), flush=True)

    return guarded(work, resumes=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

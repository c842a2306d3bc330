"""Compare quality scores of faces by the error-versus-discard curve (EDC) on pairs, clean, degraded and mixed.

Candidates, all of the student's own outputs except sharpness: the length of the sum of the embeddings of a face and
its mirror image, before it is scaled to unit length (`length`), and of the face's alone; the cosine of both (`mirror`)
or of the embeddings of the face and of itself moved by a pixel or with noise of 8 (`moved`, `noise`, with --jitter);
the distance to the mean embedding of faces of a quarter of the pixels (`unrecognizable`, arXiv 2304.09066); ridge
regressions on the unit embedding (e), the length (l) and the mirror's cosine (m), which predict the cosine to the
teacher's embedding of the full-size face (`ridge ... teacher`, with --teacher) or to the mean of the person's other
calibration faces (`ridge ... person`); the variance of the Laplacian (`sharpness`); random numbers.

Calibration faces, of people whose identity the student was not trained on, are embedded as they are and degraded at
random, as `gdrd_jax.inference.quality` does. The raw outputs of each student are kept in --out; the same command goes
on from there. Printed as Markdown: the mean FNMR up to 30 % discarded pairs (percent), and in parentheses its
difference to `length` with a 95 % interval from a bootstrap of people; and how the student's own score compares with
the share of genuine pairs that are accepted. edc_NAME.png is drawn into --out.

Examples:
  python tools/study_quality.py --lfw lfw_dev.tar --pairs pairs_dev.txt --calibration people.rec --people 1000 \\
      --model gdrd-16 gdrd-8 --out study
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import bootstrap, discard
from gdrd_jax.evaluation.lfw import LFW, PairList
from gdrd_jax.evaluation.report import saved
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference import quality
from gdrd_jax.inference.embedders import embed_faces, open_model
from gdrd_jax.inference.recognizer import BATCH, Recognizer
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.tables import markdown_table

CONDITIONS = {"clean": {}, "degraded": {"blur": 2.0, "motion": 8.0, "noise": 8.0, "jpeg": 50}}
LAMBDA, NOISE = 30.0, 8.0
SHIFTS = ((0, 1), (0, -1), (1, 0))
DRAWN = ("length", "mirror", "moved", "unrecognizable", "sharpness", "random")
BINS = 5


def outputs(recognizer: Recognizer, pairs: PairList, calibration: Faces, jitter: bool) -> dict[str, np.ndarray]:
    """Raw outputs of a student: `..._a` of the faces, `..._b` of their mirror images, `[N, D]`, and more by name."""
    graphdef, state = nnx.split(recognizer.student)
    forward, side, kernel = (
        jax.jit(lambda faces: nnx.merge(graphdef, state)(faces)),
        recognizer.resolution,
        recognizer.kernel,
    )

    def raw(faces: np.ndarray) -> np.ndarray:
        padded = np.concatenate([faces, np.zeros((-len(faces) % BATCH, *faces.shape[1:]), np.uint8)])
        parts = [np.asarray(forward(padded[start : start + BATCH])) for start in range(0, len(padded), BATCH)]
        return np.concatenate(parts)[: len(faces)]

    found: dict[str, np.ndarray] = {}

    def add(name: str, faces: np.ndarray) -> None:
        found[f"{name}_a"], found[f"{name}_b"] = raw(faces), raw(np.ascontiguousarray(faces[:, :, ::-1]))

    faces = pairs.named_faces
    for condition, strengths in CONDITIONS.items():
        degradation = Degradation(side, kernel, **strengths)
        one = lambda row: degradation.of_named(faces[row], faces.names[row], 0)  # noqa: B023, E731
        low = np.stack(list(in_parallel(one, range(len(faces)))))
        add(f"lfw_{condition}", low)
        gray = (cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32) for face in low)
        found[f"lfw_{condition}_sharp"] = np.array([cv2.Laplacian(face, cv2.CV_32F).var() for face in gray])
        if jitter:
            noisy = low + np.random.default_rng(1).normal(0, NOISE, low.shape)
            moved = [cv2_moved(low, shift) for shift in SHIFTS]
            others = [raw(x) for x in (*moved, np.clip(np.rint(noisy), 0, 255).astype(np.uint8))]
            own = unit(found[f"lfw_{condition}_a"])
            found[f"lfw_{condition}_jit"] = np.stack([(own * unit(other)).sum(axis=1) for other in others], axis=1)
    for view in range(quality.VIEWS):
        add(f"cal{view}", quality.view_of(calibration, view, side, kernel, range(len(calibration))))
    few = [resize(resize(calibration[row], max(2, side // 4), kernel), side, "bicubic") for row in range(1000)]
    add("ur", np.stack(few))
    return found


def cv2_moved(faces: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Faces moved by whole pixels, whose border is repeated."""
    (down, right), side = shift, faces.shape[1]
    rows, columns = np.clip(np.arange(side) - down, 0, side - 1), np.clip(np.arange(side) - right, 0, side - 1)
    return faces[:, rows[:, None], columns]


def scores(arrays: Mapping[str, np.ndarray], labels: np.ndarray, teacher: np.ndarray | None) -> dict[str, dict]:
    """Condition -> candidate -> score of each face, `[N]`; and "embedding", `[N, D]`."""
    views = [_features(arrays, f"cal{view}") for view in range(quality.VIEWS)]
    clean, several = views[0][0], np.bincount(labels)[labels] > 1
    total = np.zeros((labels.max() + 1, clean.shape[1]))
    np.add.at(total, labels, clean)
    targets = {"person": unit(total[labels] - clean)} | ({} if teacher is None else {"teacher": teacher})
    embeddings, lengths, mirrors = (np.concatenate(part) for part in zip(*views))
    center = unit(_features(arrays, "ur")[0].mean(axis=0)[None])[0]
    spread = [(np.log(lengths).mean(), np.log(lengths).std()), (mirrors.mean(), mirrors.std())]

    def design(embedding: np.ndarray, length: np.ndarray, mirror: np.ndarray, kind: str) -> np.ndarray:
        columns = {
            "e": embedding * 0.1 * np.sqrt(embedding.shape[1]),
            "l": ((np.log(length) - spread[0][0]) / spread[0][1])[:, None],
            "m": ((mirror - spread[1][0]) / spread[1][1])[:, None],
        }  # fmt: skip
        return np.concatenate([columns[letter] for letter in kind], axis=1)

    found: dict[str, dict] = {}
    for condition in CONDITIONS:
        a = arrays[f"lfw_{condition}_a"]
        own = _features(arrays, f"lfw_{condition}")
        of = {
            "embedding": own[0], "length": own[1], "length of the face's alone": np.linalg.norm(a, axis=1),
            "mirror": own[2], "unrecognizable": -own[0] @ center, "sharpness": arrays[f"lfw_{condition}_sharp"],
            "random": np.random.default_rng(0).random(len(a)),
        }  # fmt: skip
        if f"lfw_{condition}_jit" in arrays:
            jitter = arrays[f"lfw_{condition}_jit"]
            of |= {"moved": jitter[:, : len(SHIFTS)].mean(axis=1), "noise": jitter[:, -1]}
        for name, target in targets.items():
            y = (embeddings * np.tile(target, (quality.VIEWS, 1))).sum(axis=1)
            kept = np.tile(several, quality.VIEWS) if name == "person" else np.ones(len(y), bool)
            for kind in ("e", "lm", "elm"):
                x = design(embeddings, lengths, mirrors, kind)[kept]
                of[f"ridge {kind} {name}"] = _ridge(x, y[kept], design(*own, kind))
        found[condition] = of
    half = np.random.default_rng(5).random(len(found["clean"]["length"])) < 0.5
    found["mixed"] = {
        name: np.where(half[:, None] if value.ndim == 2 else half, value, found["degraded"][name])
        for name, value in found["clean"].items()
    }
    return found


def _features(arrays: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = arrays[f"{name}_a"], arrays[f"{name}_b"]
    return unit(a + b), np.linalg.norm(a + b, axis=1), (unit(a) * unit(b)).sum(axis=1)


def _ridge(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    centered = x - mean
    weights = np.linalg.solve(centered.T @ centered + LAMBDA * np.eye(x.shape[1]), centered.T @ (y - y.mean()))
    return (at - mean) @ weights + y.mean()


def judged(pairs: PairList, found: dict[str, dict], recognizer: Recognizer) -> tuple[str, dict]:
    """Both tables, and condition -> candidate -> curve."""
    genuine = pairs.same
    weights = bootstrap.resamples_of_pairs(pairs.people[genuine])
    rows, reliable, curves = (
        {},
        [["condition", "score of the probe", "pairs", "mean score", "accepted at the threshold"]],
        {},
    )
    for condition, of in found.items():
        cosines = (of["embedding"][pairs.first] * of["embedding"][pairs.second]).sum(axis=1)
        wrong = discard.false_rejects(Pairs(cosines, genuine))[genuine]
        curves[condition] = {}
        areas = {}
        for name in [name for name in of if name != "embedding"]:
            worse = np.minimum(of[name][pairs.first], of[name][pairs.second])[genuine]
            areas[name] = discard.area(worse, wrong), discard.area(worse, wrong, weights)
            curves[condition][name] = discard.curve(worse, wrong, discard.PLOTTED)
        for name, (area, resampled) in areas.items():
            low, high = bootstrap.interval(100 * (resampled - areas["length"][1]))
            difference = 100 * (area - areas["length"][0])
            text = "" if name == "length" else f" ({difference:+.1f}; {low:+.1f} to {high:+.1f})"
            rows.setdefault(name, []).append(f"{100 * area:.1f}{text}")
        rows.setdefault("nothing discarded", []).append(f"{100 * wrong.mean():.1f}")
        if recognizer.quality and condition in CONDITIONS:
            # As the score is defined: against the other face of the pair as it is, either way round.
            other = found["clean"]["embedding"]
            orders = [(pairs.first[genuine], pairs.second[genuine]), (pairs.second[genuine], pairs.first[genuine])]
            similar = np.concatenate([(of["embedding"][a] * other[b]).sum(axis=1) for a, b in orders])
            score = np.concatenate([recognizer.quality(of["length"][a]) for a, _ in orders])
            accepted = similar >= recognizer.threshold(quality.FAR)
            for part in np.array_split(np.argsort(score, kind="stable"), BINS):
                ends = f"{score[part].min():.2f} to {score[part].max():.2f}"
                cells = (condition, ends, str(len(part)), f"{score[part].mean():.2f}", f"{accepted[part].mean():.2f}")
                reliable.append(list(cells))
    table = markdown_table([["score", *found], *([name, *cells] for name, cells in rows.items())])
    return table + "\n\n" + markdown_table(reliable), curves


def draw(curves: dict) -> bytes:
    """PNG: a panel for each condition."""
    figure, panels = plt.subplots(1, len(curves), figsize=(4.4 * len(curves), 4.2), layout="constrained")
    for panel, (condition, of) in zip(panels, curves.items()):
        for name in [name for name in DRAWN if name in of]:
            panel.plot(100 * discard.PLOTTED, 100 * of[name], label=name, linewidth=2.5 if name == "length" else 1.2)
        panel.axvspan(0, 100 * discard.LIMIT, color="0.93")
        panel.set(title=condition, xlabel="genuine pairs discarded, %", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="false rejects at FAR 1e-2, %")
    panels[0].legend(fontsize="small")
    return saved(figure)


def main(argv: list[str]) -> int:
    """Prints the tables; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        add = parser.add_argument
        add("--lfw", type=user_path, required=True, help="aligned faces of LFW")
        add("--pairs", type=user_path, required=True, help="pairs.txt of LFW")
        add("--calibration", type=user_path, required=True, help="aligned faces of other people")
        add("--people", type=int, default=1000, help="how many of the last people in it are taken, default 1000")
        add("--teacher", default="", help="the students' teacher, FILE.onnx")
        add("--jitter", action="store_true", help="embed moved and noisy faces, too, which takes as long again")
        add("--model", nargs="+", required=True, help="students")
        add("--out", type=user_path, required=True, help="folder of raw outputs and figures")
        given = parser.parse_args(argv)
        given.out.mkdir(parents=True, exist_ok=True)
        pairs = LFW.open(given.lfw, LFW.Config(str(given.pairs)))
        calibration = open_faces(given.calibration)
        most = int(np.bincount(calibration.labels).max())
        calibration = calibration.take(calibration.rows_of_last_identities(given.people, most))
        teacher = embed_faces(open_model(given.teacher), calibration) if given.teacher else None
        for name in given.model:
            recognizer, file = Recognizer.load(name), given.out / f"{Path(name).name}.npz"
            if not file.exists():
                np.savez(file, **outputs(recognizer, pairs, calibration, given.jitter))
            arrays = dict(np.load(file))
            text, curves = judged(pairs, scores(arrays, calibration.labels, teacher), recognizer)
            (given.out / f"edc_{Path(name).name}.png").write_bytes(draw(curves))
            print(f"{name}\n\n{text}\n", flush=True)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

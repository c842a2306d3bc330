import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from gdrd_jax.evaluation import retrieval


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def made(seed=0, people=30, noise=2.0, distractors=200):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, 16))
    probe_ids = rng.integers(people, size=70)
    gallery_ids = np.concatenate([np.arange(people), rng.integers(people, size=60), np.full(distractors, -1)])
    gallery_ids = rng.permutation(gallery_ids)
    faces = np.where(gallery_ids[:, None] < 0, rng.normal(size=(len(gallery_ids), 16)), centers[gallery_ids])
    gallery = unit(faces + noise * rng.normal(size=faces.shape))
    return unit(centers[probe_ids] + noise * rng.normal(size=(70, 16))), probe_ids, gallery, gallery_ids


def by_hand(probes, probe_ids, gallery, gallery_ids):
    ranks = []
    for probe, person in zip(probes, probe_ids):
        order = np.argsort(-(gallery @ probe), kind="stable")
        ranks.append(1 + np.flatnonzero(gallery_ids[order] == person))
    return ranks


@pytest.mark.parametrize("blocks", [(1024, 32768), (16, 64), (7, 33)])
def test_ranks_do_not_depend_on_blocks(monkeypatch, blocks):
    monkeypatch.setattr(retrieval, "PROBES", blocks[0])
    monkeypatch.setattr(retrieval, "GALLERY", blocks[1])
    data = made()
    for found, expected in zip(retrieval.mate_ranks(*data), by_hand(*data), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_figures_agree_with_scikit_learn_and_with_tinyfaces_toolkit():
    probes, probe_ids, gallery, gallery_ids = data = made()
    ranks = retrieval.mate_ranks(*data)
    scores = probes @ gallery.T
    for i, value in enumerate(retrieval.average_precision(ranks)):
        assert value == pytest.approx(average_precision_score(gallery_ids == probe_ids[i], scores[i]))
    for r, value in zip(ranks, retrieval.average_precision_trapezoid(ranks)):
        precision = [1.0, *((np.searchsorted(r, n, "right")) / n for n in range(1, r[-1] + 1))]
        area = sum((precision[n - 1] + precision[n]) / 2 / len(r) for n in r)
        assert value == pytest.approx(area)
    for k in (1, 5, 10):
        best = np.argsort(-scores, axis=1)[:, :k]
        expected = [(gallery_ids[b] == person).any() for b, person in zip(best, probe_ids)]
        np.testing.assert_array_equal(retrieval.rank_k(ranks, k), expected)
    assert retrieval.cmc(ranks, 10)[[0, 4, 9]].tolist() == [retrieval.rank_k(ranks, k).mean() for k in (1, 5, 10)]


def test_a_model_that_cannot_tell_faces_apart_gets_no_credit():
    same = unit(np.ones((5, 8)))
    ranks = retrieval.mate_ranks(same, np.arange(5), same, np.arange(5))
    assert [r.tolist() for r in ranks] == [[5]] * 5


def test_a_probe_without_mates_has_no_ranks():
    probes, _, gallery, gallery_ids = made()
    ranks = retrieval.mate_ranks(probes[:2], np.array([999, gallery_ids[gallery_ids >= 0][0]]), gallery, gallery_ids)
    assert len(ranks[0]) == 0 and len(ranks[1]) > 0
    assert retrieval.rank_k(ranks, 1000).tolist() == [False, True]
    assert retrieval.average_precision(ranks)[0] == retrieval.average_precision_trapezoid(ranks)[0] == 0


MEASURE = """
import sys, time
import numpy as np
from gdrd_jax.evaluation import retrieval
probes, gallery = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
def made(n):
    x = rng.standard_normal((n, 512), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x
g, p = made(gallery), made(probes)
ids = np.full(gallery, -1)
ids[:probes] = np.arange(probes)
ids[probes : 2 * probes] = np.arange(probes)
p += 1.2 * g[:probes]
p /= np.linalg.norm(p, axis=1, keepdims=True)
start = time.process_time()
ranks = retrieval.mate_ranks(p, np.arange(probes), g, ids)
seconds = time.process_time() - start
# Not ru_maxrss, which a process inherits from the one that starts it.
peak = next(line for line in open("/proc/self/status", encoding="utf-8") if line.startswith("VmHWM:"))
print(seconds, int(peak.split()[1]) / 2**20)
assert retrieval.rank_k(ranks, 1).mean() > 0.9 and all(len(r) == 2 for r in ranks)
"""


def measured(probes, gallery):
    """Seconds of CPU, and GiB of resident memory at most, of a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(probes), str(gallery)]
    return map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_a_hundred_thousand_distractors_run_in_bounded_memory():
    _, memory = measured(2000, 100_000)  # 800 MB as a similarity matrix, 200 MB of embeddings
    assert memory < 1.5


@pytest.mark.slow
def test_ten_thousand_probes_against_two_hundred_thousand_faces():
    seconds, memory = measured(10_000, 200_000)
    print(f"{seconds:.1f} s of CPU, {memory:.2f} GiB")
    assert memory < 2

import json

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.benchmarks import gallery as benchmarks_gallery
from gdrd_jax.galleries import faiss_index
from gdrd_jax.galleries.gallery import Gallery


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(faiss_index, "EXACT", 500)
    monkeypatch.setattr(benchmarks_gallery, "BLOCK", 150)
    return benchmarks_gallery


def run(tool, *flags):
    tool.work(tool.arguments(["--dim", "64", *flags]))


def test_a_coded_gallery_is_measured(tool, monkeypatch, tmp_path, capsys):
    flags = ["--faces", "2000", "--probes", "20", "--gallery", str(tmp_path / "g"), "--out", str(tmp_path / "o.json")]
    run(tool, *flags)
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["recall_at_1"] == 1
    assert 0 < found["search_ms_5"] <= found["search_ms"] <= found["search_ms_95"]
    assert found["sizes"]["gallery.sqlite"] > 2000 * 64 * 4 and 2000 * 64 < found["sizes"]["gallery.faiss"] < 500_000
    assert found["first_search_ms"] > 0
    assert all(found[key] > 0 for key in ("building_s", "saving_s", "indexing_s", "opening_s", "search_cpu_ms"))
    assert "| recall@1 against exact search, 20 probes | 1.0000 |" in capsys.readouterr().out
    assert len(Gallery.load(tmp_path / "g")) == 2000


def test_a_lost_best_match_is_counted(tool, monkeypatch, tmp_path):
    best = tool.exact_best
    monkeypatch.setattr(tool, "exact_best", lambda *a: best(*a) + np.float32([1, 0, 0, 0]))
    run(tool, "--faces", "600", "--probes", "4", "--out", str(tmp_path / "o.json"))
    assert json.loads((tmp_path / "o.json").read_text())["recall_at_1"] == 0.75


@pytest.mark.parametrize("count", [700, 750, 800, 2000])
def test_probes_are_other_faces_of_people_of_the_gallery(tool, count):
    known = tool.built(count, 256)
    assert len(known) == count
    wanted = tool.probes(30, count, 256)
    similarities = [match.similarity for (match,) in known.search(wanted, 1)]
    assert 0.5 < np.median(similarities) < 0.8 and max(similarities) < 0.95
    assert len({match.id for (match,) in known.search(wanted, 1)}) > 25


def test_faces_are_spread_as_said(tool):
    values = tool.directions(np.random.default_rng(0), 4000, 512)
    assert np.linalg.norm(values, axis=1).mean() == pytest.approx(1, abs=0.02)
    share = np.cumsum((values**2).mean(axis=0)) / (values**2).mean(axis=0).sum()
    assert share[63] == pytest.approx(0.59, abs=0.01) and share[127] == pytest.approx(0.84, abs=0.01)


def test_nothing_to_measure_is_refused(tool, monkeypatch):
    with raises("benchmark-numbers", "--faces"):
        run(tool, "--faces", "0")


def test_a_gallery_of_real_faces_is_not_replaced(tool, monkeypatch, tmp_path):
    real = Gallery(4, "f" * 64)
    real.add(np.eye(4, dtype=np.float32), list("abcd"))
    real.save(tmp_path / "g")
    with raises("gallery-space", tmp_path / "g", "f" * 12):
        run(tool, "--faces", "600", "--gallery", str(tmp_path / "g"))
    assert Gallery.load(tmp_path / "g").people() == list("abcd")

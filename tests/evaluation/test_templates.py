"""Templates: their lists, their pooled embeddings, pairs (1:1) and search (1:N), by references written out in NumPy."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces, raises, save_recognizer

from gdrd_jax.cli import evaluate as command
from gdrd_jax.evaluation import bootstrap, retrieval, verification
from gdrd_jax.evaluation.template_files import read_template_names, read_template_pairs, read_templates
from gdrd_jax.evaluation.template_search import ListedSearch, TemplateSearch
from gdrd_jax.evaluation.templates import ListedPairs, TemplatePairs, Templates, pooled

RNG = np.random.default_rng(0)
PEOPLE, IMAGES = 6, 5


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def made(people=30, templates=80, images=400, seed=0):
    """Templates of noisy embeddings, without faces."""
    rng = np.random.default_rng(seed)
    subjects = np.concatenate([np.arange(people), rng.integers(people, size=templates - people)])
    of = np.concatenate([np.arange(templates), rng.integers(templates, size=images - templates)])
    embeddings = unit(rng.normal(size=(people, 16))[subjects[of]] + 2 * rng.normal(size=(images, 16)))
    names = tuple(f"t{i}" for i in range(templates))
    about = {"n_skipped": 0, "skipped": []}
    found = Templates(None, np.arange(images), of, rng.integers(90, size=images), subjects, names, about)
    return found, embeddings.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two templates a person: images 0 to 2, of two media, and images 3 and 4, of one."""
    root = make_faces(tmp_path_factory.mktemp("templates") / "faces", PEOPLE, IMAGES).parent
    lines = ["# image template medium subject"]
    for person in range(PEOPLE):
        for image in range(IMAGES):
            medium = f"m{person}" if image < 2 else f"n{person}" if image == 2 else f"v{person}"
            lines.append(
                f"p{person}/{image}.png,{'enrolled' if image < 3 else 'probe'}{person},{medium},Person {person}"
            )
    (root / "templates.csv").write_text("\n".join(lines) + "\n")
    pairs = [f"enrolled{i} probe{j}" for i in range(PEOPLE) for j in range(PEOPLE)]
    (root / "pairs.txt").write_text("\n".join(pairs) + "\n")
    (root / "gallery.txt").write_text("".join(f"enrolled{i}\n" for i in range(PEOPLE - 2)))
    (root / "probes.txt").write_text("".join(f"probe{i}\n" for i in range(PEOPLE)))
    return root


def config(folder, kind=ListedPairs, **changes):
    files = {"templates": "templates.csv", "pairs": "pairs.txt", "gallery": "gallery.txt", "probes": "probes.txt"}
    names = kind.Config.__dataclass_fields__
    return kind.Config(**{name: str(folder / file) for name, file in files.items() if name in names} | changes)


def test_a_template_is_the_mean_over_its_media():
    templates, embeddings = made()
    expected = []
    for template in range(len(templates.names)):
        of_media = []
        for medium in np.unique(templates.media[templates.templates == template]):
            own = (templates.templates == template) & (templates.media == medium)
            of_media.append(np.float64(embeddings[templates.rows[own]]).mean(axis=0))
        expected.append(np.mean(of_media, axis=0))
    found = templates.pool(embeddings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(np.array(expected)), atol=1e-6)


def test_many_frames_of_a_video_count_as_one_photograph():
    embeddings = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    video = pooled(embeddings, np.arange(4), np.zeros(4, int), np.array([7, 3, 3, 3]))
    np.testing.assert_allclose(video, [[np.sqrt(0.5)] * 2], rtol=1e-6)
    photographs = pooled(embeddings, np.arange(4), np.zeros(4, int), np.arange(4))
    np.testing.assert_allclose(photographs, [unit(np.array([1.0, 3.0]))], rtol=1e-6)
    # One image in two templates, and one medium in two templates.
    twice = pooled(embeddings, np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([5, 5, 5]))
    np.testing.assert_allclose(twice, [[1, 0], [np.sqrt(0.5)] * 2], rtol=1e-6)
    with raises("template-empty", 1):
        pooled(embeddings, np.arange(2), np.array([0, 2]), np.zeros(2, int))


def test_lists_are_opened(folder):
    protocol = ListedPairs.open(folder / "faces", config(folder))
    assert len(protocol.faces) == PEOPLE * IMAGES and len(protocol.first) == PEOPLE**2
    assert protocol.same.sum() == PEOPLE and protocol.about["n_skipped"] == 0
    templates = protocol.templates
    assert templates.names[0] == "enrolled0" and len(templates.names) == 2 * PEOPLE
    assert [protocol.faces.names[row] for row in templates.rows[templates.templates == 3]] == ["p1/3.png", "p1/4.png"]
    assert len(np.unique(templates.media[templates.templates == 2])) == 2
    search = ListedSearch.open(folder / "faces", config(folder, ListedSearch))
    assert [search.templates.names[row] for row in search.gallery] == [f"enrolled{i}" for i in range(PEOPLE - 2)]
    assert len(search.probes) == PEOPLE


def test_pairs_have_the_figures_of_a_direct_computation(monkeypatch):
    monkeypatch.setattr(verification, "BLOCK", 7)
    templates, embeddings = made()
    pairs = RNG.integers(len(templates.names), size=(3000, 2)).astype(np.int32)
    protocol = TemplatePairs.of(templates, pairs)
    other = unit(embeddings + 0.3 * RNG.normal(size=embeddings.shape)).astype(np.float32)
    result = protocol.evaluate(embeddings, other, seed=0)
    scores = (templates.pool(other)[pairs[:, 0]] * templates.pool(embeddings)[pairs[:, 1]]).sum(axis=1)
    np.testing.assert_allclose(result.arrays["scores"], scores, atol=1e-6)
    scores, same = result.arrays["scores"], templates.subjects[pairs[:, 0]] == templates.subjects[pairs[:, 1]]
    impostors = np.sort(scores[~same])[::-1]
    for far in (1e-1, 1e-2, 1e-3):
        tar = 100 * (scores[same] > impostors[int(far * len(impostors))]).mean()
        low, high = result.intervals[f"tar_at_far.{far:g}"]
        assert result.figure(f"tar_at_far.{far:g}") == pytest.approx(tar, abs=1e-4) and low <= tar <= high
    assert result.metrics["tar_at_far"]["1e-06"] is None and "tar_at_far.1e-06" not in result.intervals
    wins = (scores[same][:, None] > impostors).mean() + (scores[same][:, None] == impostors).mean() / 2
    assert result.metrics["auc"] == pytest.approx(100 * wins, abs=1e-3)
    assert result.metrics["n_pairs"] == 3000 and result.metrics["n_genuine"] == same.sum()


def test_search_has_the_figures_of_a_direct_computation(monkeypatch):
    monkeypatch.setattr(retrieval, "PROBES", 16)
    templates, embeddings = made()
    gallery, probes = np.arange(20, dtype=np.int32), np.arange(30, 80, dtype=np.int32)
    result = TemplateSearch.of(templates, gallery, probes).evaluate(embeddings, seed=0)
    pool = np.float64(templates.pool(embeddings))
    scores = pool[probes] @ pool[gallery].T
    same = templates.subjects[probes][:, None] == templates.subjects[gallery]
    mated = same.any(axis=1)
    assert 0 < mated.sum() == result.metrics["n_mated"] < len(probes) == result.metrics["n_probes"]
    best_mate = np.where(same, scores, -2).max(axis=1)[mated]
    rank = 1 + (scores[mated] > best_mate[:, None]).sum(axis=1)
    for k in (1, 5, 10):
        assert result.metrics[f"rank_{k}"] == pytest.approx(100 * (rank <= k).mean(), abs=1e-4)
        low, high = result.intervals[f"rank_{k}"]
        assert low <= result.metrics[f"rank_{k}"] <= high
    strangers = scores[~mated].max(axis=1)
    threshold = np.sort(strangers)[::-1][int(0.1 * len(strangers))]
    expected = 100 * ((rank == 1) & (best_mate > threshold)).mean()
    assert result.figure("tpir_at_fpir.0.1") == pytest.approx(expected, abs=1e-4)
    low, high = result.intervals["tpir_at_fpir.0.1"]
    assert low <= expected <= high
    assert result.figure("tpir_at_fpir.0.01") is None  # fewer than 100 strangers
    np.testing.assert_array_equal(result.arrays["rank_of_first_mate"], rank)


def test_the_command_evaluates_templates_and_a_search(folder, no_figures, tmp_path):
    network = save_recognizer(tmp_path / "colors.onnx")
    words = ["--data", str(folder / "faces"), "--model", str(network), "--resolution", "native", "16:native"]
    lists = {name: ["--" + name, str(folder / f"{name}.{'csv' if name == 'templates' else 'txt'}")]
             for name in ("templates", "pairs", "gallery", "probes")}  # fmt: skip
    own = [*lists["templates"], *lists["pairs"]]
    assert command.main(["--protocol", "templates", *words, *own, "--out", str(tmp_path / "a")]) == 0
    document = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(document["results"]) == ["colors_native", "colors_16:native"]
    assert document["results"]["colors_native"]["n_pairs"] == PEOPLE**2
    assert document["settings"]["protocol_settings"] == dict(zip(("templates", "pairs"), own[1::2]))
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Hardest pairs of templates" in page and "draws subjects" in page and (tmp_path / "a" / "roc.png").exists()
    scores = np.load(tmp_path / "a" / "scores.npz")
    assert scores["templates"][scores["second"][1]] == "probe1" and len(scores["colors_native/scores"]) == PEOPLE**2
    own = [*lists["templates"], *lists["gallery"], *lists["probes"]]
    assert command.main(["--protocol", "template_search", *words, *own, "--out", str(tmp_path / "b")]) == 0
    row = json.loads((tmp_path / "b" / "metrics.json").read_text())["results"]["colors_native"]
    assert (row["n_gallery"], row["n_probes"], row["n_mated"]) == (PEOPLE - 2, PEOPLE, PEOPLE - 2)
    assert row["rank_1"] > 50 and (tmp_path / "b" / "cmc.png").exists()


LISTS = {
    "template-two-subjects": ("a t1 m s\nb t1 m2 other\n", ["line 2", "'t1'", "'s'", "'other'"]),
    "template-image-twice": ("a.png t1 m s\na.png t1 m2 s\n", ["line 2", "'t1'"]),
    "template-line": ("a t1 m s\nb t1 m\n", ["line 2", "'b t1 m'"]),
    "template-list-empty": ("# nothing\n\n", ["list.txt"]),
    "text-not-utf-8": (b"a t1 m \xff\n", ["list.txt"]),
}


@pytest.mark.parametrize("code", LISTS)
def test_a_malformed_list_of_templates_is_refused(tmp_path, code):
    text, facts = LISTS[code]
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with raises(code, *facts):
        read_templates(tmp_path / "list.txt")
    with raises("template-list-missing", "none.txt"):
        read_templates(tmp_path / "none.txt")


def test_lists_name_templates_that_exist_once(tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("t1\tt2\r\nt2\tt3\r\n", newline="")
    with raises("template-unknown", "line 2", "'t3'"):
        read_template_pairs(path, ("t1", "t2"))
    np.testing.assert_array_equal(read_template_pairs(path, ("t1", "t2", "t3")), [[0, 1], [1, 2]])
    path.write_text("t1 t2\nt2 t1\nt1 t1\n")
    assert read_template_pairs(path, ("t1", "t2")).tolist() == [[0, 1], [1, 0], [0, 0]]
    assert "more than once: 1" in caplog.text and "with itself: 1" in caplog.text
    path.write_text("t2\nt1\nt2\n")
    with raises("template-twice", "'t2'"):
        read_template_names(path, ("t1", "t2"))


def test_missing_images_are_refused_or_counted(folder, tmp_path):
    text = (folder / "templates.csv").read_text()
    (tmp_path / "more.csv").write_text(text + "gone.png,enrolled0,m9,Person 0\ngone.png,empty,m9,Person 0\n")
    (tmp_path / "pairs.txt").write_text((folder / "pairs.txt").read_text() + "empty probe0\n")
    own = config(folder, templates=str(tmp_path / "more.csv"), pairs=str(tmp_path / "pairs.txt"))
    with raises("template-image-missing", "1 of the 31", "'gone'", "--skip-bad"):
        ListedPairs.open(folder / "faces", own)
    protocol = ListedPairs.open(folder / "faces", own, skip_bad=True)
    assert len(protocol.first) == PEOPLE**2 and protocol.about["n_skipped"] == 2
    assert protocol.about["remark"].startswith("1 pair ")
    skipped = [("gone", "it is missing"), ("empty", "no image of this template is left")]
    assert protocol.about["skipped"] == skipped and "empty" not in protocol.templates.names
    assert protocol.templates.names[protocol.first[-1]] == f"enrolled{PEOPLE - 1}"
    with raises("template-list-not-given", "--pairs"):
        ListedPairs.open(folder / "faces", config(folder, pairs=""))


def test_a_template_without_an_image_is_refused_or_left_out(folder):
    listed = read_templates(folder / "templates.csv")
    more = dataclasses.replace(listed, names=(*listed.names, "empty"), subjects=(*listed.subjects, "Nina"))
    with raises("template-empty", "'empty'"):
        Templates.open(folder / "faces", more)
    found = Templates.open(folder / "faces", more, skip_bad=True)
    assert found.names == listed.names and len(found.subjects) == len(listed.names)
    assert found.numbered(np.array([len(listed.names), 1]), more.names).tolist() == [-1, 1]


def test_both_kinds_of_pairs_and_a_mate_are_needed():
    templates, _ = made()
    with raises("pairs-one-kind", "2 and 0"):
        TemplatePairs.of(templates, np.array([[1, 1], [2, 2]], np.int32))
    strangers = np.flatnonzero(templates.subjects != templates.subjects[0]).astype(np.int32)
    with raises("template-no-mates"):
        TemplateSearch.of(templates, np.zeros(1, np.int32), strangers)


def listed(pairs, people, genuine, seed=0):
    """A list of scored pairs with ties, as of few genuine pairs."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) < genuine
    first = rng.integers(people, size=pairs).astype(np.int32)
    second = np.where(same, first, (first + rng.integers(1, people, size=pairs)) % people).astype(np.int32)
    scores = np.round(rng.normal(size=pairs) + 2 * same, 2).astype(np.float32)
    return verification.Pairs(scores, same), first, second


@pytest.mark.parametrize("folds", [1, 4])
def test_runs_of_impostors_change_no_figure(monkeypatch, folds):
    pairs, first, second = listed(4000, 50, 150)
    of_fold, fars = np.arange(4000) % folds, (0.1, 0.01, 1e-3)
    expected = bootstrap.of_pairs(pairs, first, second, of_fold, fars, replicates=40)
    monkeypatch.setattr(bootstrap, "SHORT", 0)
    monkeypatch.setattr(bootstrap, "PAIRS", 96)
    monkeypatch.setattr(bootstrap, "CELLS", 7 * 4000)
    found = bootstrap.of_pairs(pairs, first, second, of_fold, fars, replicates=40)
    assert found.keys() == expected.keys() and ("accuracy" in found) == (folds > 1)
    for name, ends in expected.items():
        assert found[name] == pytest.approx(ends, abs=2e-6), name


MEASURE = """
import resource, sys, time
import numpy as np
from gdrd_jax.evaluation.templates import TemplatePairs, Templates
subjects, templates, images, genuine, impostor, dim = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
enrolled, rest = np.arange(subjects), rng.integers(subjects, size=templates - subjects)
subject = np.concatenate([enrolled, rest]).astype(np.int32)
template = np.concatenate([np.arange(templates), rng.integers(templates, size=images - templates)]).astype(np.int32)
medium = rng.integers(images // 2, size=images).astype(np.int32)
centers = rng.standard_normal((subjects, dim), dtype=np.float32)
embeddings = np.empty((images, dim), np.float32)
for start in range(0, images, 4096):
    part = centers[subject[template[start : start + 4096]]]
    part += 6 * rng.standard_normal(part.shape, dtype=np.float32)
    embeddings[start : start + 4096] = part / np.linalg.norm(part, axis=1, keepdims=True)
pairs = np.empty((genuine + impostor, 2), np.int32)
pairs[:, 1] = rng.integers(subjects, templates, size=len(pairs), dtype=np.int32)
pairs[:genuine, 0] = subject[pairs[:genuine, 1]]
pairs[genuine:, 0] = (subject[pairs[genuine:, 1]] + rng.integers(1, subjects, size=impostor, dtype=np.int32)) % subjects
names = tuple(map(str, range(templates)))
made = Templates(None, np.arange(images), template, medium, subject, names, {"skipped": []})
protocol = TemplatePairs.of(made, pairs)
del pairs
start, cpu = time.perf_counter(), time.process_time()
result = protocol.evaluate(embeddings, seed=0)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
assert result.metrics["n_genuine"] == genuine and result.metrics["n_impostor"] == impostor
low, high = result.intervals["tar_at_far.0.001"]
assert low <= result.figure("tar_at_far.0.001") <= high
# Not ru_maxrss, which a process inherits from the one that starts it.
peak = next(line for line in open("/proc/self/status", encoding="utf-8") if line.startswith("VmHWM:"))
print(seconds, cpu, int(peak.split()[1]) / 2**20)
"""


def measured(*sizes):
    """Seconds, seconds of CPU, and GiB of resident memory at most, of a process of its own."""
    command = [sys.executable, "-c", MEASURE, *map(str, sizes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return map(float, done.stdout.split())


@pytest.mark.slow
def test_many_pairs_run_in_bounded_memory():
    """Of 131,572 pairs the embeddings would be 1 GiB, and the weights in 100 resamples several times 50 MB."""
    _, _, memory = measured(200, 1000, 2000, 500, 131_072, 1024)
    assert memory < 0.6


@pytest.mark.slow
def test_ijbc_in_four_gigabytes():
    """3,531 subjects, 23,124 templates, 469,375 images, 19,557 genuine and 15,638,932 impostor pairs."""
    seconds, cpu, memory = measured(3531, 23_124, 469_375, 19_557, 15_638_932, 512)
    print(f"{seconds:.0f} s, {cpu:.0f} s of CPU, {memory:.2f} GiB")
    assert memory < 3.7  # 4 GB

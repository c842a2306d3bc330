"""What holds of every gallery, wherever it is."""

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import raises
from known_faces import (
    DIM,
    FACES,
    check_equal,
    check_exact,
    embeddings,
    killed,
    made,
    names,
    numbered,
    run_python,
    shown,
    unit,
)

from gdrd_jax.galleries import faiss_search, sqlite
from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.utils.errors import GdrdError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sqlite, "BLOCK", 11)
    with contextlib.suppress(GdrdError):  # psycopg is not installed
        monkeypatch.setattr("gdrd_jax.galleries.postgresql.BLOCK", 11)
    monkeypatch.setattr(faiss_search, "PROBES", 3)


@pytest.fixture
def saved(place):
    """A place with a gallery."""
    made(metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).save(place)
    return place


@pytest.mark.parametrize("k", [1, 5, 30])
def test_search_is_exact(small_blocks, place, k):
    gallery = numbered(embeddings())
    check_exact(gallery, embeddings(), k)
    gallery.save(place)
    for one in (gallery, Gallery.load(place)):
        check_exact(one, embeddings(), k)


def test_more_matches_than_faces_gives_all(small_blocks, place):
    gallery = numbered(embeddings())
    gallery.save(place)
    check_exact(gallery, embeddings(), FACES + 1)


def test_a_face_finds_itself_and_no_probe_nothing(place):
    gallery = made()
    gallery.save(place)
    match = gallery.search(embeddings()[7:8], 1)[0][0]
    assert match.id == "p2" and match.similarity == pytest.approx(1, abs=1e-6) and match.metadata == {}
    assert gallery.search(np.zeros((0, DIM), np.float32)) == []


def test_of_equals_the_first_added_comes_first(place, coded):
    values = embeddings(600)
    values[[500, 7, 300, 90]] = values[7]
    numbered(values).save(place)
    for gallery in (numbered(values), Gallery.load(place)):
        assert [match.metadata["row"] for match in gallery.search(values[7:8], 4)[0]] == [7, 90, 300, 500]


def test_half_precision_is_taken_and_made_of_unit_length():
    gallery = made(np.float16(embeddings()))
    similarity = gallery.search(np.float16(embeddings()), 1)[0][0].similarity
    assert similarity == pytest.approx(1, abs=1e-6)


def test_faces_are_added_one_by_one():
    gallery = Gallery(DIM, "f")
    for row, value in enumerate(embeddings()):
        gallery.add(value[None], [f"p{row // 3}"], [{"row": row}])
        assert gallery.search(value[None], 1)[0][0].metadata == {"row": row}
    assert len(gallery) == FACES and gallery.people() == [f"p{i}" for i in range(20)]
    check_exact(gallery, embeddings(), 5)


def test_templates_are_the_means_of_each_id(small_blocks, place):
    ids = ["ann", "bob", "ann", "cem", "bob", "ann"] * 10
    made(ids=ids, metadata=[{"row": row} for row in range(len(ids))]).save(place)
    gallery = Gallery.load(place)
    gallery.add(embeddings(2, seed=5), ["bob", "dan"])
    everyone, ids = np.concatenate([embeddings(), embeddings(2, seed=5)]), np.array([*ids, "bob", "dan"])
    templates = gallery.templates()
    assert templates.people() == ["ann", "bob", "cem", "dan"] == gallery.people()
    assert gallery.counts() == {"ann": 30, "bob": 21, "cem": 10, "dan": 1}
    assert len(templates) == 4 and templates.fingerprint == gallery.fingerprint
    firsts = {"ann": {"row": 0}, "bob": {"row": 1}, "cem": {"row": 3}, "dan": {}}
    for name, faces in (("ann", 30), ("bob", 21), ("cem", 10), ("dan", 1)):
        mean = unit(everyone[ids == name].mean(axis=0))
        match = templates.search(mean[None], 1)[0][0]
        assert match.id == name and match.metadata == firsts[name] | {"faces": faces}
        assert match.similarity == pytest.approx(1, abs=1e-6)


def test_many_threads_search_while_another_adds(place, coded):
    values = embeddings(2000)
    numbered(values).save(place)
    gallery, barrier = Gallery.load(place), threading.Barrier(5)

    def search(number):
        barrier.wait()
        return [gallery.search(values[row : row + 1], 1)[0][0].metadata["row"] for row in range(number, 200, 4)]

    def add():
        barrier.wait()
        for number in range(20):
            gallery.add(embeddings(10, seed=100 + number), ["new"] * 10)

    with ThreadPoolExecutor(5) as pool:
        adding = pool.submit(add)
        assert list(pool.map(search, range(4))) == [list(range(number, 200, 4)) for number in range(4)]
        adding.result()
    assert gallery.counts()["new"] == 200


def test_what_is_saved_is_loaded(place):
    ids = [f"Zoë {i}\n" for i in range(FACES)]
    ids[5] = "\udcfe\0"
    metadata = [{"path": "人/\udcff.jpg", "box": [1, 2.5, None]}] * FACES
    made(ids=ids, metadata=metadata).save(place)
    gallery = Gallery.load(place, "f" * 64)
    assert (len(gallery), gallery.dim, gallery.fingerprint) == (FACES, DIM, "f" * 64)
    assert gallery.people() == ids
    matches = gallery.search(embeddings(), 2)
    check_equal(matches, made(ids=ids, metadata=metadata).search(embeddings(), 2))
    assert matches[3][0].metadata == metadata[0] and matches[5][0].id == ids[5]


@pytest.mark.parametrize("path", [None, 7, ["a.jpg"]])
def test_a_path_that_is_no_text_is_other_metadata(path):
    gallery = made(embeddings(1), ["ann"], [{"path": path}])
    assert gallery.search(embeddings(1), 1)[0][0].metadata == {"path": path}


def test_more_are_enrolled_where_it_came_from(saved):
    for number in range(3):
        gallery = Gallery.load(saved)
        gallery.add(embeddings(1, seed=100 + number), [f"new {number}"], [{"path": "n.jpg"}])
        gallery.save(saved)
    gallery = Gallery.load(saved)
    assert len(gallery) == FACES + 3 and gallery.people()[-3:] == ["new 0", "new 1", "new 2"]
    assert gallery.search(embeddings(1, seed=101), 1)[0][0].id == "new 1"
    expected = made(metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).search(embeddings()[4:5], 1)
    check_equal(gallery.search(embeddings()[4:5], 1), expected)


def test_an_opened_gallery_sees_what_others_change(saved):
    opened = Gallery.load(saved)
    assert opened.search(embeddings()[:1], 1)[0][0].id == "p0"
    Gallery.load(saved).remove("p0")
    assert opened.search(embeddings()[:1], 1)[0][0].id != "p0" and "p0" not in opened.people()
    Gallery.load(saved).add(embeddings()[:1], ["back"])
    assert opened.search(embeddings()[:1], 1)[0][0].id == "back"
    made(embeddings(seed=3), ids=["other"] * FACES).save(saved)
    assert {match.id for match in opened.search(embeddings()[:1], 9)[0]} == {"other"} == {*opened.people()}
    other = Gallery(DIM, "a" * 64)
    other.add(embeddings(1), ["another"])
    other.save(saved)
    for use in (lambda: opened.search(embeddings(1)), lambda: opened.add(embeddings(1), ["x"]), opened.people):
        with raises("gallery-replaced", shown(saved)):
            use()
    assert Gallery.load(saved, "a" * 64).people() == ["another"]


def test_what_another_added_meanwhile_is_not_lost(saved):
    here, there = Gallery.load(saved), Gallery.load(saved)
    for gallery, name in ((here, "ann"), (there, "bob")):
        gallery.add(embeddings()[:1], [name])
    here.save(saved)
    there.save(saved)
    assert Gallery.load(saved).people()[-2:] == ["ann", "bob"]


def test_a_new_gallery_does_not_take_the_place_of_one_made_meanwhile(place):
    made(ids=["ann"] * FACES).save(place, new=True)
    with raises("gallery-exists", shown(place)):
        made(ids=["bob"] * FACES).save(place, new=True)
    assert Gallery.load(place).people() == ["ann"]


ADD = """
gallery = Gallery.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline() if len(sys.argv) > 3 else None
for number in range(int(sys.argv[2])):
    values = np.random.default_rng(number).normal(size=(5, gallery.dim))
    gallery.add(values / np.linalg.norm(values, axis=1, keepdims=True), [f"{os.getpid()} {number}"] * 5)
    print(number, flush=True)
"""


def test_two_processes_add_at_the_same_time(saved):
    processes = [run_python(ADD, saved, 40) for _ in range(2)]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0 and out.split() == ["ready", *map(str, range(40))]
    counts = Gallery.load(saved).counts()
    assert sum(counts.values()) == FACES + 2 * 40 * 5
    for process in processes:
        assert all(counts[f"{process.pid} {number}"] == 5 for number in range(40))


def test_killed_while_adding_all_that_was_acknowledged_is_there(saved):
    process = run_python(ADD, saved, 100_000)
    assert process.stdout.readline() == "ready\n"
    acknowledged = [int(process.stdout.readline()) for _ in range(30)]
    process.kill()
    acknowledged += map(int, process.stdout.read().split())
    assert process.wait() == -signal.SIGKILL
    counts = Gallery.load(saved).counts()
    added = {name: faces for name, faces in counts.items() if name.startswith(f"{process.pid} ")}
    assert len(acknowledged) <= len(added) <= len(acknowledged) + 1 and set(added.values()) == {5}
    values = np.random.default_rng(acknowledged[-1]).normal(size=(5, DIM))
    match = Gallery.load(saved).search(unit(values[:1]), 1)[0][0]
    assert match.id == f"{process.pid} {acknowledged[-1]}" and match.similarity == pytest.approx(1, abs=1e-6)


def test_killed_in_a_transaction_nothing_has_changed(saved):
    killed(
        "database = type(gallery._faces)\n"
        "insert = database.insert\n"
        "database.insert = lambda self, rows: (insert(self, rows), die())\n"
        "gallery.update(np.repeat(np.eye(gallery.dim), 50, axis=0), ['p3', 'new'] * 25 * gallery.dim)\n",
        saved,
    )
    gallery = Gallery.load(saved)
    assert len(gallery) == FACES and gallery.counts()["p3"] == 3 and "new" not in gallery.people()
    assert gallery.search(embeddings()[9:10], 1)[0][0].id == "p3"


def test_many_processes_search_at_once(saved, tmp_path):
    script = (
        "gallery = Gallery.load(sys.argv[1])\n"
        "print(*[match[0].id for match in gallery.search(np.load(sys.argv[2]), 1)])\n"
    )
    np.save(tmp_path / "probes.npy", embeddings())
    processes = [run_python(script, saved, tmp_path / "probes.npy") for _ in range(3)]
    assert [process.communicate()[0].split() for process in processes] == [names()] * 3


def test_an_unknown_person_is_not_removed_and_the_nearest_are_named(saved):
    gallery = Gallery.load(saved)
    with raises("gallery-person-unknown", "'p1O'", "did you mean 'p1", "gdrd gallery"):
        gallery.remove("p3", "p1O")
    assert len(gallery) == FACES and gallery.counts()["p3"] == 3  # all or none
    with raises("gallery-person-unknown", "'Xyz'"):
        gallery.remove("Xyz")
    with raises("gallery-path-unknown", "'5.jpeg'", "'5.jpg'"):
        gallery.remove("p3", paths=["5.jpeg"])
    assert len(Gallery.load(saved)) == FACES


def test_several_people_and_single_faces_are_removed(saved):
    gallery = Gallery.load(saved)
    assert gallery.remove("p3", "p5", "p3") == 6
    assert gallery.remove(paths=["1.jpg", Path("2.jpg")]) == 2
    assert gallery.remove("p1", paths=["0.jpg"]) == 4
    assert gallery.remove() == 0
    assert len(gallery) == FACES - 12 and "p0" not in gallery.people() and gallery.people()[0] == "p2"
    paths = {match.metadata["path"] for match in gallery.search(embeddings(1), FACES)[0]}
    assert paths == {f"{i}.jpg" for i in range(FACES)} - {
        f"{i}.jpg" for i in (*range(6), *range(9, 12), *range(15, 18))
    }


def test_names_that_are_not_unicode_are_removed(place):
    gallery = made(embeddings(2), ["\udcff", "ann"], [{"path": "人/\udcfe.jpg"}, {"path": "b"}])
    gallery.save(place)
    assert gallery.remove("\udcff") == 1 and gallery.people() == ["ann"]


def test_everybody_may_leave(saved):
    gallery = Gallery.load(saved)
    gallery.remove(*gallery.people())
    assert len(gallery) == 0 == len(Gallery.load(saved)) and gallery.people() == []
    with raises("gallery-empty"):
        gallery.search(embeddings(1))
    gallery.add(embeddings(1), ["new"])
    assert Gallery.load(saved).search(embeddings(1), 1)[0][0].id == "new"


def test_people_are_removed_from_a_gallery_in_memory():
    gallery = numbered(embeddings())
    gallery.search(embeddings(1))
    assert gallery.remove("p0", "p7") == 6
    check_exact(gallery, embeddings(), 5, gone=(0, 1, 2, 21, 22, 23))


def test_update_replaces_the_faces_of_these_people(saved):
    gallery, fresh = Gallery.load(saved), embeddings(4, seed=7)
    assert gallery.update(fresh, ["p3", "p3", "new", "p5"], [{"path": f"u{i}"} for i in range(4)]) == 6
    counts = gallery.counts()
    assert (counts["p3"], counts["p5"], counts["new"], counts["p4"]) == (2, 1, 1, 3) and len(gallery) == FACES - 2
    for row, name in enumerate(["p3", "p3", "new", "p5"]):
        match = Gallery.load(saved).search(fresh[row : row + 1], 1)[0][0]
        assert (match.id, match.metadata) == (name, {"path": f"u{row}"})
    with raises("gallery-length", "embedding 0"):
        gallery.update(2 * fresh, ["p3"] * 4)
    assert gallery.counts() == counts


def test_a_gallery_of_another_recognizer_is_refused(saved):
    with raises("gallery-space", shown(saved), "f" * 12, "a" * 12):
        Gallery.load(saved, "a" * 64)
    with raises("gallery-space", shown(saved), "f" * 12, "a" * 12, "b" * 12):
        Gallery.load(saved, ("a" * 64, "b" * 64))
    assert len(Gallery.load(saved, ("a" * 64, "f" * 64))) == FACES == len(Gallery.load(saved))


def test_where_no_gallery_is_none_is_loaded(place):
    with raises("gallery-missing", shown(place)):
        Gallery.load(place)


def test_an_empty_gallery_is_neither_searched_nor_saved(place):
    gallery = Gallery(DIM, "f")
    assert len(gallery) == 0 and gallery.people() == [] and len(gallery.templates()) == 0
    with raises("gallery-empty"):
        gallery.search(embeddings(1))
    with raises("gallery-empty", shown(place)):
        gallery.save(place)
    with raises("gallery-missing"):
        Gallery.load(place)


@pytest.mark.parametrize(
    "values", [embeddings(2, DIM + 1), embeddings(2)[0], embeddings(2)[None], np.ones((2, DIM), int)]
)
def test_other_shapes_and_types_are_refused(values):
    gallery = made()
    for use in (lambda: gallery.add(values, ["a", "b"]), lambda: gallery.search(values)):
        with raises("gallery-shape", values.dtype, list(values.shape), "[N, 16]"):
            use()
    assert len(gallery) == FACES


@pytest.mark.parametrize("factor", [0, 0.9, 1.1, np.nan, np.inf])
def test_embeddings_not_of_unit_length_are_refused(factor):
    values, gallery = embeddings(3), made()
    values[1] *= factor
    for use in (lambda: gallery.add(values, list("abc")), lambda: gallery.search(values)):
        with raises("gallery-length", "embedding 1"):
            use()
    assert len(gallery) == FACES


@pytest.mark.parametrize(
    ("ids", "metadata", "code", "facts"),
    [
        (["a"], None, "gallery-counts", ["2 embeddings", "1 ids", "1 dicts"]),
        (["a", "b"], [{}], "gallery-counts", ["2 embeddings", "2 ids", "1 dicts"]),
        (["a", 7], None, "gallery-face", ["face 1", "id 7"]),
        (["a", "b"], [{}, "x.jpg"], "gallery-face", ["face 1", "'b'", "'x.jpg'"]),
        (["a", "b"], [{}, {"x": {1}}], "gallery-metadata", ["face 1", "(b)", "JSON"]),
    ],
)
def test_other_ids_and_metadata_are_refused(ids, metadata, code, facts):
    gallery = made()
    with raises(code, *facts):
        gallery.add(embeddings(2), ids, metadata)
    assert len(gallery) == FACES


def test_less_than_one_match_is_refused():
    with raises("gallery-k", 0):
        made().search(embeddings(1), 0)

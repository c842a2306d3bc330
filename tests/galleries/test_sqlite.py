"""Galleries in folders: the SQLite database and the faiss index."""

import os
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import raises
from known_faces import (
    DIM,
    FACES,
    check_exact,
    content,
    embeddings,
    killed,
    made,
    names,
    numbered,
    run_python,
    stored,
    unit,
)

from gdrd_jax.galleries import faiss_index, sqlite, sqlite_connection
from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.utils import files
from gdrd_jax.utils.errors import GdrdError


@pytest.fixture
def no_build(monkeypatch):
    """Fails the test as soon as an index is built."""

    def forbid():
        def built(*_):
            raise AssertionError("an index was built")

        monkeypatch.setattr(faiss_index, "build", built)

    return forbid


@pytest.fixture
def saved(tmp_path):
    made(metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).save(tmp_path / "g")
    return tmp_path / "g"


@pytest.mark.parametrize("dim", [16, 128, 200])
def test_a_coded_gallery_finds_what_exact_search_finds(tmp_path, coded, dim):
    values = embeddings(3001, dim)
    numbered(values).save(tmp_path / "g")
    k = 3 if dim <= faiss_index.AXES else 1  # fewer axes than dims: distant faces may be missed
    probes = unit(values[::100] + 0.8 * embeddings(31, dim, seed=4))
    check_exact(Gallery.load(tmp_path / "g"), values, k, probes)
    assert (tmp_path / "g" / "gallery.faiss").stat().st_size > 3001 * min(dim, faiss_index.AXES)
    check_exact(Gallery.load(tmp_path / "g"), values, k, probes)


def axes_of(values):
    """How many principal axes the codes of these faces have."""
    blocks = lambda: [(np.arange(len(values)), values)]  # noqa: E731
    index = faiss_index.build("g", values.shape[1], len(values), blocks)
    import faiss

    assert not index.exact and index.faiss.ntotal == len(values)
    return faiss.downcast_index(faiss.downcast_index(index.faiss.index).index).d


def test_what_all_faces_share_costs_no_axes(coded):
    values = embeddings(3000, 400, shift=3.0)  # cosines between strangers of 0.9
    assert (values[:9] @ values[9]).min() > 0.85
    assert faiss_index.AXES < axes_of(values) < 400
    check_exact(numbered(values), values, 1, unit(values[::100] + 0.2 * embeddings(30, 400, seed=4)))


def test_few_axes_are_kept_of_embeddings_that_lie_along_few(coded, monkeypatch):
    monkeypatch.setattr(faiss_index, "AXES", 8)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 64)))[0]
    values = unit(np.random.default_rng(0).normal(size=(2000, 64)) * 0.9 ** np.arange(64) @ turn)
    assert 8 <= axes_of(values) < 10
    check_exact(numbered(values), values, 1, unit(values[::100] + 0.1 * embeddings(20, 64, seed=4)))


def test_candidates_are_ordered_by_their_embeddings(coded, monkeypatch):
    """The order in which an index proposes them does not matter."""
    candidates = lambda self, probes, k: [np.arange(1000, 0, -1)] * len(probes)  # noqa: E731
    monkeypatch.setattr(faiss_index.GalleryIndex, "candidates", candidates)
    check_exact(numbered(embeddings(1000)), embeddings(1000), 5)


def test_a_large_k_is_searched_among_more_candidates(coded):
    values = embeddings(3000)
    assert [len(matches) for matches in numbered(values).search(values[:2], 2900)] == [2900, 2900]


def test_faces_added_to_a_coded_gallery_are_found_and_coded_as_it_grows(tmp_path, coded):
    values = embeddings(2000)
    numbered(values[:1500]).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    probes = unit(values[::99] + 0.2 * embeddings(21, seed=4))
    check_exact(gallery, values[:1500], 3, probes)
    built = (tmp_path / "g" / "gallery.faiss").read_bytes()
    for first, last in ((1500, 1600), (1600, 2000)):
        gallery.add(values[first:last], names(2000)[first:last], [{"row": row} for row in range(first, last)])
        for opened in (gallery, Gallery.load(tmp_path / "g")):
            check_exact(opened, values[:last], 3, probes)
        # A few more faces are added to the index in memory; it is built again for many more.
        assert ((tmp_path / "g" / "gallery.faiss").read_bytes() == built) == (last == 1600)


def test_a_gallery_that_grows_large_gets_codes_and_one_that_shrinks_loses_them(tmp_path, coded):
    values = embeddings(600)
    numbered(values[:400]).save(tmp_path)
    gallery, file = Gallery.load(tmp_path), tmp_path / "gallery.faiss"
    check_exact(gallery, values[:400], 3)
    assert not file.exists()
    gallery.add(values[400:], names(600)[400:], [{"row": row} for row in range(400, 600)])
    check_exact(gallery, values, 3)
    assert file.exists()
    gallery.remove(*(f"p{i}" for i in range(100)))
    assert not file.exists()
    check_exact(gallery, values, 3, gone=range(300))
    assert not file.exists()


def test_loading_reads_no_face_and_the_index_is_read_from_its_file(tmp_path, coded, no_build, monkeypatch):
    values = embeddings(2000)
    numbered(values).save(tmp_path)
    Gallery.load(tmp_path).search(values[:1])
    no_build()
    gallery = Gallery.load(tmp_path)
    check_exact(gallery, values, 3, values[:9])

    def read(*_):
        raise AssertionError("faces were read")

    monkeypatch.setattr(sqlite.SqliteFaces, "_decoded", read)
    assert len(Gallery.load(tmp_path)) == 2000


def test_copies_go_separate_ways(saved, tmp_path, coded):
    """An index of one is not taken for one of the other, although both have as many faces."""
    values = embeddings(700)
    numbered(values[:600]).save(tmp_path / "a")
    a, b = Gallery.load(tmp_path / "a"), Gallery.load(tmp_path / "a")
    b.save(tmp_path / "b")
    a.add(values[600:], names(700)[600:], [{"row": row} for row in range(600, 700)])
    b.add(embeddings(100, seed=8), ["strange"] * 100)
    opened = Gallery.load(tmp_path / "b")
    assert opened.search(embeddings(100, seed=8)[:1], 1)[0][0].id == "strange"
    a.save(tmp_path / "b")
    for gallery in (opened, b, Gallery.load(tmp_path / "b")):
        check_exact(gallery, values, 3, values[590:650:9])


def test_a_gallery_whose_folder_was_deleted_says_so_and_is_saved_again(saved):
    gallery = Gallery.load(saved)
    shutil.rmtree(saved)
    with raises("gallery-not-written", saved):
        gallery.add(embeddings(1), ["new"])
    with raises("gallery-not-written", saved):
        gallery.remove("p0")
    gallery.save(saved)
    gallery.add(embeddings(1), ["new"])
    assert len(Gallery.load(saved)) == FACES + 1


def test_other_files_in_its_folder_are_left_alone(saved):
    mine = [saved / "notes.txt", saved / "gallery.photos" / "me.jpg", saved / "gallery.backup1" / "x"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    made().save(saved)
    Gallery.load(saved).remove("p1")
    assert all(file.read_text() == "mine" for file in mine)


def test_nothing_else_is_written_into_its_folder(saved):
    Gallery.load(saved).add(embeddings(1), ["new"])
    Gallery.load(saved).search(embeddings(1))
    assert sorted(file.name for file in saved.iterdir()) == [".lock", "gallery.sqlite"]


def test_a_gallery_may_be_moved(saved, tmp_path):
    shutil.move(saved, tmp_path / "moved")
    assert Gallery.load(tmp_path / "moved").search(embeddings(1), 1)[0][0].id == "p0"


def test_two_do_not_save_in_one_folder_at_once(saved):
    with files.locked(saved), pytest.raises(GdrdError, match=str(saved)):
        made().save(saved)
    assert len(Gallery.load(saved)) == FACES


def test_one_waits_no_longer_than_the_timeout(saved, monkeypatch):
    monkeypatch.setattr(sqlite_connection, "TIMEOUT", 0.2)
    gallery = Gallery.load(saved)
    other = sqlite3.connect(saved / "gallery.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len(gallery.search(embeddings(1))[0]) == 5  # it can be read meanwhile
    with raises("gallery-busy", saved / "gallery.sqlite", "0.2"):
        gallery.add(embeddings(1), ["new"])
    other.rollback()
    gallery.add(embeddings(1), ["new"])
    assert len(Gallery.load(saved)) == FACES + 1


@pytest.mark.parametrize("there", [True, False])
def test_killed_while_saving_the_old_gallery_is_there_and_the_next_save_cleans_up(saved, tmp_path, there):
    target = saved if there else tmp_path / "new"
    killed(
        "other = Gallery(4, 'x')\nother.add(np.eye(4), list('abcd'))\n"
        "os.replace = sqlite.checked = die\n"  # a complete copy is beside the gallery then
        "other.save(sys.argv[2])\n",
        saved, target,
    )  # fmt: skip
    assert (target / "gallery.sqlite.tmp").stat().st_size > 16384
    assert (target / "gallery.sqlite").exists() == there
    if there:
        assert len(Gallery.load(target)) == FACES
    else:
        with raises("gallery-missing", target):
            Gallery.load(target)
    made().save(target)
    assert len(Gallery.load(target)) == FACES
    assert sorted(file.name for file in target.iterdir()) == [".lock", "gallery.sqlite"]


def test_a_failed_change_leaves_the_old_gallery(saved, tmp_path):
    """The file may grow by 100 kB; then the system refuses to write."""
    process = run_python(
        "import resource\nfrom gdrd_jax.utils.errors import GdrdError\n"
        "gallery = Gallery.load(sys.argv[1])\n"
        "size = os.stat(sys.argv[1] + '/gallery.sqlite').st_size + 100_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "faces = np.repeat(np.eye(gallery.dim), 500, axis=0), ['new'] * 500 * gallery.dim\n"
        "big = Gallery(gallery.dim, gallery.fingerprint)\nbig.add(*faces)\n"
        "for work in (lambda: gallery.add(*faces), lambda: big.save(sys.argv[1]), lambda: big.save(sys.argv[2])):\n"
        "    try:\n        work()\n"
        "    except GdrdError as error:\n        print(error.code)\n",
        saved, tmp_path / "new",
    )  # fmt: skip
    out, _ = process.communicate()
    assert process.returncode == 0 and out.split() == ["gallery-not-written"] * 3
    assert len(Gallery.load(saved)) == FACES and "new" not in Gallery.load(saved).people()
    with raises("gallery-missing", tmp_path / "new"):
        Gallery.load(tmp_path / "new")


@pytest.mark.parametrize("count", [FACES, 600])
def test_nothing_of_a_removed_person_stays_on_disk(tmp_path, coded, count):
    values, ids = embeddings(count), [f"person-{i // 3:03}-name" for i in range(count)]
    made(values, ids, [{"path": f"/photos/{name}/{i}.jpg"} for i, name in enumerate(ids)]).save(tmp_path / "g")
    opened, gallery = Gallery.load(tmp_path / "g"), Gallery.load(tmp_path / "g")
    assert opened.search(values[21:22], 1)[0][0].id == "person-007-name"
    assert (tmp_path / "g" / "gallery.faiss").exists() == (count == 600)
    (tmp_path / "g" / "gallery.faiss.123.tmp").write_bytes(stored(values[21]))  # of a killed process
    before = content(tmp_path / "g")
    assert b"person-007-name" in before and all(stored(values[row]) in before for row in range(count))
    assert gallery.remove("person-007-name") == 3
    assert len(gallery) == count - 3 and len(opened) == count - 3
    for one in (gallery, opened, Gallery.load(tmp_path / "g")):
        assert "person-007-name" not in {match.id for match in one.search(values[21:22], count)[0]}
    after = content(tmp_path / "g")
    for row in range(count):
        assert (stored(values[row]) in after) == (row not in (21, 22, 23))
        assert (f"/{row}.jpg".encode() in after) == (row not in (21, 22, 23))
    for row in (21, 22, 23):  # not even a part
        assert not any(stored(values[row])[i : i + 8] in after for i in range(0, 4 * DIM, 8))
    assert b"person-007-name" not in after and b"person-008-name" in after
    probes = unit(values[::20] + 0.2 * embeddings(count // 20, seed=4))
    left = np.delete(np.arange(count), [21, 22, 23])
    best = left[np.argmax(probes @ values[left].T, axis=1)]
    assert [matches[0].id for matches in gallery.search(probes, 1)] == [ids[row] for row in best]


def test_no_copies_that_sqlite_made_of_names_stay_on_disk(tmp_path):
    """Without VACUUM SQLite 3.40 leaves a name here, although `secure_delete` is on: it moved rows between pages."""
    order, values = np.random.default_rng(1).permutation(3000), embeddings(3000, 4)
    people = [f"person-{i:06d}-{'x' * (i % 40)}" for i in order]
    gallery = Gallery(4, "f")
    for first in range(0, 3000, 20):
        paths = [{"path": f"/p/{i:06d}"} for i in order[first : first + 20]]
        gallery.add(values[first : first + 20], people[first : first + 20], paths)
    gallery.save(tmp_path)
    gone = [i for i in range(3000) if i % 8 == 3]
    gallery.remove(*(people[row] for row in range(3000) if order[row] in gone))
    after = content(tmp_path)
    assert [i for i in range(3000) if f"person-{i:06d}-".encode() not in after] == gone
    assert [i for i in range(3000) if f"/p/{i:06d}".encode() not in after] == gone


def test_nothing_of_people_who_were_removed_in_memory_or_replaced_is_saved(tmp_path, coded):
    values, ids = embeddings(600), [f"person-{i // 3:03}" for i in range(600)]
    gallery = made(values, ids)
    gallery.remove(*{*ids[300:]})
    gallery.save(tmp_path)
    after = content(tmp_path)
    assert all((stored(values[row]) in after) == (row < 300) for row in range(600)) and b"person-150" not in after
    made(values[300:].repeat(2, axis=0), ids[300:] * 2).save(tmp_path)
    Gallery.load(tmp_path).search(values[:1])
    assert (tmp_path / "gallery.faiss").exists()
    made(values[:9], ids[:9]).save(tmp_path)
    after = content(tmp_path)
    assert all((stored(values[row]) in after) == (row < 9) for row in range(600)) and b"person-150" not in after
    assert not (tmp_path / "gallery.faiss").exists()


def test_a_removal_that_was_killed_is_finished_when_the_gallery_is_loaded(tmp_path):
    values = embeddings(300)
    made(values, [f"person-{i // 3:03}" for i in range(300)]).save(tmp_path)
    killed("sqlite.SqliteFaces.purge = die\ngallery.remove('person-050')\n", tmp_path)
    connection = sqlite3.connect(tmp_path / "gallery.sqlite")
    assert connection.execute("SELECT purged, faces FROM gallery").fetchone() == (0, 297)
    connection.close()
    (tmp_path / "gallery.faiss").write_bytes(stored(values[150]))  # it would have been deleted, too
    gallery = Gallery.load(tmp_path)
    assert len(gallery) == 297 and "person-050" not in gallery.people()
    after = content(tmp_path)
    assert stored(values[150]) not in after and stored(values[153]) in after
    assert b"person-050" not in after and b"person-051" in after
    connection = sqlite3.connect(tmp_path / "gallery.sqlite")
    assert connection.execute("SELECT purged FROM gallery").fetchone() == (1,)
    connection.close()


def test_a_removal_that_cannot_be_finished_says_so(tmp_path, monkeypatch, caplog):
    values = embeddings(300)
    made(values, [f"person-{i // 3:03}" for i in range(300)]).save(tmp_path)
    opened, gallery = Gallery.load(tmp_path), Gallery.load(tmp_path)

    def refuse(_):
        raise PermissionError(13, "Permission denied", "gallery.faiss")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_delete_leftovers", refuse)
        with raises("gallery-not-purged", tmp_path, "Permission denied"):
            gallery.remove("person-050")
        assert len(Gallery.load(tmp_path)) == 297
        assert len(caplog.messages) == 1 and str(tmp_path) in caplog.text and "Permission denied" in caplog.text
    assert opened.search(values[150:151], 1)[0][0].id != "person-050"
    Gallery.load(tmp_path)
    after = content(tmp_path)
    assert b"person-050" not in after and stored(values[150]) not in after and len(caplog.messages) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "outdated", "of another gallery"])
def test_an_index_that_is_damaged_or_outdated_is_built_again(tmp_path, coded, damage):
    values, file = embeddings(2000), tmp_path / "g" / "gallery.faiss"
    numbered(values).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    gallery.search(values[:1])
    data = bytearray(file.read_bytes())
    gone = ()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        data = data[:-1]
    elif damage == "outdated":
        gone = (3, 4, 5)
        gallery.remove("p1")
    elif damage == "of another gallery":
        numbered(embeddings(2000, seed=1)).save(tmp_path / "other")
        Gallery.load(tmp_path / "other").search(values[:1])
        data = (tmp_path / "other" / "gallery.faiss").read_bytes()
    else:
        data = b"" if damage == "empty" else b"?" * len(data)
    file.write_bytes(data)
    check_exact(Gallery.load(tmp_path / "g"), values, 3, unit(values[::99] + 0.2 * embeddings(21, seed=4)), gone)
    assert file.read_bytes() != data  # and written again


def test_an_index_is_not_used_for_faces_that_another_program_changed(tmp_path, coded):
    values = embeddings(2000)
    numbered(values).save(tmp_path)
    opened = Gallery.load(tmp_path)
    check_exact(opened, values, 3)
    connection = sqlite3.connect(tmp_path / "gallery.sqlite")
    values[7] = embeddings(1, seed=5)[0]
    with connection:
        connection.execute("UPDATE face SET embedding = ? WHERE id = 8", (values[7].tobytes(),))
        connection.execute("DELETE FROM face WHERE id > 1990")
    connection.close()
    for gallery in (opened, Gallery.load(tmp_path)):
        check_exact(gallery, values, 3, values[:9], gone=range(1990, 2000))
    assert len(opened) == 1990


def test_an_index_that_is_built_during_a_removal_does_not_stay(tmp_path, coded, monkeypatch):
    """A removal during the first attempt makes it useless; the second one keeps a removal waiting."""
    values, file = embeddings(600), tmp_path / "gallery.faiss"
    numbered(values).save(tmp_path)
    searcher, remover = Gallery.load(tmp_path), Gallery.load(tmp_path)
    build, built = faiss_index.build, threading.Semaphore(0)

    def slow(*arguments):
        index = build(*arguments)
        built.release()
        time.sleep(0.5)  # without the transaction the second removal would be over by then
        return index

    monkeypatch.setattr(faiss_index, "build", slow)
    with ThreadPoolExecutor(2) as pool:
        search = pool.submit(searcher.search, values[[0, 3]], 1)
        assert built.acquire(timeout=60)
        remover.remove("p0")
        assert built.acquire(timeout=60)
        remover.remove("p1")
        found = [matches[0].id for matches in search.result()]
        assert found[0] != "p0" and found[1] == "p1" and not file.exists()
    check_exact(searcher, values, 3, values[:9], gone=range(6))
    assert file.exists()


def test_a_gallery_can_be_changed_while_the_index_of_a_large_one_is_built(tmp_path, coded, monkeypatch):
    monkeypatch.setattr(sqlite_connection, "TIMEOUT", 0.2)
    values, fresh, build, builds = embeddings(600), embeddings(1, seed=3), faiss_index.build, []
    numbered(values).save(tmp_path)
    searcher, adder = Gallery.load(tmp_path), Gallery.load(tmp_path)

    def while_built(generation, dim, faces, blocks):
        builds.append(faces)
        adder.add(fresh, ["new"])
        return build(generation, dim, faces, blocks)

    monkeypatch.setattr(faiss_index, "build", while_built)
    found = searcher.search(np.concatenate([fresh, values[:1]]), 1)
    assert [matches[0].id for matches in found] == ["new", "p0"] and builds == [600] and len(searcher) == 601
    assert [matches[0].id for matches in Gallery.load(tmp_path).search(fresh, 1)] == ["new"] and builds == [600]


def test_a_gallery_whose_index_cannot_be_written_is_searched(tmp_path, coded, monkeypatch):
    values = embeddings(600)
    numbered(values).save(tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(faiss_index.os, "replace", refuse)
    check_exact(Gallery.load(tmp_path), values, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "gallery.sqlite"]


def test_databases_of_others_and_of_later_versions_are_refused(saved, tmp_path):
    other = tmp_path / "other" / "gallery.sqlite"
    other.parent.mkdir()
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE photos (id)")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    with raises("gallery-format", other):
        Gallery.load(other.parent)
    with raises("gallery-format", other):
        made().save(other.parent)
    assert other.read_bytes() == before
    connection = sqlite3.connect(saved / "gallery.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with raises("gallery-format", saved, 2, 1):
        Gallery.load(saved)


@pytest.mark.parametrize("how", ["cut", "garbage", "head", "empty", "no row"])
def test_a_damaged_database_is_refused(saved, how):
    file = saved / "gallery.sqlite"
    size = file.stat().st_size
    if how == "cut":
        os.truncate(file, size // 2)
    elif how == "no row":
        connection = sqlite3.connect(file)
        connection.execute("DELETE FROM gallery")
        connection.commit()
        connection.close()
    else:
        file.write_bytes({"garbage": b"?" * size, "head": b"?" * 100 + file.read_bytes()[100:], "empty": b""}[how])
    with raises("gallery-format" if how == "empty" else "gallery-damaged", saved):
        Gallery.load(saved).search(embeddings(1), FACES)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ("UPDATE face SET embedding = zeroblob(64)", "unit length"),
        ("UPDATE face SET embedding = x'ffff'", 16),
        ("UPDATE face SET embedding = NULL", 16),
        ("UPDATE face SET metadata = '{'", "metadata"),
        ("UPDATE face SET metadata = '7'", "metadata"),
        ("DROP TABLE face", "face"),
    ],
)
def test_other_contents_are_noticed_on_searching(saved, change, fact):
    connection = sqlite3.connect(saved / "gallery.sqlite")
    connection.execute(change)
    connection.commit()
    connection.close()
    with raises("gallery-damaged", saved, fact):
        Gallery.load(saved).search(embeddings(1), 1)


def test_killed_in_a_transaction_of_many_pages_nothing_has_changed(saved):
    """Some of the faces are in the file already."""
    killed(
        "gallery._faces._connection.execute('PRAGMA cache_size = 1')\n"
        "insert = sqlite.SqliteFaces.insert\n"
        "sqlite.SqliteFaces.insert = lambda self, rows: (insert(self, rows), die())\n"
        "gallery.update(np.repeat(np.eye(gallery.dim), 500, axis=0), ['p3', 'new'] * 250 * gallery.dim)\n",
        saved,
    )
    assert (saved / "gallery.sqlite-journal").exists()
    gallery = Gallery.load(saved)
    assert len(gallery) == FACES and gallery.counts()["p3"] == 3 and "new" not in gallery.people()
    assert gallery.search(embeddings()[9:10], 1)[0][0].id == "p3"
    assert not (saved / "gallery.sqlite-journal").exists()


def test_nothing_of_replaced_faces_stays_on_disk(saved):
    assert Gallery.load(saved).update(embeddings(4, seed=7), ["p3", "p3", "new", "p5"]) == 6
    after = content(saved)
    for row in range(FACES):
        assert (stored(embeddings()[row]) in after) == (row // 3 not in (3, 5))


def test_nothing_is_made_where_no_gallery_is(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with raises("gallery-missing", place):
            Gallery.load(place)
    assert not any(tmp_path.iterdir())


def test_what_is_saved_gives_the_same_similarities_to_the_last_digit(saved):
    expected = made(metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).search(embeddings(), 2)
    assert Gallery.load(saved).search(embeddings(), 2) == expected

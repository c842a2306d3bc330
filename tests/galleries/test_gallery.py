import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.galleries import faiss_index, faiss_search, folder, sqlite
from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.utils import files
from gdrd_jax.utils.errors import GdrdError

ROOT = Path(__file__).parents[2]
DIM, FACES = 16, 60
STRANGE = '{"format": 1, "fingerprint": "f", "dim": "4", "faces": 1, "version": "..", "sizes": []}'


def unit(values):
    return np.float32(values / np.linalg.norm(values, axis=-1, keepdims=True))


def embeddings(count=FACES, dim=DIM, seed=0, shift=0.0):
    return unit(np.random.default_rng(seed).normal(size=(count, dim)) + shift)


def names(count=FACES):
    return [f"p{i // 3}" for i in range(count)]


def made(values=None, ids=None, metadata=None):
    values = embeddings() if values is None else values
    gallery = Gallery(values.shape[1], "f" * 64)
    gallery.add(values, names(len(values)) if ids is None else ids, metadata)
    return gallery


def numbered(values):
    """A gallery whose metadata are the faces' rows."""
    return made(values, metadata=[{"row": row} for row in range(len(values))])


def check_exact(gallery, values, k, probes=None, gone=()):
    """Checks that the search finds what a comparison with all values finds, except for the rows in `gone`."""
    probes = embeddings(7, values.shape[1], seed=9) if probes is None else probes
    expected = probes @ values.T
    expected[:, list(gone)] = -2
    order = np.argsort(-expected, axis=1)[:, :k]
    found = gallery.search(probes, k)
    np.testing.assert_array_equal([[match.metadata["row"] for match in matches] for matches in found], order)
    similarities = [[match.similarity for match in matches] for matches in found]
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    assert [[match.id for match in matches] for matches in found] == [[f"p{row // 3}" for row in r] for r in order]


def stored(value):
    """The bytes of an embedding as a gallery stores it."""
    return (value / np.linalg.norm(value[None], axis=1)).tobytes()


def content(folder):
    """The bytes of all files in a folder."""
    return b"\n".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def write_v04(folder, values, ids, metadata):
    """Writes a gallery as version 0.4 did, except for its codes."""
    version = folder / "gallery.1a2b3c4d"
    version.mkdir(parents=True)
    lines = [json.dumps([name, about]).encode() + b"\n" for name, about in zip(ids, metadata)]
    values.astype("<f4").tofile(version / "embeddings.f32")
    (version / "faces.jsonl").write_bytes(b"".join(lines))
    np.cumsum([0, *map(len, lines)], dtype="<i8").tofile(version / "starts.i64")
    sizes = {file.name: file.stat().st_size for file in version.iterdir()}
    manifest = {"format": 1, "fingerprint": "f" * 64, "dim": values.shape[1], "faces": len(values)}
    (folder / "gallery.json").write_text(json.dumps(manifest | {"version": version.name, "sizes": sizes}, indent=1))
    return folder


def run_python(script, *arguments):
    """Starts a script in another process."""
    head = (
        "import os, signal, sys, numpy as np\n"
        "from gdrd_jax.galleries import sqlite\n"
        "from gdrd_jax.galleries.gallery import Gallery\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sqlite, "BLOCK", 11)
    monkeypatch.setattr(faiss_search, "PROBES", 3)


@pytest.fixture
def coded(monkeypatch):
    """Few faces count as many."""
    monkeypatch.setattr(faiss_index, "EXACT", 500)
    monkeypatch.setattr(faiss_index, "CANDIDATES", 200)
    monkeypatch.setattr(faiss_index, "SAMPLE", 1000)
    monkeypatch.setattr(sqlite, "BLOCK", 700)


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


# Searching


@pytest.mark.parametrize("k", [1, 5, 30])
def test_search_is_exact(small_blocks, k):
    check_exact(numbered(embeddings()), embeddings(), k)


def test_more_matches_than_faces_gives_all(small_blocks):
    check_exact(numbered(embeddings()), embeddings(), FACES + 1)


def test_a_face_finds_itself_and_no_probe_nothing():
    gallery = made()
    match = gallery.search(embeddings()[7:8], 1)[0][0]
    assert match.id == "p2" and match.similarity == pytest.approx(1, abs=1e-6) and match.metadata == {}
    assert gallery.search(np.zeros((0, DIM), np.float32)) == []


def test_of_equals_the_first_added_comes_first(tmp_path, coded):
    values = embeddings(600)
    values[[500, 7, 300, 90]] = values[7]
    numbered(values).save(tmp_path)
    for gallery in (numbered(values), Gallery.load(tmp_path)):
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


def test_templates_are_the_means_of_each_id(small_blocks, tmp_path):
    ids = ["ann", "bob", "ann", "cem", "bob", "ann"] * 10
    made(ids=ids, metadata=[{"row": row} for row in range(len(ids))]).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
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


def test_many_threads_search_while_another_adds(tmp_path, coded):
    values = embeddings(2000)
    numbered(values).save(tmp_path)
    gallery, barrier = Gallery.load(tmp_path), threading.Barrier(5)

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


# On disk


def test_what_is_saved_is_loaded(tmp_path):
    ids = [f"Zoë {i}\n" for i in range(FACES)]
    ids[5] = "\udcfe\0"
    metadata = [{"path": "人/\udcff.jpg", "box": [1, 2.5, None]}] * FACES
    made(ids=ids, metadata=metadata).save(str(tmp_path / "a" / "g"))
    gallery = Gallery.load(str(tmp_path / "a" / "g"), "f" * 64)
    assert (len(gallery), gallery.dim, gallery.fingerprint) == (FACES, DIM, "f" * 64)
    assert gallery.people() == ids
    matches = gallery.search(embeddings(), 2)
    assert matches == made(ids=ids, metadata=metadata).search(embeddings(), 2)
    assert matches[3][0].metadata == metadata[0] and matches[5][0].id == ids[5]


@pytest.mark.parametrize("path", [None, 7, ["a.jpg"]])
def test_a_path_that_is_no_text_is_other_metadata(path):
    gallery = made(embeddings(1), ["ann"], [{"path": path}])
    assert gallery.search(embeddings(1), 1)[0][0].metadata == {"path": path}


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


def test_more_are_enrolled_in_the_folder_it_came_from(saved):
    for number in range(3):
        gallery = Gallery.load(saved)
        gallery.add(embeddings(1, seed=100 + number), [f"new {number}"], [{"path": "n.jpg"}])
        gallery.save(saved)
    gallery = Gallery.load(saved)
    assert len(gallery) == FACES + 3 and gallery.people()[-3:] == ["new 0", "new 1", "new 2"]
    assert gallery.search(embeddings(1, seed=101), 1)[0][0].id == "new 1"
    assert gallery.search(embeddings()[4:5], 1)[0][0] == made(
        metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).search(embeddings()[4:5], 1)[0][0]  # fmt: skip
    assert sorted(file.name for file in saved.iterdir()) == [".lock", "gallery.sqlite"]


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
        with raises("gallery-replaced", saved):
            use()
    assert Gallery.load(saved, "a" * 64).people() == ["another"]


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


def test_what_another_added_meanwhile_is_not_lost(saved):
    here, there = Gallery.load(saved), Gallery.load(saved)
    for gallery, name in ((here, "ann"), (there, "bob")):
        gallery.add(embeddings()[:1], [name])
    here.save(saved)
    there.save(saved)
    assert Gallery.load(saved).people()[-2:] == ["ann", "bob"]


def test_a_new_gallery_does_not_take_the_place_of_one_made_meanwhile(tmp_path):
    made(ids=["ann"] * FACES).save(tmp_path / "known", new=True)
    with raises("gallery-exists", tmp_path / "known"):
        made(ids=["bob"] * FACES).save(tmp_path / "known", new=True)
    assert Gallery.load(tmp_path / "known").people() == ["ann"]


def test_a_gallery_may_be_moved(saved, tmp_path):
    shutil.move(saved, tmp_path / "moved")
    assert Gallery.load(tmp_path / "moved").search(embeddings(1), 1)[0][0].id == "p0"


def test_two_do_not_save_in_one_folder_at_once(saved):
    with files.locked(saved), pytest.raises(GdrdError, match=str(saved)):
        made().save(saved)
    assert len(Gallery.load(saved)) == FACES


# Several processes, and killed ones

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


def test_one_waits_no_longer_than_the_timeout(saved, monkeypatch):
    monkeypatch.setattr(sqlite, "TIMEOUT", 0.2)
    gallery = Gallery.load(saved)
    other = sqlite3.connect(saved / "gallery.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len(gallery.search(embeddings(1))[0]) == 5  # it can be read meanwhile
    with raises("gallery-busy", saved / "gallery.sqlite", "0.2"):
        gallery.add(embeddings(1), ["new"])
    other.rollback()
    gallery.add(embeddings(1), ["new"])
    assert len(Gallery.load(saved)) == FACES + 1


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


DIE = """
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

gallery = Gallery.load(sys.argv[1])
"""


def killed(script, *arguments):
    process = run_python(DIE + script, *arguments)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_in_a_transaction_nothing_has_changed(saved):
    """The faces fill many pages, so that some are in the file already."""
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


@pytest.mark.parametrize("there", [True, False])
def test_killed_while_saving_the_old_gallery_is_there_and_the_next_save_cleans_up(saved, tmp_path, there):
    target = saved if there else tmp_path / "new"
    killed(
        "other = Gallery(4, 'x')\nother.add(np.eye(4), list('abcd'))\n"
        "os.replace = sqlite._checked = die\n"  # a complete copy is beside the gallery then
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


def test_many_processes_search_at_once(saved):
    script = (
        "gallery = Gallery.load(sys.argv[1])\n"
        "print(*[match[0].id for match in gallery.search(np.load(sys.argv[2]), 1)])\n"
    )
    np.save(saved.parent / "probes.npy", embeddings())
    processes = [run_python(script, saved, saved.parent / "probes.npy") for _ in range(3)]
    assert [process.communicate()[0].split() for process in processes] == [names()] * 3


# People leave


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


def test_names_that_are_not_unicode_are_removed(tmp_path):
    gallery = made(embeddings(2), ["\udcff", "ann"], [{"path": "人/\udcfe.jpg"}, {"path": "b"}])
    gallery.save(tmp_path)
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
    after = content(saved)
    for row in range(FACES):
        assert (stored(embeddings()[row]) in after) == (row // 3 not in (3, 5))
    with raises("gallery-length", "embedding 0"):
        gallery.update(2 * fresh, ["p3"] * 4)
    assert gallery.counts() == counts


# The index is a cache


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
    monkeypatch.setattr(sqlite, "TIMEOUT", 0.2)
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


# What is refused


def test_a_gallery_of_another_recognizer_is_refused(saved):
    with raises("gallery-space", saved, "f" * 12, "a" * 12):
        Gallery.load(saved, "a" * 64)
    with raises("gallery-space", saved, "f" * 12, "a" * 12, "b" * 12):
        Gallery.load(saved, ("a" * 64, "b" * 64))
    assert len(Gallery.load(saved, ("a" * 64, "f" * 64))) == FACES == len(Gallery.load(saved))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', STRANGE])
def test_what_is_no_gallery_is_refused(tmp_path, text):
    (tmp_path / "gallery.json").write_text(text)
    with raises("gallery-format", tmp_path / "gallery.json"):
        Gallery.load(tmp_path)


def test_where_no_gallery_is_none_is_loaded(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with raises("gallery-missing", place):
            Gallery.load(place)
    assert not any(tmp_path.iterdir())


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


def test_an_empty_gallery_is_neither_searched_nor_saved(tmp_path):
    gallery = Gallery(DIM, "f")
    assert len(gallery) == 0 and gallery.people() == [] and len(gallery.templates()) == 0
    with raises("gallery-empty"):
        gallery.search(embeddings(1))
    with raises("gallery-empty", tmp_path / "g"):
        gallery.save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


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


# Version 0.4


@pytest.fixture
def v04(tmp_path):
    metadata = [{"path": f"人/{i}\udcff.jpg", "row": i} for i in range(FACES)]
    return write_v04(tmp_path / "v04", embeddings(), names(), metadata)


def test_a_gallery_of_version_04_is_converted_and_its_files_stay(v04, small_blocks, caplog):
    caplog.set_level("INFO", "gdrd_jax")
    before = {file: file.read_bytes() for file in v04.rglob("*") if file.is_file()}
    gallery = Gallery.load(v04, "f" * 64)
    assert str(v04) in caplog.text and "0.4" in caplog.text
    for one in (gallery, Gallery.load(v04, "f" * 64)):
        assert (len(one), one.dim, one.people()) == (FACES, DIM, names()[::3])
        check_exact(one, embeddings(), 5)
        assert one.search(embeddings()[4:5], 1)[0][0].metadata == {"path": "人/4\udcff.jpg", "row": 4}
    assert {file: file.read_bytes() for file in before} == before
    gallery.add(embeddings(1, seed=3), ["new"], [{"row": FACES}])
    assert Gallery.load(v04).people()[-1] == "new"  # the converted one counts


def test_people_leave_a_converted_gallery_only_with_its_old_files(v04):
    gallery = Gallery.load(v04)
    for leave in (lambda: gallery.remove("p1"), lambda: gallery.update(embeddings(1), ["p1"])):
        with raises("gallery-old-files", v04, "gallery.json", "gallery.1a2b3c4d"):
            leave()
    assert len(gallery) == FACES
    (v04 / "gallery.json").unlink()
    with raises("gallery-old-files", v04, "gallery.1a2b3c4d"):
        gallery.remove("p1")
    shutil.rmtree(v04 / "gallery.1a2b3c4d")
    assert stored(embeddings()[3]) in content(v04) and gallery.remove("p1") == 3
    assert stored(embeddings()[3]) not in content(v04)


def test_a_gallery_of_version_04_that_cannot_be_written_is_read(v04, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda *_: False)
    before = content(v04)
    gallery = Gallery.load(v04)
    check_exact(gallery, embeddings(), 5)
    for change in (lambda: gallery.add(embeddings(1), ["x"]), lambda: gallery.remove("p1")):
        with raises("gallery-not-written"):
            change()
    assert len(gallery) == FACES and content(v04) == before


def test_a_gallery_that_two_convert_at_once_keeps_what_the_first_added(v04, monkeypatch):
    read, calls = folder.version_04.read, []

    def and_convert(*arguments):
        if not calls:
            calls.append(1)
            Gallery.load(v04).add(embeddings(1, seed=3), ["new"])
        return read(*arguments)

    monkeypatch.setattr(folder.version_04, "read", and_convert)
    assert Gallery.load(v04).people()[-1] == "new"


def test_a_gallery_of_version_04_of_another_recognizer_is_refused(v04):
    with raises("gallery-space", v04, "f" * 12, "a" * 12):
        Gallery.load(v04, "a" * 64)
    assert not (v04 / "gallery.sqlite").exists()


@pytest.mark.parametrize("name", ["embeddings.f32", "faces.jsonl"])
def test_files_of_version_04_that_are_cut_short_or_missing_are_noticed(v04, name):
    file = v04 / "gallery.1a2b3c4d" / name
    os.truncate(file, file.stat().st_size - 1)
    with raises("gallery-damaged", file, file.stat().st_size):
        Gallery.load(v04)
    file.unlink()
    with raises("gallery-damaged", file):
        Gallery.load(v04)
    assert not (v04 / "gallery.sqlite").exists()


@pytest.mark.parametrize(
    ("name", "byte", "fact"),
    [("embeddings.f32", b"\xff", "unit length"), ("embeddings.f32", b"\0", "unit length"), ("faces.jsonl", b"?", 1)],
)
def test_other_contents_of_version_04_are_noticed(v04, name, byte, fact):
    file = v04 / "gallery.1a2b3c4d" / name
    file.write_bytes(byte * file.stat().st_size)
    with raises("gallery-damaged", v04, fact):
        Gallery.load(v04)
    assert not (v04 / "gallery.sqlite").exists()

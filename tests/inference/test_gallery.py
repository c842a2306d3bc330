import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gdrd_jax.inference import gallery as module
from gdrd_jax.inference.gallery import Gallery
from gdrd_jax.utils import files
from gdrd_jax.utils.errors import GdrdError

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


def check_exact(gallery, values, k, probes=None):
    """Finds what comparing with all values finds, with the same similarities and ids."""
    probes = embeddings(7, values.shape[1], seed=9) if probes is None else probes
    expected = probes @ values.T
    order = np.argsort(-expected, axis=1)[:, :k]
    found = gallery.search(probes, k)
    np.testing.assert_array_equal([[match.metadata["row"] for match in matches] for matches in found], order)
    similarities = [[match.similarity for match in matches] for matches in found]
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    assert [[match.id for match in matches] for matches in found] == [[f"p{row // 3}" for row in r] for r in order]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 11)
    monkeypatch.setattr(module, "PROBES", 3)


@pytest.fixture
def coded(monkeypatch):
    """Few faces count as many."""
    monkeypatch.setattr(module, "EXACT", 500)
    monkeypatch.setattr(module, "CANDIDATES", 200)
    monkeypatch.setattr(module, "SAMPLE", 1000)
    monkeypatch.setattr(module, "BLOCK", 700)


@pytest.fixture
def saved(tmp_path):
    made(metadata=[{"path": f"{i}.jpg"} for i in range(FACES)]).save(tmp_path / "g")
    return tmp_path / "g"


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
    assert len(gallery) == FACES and gallery.people() == [f"p{i}" for i in range(20)]
    check_exact(gallery, embeddings(), 5)


@pytest.mark.parametrize("dim", [16, 128, 200])
def test_a_coded_gallery_finds_what_exact_search_finds(tmp_path, coded, dim):
    values = embeddings(3001, dim)
    numbered(values).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    assert gallery._codes.ntotal == 3001
    k = 3 if dim <= module.AXES else 1  # fewer axes than dims: what is far off may be missed
    check_exact(gallery, values, k, unit(values[::100] + 0.8 * embeddings(31, dim, seed=4)))


def test_what_all_faces_share_costs_no_axes(tmp_path, coded):
    values = embeddings(3000, 400, shift=3.0)  # cosines between strangers of 0.9
    assert (values[:9] @ values[9]).min() > 0.85
    numbered(values).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    assert module.AXES < gallery._axes.shape[1] < 400
    check_exact(gallery, values, 1, unit(values[::100] + 0.2 * embeddings(30, 400, seed=4)))


def test_few_axes_are_kept_of_embeddings_that_lie_along_few(tmp_path, coded, monkeypatch):
    monkeypatch.setattr(module, "AXES", 8)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 64)))[0]
    values = unit(np.random.default_rng(0).normal(size=(2000, 64)) * 0.9 ** np.arange(64) @ turn)
    numbered(values).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    assert 8 <= gallery._codes.d < 10
    check_exact(gallery, values, 1, unit(values[::100] + 0.1 * embeddings(20, 64, seed=4)))


def test_the_best_candidates_are_ordered_by_their_embeddings(tmp_path, coded, monkeypatch):
    """Codes alone cannot tell these faces apart."""
    monkeypatch.setattr(module, "CODES", 3)
    values = unit(embeddings(1, seed=1)[0] + 0.2 * embeddings(1000))
    numbered(values).save(tmp_path / "g")
    monkeypatch.setattr(module, "CANDIDATES", 1000)
    check_exact(Gallery.load(tmp_path / "g"), values, 5, values[:9])


def test_a_large_k_is_searched_among_more_candidates(tmp_path, coded):
    values = embeddings(3000)
    numbered(values).save(tmp_path / "g")
    assert [len(matches) for matches in Gallery.load(tmp_path / "g").search(values[:2], 2900)] == [2900, 2900]


def test_faces_added_to_a_coded_gallery_are_found_and_coded_on_saving(tmp_path, coded):
    values = embeddings(2000)
    numbered(values[:1500]).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    gallery.add(values[1500:], names(2000)[1500:], [{"row": row} for row in range(1500, 2000)])
    probes = unit(values[::99] + 0.2 * embeddings(21, seed=4))
    check_exact(gallery, values, 3, probes)
    gallery.save(tmp_path / "g")
    check_exact(gallery, values, 3, probes)  # goes on with the old files
    again = Gallery.load(tmp_path / "g")
    assert again._codes.ntotal == 2000
    check_exact(again, values, 3, probes)


def test_templates_are_the_means_of_each_id(small_blocks, tmp_path):
    ids = ["ann", "bob", "ann", "cem", "bob", "ann"] * 10
    made(ids=ids, metadata=[{"row": row} for row in range(len(ids))]).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    gallery.add(embeddings(2, seed=5), ["bob", "dan"])
    everyone, ids = np.concatenate([embeddings(), embeddings(2, seed=5)]), np.array([*ids, "bob", "dan"])
    templates = gallery.templates()
    assert templates.people() == ["ann", "bob", "cem", "dan"] == gallery.people()
    assert len(templates) == 4 and templates.fingerprint == gallery.fingerprint
    firsts = {"ann": {"row": 0}, "bob": {"row": 1}, "cem": {"row": 3}, "dan": {}}
    for name, faces in (("ann", 30), ("bob", 21), ("cem", 10), ("dan", 1)):
        mean = unit(everyone[ids == name].mean(axis=0))
        match = templates.search(mean[None], 1)[0][0]
        assert match.id == name and match.metadata == firsts[name] | {"faces": faces}
        assert match.similarity == pytest.approx(1, abs=1e-6)


def test_what_is_saved_is_loaded(tmp_path):
    ids = [f"Zoë {i}\n" for i in range(FACES)]
    metadata = [{"path": "人/\udcff.jpg", "box": [1, 2.5, None]}] * FACES
    made(ids=ids, metadata=metadata).save(str(tmp_path / "a" / "g"))
    gallery = Gallery.load(str(tmp_path / "a" / "g"), "f" * 64)
    assert (len(gallery), gallery.dim, gallery.fingerprint) == (FACES, DIM, "f" * 64)
    assert gallery.people() == ids
    matches = gallery.search(embeddings(), 2)
    assert matches == made(ids=ids, metadata=metadata).search(embeddings(), 2)
    assert matches[3][0].metadata == metadata[0]


def test_loading_maps_the_files_and_reads_none(saved, tmp_path, coded):
    gallery = Gallery.load(saved)
    for part in (gallery._saved, gallery._text, gallery._starts):
        while not isinstance(part, np.memmap):
            part = part.base
            assert part is not None
        assert part.mode == "r"
    numbered(embeddings(2000)).save(tmp_path / "coded")
    gallery = Gallery.load(tmp_path / "coded")
    with open("/proc/self/maps") as maps:
        assert str(next(tmp_path.glob("coded/gallery.*/codes.faiss"))) in maps.read()
    assert len(gallery.search(embeddings(1))[0]) == 5


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
    assert len(list(saved.glob("gallery.*/"))) == 1


def test_an_opened_gallery_outlives_its_files(saved):
    opened = Gallery.load(saved)
    made(embeddings(seed=3), ids=["other"] * FACES).save(saved)
    assert opened.search(embeddings()[:1], 1)[0][0].id == "p0"
    assert Gallery.load(saved).people() == ["other"]


def test_other_files_in_its_folder_are_left_alone(saved):
    mine = [saved / "notes.txt", saved / "gallery.photos" / "me.jpg", saved / "gallery.backup1" / "x"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    made().save(saved)
    assert all(file.read_text() == "mine" for file in mine)


def test_what_another_added_meanwhile_is_not_lost(saved):
    here, there = Gallery.load(saved), Gallery.load(saved)
    for gallery, name in ((here, "ann"), (there, "bob")):
        gallery.add(embeddings()[:1], [name])
    here.save(saved)
    here.save(saved)  # its own change is none of another
    with pytest.raises(GdrdError, match="was changed by another process meanwhile; load it and add again"):
        there.save(saved)
    assert Gallery.load(saved).people()[-1] == "ann"


def test_a_new_gallery_does_not_take_the_place_of_one_made_meanwhile(tmp_path):
    made(ids=["ann"] * FACES).save(tmp_path / "known", new=True)
    with pytest.raises(GdrdError, match="another process has made the gallery .* meanwhile"):
        made(ids=["bob"] * FACES).save(tmp_path / "known", new=True)
    assert Gallery.load(tmp_path / "known").people() == ["ann"]


def test_stopped_just_after_it_was_saved_it_is_saved(saved, monkeypatch):
    def stopped(path, value):
        files.write_json(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(embeddings(seed=3), ids=["other"] * FACES).save(saved)
    assert Gallery.load(saved).people() == ["other"]


def test_a_gallery_of_another_recognizer_is_refused(saved):
    with pytest.raises(GdrdError, match=r"another recognizer \(ffffffffffff, not aaaaaaaaaaaa\)"):
        Gallery.load(saved, "a" * 64)
    assert len(Gallery.load(saved)) == FACES


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"format": 9}', STRANGE])
def test_what_is_no_gallery_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "gallery.json").write_text(text)
    with pytest.raises(GdrdError, match="holds no gallery.json of a gallery"):
        Gallery.load(tmp_path)
    with pytest.raises(GdrdError, match="there is no gallery '.*missing'; gdrd enroll"):
        Gallery.load(tmp_path / "missing")


@pytest.mark.parametrize("name", ["embeddings.f32", "faces.jsonl", "starts.i64", "axes.npy", "codes.faiss"])
def test_files_cut_short_or_missing_are_noticed(tmp_path, coded, name):
    numbered(embeddings(600)).save(tmp_path)
    file = next(tmp_path.glob(f"gallery.*/{name}"))
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(GdrdError, match=f"damaged: .*{name} has .* bytes of"):
        Gallery.load(tmp_path)
    file.unlink()
    with pytest.raises(GdrdError, match=f"damaged: .*{name} is missing"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("name", ["axes.npy", "codes.faiss"])
def test_other_contents_of_the_same_size_are_noticed_on_loading(tmp_path, coded, name):
    numbered(embeddings(600)).save(tmp_path)
    file = next(tmp_path.glob(f"gallery.*/{name}"))
    file.write_bytes(b"?" * file.stat().st_size)
    with pytest.raises(GdrdError, match="damaged: its axes and codes cannot be read"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "byte", "says"),
    [
        ("embeddings.f32", b"\xff", "not of unit length"),
        ("embeddings.f32", b"\0", "not of unit length"),
        ("faces.jsonl", b"?", "line 1 of faces.jsonl"),
        ("starts.i64", b"\xff", "line 1 of faces.jsonl"),
    ],
)
def test_other_contents_of_the_same_size_are_noticed_on_searching(saved, name, byte, says):
    file = next(saved.glob(f"gallery.*/{name}"))
    file.write_bytes(byte * file.stat().st_size)
    with pytest.raises(GdrdError, match=f"{saved} is damaged: .*{says}"):
        Gallery.load(saved).search(embeddings(1), 1)


@pytest.mark.parametrize("step", ["embeddings", "manifest", "codes"])
def test_a_failed_save_leaves_the_old_gallery(saved, monkeypatch, coded, step):
    def fail(*_):
        raise OSError(28, "No space left on device")

    if step == "embeddings":
        monkeypatch.setattr(Gallery, "blocks", fail)
    elif step == "codes":
        monkeypatch.setattr(Gallery, "_write_codes", fail)
    else:
        monkeypatch.setattr(files.os, "replace", fail)
    gallery = Gallery.load(saved)
    gallery.add(embeddings(600, seed=2), ["new"] * 600)
    with pytest.raises(GdrdError, match="could not be written.*No space left"):
        gallery.save(saved)
    assert len(list(saved.glob("gallery.*/"))) == 1
    assert len(Gallery.load(saved)) == FACES


def _die_while_saving(folder):
    gallery = Gallery.load(folder)
    gallery.add(embeddings(1, seed=2), ["new"])
    module.write_json = lambda *_: os._exit(9)  # all else is written then
    gallery.save(folder)


def test_a_killed_save_leaves_the_old_gallery_and_the_next_one_cleans_up(saved):
    process = multiprocessing.get_context("fork").Process(target=_die_while_saving, args=(saved,))
    process.start()
    process.join()
    assert process.exitcode == 9 and len(list(saved.glob("gallery.*/"))) == 2
    assert len(Gallery.load(saved)) == FACES
    made().save(saved)
    assert len(list(saved.glob("gallery.*/"))) == 1 and len(Gallery.load(saved)) == FACES


def test_two_do_not_save_in_one_folder_at_once(saved):
    with files.locked(saved), pytest.raises(GdrdError, match="another run is working in"):
        made().save(saved)
    assert len(Gallery.load(saved)) == FACES


def test_a_gallery_that_is_saved_while_it_is_opened_is_opened(saved, monkeypatch):
    """The other process replaces it after the manifest was read."""
    read, calls = module._manifest, []

    def and_save(folder):
        manifest = read(folder)
        if not calls:
            calls.append(1)
            made(embeddings(5)).save(saved)
        return manifest

    monkeypatch.setattr(module, "_manifest", and_save)
    assert len(Gallery.load(saved)) == 5


def test_many_threads_search_at_once(tmp_path, coded):
    values = embeddings(2000)
    numbered(values).save(tmp_path)
    gallery, barrier = Gallery.load(tmp_path), threading.Barrier(4)

    def search(number):
        barrier.wait()
        return [gallery.search(values[row : row + 1], 1)[0][0].metadata["row"] for row in range(number, 200, 4)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search, range(4))) == [list(range(number, 200, 4)) for number in range(4)]


def test_an_empty_gallery_is_neither_searched_nor_saved(tmp_path):
    gallery = Gallery(DIM, "f")
    assert len(gallery) == 0 and gallery.people() == [] and len(gallery.templates()) == 0
    with pytest.raises(GdrdError, match="the gallery is empty"):
        gallery.search(embeddings(1))
    with pytest.raises(GdrdError, match="the gallery is empty"):
        gallery.save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    "values", [embeddings(2, DIM + 1), embeddings(2)[0], embeddings(2)[None], np.ones((2, DIM), int)]
)
def test_other_shapes_and_types_are_refused(values):
    gallery = made()
    for use in (lambda: gallery.add(values, ["a", "b"]), lambda: gallery.search(values)):
        with pytest.raises(GdrdError, match=r"embeddings are .*; give float \[N, 16\]"):
            use()
    assert len(gallery) == FACES


@pytest.mark.parametrize("factor", [0, 0.9, 1.1, np.nan, np.inf])
def test_embeddings_not_of_unit_length_are_refused(factor):
    values, gallery = embeddings(3), made()
    values[1] *= factor
    for use in (lambda: gallery.add(values, list("abc")), lambda: gallery.search(values)):
        with pytest.raises(GdrdError, match="embedding 1 has length"):
            use()
    assert len(gallery) == FACES


@pytest.mark.parametrize(
    ("ids", "metadata", "says"),
    [
        (["a"], None, "2 embeddings, 1 ids and 1 dicts"),
        (["a", "b"], [{}], "2 embeddings, 2 ids and 1 dicts"),
        (["a", 7], None, "face 1 has the id 7"),
        (["a", "b"], [{}, "x.jpg"], "face 1 has the id 'b' and the metadata 'x.jpg'"),
        (["a", "b"], [{}, {"x": {1}}], r"metadata of face 1 \(b\) cannot be written as JSON"),
    ],
)
def test_other_ids_and_metadata_are_refused(ids, metadata, says):
    gallery = made()
    with pytest.raises(GdrdError, match=says):
        gallery.add(embeddings(2), ids, metadata)
    assert len(gallery) == FACES


def test_less_than_one_match_is_refused():
    with pytest.raises(GdrdError, match="k is 0"):
        made().search(embeddings(1), 0)


def test_a_gallery_may_be_moved(saved, tmp_path):
    shutil.move(saved, tmp_path / "moved")
    assert Gallery.load(tmp_path / "moved").search(embeddings(1), 1)[0][0].id == "p0"
    assert json.loads((tmp_path / "moved" / "gallery.json").read_text())["faces"] == FACES

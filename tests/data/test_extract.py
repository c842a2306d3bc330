"""One store, filled by one process or several, interrupted or not."""

import dataclasses
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import jpeg, raises

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import BlockReader, Extraction, _loaded_ahead, extract, verify, view_loader
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import CHUNK_ROWS, FeatureStore
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.data.readers import open_faces
from gdrd_jax.utils.launch import ProcessInfo

ROWS = 5 * CHUNK_ROWS + 7


class Killed(Exception):
    pass


def job(path, *, seconds=0.0, killed_at=None, views=2, wrong=()):
    """Row r of view v is [100 v + r, v]; `calls` are the pieces it computed."""
    store = FeatureStore.create(path, rows=ROWS, views=views, shape=(2,), dtype="float32", provenance={})
    calls = []

    def load(view, rows):
        return np.array([[100 * view + row, view] for row in rows], float)

    def compute(values):
        if len(calls) == killed_at:
            raise Killed
        calls.append(values[0].tolist())
        time.sleep(seconds)
        return values + np.isin(values[:, :1], wrong)

    made = Extraction(store, load, compute, "test")
    return made, calls


def values():
    return np.array([[[100 * view + row, view] for view in range(2)] for row in range(ROWS)])


def test_every_piece_is_computed_once(tmp_path, caplog):
    caplog.set_level("INFO")
    made, calls = job(tmp_path / "c")
    extract(made)
    assert len(calls) == 12 and f"{2 * ROWS} faces" in caplog.text
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read_all(), values())
    extract(made)
    assert len(calls) == 12


def test_a_killed_one_goes_on(tmp_path):
    made, calls = job(tmp_path / "c", killed_at=5)
    with pytest.raises(Killed):
        extract(made)
    again, more = job(tmp_path / "c")
    extract(again)
    assert len(calls) == 5 and len(more) == 7 and not [call for call in more if call in calls]
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read_all(), values())


def test_ranks_share_the_work(tmp_path):
    jobs = [job(tmp_path / "c", seconds=0.05) for _ in range(3)]
    threads = [
        threading.Thread(target=extract, args=(jobs[i][0],), kwargs={"process": ProcessInfo(i, 3)}) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read_all(), values())
    counts = [len(calls) for _, calls in jobs]
    # Each has four pieces of its own; loading ahead may make it take one that another has just begun.
    assert 12 <= sum(counts) <= 12 + 3 and min(counts) >= 4


def test_a_rank_alone_does_the_work_of_those_that_died(tmp_path):
    made, calls = job(tmp_path / "c", killed_at=1)
    with pytest.raises(Killed):
        extract(made, process=ProcessInfo(0, 2))
    other, more = job(tmp_path / "c")
    extract(other, process=ProcessInfo(1, 2))
    assert len(calls) == 1 and len(more) == 11
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read_all(), values())


def test_verifying_computes_rows_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gdrd_jax.data.extract.VERIFIED", ROWS)
    caplog.set_level("INFO")
    extract(job(tmp_path / "c")[0])
    verify(job(tmp_path / "c")[0])
    assert f"{ROWS} rows of each of 2 views computed again differ by at most 0.0e+00" in caplog.text
    with raises("targets-not-reproduced", "view 1 of face 1280", " 0.001 "):
        monkeypatch.setattr("gdrd_jax.data.extract.FURTHEST", 0.0005)
        verify(job(tmp_path / "c", wrong=[1380])[0])


def test_verifying_reads_every_chunk(tmp_path):
    extract(job(tmp_path / "c")[0])
    file = next((tmp_path / "c").glob("view1.*")) / "3.0"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with raises("targets-damaged", "view 1"):
        verify(job(tmp_path / "c")[0])


def made_faces(folder, count):
    for row in range(count):
        path = folder / f"p{row % 2}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(row % 250))
    return open_faces(folder)


def test_all_views_at_both_sizes_are_made_from_one_read_of_a_face(tmp_path, monkeypatch):
    count = 2 * CHUNK_ROWS + 3
    faces = made_faces(tmp_path / "faces", count)
    views, reads, read = dataclasses.replace(Views.plain(16, "area"), count=3, shift=4.0), [], Faces.read
    monkeypatch.setattr(Faces, "read", lambda faces, row: reads.append(row) or read(faces, row))
    reader, jobs = BlockReader(faces), []
    for low, used in ((True, 3), (False, 2)):  # one store may have fewer views
        size = 16 if low else 112
        store = FeatureStore.create(
            tmp_path / f"{size}", rows=count, views=used, shape=(size, size, 3), dtype="uint8", provenance={"faces": ""}
        )
        jobs.append(Extraction(store, view_loader(reader, views, low=low), None, f"{size}"))
    extract(*jobs)
    assert sorted(reads) == list(range(count))
    high = views.augment(faces[300], 300, 1)
    np.testing.assert_array_equal(jobs[1].store.read(1)[300], high)
    np.testing.assert_array_equal(jobs[0].store.read(1)[300], views.degrade(high, 300, 1))
    assert not any(job.store.missing() for job in jobs)


def test_each_view_of_mixup_images_is_read_once_for_all_stores(tmp_path):
    faces = MixupFaces((made_faces(tmp_path / "faces", 6),), 5, seed=1)
    views, reader = dataclasses.replace(Views.plain(16, "area"), count=2), BlockReader(faces)
    first = reader.read(0, (0, 3))
    assert reader.read(0, (0, 3)) is first and reader.read(1, (0, 3)) is not first
    low = view_loader(reader, views, low=True)(1, [0, 3])
    np.testing.assert_array_equal(low[1], views.degrade(views.augment(faces.of_view(1)[3], 3, 1), 3, 1))


def test_jobs_of_one_pass_are_continued_each_where_it_was(tmp_path, caplog):
    caplog.set_level("INFO")
    (first, calls), (second, stopped) = job(tmp_path / "a"), job(tmp_path / "b", killed_at=3)
    with pytest.raises(Killed):
        extract(first, second)
    assert len(calls) == 4 and len(stopped) == 3
    (first, more), (second, rest) = job(tmp_path / "a"), job(tmp_path / "b")
    extract(first, second)
    assert len(calls) + len(more) == len(stopped) + len(rest) == 12
    for name in ("a", "b"):
        np.testing.assert_array_equal(FeatureStore.open(tmp_path / name).read_all(), values())
    extract(first, second)
    assert len(more) == 8


def test_ranks_share_the_work_of_several_jobs(tmp_path):
    jobs = [(job(tmp_path / "a"), job(tmp_path / "b")) for _ in range(2)]
    for rank in (1, 0):  # one after the other: the first does the share of the second, too
        extract(*(made for made, _ in jobs[rank]), process=ProcessInfo(rank, 2))
    assert [len(calls) for _, calls in jobs[1]] == [12, 12] and [len(calls) for _, calls in jobs[0]] == [0, 0]
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "b").read_all(), values())


def test_a_process_takes_all_views_of_the_same_rows(tmp_path):
    made, other = job(tmp_path / "c", views=3)[0], job(tmp_path / "d", views=1)[0]
    missing = [set(made.store.missing()), set(other.store.missing())]
    with ThreadPoolExecutor(1) as ahead:
        order = itertools.islice(_loaded_ahead([made, other], missing, ProcessInfo(1, 2), ahead), 12)
        assert [(number, view, rows.start // CHUNK_ROWS) for number, view, rows, _ in order] == [
            (number, view, block) for block in (1, 3, 5) for number, view in ((0, 0), (1, 0), (0, 1), (0, 2))
        ]

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
from gdrd_jax.data.extract import Extraction, _loaded_ahead, extract, verify, view_loader
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import CHUNK_ROWS, FeatureStore
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
    threads = [threading.Thread(target=extract, args=(jobs[i][0], ProcessInfo(i, 3))) for i in range(3)]
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
        extract(made, ProcessInfo(0, 2))
    other, more = job(tmp_path / "c")
    extract(other, ProcessInfo(1, 2))
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


@pytest.mark.parametrize("low", (True, False))
def test_all_views_of_a_face_are_made_from_one_read(tmp_path, monkeypatch, low):
    count, size = 2 * CHUNK_ROWS + 3, 16 if low else 112
    for row in range(count):
        path = tmp_path / "faces" / f"p{row % 2}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(row % 250))
    faces = open_faces(tmp_path / "faces")
    views, reads, read = dataclasses.replace(Views.plain(16, "area"), count=3, shift=4.0), [], Faces.read
    monkeypatch.setattr(Faces, "read", lambda faces, row: reads.append(row) or read(faces, row))
    shape = (size, size, 3)
    store = FeatureStore.create(
        tmp_path / "c", rows=count, views=3, shape=shape, dtype="uint8", provenance={"faces": ""}
    )
    extract(Extraction(store, view_loader(faces, views, low=low), None, "views"))
    assert sorted(reads) == list(range(count))
    high = views.augment(faces[300], 300, 2)
    np.testing.assert_array_equal(store.read(2)[300], views.degrade(high, 300, 2) if low else high)


def test_a_process_takes_all_views_of_the_same_rows(tmp_path):
    made, _ = job(tmp_path / "c", views=3)
    with ThreadPoolExecutor(1) as ahead:
        order = itertools.islice(_loaded_ahead(made, set(made.store.missing()), ProcessInfo(1, 2), ahead), 9)
        assert [(view, rows.start // CHUNK_ROWS) for view, rows, _ in order] == [
            (view, block) for block in (1, 3, 5) for view in range(3)
        ]

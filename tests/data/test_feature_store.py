import json
import multiprocessing
import resource
import shutil

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.data.feature_store import CHUNK_ROWS, FeatureStore, feature_statistics

ROWS = 2 * CHUNK_ROWS + 10
VALUES = np.float16(np.random.default_rng(0).normal(size=(2, ROWS, 3, 4)))


def create(path, **changes):
    settings = {
        "rows": ROWS,
        "views": 2,
        "shape": (3, 4),
        "dtype": "float16",
        "provenance": {"teacher": "a"},
        **changes,
    }
    return FeatureStore.create(path, **settings)


def write(store, chunks):
    for view, rows in chunks:
        store.write(view, rows, VALUES[view, rows.start : rows.stop])


@pytest.fixture
def finished(tmp_path):
    store = create(tmp_path / "c")
    write(store, store.chunks())
    return tmp_path / "c"


def test_reads_back_what_was_written(finished):
    store = FeatureStore.open(finished)
    np.testing.assert_array_equal(store.read(1), VALUES[1])
    np.testing.assert_array_equal(store.read(0, np.array([500, 3])), VALUES[0, [500, 3]])
    np.testing.assert_array_equal(store.read_all(), VALUES.transpose(1, 0, 2, 3))


def test_goes_on_where_it_was_killed(tmp_path):
    first = create(tmp_path / "c")
    write(first, list(first.chunks())[:2])
    again = create(tmp_path / "c")
    assert again.missing() == list(first.chunks())[2:]
    with raises("targets-unfinished", "4 of 6 pieces", "256-511 of view 0"):
        FeatureStore.open(tmp_path / "c")
    write(again, again.missing())
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read(0), VALUES[0])


def test_pieces_come_in_any_order_from_several_writers(tmp_path):
    writers = [create(tmp_path / "c") for _ in range(3)]
    for number, chunk in enumerate(reversed(list(writers[0].chunks()))):
        write(writers[number % 3], [chunk])
    write(writers[0], [(0, range(0, CHUNK_ROWS))])  # once more
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read_all(), VALUES.transpose(1, 0, 2, 3))


def test_is_opened_for_its_own_data_set_only(tmp_path):
    store = create(tmp_path / "c", provenance={"faces": "a", "teacher": "b"})
    write(store, store.chunks())
    FeatureStore.open(tmp_path / "c", faces="a")
    with raises("targets-other-faces", tmp_path / "c"):
        FeatureStore.open(tmp_path / "c", faces="b")


def test_a_store_of_an_earlier_version_is_read_and_continued(tmp_path):
    store = create(tmp_path / "c")
    write(store, list(store.chunks())[:2])
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made_from"] = manifest.pop("provenance")
    path.write_text(json.dumps(manifest))
    again = create(tmp_path / "c")
    assert again.missing() == list(again.chunks())[2:]
    write(again, again.missing())
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read(1), VALUES[1])
    # As version 0.4 named the arrays: an object store may have them.
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["manifest.json", "view0.7ccc4c46", "view1.7ccc4c46"]
    with raises("targets-other-source", "(provenance differ)"):
        create(tmp_path / "c", provenance={"teacher": "b"})


def test_refuses_a_store_of_something_else(finished):
    with raises("targets-other-source", "(provenance differ)"):
        create(finished, provenance={"teacher": "b"})


@pytest.mark.parametrize("value", [np.nan, 1e6])  # a million is infinite in float16
def test_refuses_values_that_are_not_finite(tmp_path, value):
    values = np.zeros((5, 3, 4))
    values[2, 1, 1] = value
    with raises("targets-not-finite", "view 0 of face 2"):
        create(tmp_path / "n", rows=5).write(0, range(5), values)


def test_refuses_a_folder_that_is_no_store(tmp_path):
    for text in (None, "", "{}", '{"format": 1, "rows": 1, "views": 1, "shape": [], "dtype": "f4", "provenance": {}}'):
        if text is not None:
            (tmp_path / "manifest.json").write_text(text)
        with raises("targets-manifest", tmp_path, "manifest.json"):
            FeatureStore.open(tmp_path)


def _create_when_told(path, barrier, failures):
    for number in range(20):
        barrier.wait()
        try:
            create(path / str(number))
        except Exception as error:
            failures.put(repr(error))


def test_any_number_of_processes_may_begin_it_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    failures, barrier = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_create_when_told, args=(tmp_path, barrier, failures)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(list(tmp_path.iterdir())) == 20
    assert failures.empty(), failures.get()


def test_what_an_older_run_left_behind_goes_on_writing_is_not_taken(tmp_path):
    """Rank 0 was killed and the store started again with another teacher, while another rank still works."""
    orphan = create(tmp_path / "c", provenance={"teacher": "old"})
    shutil.rmtree(tmp_path / "c")
    store = create(tmp_path / "c", provenance={"teacher": "new"})
    orphan.write(0, range(CHUNK_ROWS), -VALUES[0, :CHUNK_ROWS])
    assert len(store.missing()) == 6
    write(store, store.missing())
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read(0), VALUES[0])


def first_chunk(path):
    return next(path.glob("view0.*")) / "0.0.0"


def test_a_flipped_bit_is_noticed(finished):
    data = bytearray(first_chunk(finished).read_bytes())
    data[100] ^= 1
    first_chunk(finished).write_bytes(data)
    with raises("targets-damaged", "view 0"):
        FeatureStore.open(finished).read(0)


def test_a_missing_or_shortened_chunk_is_noticed_and_written_again(finished):
    for spoil in (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-9])):
        spoil(first_chunk(finished))
        with raises("targets-unfinished", "1 of 6 pieces", "0-255 of view 0"):
            FeatureStore.open(finished)
        store = create(finished)
        write(store, store.missing())
        np.testing.assert_array_equal(FeatureStore.open(finished).read(0), VALUES[0])


def test_a_chunk_that_goes_while_it_is_read_is_no_zeros(finished):
    store = FeatureStore.open(finished)
    first_chunk(finished).unlink()
    with raises("targets-damaged", "view 0"):
        store.read(0)


def test_a_chunk_of_zeros_is_stored(tmp_path):
    store = create(tmp_path / "z", rows=5, views=1)
    store.write(0, range(5), np.zeros((5, 3, 4)))
    assert not FeatureStore.open(tmp_path / "z").read(0).any()


def test_a_disk_without_room_is_told_and_what_is_there_stays(tmp_path):
    """A limit on the size of files stands for a full disk."""
    store = create(tmp_path / "c", shape=(3, 400))
    write_zeros = lambda store, rows: store.write(0, rows, np.zeros((len(rows), 3, 400)))  # noqa: E731
    write_zeros(store, range(CHUNK_ROWS))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with raises("not-written", tmp_path / "c", "File too large", "ulimit -f"):
            write_zeros(store, range(CHUNK_ROWS, 2 * CHUNK_ROWS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.has(0, range(CHUNK_ROWS)) and not store.has(0, range(CHUNK_ROWS, 2 * CHUNK_ROWS))
    write_zeros(store, range(CHUNK_ROWS, 2 * CHUNK_ROWS))
    assert not store.read(0, slice(0, 2 * CHUNK_ROWS)).any()


def test_statistics_of_features_are_those_of_the_whole_array(tmp_path):
    store = create(tmp_path / "s", shape=(3, 2, 2))
    random = np.random.default_rng(1)
    values = random.normal(3, [[[1]], [[2]], [[0]]], size=(2, ROWS, 3, 2, 2)) + random.normal(size=(3, 2, 2))
    values = np.float16(values)
    for view, rows in store.chunks():
        store.write(view, rows, values[view, rows.start : rows.stop])
    mean, std = feature_statistics(store)
    rest = np.float64(values) - np.float64(values).mean(axis=(0, 1))
    np.testing.assert_allclose(mean, np.float64(values).mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(std, np.sqrt((rest**2).mean(axis=(0, 1, 3, 4))), rtol=1e-4, atol=1e-6)

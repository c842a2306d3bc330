import shutil

import numpy as np
import pytest

from gdrd_jax.data.targets import CHUNK_ROWS, Cache, channel_statistics
from gdrd_jax.errors import GdrdError

ROWS = 2 * CHUNK_ROWS + 10
VALUES = np.float16(np.random.default_rng(0).normal(size=(2, ROWS, 3, 4)))


def create(path, **changes):
    settings = {"rows": ROWS, "views": 2, "shape": (3, 4), "dtype": "float16", "made_from": {"teacher": "a"}, **changes}
    return Cache.create(path, **settings)


def write_up_to(cache, view, stop):
    for start in range(cache.rows_done(view), stop, CHUNK_ROWS):
        cache.write(view, start, VALUES[view, start : min(start + CHUNK_ROWS, ROWS)])


@pytest.fixture
def finished(tmp_path):
    cache = create(tmp_path / "c")
    for view in (0, 1):
        write_up_to(cache, view, ROWS)
    return tmp_path / "c"


def test_reads_back_what_was_written(finished):
    cache = Cache.open(finished)
    np.testing.assert_array_equal(cache.read(1), VALUES[1])
    np.testing.assert_array_equal(cache.read(0, np.array([500, 3])), VALUES[0, [500, 3]])
    np.testing.assert_array_equal(cache.read_all(), VALUES.transpose(1, 0, 2, 3))


def test_goes_on_where_it_was_killed(tmp_path):
    write_up_to(create(tmp_path / "c"), 0, CHUNK_ROWS)
    again = create(tmp_path / "c")
    assert again.rows_done(0) == CHUNK_ROWS
    with pytest.raises(GdrdError, match="not finished"):
        Cache.open(tmp_path / "c")
    for view in (0, 1):
        write_up_to(again, view, ROWS)
    np.testing.assert_array_equal(Cache.open(tmp_path / "c").read(0), VALUES[0])


def test_refuses_a_cache_of_something_else(finished):
    with pytest.raises(GdrdError, match="something else"):
        create(finished, made_from={"teacher": "b"})


@pytest.mark.parametrize("value", [np.nan, 1e6])  # a million is infinite in float16
def test_refuses_values_that_are_not_finite(tmp_path, value):
    values = np.zeros((5, 3, 4))
    values[2, 1, 1] = value
    with pytest.raises(GdrdError, match="view 0 of face 2"):
        create(tmp_path / "n", rows=5).write(0, 0, values)


def test_refuses_a_folder_that_is_no_cache(tmp_path):
    with pytest.raises(GdrdError, match="manifest"):
        Cache.open(tmp_path)


def chunk_files(path):
    return [f for f in (path / "view0").rglob("*") if f.is_file() and f.name != "zarr.json"]


def test_a_flipped_bit_is_noticed(finished):
    file = chunk_files(finished)[0]
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(GdrdError, match="damaged"):
        Cache.open(finished).read(0)


def test_a_missing_chunk_is_noticed(finished):
    chunk_files(finished)[0].unlink()
    with pytest.raises(GdrdError, match="damaged"):
        Cache.open(finished).read(0)


def test_a_chunk_of_zeros_is_stored(tmp_path):
    cache = create(tmp_path / "z", rows=5, views=1)
    cache.write(0, 0, np.zeros((5, 3, 4)))
    assert not Cache.open(tmp_path / "z").read(0).any()
    shutil.rmtree(tmp_path / "z" / "view0")
    with pytest.raises(GdrdError, match="damaged"):
        Cache.open(tmp_path / "z").read(0)


def test_statistics_of_channels_are_those_of_the_whole_array(tmp_path):
    cache = create(tmp_path / "s", shape=(3, 2, 2))
    values = np.float16(np.random.default_rng(1).normal(3, [[[1]], [[2]], [[0]]], size=(2, ROWS, 3, 2, 2)))
    for view in (0, 1):
        for start in range(0, ROWS, CHUNK_ROWS):
            cache.write(view, start, values[view, start : start + CHUNK_ROWS])
    mean, std = channel_statistics(cache)
    np.testing.assert_allclose(mean, np.float64(values).mean(axis=(0, 1, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(std, np.float64(values).std(axis=(0, 1, 3, 4)), rtol=1e-4, atol=1e-6)

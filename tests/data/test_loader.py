import os
import time

import numpy as np
import pytest

from gdrd_jax.data.loader import batch_rows, in_parallel


def test_a_batch_does_not_depend_on_where_reading_began():
    rows, views = batch_rows(7, range(0, 20), 6, 10, 4)
    late_rows, late_views = batch_rows(7, range(13, 20), 6, 10, 4)
    np.testing.assert_array_equal(rows[13:], late_rows)
    np.testing.assert_array_equal(views[13:], late_views)


def test_every_epoch_visits_every_face_once_in_a_new_order():
    rows, views = batch_rows(7, range(0, 10), 6, 10, 4)
    epochs = rows.reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(np.unique(views)) == {0, 1, 2, 3}


def test_seeds_differ():
    assert not np.array_equal(batch_rows(7, range(5), 6, 10, 4)[0], batch_rows(8, range(5), 6, 10, 4)[0])


def test_results_come_in_order_and_an_error_where_it_happened():
    def slow(number):
        if number == 70:
            raise ValueError("70")
        time.sleep(0.001 * (number % 5))
        return number

    assert list(in_parallel(slow, range(70))) == list(range(70))
    assert list(in_parallel(slow, (5, 3, 69))) == [5, 3, 69] and list(in_parallel(slow, [])) == []
    found = []
    with pytest.raises(ValueError, match="70"):
        found.extend(in_parallel(slow, range(60, 200)))


def test_no_more_is_computed_ahead_than_is_taken():
    computed = []
    results = in_parallel(computed.append, range(100_000))
    next(results)
    results.close()
    time.sleep(0.2)
    assert len(computed) < 1000 + 64 * os.cpu_count()

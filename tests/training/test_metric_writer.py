"""What is shown of a training while it runs."""

import numpy as np

from gdrd_jax.training.metric_writer import Logbook


def test_the_time_of_compiling_is_not_in_the_speed(tmp_path):
    with Logbook(tmp_path, "stage", 10, 4, 0, []) as log:
        log._progress.start_t -= 1000  # the first step took so long
        log._progress.last_print_t -= 1000
        log.add(range(1), {"loss": np.ones(1)})
        assert "img/s" not in log._progress.postfix and log._progress.format_dict["elapsed"] < 500
        log._progress.start_t -= 100
        log.add(range(1, 2), {"loss": np.ones(1)})
        assert 100 <= log._progress.format_dict["elapsed"] < 500

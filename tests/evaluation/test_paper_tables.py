"""The paper's figures, and the catalog of methods."""

import numpy as np
import pytest

from gdrd_jax.evaluation import paper_tables
from gdrd_jax.evaluation.methods import METHODS, SUPER_RESOLUTION
from gdrd_jax.registry import protocols


def test_the_tables_have_as_many_rows_as_in_the_paper():
    of_tables = {}
    for row in (row for rows in paper_tables.TABLES.values() for row in rows):
        of_tables.setdefault(row.table, []).append(row)
    assert {table: len(rows) for table, rows in of_tables.items()} == {
        "I": 16, "figure 3": 5, "II": 11, "III-D": 2, "III": 9, "IV": 7,
    }  # fmt: skip
    assert all(0 < value < 100 for rows in of_tables.values() for row in rows for value in row.figures.values())
    for table in ("I", "II", "III", "IV"):  # the paper's own is the best of each
        best = np.max([list(row.figures.values()) for row in of_tables[table]], axis=0)
        assert list(best) == list(of_tables[table][-1].figures.values()) and of_tables[table][-1].method == "gdrd"


@pytest.mark.parametrize(
    ("asked", "figures"),
    [
        (("lfw",), {"accuracy": 96.13}), (("lfw", "gdrd", 8), {}), (("uccs", "gdrd", 8), {"accuracy": 86.17}),
        (("tinyface", "srw"), {"rank_1": 49.25, "rank_5": 58.49, "rank_10": 61.23}), (("bin",), {}),
        (("lfw", "sr"), {"accuracy": 93.30}), (("ar", "cosface"), {}),
    ],
)  # fmt: skip
def test_figures_are_found_by_protocol_method_and_resolution(asked, figures):
    assert paper_tables.figures(*asked) == figures


def test_what_the_notes_say_of_the_figures_holds():
    lfw = {row.method: row.figures["accuracy"] for row in paper_tables.LFW}
    assert lfw["rpcl"] == round((94.70 + 95.13 + 95.12) / 3, 2) and lfw["crrcd"] == lfw["dis"]
    assert lfw["gdrd"] == lfw["gen_dis"]


def test_metrics_are_those_of_the_protocols():
    for name, rows in paper_tables.TABLES.items():
        columns = {column for row in rows for column in row.figures}
        assert columns <= set(protocols[name].columns), name


def test_every_method_of_the_tables_that_can_be_trained_is_in_the_catalog():
    reported = {method.reported or name for name, method in (METHODS | SUPER_RESOLUTION).items()}
    named = {row.method for rows in paper_tables.TABLES.values() for row in rows if row.table != "figure 3"}
    assert named - reported == {"tinyface_baseline"}
    assert METHODS["skd"].title == "SKD (our reading)" and METHODS["crd"].title == "CRD"

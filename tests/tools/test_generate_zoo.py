"""The generated parts of docs/zoo.md."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import generate_zoo  # noqa: E402

from gdrd_jax.evaluation import grid_rows  # noqa: E402
from gdrd_jax.evaluation.grid_rows import DEV, Judged, Row


def test_the_methods_and_notes_of_the_page_are_up_to_date():
    now = generate_zoo.PAGE.read_text(encoding="utf-8")
    new = generate_zoo.replaced(now, "methods", generate_zoo.methods())
    assert generate_zoo.replaced(new, "notes", generate_zoo.notes()) == now, "run: python tools/generate_zoo.py"
    with pytest.raises(ValueError, match="other: begin"):
        generate_zoo.replaced(now, "other", "")


def test_the_table_is_of_the_stored_rows(tmp_path):
    nothing = grid_rows.read_rows([tmp_path])
    assert (generate_zoo.results(nothing), generate_zoo.logs(nothing)) == ((generate_zoo.NONE, None), generate_zoo.NONE)
    people = np.arange(40).reshape(20, 2)
    log = {"100": {"cls": 5.0, "loss": 7.5, "wavelet": 2.5}, "20": {"cls": 9.0, "loss": 9.0, "wavelet": 0.0}}
    assert generate_zoo.degraded(nothing) == generate_zoo.NONE
    for name, share in (("wave", 0.5), ("cosine", 0.9)):
        right = np.arange(20) < 20 * share
        about = {"resolution": 16, "core_seconds": 60.0, **({"log": {"dis": log}} if name == "wave" else {})}
        Row(name, 7, {DEV: Judged(right, people, "pairs")}, about).save(tmp_path)
    rows = grid_rows.read_rows([tmp_path])
    table, picture = generate_zoo.results(rows)
    assert "WaveResNet (our reading) `wave`" in table and "-40.00" in table and "93.94" in table and picture
    assert table.index("`cosine`") < table.index("`wave`")  # the most accurate first
    assert generate_zoo.degraded(rows) == table.removesuffix(generate_zoo.SHOWN)
    shown = "| `wave` | dis | 20: cls 9, wavelet 0 | 100: cls 5, loss 7.5, wavelet 2.5 |"
    assert shown in generate_zoo.logs(rows) and "cosine" not in generate_zoo.logs(rows)


def test_the_noise_of_training_is_the_deviation_over_seeds(tmp_path):
    assert generate_zoo.noise({}) == generate_zoo.NONE
    people = np.arange(40).reshape(20, 2)
    for name, seed, number in (("kd", 7, 10), ("kd", 8, 14), ("cosine", 7, 12), ("cosine", 8, 12), ("cls", 7, 3)):
        judged = {DEV: Judged(np.arange(20) < number, people, "pairs"), "ar": Judged(np.ones(20, bool), people, "x")}
        Row(name, seed, judged).save(tmp_path)
    text = " ".join(generate_zoo.noise(grid_rows.read_rows([tmp_path])).split())
    deviation = np.sqrt(np.mean([np.var([50, 70], ddof=1), 0]))
    assert f": {deviation:.1f} ({DEV}), 0.0 (ar)." in text and "from 2 methods" in text


def test_the_best_rate_of_each_method_is_compared(tmp_path):
    assert generate_zoo.rates(grid_rows.read_rows([tmp_path])) == generate_zoo.NONE
    people = np.arange(40).reshape(20, 2)
    right = {"cosine-0.008": 18, "cosine-0.0027": 16, "arcface-0.008": 4, "arcface-0.0027": 12, "arcface-0.024": 8}
    for name, number in right.items():
        Row(name, 7, {DEV: Judged(np.arange(20) < number, people, "pairs")}, {"resolution": 16}).save(tmp_path)
    table = generate_zoo.rates(grid_rows.read_rows([tmp_path]))
    heading, _, arcface, cosine = (line.strip("| ").split(" | ") for line in table.splitlines())
    assert heading == ["name", "0.0027", "0.008", "0.024", "the best (95 %)", "against cosine"]
    assert arcface[:4] == ["ArcFace `arcface`", "60.00", "20.00", "40.00"]
    assert arcface[4].startswith("60.00 (") and arcface[5].startswith("-30.00 (-")
    assert cosine[:3] == ["Cosine `cosine`", "80.00", "90.00"] and cosine[-1].startswith("90.00 (")


def test_each_resolution_is_compared_on_its_own(tmp_path):
    assert generate_zoo.resolutions(grid_rows.read_rows([tmp_path])) == generate_zoo.NONE
    people = np.arange(40).reshape(20, 2)
    for name, number in {"kd-8": 13, "cosine-8": 10, "cosine-16": 18, "kd-16": 16, "cosine-32": 19}.items():
        about = {"resolution": int(name.split("-")[1])}
        Row(name, 7, {DEV: Judged(np.arange(20) < number, people, "pairs")}, about).save(tmp_path)
    table = generate_zoo.resolutions(grid_rows.read_rows([tmp_path]))
    heading, _, cosine, kd = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert heading[1:3] == ["8x8 pixels, % (95 %)", "against cosine"] and heading[5] == "32x32 pixels, % (95 %)"
    assert [cell.partition(" (")[0] for cell in cosine[1:]] == ["50.00", "", "90.00", "", "95.00", ""]
    assert [cell.partition(" (")[0] for cell in kd[1:]] == ["65.00", "+15.00", "80.00", "-10.00", "", ""]

import argparse
import json

import pytest
from conftest import raises

from gdrd_jax.benchmarks import train
from gdrd_jax.teachers import torch_student


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs the benchmark and gives its rows."""
    monkeypatch.setattr(train, "SECONDS", 0.01)
    monkeypatch.setattr(train, "SIZES", (64, 200))

    def run(*flags):
        out = tmp_path / "rows.json"
        common = ["--width", "0.0625", "--batch", "8", "--repeats", "2", "--faces", "64", "--out", str(out)]
        train.work(train.arguments([*common, *flags]))
        return json.loads(out.read_text())["rows"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "stages"), [(("--stage", "gen"), ("gen",)), ((), ("gen", "dis"))])
def test_both_compute_the_same_and_are_timed(run, capsys, flags, stages):
    rows = run(*flags)
    assert [(row["stage"], row["contender"]) for row in rows] == [
        (stage, contender) for stage in stages for contender in ("gdrd_jax", "PyTorch eager")
    ]
    for row in rows:
        assert row["loss_difference"] < 1e-4
        assert row["lowest"] <= row["images_per_second"] <= row["highest"]
        assert row["share_of_peak"] == pytest.approx(
            row["gflops_an_image"] * row["images_per_second"] / row["peak_gflops"]
        )
    assert "PyTorch eager" in capsys.readouterr().out


@pytest.mark.slow
def test_another_loss_is_refused(run, monkeypatch):
    right = torch_student.Gen.forward
    monkeypatch.setattr(torch_student.Gen, "forward", lambda *a: 1.01 * right(*a))
    with raises("losses-differ", "stage gen"):
        run("--stage", "gen")


@pytest.mark.slow  # compiles the full width
def test_operations_are_those_of_the_convolutions_and_products():
    args = argparse.Namespace(width=1.0, precision="float32")
    data = train.synthetic("gen", 8, 1.0)

    def macs(size, stride, inputs, outputs):  # taps that fall on the border of zeros do not count
        taps = 3 * size - 2 if stride == 1 else 3 * size // 2 - 1
        return taps**2 * inputs * outputs

    stem, shortcuts = macs(16, 1, 3, 128), 8**2 * 128 * 256 + 4**2 * 256 * 512
    rest = 4 * macs(16, 1, 128, 128) + macs(16, 2, 128, 256) + 3 * macs(8, 1, 256, 256)
    rest += macs(8, 2, 256, 512) + 3 * macs(4, 1, 512, 512) + shortcuts
    # Forward, the input's and the weights' gradients; pixels have none. A few per cent are not products.
    assert train.ours("gen", data, args, 4).flops() == pytest.approx(2 * (3 * rest + 2 * stem), rel=0.04)


@pytest.mark.slow
def test_sizes_are_swept(run):
    rows = run("--sweep")
    assert [(row["faces"], row["devices"]) for row in rows] == [(64, 1), (200, 1)]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "needs more" in run("--sweep", "--gib", "0")[0]["skipped"]

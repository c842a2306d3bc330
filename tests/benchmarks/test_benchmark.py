"""`gdrd benchmark` finds every benchmark, and the earlier commands still work."""

import sys

import forked
import pytest

from gdrd_jax.cli import benchmark


@pytest.mark.parametrize("name", benchmark.NAMES)
def test_every_benchmark_has_a_help_under_its_own_name(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gdrd"])
    with pytest.raises(SystemExit) as stop:
        benchmark.main([name, "--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"usage: gdrd benchmark {name} [-h]")


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys):
    assert benchmark.main(["speed"]) == 2
    error = capsys.readouterr().err
    assert "[command-usage]" in error and "speed" in error and all(name in error for name in benchmark.NAMES)


@pytest.mark.parametrize("tool", ["roofline", "benchmark_train", "benchmark_accelerator", "benchmark_gallery"])
def test_the_earlier_commands_are_wrappers(tool):
    script = f"import runpy; runpy.run_path('tools/{tool}.py', run_name='__main__')"
    done = forked.call("--help", program=script)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_the_roofline_is_printed(capsys):
    assert benchmark.main(["roofline", "--width", "0.5", "--batch", "96"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("16 pixels, width 0.5:") and out.count("H200, batch 96") == 1

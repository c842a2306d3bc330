"""docs/configuration.md says what gdrd_jax/config says."""

import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import generate_configuration  # noqa: E402

from gdrd_jax import config  # noqa: E402

SOURCE = textwrap.dedent(
    """
    def default():
        # Name of the training;
        # any text.
        config.name = "gdrd"  # Not empty.
        schedule = {
            "steps": 5,  # Training steps.
        }
        config.gen = Config(schedule)
        config.dis = Config(
            {
                **schedule,
                # Weight of a term.
                "cls": 0.0,
                "kd": 0.0,
            }
        )
    """
).strip()


def test_descriptions_are_the_comments_above_and_beside_a_setting():
    assert generate_configuration.descriptions(SOURCE) == {
        "name": "Name of the training; any text. Not empty.", "gen.steps": "Training steps.",
        "dis.steps": "Training steps.", "dis.cls": "Weight of a term.", "dis.kd": "",
    }  # fmt: skip


def test_the_committed_page_is_not_stale():
    now = generate_configuration.PAGE.read_text(encoding="utf-8")
    assert now == generate_configuration.page(now), "run: python tools/generate_configuration.py"


def test_every_setting_is_described_once():
    page = generate_configuration.tables()
    for name in config.keys(config.default()):
        rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        assert len(rows[0].rstrip(" |").rpartition("| ")[2]) > 8, f"{name} has no description in config.default()"


def test_a_changed_default_or_choice_makes_the_page_stale(monkeypatch):
    now = generate_configuration.PAGE.read_text(encoding="utf-8")
    monkeypatch.setitem(config.CHOICES, "until", ("gen", "dis", "report", "export"))
    assert "`export`" in generate_configuration.page(now) and "`export`" not in now


def test_a_stale_page_is_refused_and_written_anew(monkeypatch, tmp_path, capsys):
    page = tmp_path / "configuration.md"
    page.write_text(f"# Before\n{generate_configuration.BEGIN}\noutdated\n{generate_configuration.END}\nafter\n")
    monkeypatch.setattr(generate_configuration, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["generate_configuration.py", "--check"])
    assert generate_configuration.main() == 2
    assert "[configuration-stale]" in capsys.readouterr().err and "outdated" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["generate_configuration.py"])
    assert generate_configuration.main() == 0
    text = page.read_text()
    assert (
        text.startswith("# Before\n") and text.endswith("after\n") and "outdated" not in text and "`dis.steps`" in text
    )
    monkeypatch.setattr(sys, "argv", ["generate_configuration.py", "--check"])
    assert generate_configuration.main() == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("views.kernel", "`area`, `bicubic`"), ("gen.warmup", "at least 0, below 1"), ("dis.mixup", "0 to 1"),
        ("sr.steps", "at least 1"), ("dis.clip_norm", "above 0"), ("data.glob", ""),
        ("generative.input_size", "at least 0"),
    ],
)  # fmt: skip
def test_allowed_values_are_those_of_the_checks(name, values):
    assert generate_configuration.allowed(name) == values


def test_settings_of_teachers_are_on_the_page():
    tables = generate_configuration.tables()
    assert "| `pgdiff` | `heads` | `0` | number of attention heads" in tables
    assert "| `onnx` | `preprocessing` | `auto` |" in tables and "| `iresnet` | | | Weights of" in tables

"""What a run says of itself in the table of a grid."""

import json

from gdrd_jax.pipeline import run_record


def test_a_stage_is_logged_at_five_points_of_its_training(tmp_path):
    assert run_record.logged(tmp_path) == {}
    lines = [{"step": step, "cls": 1 / 3 + step, "loss": 2.0} for step in range(20, 121, 20)]
    judged = {"step": 120, "dev_accuracy": 0.5}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, judged])
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    found = run_record.logged(tmp_path)
    assert list(found) == ["20", "40", "60", "80", "120"]
    assert found["20"] == {"cls": 20.33, "loss": 2.0}
    first, rest = text.split("\n", 1)
    (tmp_path / "metrics.jsonl").write_text(first, encoding="utf-8")
    assert run_record.logged(tmp_path) == {"20": {"cls": 20.33, "loss": 2.0}}

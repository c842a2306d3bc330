"""The tool that packs a training set."""

import sys
from pathlib import Path

import numpy as np
from conftest import make_faces, tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gdrd_jax.cli import pack_training_set  # noqa: E402
from gdrd_jax.data import packed  # noqa: E402
from gdrd_jax.pipeline import runner  # noqa: E402
from gdrd_jax.pipeline.run import Run  # noqa: E402


def test_a_workdir_is_packed_without_those_who_choose_thresholds(faces_folder, tmp_path, capsys):
    config = tiny_config(faces_folder)
    config.data.unlabeled = str(make_faces(tmp_path / "more", people=2, images=2))
    runner.run(config, tmp_path / "w", ("discriminative",))
    files = [tmp_path / "a.packed", tmp_path / "b.packed"]
    assert pack_training_set.main([*map(str, (tmp_path / "w", *files))]) == 0
    found, train = packed.load(files), Run.open(tmp_path / "w").faces("train")
    learned = len(train.identities) - config.data.calibration_people
    assert len(found.labels) == 3 * learned + 4 and set(found.labels) == {-1, *range(learned)}
    target = Run.open(tmp_path / "w").store("discriminative", "train").read(0)[0].astype(np.float32)
    cosine = target @ found.targets.read(0)[0] / np.linalg.norm(target)
    assert cosine > 0.995  # of 128 numbers
    assert found.about["name"] == "sface"
    capsys.readouterr()
    for words, facts in {
        (tmp_path, tmp_path / "c"): ("is no workdir",),
        (tmp_path / "w", tmp_path / "w" / "config.json"): (tmp_path / "w" / "config.json", "[output-not-ours]"),
        (tmp_path / "w", tmp_path / "c", "--quality", "0"): ("a quality 1 to 100",),
    }.items():
        assert pack_training_set.main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert all(str(fact) in error for fact in facts) and error.count("\n") == 1

"""Stand-ins of benchmarks whose images are not here have their layouts."""

import sys
from pathlib import Path

import numpy as np
from made_faces import face, save

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_stand_ins  # noqa: E402

from gdrd_jax.data.readers import list_files  # noqa: E402
from gdrd_jax.evaluation import ijb, scface, survface  # noqa: E402


def test_stand_ins_have_these_layouts(tmp_path):
    for person in range(4):
        for image in range(4):
            save(tmp_path / "lfw" / f"P_{person}" / f"P_{person}_{image:04d}.png", face(person, image))
    lfw = list_files(tmp_path / "lfw")
    for make in (make_stand_ins.survface, make_stand_ins.scface, make_stand_ins.ijb):
        make(lfw, tmp_path / make.__name__)
    pairs = survface.SurvFacePairs.open(tmp_path / "survface")
    assert len(pairs.same) == 8 and len(survface.SurvFaceSearch.open(tmp_path / "survface").probes) == 4 + 8
    seen = scface.SCface.open(tmp_path / "scface", scface.SCface.Config(str(tmp_path / "scface" / "landmarks.txt")))
    assert sorted(seen.distances) == 4 * [0] + 4 * [1] + 4 * [2] + 4 * [3]
    found = ijb.IJBPairs.open(tmp_path / "ijb", ijb.IJBPairs.Config())
    assert (len(found.faces), len(found.first), found.same.sum()) == (16, 16, 4)
    aligned = found.faces[0].astype(int) - face(0)
    assert np.abs(aligned)[12:-12, 12:-12].mean() < 8
    assert len(ijb.IJBSearch.open(tmp_path / "ijb", ijb.IJBSearch.Config(2)).gallery) == 2

"""TinyFace's own crops, and AdaFace's, which are aligned."""

from conftest import raises
from made_faces import face, save

from gdrd_jax.evaluation import tinyface


def tiny_crops(root, size):
    for person in range(1, 4):
        save(root / "Probe" / f"{person}_1.jpg", face(person, 1, size))
        save(root / "Gallery_Match" / f"{person}_2.jpg", face(person, 2, size))
    save(root / "Gallery_Distractor" / "1.jpg", face(9, 0, size))
    return root


def test_tinyfaces_own_crops_and_adafaces_are_told_apart(tmp_path):
    own, aligned = tiny_crops(tmp_path / "Testing_Set", 20), tiny_crops(tmp_path / "aligned_pad_0.1_pad_high", 112)
    assert "stretched" in tinyface.TinyFace.open(own).about["alignment"]
    assert "AdaFace" in tinyface.TinyFace.open(aligned, tinyface.TinyFace.Config(True)).about["alignment"]
    with raises("image-size", "20x20"):
        tinyface.TinyFace.open(own, tinyface.TinyFace.Config(True))

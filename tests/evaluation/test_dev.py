import cv2
import numpy as np
from conftest import make_lfw, raises

from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.evaluation import dev
from gdrd_jax.inference.embedders import Embedder

RNG = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_people_are_judged_by_all_their_pairs():
    labels = np.repeat(np.arange(4), 3)
    faces = RNG.integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
    judged = dev.of_people(faces, labels)
    assert judged.judge(judged.score(np.eye(4)[labels])) == {"dev_accuracy": 100.0, "dev_auc": 100.0}
    noise = judged.judge(judged.score(unit(RNG.normal(size=(12, 64)))))
    assert noise["dev_auc"] < 80 and noise["dev_accuracy"] < 80


def test_pairs_of_a_file_are_judged_in_its_folds(tmp_path):
    for person in "abcd":
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for i in (1, 2):
            image = RNG.integers(256, size=(112, 112, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "lfw" / person / f"{person}_{i:04}.png"), image)
    lines = ["2\t2", "a\t1\t2", "b\t1\t2", "a\t1\tb\t2", "b\t1\ta\t2", "c\t1\t2", "d\t1\t2", "c\t1\td\t2", "d\t1\tc\t2"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    judged = dev.of_pairs(tmp_path / "lfw", tmp_path / "pairs.txt", Degradation(16, "area"))
    assert judged.faces.shape == (8, 16, 16, 3)
    first = cv2.cvtColor(cv2.imread(str(tmp_path / "lfw" / "a" / "a_0001.png")), cv2.COLOR_BGR2RGB)
    row = np.flatnonzero((judged.faces == resize(first, 16, "area")).all(axis=(1, 2, 3)))
    assert len(row) == 1
    right = unit(np.float64(np.eye(4)[np.arange(8) // 2]))
    assert judged.judge(judged.score(right)) == {"dev_accuracy": 100.0, "dev_auc": 100.0}
    assert judged.judge(judged.score(right[::-1][[0, 2, 4, 6, 1, 3, 5, 7]]))["dev_accuracy"] < 100
    with raises("pairs-missing", "nothing.txt"):
        dev.of_pairs(tmp_path / "lfw", tmp_path / "nothing.txt", Degradation(16, "area"))


def test_a_degraded_dev_set_is_that_of_the_evaluation(tmp_path):
    folder, how = make_lfw(tmp_path), Degradation(16, "area", blur=2.0, motion=8.0, noise=8.0, jpeg=50)
    judged = dev.of_pairs(folder, tmp_path / "pairs.txt", how)
    pairs = dev.open_pairs(folder, tmp_path / "pairs.txt")
    model = Embedder("m", 16, None)
    for row in range(len(pairs.faces)):
        np.testing.assert_array_equal(judged.faces[row], model.input_of(pairs.faces, row, how, 0))
    assert (judged.faces != dev.of_pairs(folder, tmp_path / "pairs.txt", Degradation(16, "area")).faces).any()

"""Closed-set classification: figures against their definitions, and the layouts of `--data`."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_faces, raises

from gdrd_jax.evaluation.classification import Classification
from gdrd_jax.evaluation.closed_set import ClosedSet, class_means, nearest_classes
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.registry import protocols
from gdrd_jax.utils.arrays import unit

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(8), 6)
TESTED = np.tile([False, False, False, False, True, True], 8)
EMBEDDINGS = unit(np.repeat(RNG.normal(size=(8, 12)), 6, axis=0) + 1.6 * RNG.normal(size=(48, 12))).astype(np.float32)


def closed_set(neighbors=3):
    return ClosedSet(
        np.zeros((48, 8, 8, 1), np.uint8), LABELS, np.flatnonzero(~TESTED), np.flatnonzero(TESTED), neighbors
    )


def by_definition(embeddings, gallery, neighbors):
    """Shares of test images by loops."""
    top_1, top_5, knn = [], [], []
    centers = [unit(gallery[(LABELS == c) & ~TESTED].mean(axis=0)[None])[0] for c in range(8)]
    for row in np.flatnonzero(TESTED):
        order = sorted(range(8), key=lambda c, row=row: -(embeddings[row] @ centers[c]))
        top_1.append(order[0] == LABELS[row])
        top_5.append(LABELS[row] in order[:5])
        near = sorted(np.flatnonzero(~TESTED), key=lambda j, row=row: -(embeddings[row] @ gallery[j]))[:neighbors]
        votes = {
            c: (sum(LABELS[j] == c for j in near), sum(gallery[j] @ embeddings[row] for j in near if LABELS[j] == c))
            for c in range(8)
        }
        knn.append(max(votes, key=votes.get) == LABELS[row])
    return {"top_1": 100 * np.mean(top_1), "top_5": 100 * np.mean(top_5), "knn": 100 * np.mean(knn)}


@pytest.mark.parametrize("neighbors", [1, 3, 100])
def test_figures_are_those_of_their_definitions(neighbors):
    noisy = unit(EMBEDDINGS + 0.3 * RNG.normal(size=EMBEDDINGS.shape)).astype(np.float32)
    for gallery in (None, noisy):
        found = closed_set(neighbors).evaluate(EMBEDDINGS, gallery, seed=0)
        wanted = by_definition(EMBEDDINGS, EMBEDDINGS if gallery is None else gallery, min(neighbors, 32))
        assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-3)
        assert found.metrics["n_train"] == 32 and found.metrics["n_test"] == 16 and found.metrics["n_classes"] == 8
        for name, (low, high) in found.intervals.items():
            assert low <= found.metrics[name] <= high, name


def test_the_interval_is_that_of_a_share_of_independent_images():
    labels = np.repeat([0, 1], 500)
    tested = np.tile([True] * 4 + [False], 200)
    good = RNG.random(1000) < 0.7  # about as many test images are right
    embeddings = np.eye(2, dtype=np.float32)[np.where(tested & ~good, 1 - labels, labels)]
    found = ClosedSet(np.zeros((1000, 1, 1, 1), np.uint8), labels, np.flatnonzero(~tested), np.flatnonzero(tested))
    result = found.evaluate(embeddings, seed=0)
    share = good[tested].mean()
    spread = 100 * 1.96 * np.sqrt(share * (1 - share) / 800)
    assert result.metrics["top_1"] == pytest.approx(100 * share, abs=1e-3) and result.metrics["top_5"] is None
    low, high = result.intervals["top_1"]
    assert high - low == pytest.approx(2 * spread, rel=0.1)


def test_of_equal_votes_the_more_similar_images_count():
    gallery = unit(np.array([[1.0, 0.1], [1.0, 1.0], [1.0, -0.2], [0.2, 1.0]])).astype(np.float32)
    probe = np.array([[1.0, 0.0]], np.float32)
    assert nearest_classes(probe, gallery, np.array([0, 1, 1, 0]), 4).tolist() == [1]  # 0.98 + 0.71 > 0.995 + 0.2
    assert nearest_classes(probe, gallery, np.array([0, 1, 1, 0]), 1).tolist() == [0]
    assert class_means(gallery[:2], np.array([0, 0])).shape == (1, 2)


def test_folders_and_the_last_images_of_each_class_give_the_same_split(tmp_path):
    make_faces(tmp_path / "all", 3, 4, size=20)
    for part, chosen in (("train", (0, 1)), ("test", (2, 3))):
        for person in range(3):
            for image in chosen:
                target = tmp_path / "parts" / part / f"p{person}" / f"{image}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((tmp_path / "all" / f"p{person}" / f"{image}.png").read_bytes())
    settings = {"image_size": 10, "neighbors": 1}
    one = Classification.open(tmp_path / "all", protocols.settings("classification", {**settings, "test_images": 2}))
    two = Classification.open(tmp_path / "parts", protocols.settings("classification", settings))
    name = lambda opened, rows: sorted("/".join(opened.faces.names[row].split("/")[-2:]) for row in rows)  # noqa: E731
    assert name(one, one.test) == name(two, two.test) == [f"p{p}/{i}.png" for p in range(3) for i in (2, 3)]
    assert name(one, one.train) == name(two, two.train)
    assert one.faces[0].shape == (10, 10, 3) and one.neighbors == 1
    # As many images of each class: all centers are alike, the share is chance.
    assert one.evaluate(np.ones((12, 2), np.float32), seed=0).metrics["top_1"] == pytest.approx(100 / 3, abs=1e-3)


def test_data_that_cannot_be_classified_is_refused(tmp_path):
    make_faces(tmp_path / "parts" / "train", 2, 2, size=8)
    settings = protocols.settings("classification", {"image_size": 8})
    with raises("classification-layout", "test/CLASS/IMAGE", "--test-images"):
        Classification.open(tmp_path / "parts", settings)
    make_faces(tmp_path / "parts" / "test", 3, 1, size=8)
    with raises("class-without-images", "'p2'", "test"):
        Classification.open(tmp_path / "parts", settings)
    make_faces(tmp_path / "more" / "train", 3, 1, size=8)
    make_faces(tmp_path / "more" / "test", 2, 1, size=8)
    with raises("class-without-images", "'p2'", "none in test"):
        Classification.open(tmp_path / "more", settings)
    with raises("class-few-images", "'p0'", "2 images"):
        Classification.open(
            tmp_path / "parts" / "train", protocols.settings("classification", {"image_size": 8, "test_images": 2})
        )
    with raises("entry-setting", "neighbors is 0"):
        protocols.settings("classification", {"neighbors": 0})
    with raises("entry-setting", "channels is 7"):
        protocols.settings("classification", {"channels": 7})
    cv2.imwrite(str(tmp_path / "parts" / "train" / "p0" / "0.png"), RNG.integers(256, size=(8, 8, 3)).astype(np.uint8))
    with raises("image-channels", "0.png has colors", "config.task.channels=3"):
        gray = {"image_size": 8, "test_images": 1, "channels": 1}
        Classification.open(tmp_path / "parts" / "train", protocols.settings("classification", gray))


@pytest.mark.parametrize(("given", "side"), [({}, 64), ({"image_size": 28}, 28)])
def test_images_at_native_size_are_degraded_and_keep_their_size(given, side):
    settings = Settings("classification", Path("images"), (), ("native",), blur=2.0, protocol_settings=given)
    assert settings.degradation("native").resolution == side and settings.degradation("8").resolution == 8

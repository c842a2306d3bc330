"""Mixup targets of packed training sets."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import raises, tiny_config, use_tiny_student

from gdrd_jax.data import packed, packed_mixup
from gdrd_jax.data.packed import PackedSet, Stored
from gdrd_jax.pipeline import runner
from gdrd_jax.training.stages import _mixup_images
from gdrd_jax.utils.errors import GdrdError

COUNT, DIM = 5, 512


def faces(seed: int = 0) -> PackedSet:
    random = np.random.default_rng(seed)
    return PackedSet(
        Stored(random.integers(256, size=(COUNT, 1, 48, 48, 3), dtype=np.uint8)),
        Stored(random.normal(size=(COUNT, 1, DIM)).astype(np.float16)), np.arange(COUNT) - 1,
        {"name": "t", "fingerprint": "f", "faces": "x"},
    )  # fmt: skip


def flattened(own, partner, mirrored, share):
    """Stands for a teacher: the first numbers of the mixup images."""
    partner = np.where(mirrored[:, None, None, None], partner[:, :, ::-1], partner)
    share = share[:, None, None, None]
    return (np.rint(share * own + (1 - share) * partner).reshape(len(own), -1)[:, :DIM] - 127.5).astype(np.float32)


def test_a_mixup_image_in_training_is_the_one_that_was_embedded(tmp_path):
    own = faces()
    assert packed_mixup.make(own, flattened, tmp_path / "m", views=3, seed=7) == 3
    found = {name: stored.values for name, stored in packed_mixup.load(tmp_path / "m", own).items()}
    assert found["mixup_targets"].shape == (COUNT, 3, DIM) and packed_mixup.is_mixup(tmp_path / "m")
    for view in range(3):
        batch = {name: jnp.asarray(a[:, view]) for name, a in found.items()}
        batch["small"], batch["label"] = jnp.asarray(own.small.values[:, 0]), jnp.arange(COUNT)
        batch["mixup_small"] = batch["small"][batch["mixup_partner"]]
        batch["discriminative"] = jnp.asarray(own.targets.values[:, 0])
        assert (batch["mixup_partner"] != jnp.arange(COUNT)).all()
        mixed = _mixup_images(batch, jax.random.key(0), 1.0)
        embedding = np.asarray(mixed["small"]).reshape(COUNT, -1)[:, :DIM] - 127.5
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        assert (np.asarray(mixed["discriminative"]) * embedding).sum(axis=1).min() > 0.999
        assert (np.asarray(mixed["label"]) == -1).all()
        none = _mixup_images(batch, jax.random.key(0), 0.0)
        np.testing.assert_array_equal(none["small"], batch["small"])
        np.testing.assert_array_equal(none["label"], np.arange(COUNT))


def test_the_time_bounds_the_views_and_the_first_are_the_same(tmp_path):
    own = faces()
    assert packed_mixup.make(own, flattened, tmp_path / "a", views=9, seed=7, seconds=0.0) == 1
    packed_mixup.make(own, flattened, tmp_path / "b", views=2, seed=7)
    a, b = (packed_mixup.load(tmp_path / name, own) for name in "ab")
    for name in a:
        np.testing.assert_array_equal(a[name].values[:, 0], b[name].values[:, 0])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    own = faces()
    other = dataclasses.replace(own, about={**own.about, "fingerprint": "other"})
    packed_mixup.make(other, flattened, tmp_path / "m", views=1, seed=7)
    with raises("mixup-mismatch", tmp_path / "m", "another teacher"):
        packed_mixup.load(tmp_path / "m", own)
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:900])
    with raises("mixup-damaged", tmp_path / "m", "gdrd pack-mixup"):
        packed_mixup.load(tmp_path / "m", own)


@pytest.mark.parametrize("residency", ["host", pytest.param("device", marks=pytest.mark.slow)])
def test_a_student_learns_from_mixup_targets(tmp_path, monkeypatch, residency):
    own = faces()
    packed_mixup.make(own, flattened, tmp_path / "m", views=2, seed=7)
    (tmp_path / "a").write_bytes(b"stands for the packed set")
    monkeypatch.setattr(packed, "load", lambda paths: own)
    config = use_tiny_student(tiny_config(""))
    config.until, config.discriminative.path, config.degradation.random = "dis", "", True
    config.data.update(packed=f"{tmp_path / 'a'},{tmp_path / 'm'}", residency=residency)
    config.student.update(hidden=(), head_stages=0)
    config.dis.update(
        init="random",
        freeze=(),
        mixup=0.5,
        steps=2,
        batch=4,
        evaluate_every=0,
    )
    config.dis.losses = {"embedding_cosine": {"weight": 1.0}}
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text())
    assert np.isfinite(metrics["loss"])
    config.dis.mixup = 0.0
    with pytest.raises(GdrdError, match="has mixup targets, but config.dis.mixup is 0"):
        runner.run(config, tmp_path / "other")
    config.dis.mixup = 0.5
    for packs, message in {
        (tmp_path / "m",): "1 files of mixup targets and 0 of faces",
        (tmp_path / "a", *2 * [tmp_path / "m"]): "2 files of",
    }.items():
        config.data.packed = ",".join(map(str, packs))
        with pytest.raises(GdrdError, match=message):
            runner.run(config, tmp_path / "other")


def test_a_partner_that_there_is_not_is_refused(tmp_path):
    own = faces()
    packed_mixup.make(own, flattened, tmp_path / "m", views=1, seed=7)
    with safetensors.safe_open(tmp_path / "m", framework="numpy") as file:
        about, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    arrays["partner"][2] = COUNT
    safetensors.numpy.save_file(arrays, tmp_path / "m", about)
    with raises("mixup-damaged", tmp_path / "m", "faces that do not exist"):
        packed_mixup.load(tmp_path / "m", own)

"""Training sets in small files."""

import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_faces, raises, tiny_config, use_tiny_student
from PIL import Image

from gdrd_jax.data import packed
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.pipeline import planning, runner
from gdrd_jax.utils.errors import GdrdError

TEACHER = {"name": "t", "fingerprint": "f" * 64}
DIM = 512


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Seven faces with identities, of which six are taken, and four without."""
    root, random, found = tmp_path_factory.mktemp("parts"), np.random.default_rng(0), []
    for name, people, images, rows in (("known", 7, 1, range(6)), ("others", 2, 2, range(4))):
        faces = checked(open_faces(make_faces(root / name, people, images)))
        cache = FeatureStore.create(
            root / f"{name}.cache", rows=len(faces), views=1, shape=(DIM,), dtype="float16", provenance={"faces": name}
        )
        cache.write(0, range(len(faces)), 7 * random.normal(size=(len(faces), DIM)))
        rows = np.array(rows)
        found.append((faces, rows, faces.labels[rows] if name == "known" else np.full(len(rows), -1), cache))
    return found


def pack(parts, *paths, **changes):
    packed.pack(parts, paths, **{"teacher": TEACHER, "faces": "x", "size": 48, "quality": 60, **changes})
    return list(paths)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_packed_is_read_again(parts, tmp_path, count):
    found = packed.load(pack(parts, *(tmp_path / f"{i}.packed" for i in range(count)))[::-1])
    order = np.concatenate([np.arange(10)[number::count] for number in range(count)])
    labels = np.concatenate([labels for _, _, labels, _ in parts])[order]
    np.testing.assert_array_equal(found.labels, labels)
    targets = np.concatenate([cache.read(0, rows) for _, rows, _, cache in parts])[order].astype(np.float32)
    cosines = np.sum(targets * found.targets.read(0), axis=1) / np.linalg.norm(targets, axis=1)
    lengths = np.linalg.norm(found.targets.read(0).astype(np.float32), axis=1)
    assert (cosines / lengths).min() > 0.999 and np.abs(lengths - 1).max() < 0.01
    faces = [faces[row] for faces, rows, _, _ in parts for row in rows]
    for row, number in enumerate(order):
        small = Image.fromarray(faces[number]).resize((48, 48), Image.Resampling.BOX)
        difference = found.small.read(0)[row].astype(int) - np.asarray(small)
        assert np.abs(difference).mean() < 8 and found.small.values.shape[1:] == (1, 48, 48, 3)
    assert found.about == {**TEACHER, "faces": "x"}


def test_what_does_not_belong_together_is_refused(parts, tmp_path):
    a, b = pack(parts, tmp_path / "a", tmp_path / "b")
    (other,) = pack(parts, tmp_path / "other", size=32)
    for paths, (code, *facts) in {
        (a,): ("packed-incomplete", "2 files", "1 of 2"),
        (a, a): ("packed-incomplete", "2 files", "1 of 2, 1 of 2"),
        (a, other): ("packed-mismatch", other, a, "size differ"),
        (tmp_path / "none",): ("file-missing", tmp_path / "none", "gdrd pack"),
    }.items():
        with raises(code, *facts):
            packed.load(paths)


def test_damage_is_told(parts, tmp_path):
    (path,) = pack(parts, tmp_path / "a")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with raises("packed-damaged", path, "gdrd pack"):
        packed.load([path])
    arrays = safetensors.numpy.load(data)
    with safetensors.safe_open(pack(parts, tmp_path / "b")[0], framework="numpy") as file:
        about = file.metadata()
    for name, values, code, fact in (
        ("images", arrays["images"] ^ 255, "image-unreadable", f"face 0 of {path}"),
        ("targets", arrays["targets"][:-20], "packed-damaged", path),
        ("sizes", arrays["sizes"] + 1, "packed-damaged", path),
    ):
        safetensors.numpy.save_file({**arrays, name: values}, path, about)
        with raises(code, fact):
            packed.load([path])
    safetensors.numpy.save_file(arrays, path, {"format": "another"})
    with raises("packed-format", path):
        packed.load([path])
    assert not packed.is_packed(path) and packed.is_packed(tmp_path / "b")


@pytest.mark.parametrize("residency", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_a_student_learns_from_a_packed_set_alone(parts, tmp_path, residency):
    config = use_tiny_student(tiny_config(""))
    config.discriminative.path = ""
    config.data.packed = ",".join(map(str, pack(parts, tmp_path / "a", tmp_path / "b")))
    config.data.residency, config.until = residency, "dis"
    config.degradation.random = True
    config.student.update(hidden=(), head_stages=0)
    config.dis.update(init="random", freeze=(), steps=3, batch=4, evaluate_every=0)
    config.dis.losses = {"embedding_cosine": {"weight": 1.0}}
    runner.run(config, tmp_path / residency)
    about = json.loads((tmp_path / residency / "dis" / "student" / "manifest.json").read_text())
    assert about["teacher"] == TEACHER and about["student"]["embedding_dim"] == DIM
    assert sorted(path.name for path in (tmp_path / residency).iterdir() if path.is_dir()) == ["dis", "steps"]
    assert [path.name.split("-")[0] for path in (tmp_path / residency / "steps").iterdir()] == ["dis"]
    assert planning.finished(config, tmp_path / residency)
    config.until = "report"
    with pytest.raises(GdrdError, match="config.data.packed is for stage dis alone"):
        planning.validate(config, tmp_path / residency)
    config.until, config.data.packed = "dis", str(tmp_path / "none")
    with pytest.raises(GdrdError, match="config.data.packed: there is no file"):
        planning.validate(config, tmp_path / residency)

"""IASR: super-resolution that is trained with gradients through T_d."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import interrupted, raises, save_linear_recognizer, save_recognizer

from gdrd_jax.data.degradation import Views, resize_all
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import run
from gdrd_jax.evaluation.run import evaluate_and_report, open_models
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.inference.embedders import add_flips
from gdrd_jax.teachers import SuperResolver, load_discriminative, load_super_resolver, sr_identity
from gdrd_jax.teachers.sr_diffusion import to_tensor
from gdrd_jax.teachers.sr_identity import Identity, IdentitySettings
from gdrd_jax.utils.signals import Interrupted

SETTINGS = IdentitySettings(size=20, channels=(8,), layers=1, steps=6, batch=4, learning_rate=1e-3, ema=0.0)
VIEWS = Views.plain(8, "area")
RANDOM = np.random.default_rng(0)
LOW = RANDOM.integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
ABOUT = {"name": "tiny", "fingerprint": "0"}


class TinyTeacher(torch.nn.Module):
    """A recognizer of images of 16 pixels; its convolution has a fixed seed."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 4, 4, generator=generator), requires_grad=False)

    def forward(self, images):
        return torch.nn.functional.conv2d(images / 127.5 - 1, self.weight, stride=4).tanh().flatten(1)


TEACHER = TinyTeacher()
IDENTITY = Identity(TEACHER, 16, ABOUT)


def train(faces_folder, directory, settings=SETTINGS, views=VIEWS, identity=IDENTITY, **more):
    directory.mkdir(exist_ok=True)
    sr_identity.train(open_faces(faces_folder), views, settings, directory, identity, seed=7, **more)
    return directory


@pytest.fixture(scope="module")
def trained(faces_folder, tmp_path_factory):
    return train(faces_folder, tmp_path_factory.mktemp("iasr"))


def test_the_terms_are_those_of_the_formula():
    drawn, faces = RANDOM.normal(size=(2, 5, 3, 4, 4))
    embedded, wanted = RANDOM.normal(size=(2, 5, 7))
    found = sr_identity.terms(*map(torch.from_numpy, (drawn, faces, embedded, wanted)))
    length, own = np.linalg.norm(embedded, axis=1), np.linalg.norm(wanted, axis=1)
    cosine = (embedded * wanted).sum(axis=1) / (length * own)
    expected = np.abs(drawn - faces).mean(), (1 - cosine).mean(), (np.abs(length - own) / own).mean()
    np.testing.assert_allclose([float(term) for term in found], expected, rtol=1e-12)
    larger = sr_identity.terms(*map(torch.from_numpy, (drawn, faces, 30 * embedded, 30 * wanted)))
    np.testing.assert_allclose(larger, found, rtol=1e-12)  # whatever the scale of T_d's embeddings
    same = sr_identity.terms(*map(torch.from_numpy, (faces, faces, wanted, wanted)))
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_the_gradient_goes_through_the_teacher_whose_weights_stay(faces_folder, tmp_path):
    network, faces = sr_identity.network(8, SETTINGS), to_tensor(resize_all(LOW, 20, "bicubic"))
    pixels, angle, magnitude = sr_identity.terms(
        drawn := network(to_tensor(LOW)), faces, IDENTITY(drawn), IDENTITY(faces)
    )
    assert drawn.shape == (3, 3, 20, 20)
    for term in (pixels, angle, magnitude):
        gradients = torch.autograd.grad(term, tuple(network.parameters()), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    before = TEACHER.weight.clone()
    train(faces_folder, tmp_path / "sr")
    assert torch.equal(TEACHER.weight, before) and TEACHER.weight.grad is None


def test_some_steps_bring_the_angle_closer(faces_folder, tmp_path):
    """Without a share of the angle the loss is that of the pixels alone."""
    faces, found = open_faces(faces_folder), {}
    low = np.stack([VIEWS.degrade(faces[i], i, 0) for i in range(len(faces))])
    high = to_tensor(resize_all([faces[i] for i in range(len(faces))], 20))
    for name, changes in {"none": {"steps": 0}, "pixels": {"angle": 0.0}, "angle": {"angle": 10.0}}.items():
        settings = dataclasses.replace(SETTINGS, **{"steps": 40, "learning_rate": 1e-2, **changes})
        network = load_super_resolver(train(faces_folder, tmp_path / name, settings))
        drawn = to_tensor(network.super_resolve(low, 0))
        found[name] = float(sr_identity.terms(drawn, high, IDENTITY(drawn), IDENTITY(high))[1])
    assert found["angle"] < 0.7 * found["none"] and found["angle"] < 0.9 * found["pixels"]


def test_a_stopped_training_resumes_to_the_same_network(faces_folder, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(sr_identity, "_batches", interrupted(sr_identity._batches, 2))
    with pytest.raises(Interrupted, match="step 3 of 6"):
        train(faces_folder, tmp_path / "sr")
    with raises("sr-unfinished", tmp_path / "sr"):
        load_super_resolver(tmp_path / "sr")
    monkeypatch.undo()
    train(faces_folder, tmp_path / "sr")
    assert (tmp_path / "sr" / sr_identity.WEIGHTS).read_bytes() == (trained / sr_identity.WEIGHTS).read_bytes()
    assert not (tmp_path / "sr" / "training.pt").exists()
    monkeypatch.setattr(sr_identity, "_batches", lambda *args: 1 / 0)
    train(faces_folder, tmp_path / "sr")  # what is done is not done again


def test_the_folder_says_what_it_is(trained):
    record = json.loads((trained / "training.json").read_text())
    assert (record["kind"], record["resolution"], record["teacher"]) == ("iasr", 8, ABOUT)
    assert record["settings"]["angle"] == 0.1 and record["settings"]["magnitude"] == 0.01


def test_a_face_is_drawn_whatever_is_beside_it(trained):
    network = load_super_resolver(trained)
    assert isinstance(network, SuperResolver) and (network.method, network.low_size, network.size) == ("iasr", 8, 20)
    drawn = network.super_resolve(LOW, 0)
    assert drawn.shape == (3, 20, 20, 3) and drawn.dtype == np.uint8 and drawn.std() > 0
    np.testing.assert_array_equal(network.super_resolve(LOW[1:], 1), drawn[1:])


@pytest.mark.parametrize(("resolution", "count"), [(8, 4), (16, 3), (32, 2)])
def test_the_network_doubles_faces_up_to_128_pixels(resolution, count):
    settings = dataclasses.replace(SETTINGS, size=112, channels=(64,), layers=8)
    assert sr_identity.doublings(resolution, 112) == count
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in sr_identity.network(resolution, settings).parameters())
    assert weights == (3 * 9 + 1) * 64 + (16 + 4 * count) * (64 * 9 + 1) * 64 + (64 * 9 + 1) * 3


def test_it_makes_a_row_of_a_recognizer(trained, tmp_path):
    path = save_recognizer(tmp_path / "colors.onnx")
    plain, model = open_models(Settings("lfw", tmp_path, (str(path),), ("8",), super_resolver=str(trained)))
    assert (plain.name, model.name, model.input_size, model.super_resolution) == ("colors", "colors_iasr", 8, "iasr")
    resolver, network = load_super_resolver(trained), load_discriminative(path)
    drawn = (resolver.super_resolve(images, 0) for images in (LOW, LOW[:, :, ::-1]))
    raw = [network.embed(resize_all(images, 112, "bicubic")) for images in drawn]
    np.testing.assert_allclose(model.embed(LOW), add_flips(*raw), atol=1e-6)
    assert model.fingerprint not in ("", plain.fingerprint) and model.space == plain.fingerprint
    rows, _ = run._rows(Settings("uccs", tmp_path, (), ("8:native",)), [plain, model])
    assert [row.name for row, _ in rows] == ["colors_8:native", "colors_iasr_8:native"]
    assert all(row.gallery[0] is plain for row, _ in rows)  # a gallery is not reduced to be super-resolved
    rows, _ = run._rows(Settings("uccs", tmp_path, (), ("native", "8")), [plain, model])
    assert [row.name for row, _ in rows] == ["colors_native", "colors_8", "colors_iasr_8"]  # as a student has it


def test_mistakes_are_named(faces_folder, trained, tmp_path):
    with raises("super-resolver", tmp_path):
        load_super_resolver(tmp_path)
    with raises("sr-resolution", "8x8", "16x12"):
        load_super_resolver(trained).super_resolve(np.zeros((1, 12, 16, 3), np.uint8), 0)
    with raises("sr-resolution", "32", "20"):
        train(faces_folder, tmp_path / "large", views=Views.plain(32, "area"))
    with raises("sr-other-training", trained, "other teacher;"):
        train(faces_folder, trained, identity=Identity(TEACHER, 16, {**ABOUT, "fingerprint": "1"}))
    train(faces_folder, trained, identity=Identity(TEACHER, 16, {**ABOUT, "name": "renamed"}))  # done before
    with raises("sr-settings", "(8, 16)"):
        dataclasses.replace(SETTINGS, channels=(8, 16))
    path = save_recognizer(tmp_path / "colors.onnx")
    settings = Settings("lfw", tmp_path, (str(path),), ("16",), super_resolver=str(trained))
    with raises("model-without-row", "colors_iasr", "8x8", "16"):
        evaluate_and_report(settings, tmp_path / "out")
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / sr_identity.WEIGHTS).write_bytes(b"no weights")
    with raises("sr-unloadable", broken):
        load_super_resolver(broken)
    (broken / "training.pt").touch()  # killed while the weights were being written
    with raises("sr-unfinished", broken):
        load_super_resolver(broken)


def test_an_onnx_recognizer_serves(faces_folder, tmp_path):
    path, weight = save_linear_recognizer(tmp_path / "colors.onnx", 16)
    identity = Identity.of("colors", load_discriminative(path, preprocessing="arcface"))
    faces = to_tensor(RANDOM.integers(256, size=(2, 16, 16, 3), dtype=np.uint8))
    np.testing.assert_allclose(identity(faces), faces.flatten(1).numpy() @ weight.T, atol=1e-4)
    train(faces_folder, tmp_path / "sr", dataclasses.replace(SETTINGS, steps=1), identity=identity)
    assert json.loads((tmp_path / "sr" / "training.json").read_text())["teacher"]["name"] == "colors"

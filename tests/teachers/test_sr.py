import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import interrupted, raises, save_recognizer

from gdrd_jax.data.degradation import Views, resize, resize_all
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation.run import open_models
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.evaluation.sr_quality import SampleCallback
from gdrd_jax.inference.embedders import add_flips, open_model
from gdrd_jax.teachers import (
    SuperResolver,
    load_discriminative,
    load_generative,
    load_super_resolver,
    sr_diffusion,
    sr_training,
)
from gdrd_jax.teachers.sr_diffusion import to_tensor, to_uint8
from gdrd_jax.teachers.sr_training import SrSettings
from gdrd_jax.utils.signals import Interrupted

SETTINGS = SrSettings(size=16, channels=(8, 16), layers=1, steps=6, batch=2, learning_rate=1e-3, ema=0.9)
VIEWS = Views(
    resolution=8, kernel="area", count=2, shift=0, rotate=0, scale=0, light=0, blur=0, motion=0, noise=0, jpeg=0, seed=7
)
LOW = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)


def train(faces_folder, directory, **watched):
    directory.mkdir(exist_ok=True)
    sr_training.train(open_faces(faces_folder), VIEWS, SETTINGS, directory, seed=7, **watched)
    return directory


@pytest.fixture(scope="module")
def trained(faces_folder, tmp_path_factory):
    return train(faces_folder, tmp_path_factory.mktemp("sr"))


def test_a_stopped_training_resumes_to_the_same_network(faces_folder, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(sr_training, "_batches", interrupted(sr_training._batches, 2))
    with pytest.raises(Interrupted, match="step 3 of 6"):
        train(faces_folder, tmp_path / "sr")
    monkeypatch.undo()
    state = torch.load(tmp_path / "sr" / "training.pt", weights_only=True)
    state["optimiser"] = state.pop("optimizer")  # as version 0.4 wrote it
    assert state.keys() == {"done", "unet", "ema", "optimiser"}
    torch.save(state, tmp_path / "sr" / "training.pt")
    train(faces_folder, tmp_path / "sr")
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "sr" / weights).read_bytes() == (trained / weights).read_bytes()
    assert not (tmp_path / "sr" / "training.pt").exists()


def test_degraded_inputs_differ_at_each_use_and_their_targets_are_clean(faces_folder, trained, tmp_path):
    faces, degraded = open_faces(faces_folder).take([0]), dataclasses.replace(VIEWS, blur=3.0, noise=20.0)
    clean, first, again = (
        list(sr_training._batches(faces, views, SETTINGS, 7, 0)) for views in (VIEWS, degraded, degraded)
    )
    uses = {condition[0].numpy().tobytes() for condition, _ in first}
    assert len(uses) == len(first) == SETTINGS.steps
    for (condition, residual), (plain, wanted), (same, _) in zip(first, clean, again, strict=True):
        np.testing.assert_array_equal(condition, same)
        scale = sr_training.RESIDUAL_SCALE
        np.testing.assert_allclose(condition + residual / scale, plain + wanted / scale, atol=1e-5)
        assert (condition - plain).abs().mean() > 0.01
    shutil.copytree(trained, tmp_path / "sr")
    with raises("sr-other-training", tmp_path / "sr", "other degradation;"):
        sr_training.train(open_faces(faces_folder), degraded, SETTINGS, tmp_path / "sr", seed=7)


@pytest.mark.parametrize(("mirror", "different"), [(True, 2), (False, 1)])
def test_faces_are_mirrored_only_where_the_mirror_image_shows_the_same(faces_folder, mirror, different):
    faces, views = open_faces(faces_folder).take([0]), dataclasses.replace(VIEWS, mirror=mirror, shift=9.0)
    batches = sr_training._batches(faces, views, SETTINGS, 7, 0)
    assert len({image.numpy().tobytes() for condition, _ in batches for image in condition}) == different


@pytest.mark.parametrize(("tap", "shape"), [("down0", (8, 8, 8)), ("down1", (16, 8, 8)), ("mid", (16, 8, 8))])
def test_features_of_every_tap(trained, tap, shape):
    features = load_generative("diffusers", trained, tap=tap, timestep=0).features(LOW)
    assert features.shape == (3, *shape) and features.dtype == np.float32
    np.testing.assert_allclose(
        load_generative("diffusers", trained, tap=tap, timestep=0).features(LOW[1:2]), features[1:2], atol=1e-5
    )
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_a_network_is_asked_where_it_must_look_at_its_condition(trained):
    own, last, first = (load_generative("diffusers", trained, tap="mid", timestep=t) for t in (-1, 999, 0))
    np.testing.assert_array_equal(own.features(LOW), last.features(LOW))
    assert own.fingerprint == last.fingerprint != first.fingerprint


def test_the_middle_is_what_the_whole_network_computes_there(trained):
    import torch

    teacher, seen = load_generative("diffusers", trained, tap="mid", timestep=3), []
    teacher._unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    condition = to_tensor(np.stack([resize(face, 16, "bicubic") for face in LOW]))
    with torch.inference_mode():
        teacher._unet(torch.cat([torch.zeros_like(condition), condition], dim=1), 3)
    np.testing.assert_allclose(teacher.features(LOW), seen[0].numpy(), atol=1e-5)


def test_super_resolution_is_seeded_and_keeps_what_it_was_given(trained):
    teacher = load_generative("diffusers", trained, tap="mid", timestep=0)
    assert isinstance(teacher, SuperResolver)
    faces = teacher.super_resolve(LOW, seed=1)
    assert faces.shape == (3, 16, 16, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, teacher.super_resolve(LOW, seed=1))
    assert not np.array_equal(faces, teacher.super_resolve(LOW, seed=2))
    enlarged = np.stack([resize(face, 16, "bicubic") for face in LOW])
    assert np.corrcoef(faces.ravel(), enlarged.ravel())[0, 1] > 0.7


def test_a_recognizer_is_fed_with_what_is_drawn_of_the_face_and_of_its_mirror_image(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sr_diffusion, "SAMPLING_STEPS", 2)
    path = save_recognizer(tmp_path / "colors.onnx")
    resolver, network = load_super_resolver(trained), load_discriminative(path)
    model, faces = open_model(str(path), super_resolver=resolver), resize_all(LOW, 16, "bicubic")
    drawn = (resolver.super_resolve(images, 0) for images in (faces, faces[:, :, ::-1]))
    raw = [network.embed(resize_all(images, 112, "bicubic")) for images in drawn]
    np.testing.assert_allclose(model.embed(LOW), add_flips(*raw), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.embed(LOW[1:]), model.embed(LOW)[1:], atol=2e-3)  # whatever other faces there are
    assert model.input_size == 16 and model.fingerprint not in ("", network.fingerprint)
    both = open_models(Settings("lfw", tmp_path, (str(path),), ("8",), super_resolver=str(trained)))
    assert [one.name for one in both] == ["colors", "colors_sr_diffusion"] and both[1].fingerprint == model.fingerprint


def test_any_unconditional_diffusers_network_serves(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path)  # fmt: skip
    teacher = load_generative("diffusers", tmp_path, tap="down1", timestep=0)
    assert not isinstance(teacher, SuperResolver)
    assert teacher.features(LOW).shape == (3, 8, 8, 8)
    with raises("super-resolver", tmp_path):
        load_super_resolver(tmp_path)


def test_the_fingerprint_is_of_weights_tap_and_timestep(trained):
    fingerprints = {
        load_generative("diffusers", trained, tap=t, timestep=n).fingerprint
        for t, n in (("mid", 0), ("down0", 0), ("mid", 1))
    }
    assert len(fingerprints) == 3


def test_mistakes_are_named(trained, tmp_path):
    with raises("teacher-tap", "'up0'", "down0, down1, mid"):
        load_generative("diffusers", trained, tap="up0", timestep=0)
    with raises("diffusers-folder", tmp_path):
        load_generative("diffusers", tmp_path, tap="mid", timestep=0)
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with raises("diffusers-unloadable", broken):
        load_generative("diffusers", broken, tap="mid", timestep=0)
    (broken / "scheduler_config.json").unlink()
    with raises("diffusers-scheduler-missing", broken, "scheduler_config.json"):
        load_generative("diffusers", broken, tap="mid", timestep=0)
    (broken / "config.json").write_text(
        '{"_class_name": "VQModel", "down_block_types": [1], "sample_size": 8, "in_channels": 3}'
    )
    with raises("diffusers-kind", "VQModel"):
        load_generative("diffusers", broken, tap="mid", timestep=0)
    with raises("sr-size", "18", "divisible by 4"):
        SrSettings(size=18, channels=(8, 8, 8), layers=1, steps=1, batch=1, learning_rate=1, ema=0)


def test_pixels_survive_the_way_to_torch_and_back():
    np.testing.assert_array_equal(to_uint8(to_tensor(LOW)), LOW)


def test_what_is_watched_changes_nothing_and_tells_how_good_it_is(faces_folder, tmp_path, trained):
    faces, folder = open_faces(faces_folder), tmp_path / "samples"
    recognizer = load_discriminative(save_recognizer(tmp_path / "m.onnx"))
    watch = SampleCallback(faces, VIEWS, 16, recognizer, folder, seed=1)
    train(faces_folder, tmp_path / "sr", watch=watch, watch_every=4)
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "sr" / weights).read_bytes() == (trained / weights).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["quality.json", "step_000004.png", "step_000006.png"]
    picture = cv2.imread(str(folder / "step_000006.png"))
    assert picture.shape[0] == 5 * 76 + 4 and picture.shape[1] == 12 * 76 + 4 and picture.std() > 30
    quality = json.loads((folder / "quality.json").read_text())["6"]
    assert quality["faces"] == 21
    high = np.stack([resize(faces[i], 16, "area") for i in range(21)])
    low = np.stack([resize(VIEWS.degrade(faces[i], i, 0), 16, "bicubic") for i in range(21)])
    errors = ((high.astype(float) - low) ** 2).mean(axis=(1, 2, 3))
    assert quality["bicubic"]["psnr"]["mean"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)))
    assert 0 < quality["sr"]["cosine"]["mean"] < 1 and quality["sr"]["cosine"]["se"] > 0


def test_another_training_in_the_same_folder_is_refused(faces_folder, trained):
    with raises("sr-other-training", trained, "other seed;"):
        sr_training.train(open_faces(faces_folder), VIEWS, SETTINGS, trained, seed=8)


def test_what_is_done_is_not_done_again(faces_folder, trained, monkeypatch):
    monkeypatch.setattr(sr_training, "_batches", lambda *args: 1 / 0)
    train(faces_folder, trained)


def test_a_damaged_state_is_named(faces_folder, tmp_path):
    (tmp_path / "training.pt").write_bytes(b"nothing")
    with raises("checkpoint-damaged", tmp_path / "training.pt", "remove it"):
        train(faces_folder, tmp_path)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"ema": 2.0}, {"size": 0}, {"learning_rate": float("nan")}])
def test_settings_that_cannot_be_are_refused(wrong):
    [(name, value)] = wrong.items()
    with raises("sr-settings", f"{name}={value}"):
        dataclasses.replace(SETTINGS, **wrong)


def test_a_network_is_fed_at_any_size(trained):
    assert load_generative("diffusers", trained, tap="mid", timestep=0, input_size=32).features(LOW).shape == (
        3,
        16,
        16,
        16,
    )

import os
import shutil
import signal

import numpy as np
import pytest

from gdrd_jax.data.degrade import Views, resize
from gdrd_jax.data.formats import open_faces
from gdrd_jax.errors import GdrdError
from gdrd_jax.interrupt import Interrupted
from gdrd_jax.teachers import sr_training
from gdrd_jax.teachers.sr_diffusion import SrDiffusion, to_tensor, to_uint8
from gdrd_jax.teachers.sr_training import SrSettings

SETTINGS = SrSettings(size=16, channels=(8, 16), layers=1, steps=6, batch=2, learning_rate=1e-3, ema=0.9)
VIEWS = Views(
    resolution=8, kernel="area", count=2, shift=0, rotate=0, scale=0, light=0, blur=0, motion=0, noise=0, jpeg=0, seed=7
)
LOW = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)


def train(faces_folder, directory):
    directory.mkdir(exist_ok=True)
    sr_training.train(open_faces(faces_folder), VIEWS, SETTINGS, directory, seed=7)
    return directory


@pytest.fixture(scope="module")
def trained(faces_folder, tmp_path_factory):
    return train(faces_folder, tmp_path_factory.mktemp("sr"))


def test_a_stopped_training_resumes_to_the_same_network(faces_folder, tmp_path, trained, monkeypatch):
    original, calls = sr_training._batch, []

    def interrupting(*args):
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(sr_training, "_batch", interrupting)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        train(faces_folder, tmp_path / "sr")
    train(faces_folder, tmp_path / "sr")
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "sr" / weights).read_bytes() == (trained / weights).read_bytes()
    assert not (tmp_path / "sr" / "training.pt").exists()


@pytest.mark.parametrize(("tap", "shape"), [("down0", (8, 8, 8)), ("down1", (16, 8, 8)), ("mid", (16, 8, 8))])
def test_features_of_every_tap(trained, tap, shape):
    features = SrDiffusion(trained, tap=tap, timestep=0).features(LOW)
    assert features.shape == (3, *shape) and features.dtype == np.float32
    np.testing.assert_allclose(SrDiffusion(trained, tap=tap, timestep=0).features(LOW[1:2]), features[1:2], atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_the_middle_is_what_the_whole_network_computes_there(trained):
    import torch

    teacher, seen = SrDiffusion(trained, tap="mid", timestep=3), []
    teacher._unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    condition = to_tensor(np.stack([resize(face, 16, "bicubic") for face in LOW]))
    with torch.inference_mode():
        teacher._unet(torch.cat([torch.zeros_like(condition), condition], dim=1), 3)
    np.testing.assert_allclose(teacher.features(LOW), seen[0].numpy(), atol=1e-5)


def test_super_resolution_is_seeded_and_keeps_what_it_was_given(trained):
    teacher = SrDiffusion(trained, tap="mid", timestep=0)
    faces = teacher.super_resolve(LOW, seed=1)
    assert faces.shape == (3, 16, 16, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, teacher.super_resolve(LOW, seed=1))
    assert not np.array_equal(faces, teacher.super_resolve(LOW, seed=2))
    enlarged = np.stack([resize(face, 16, "bicubic") for face in LOW])
    assert np.corrcoef(faces.ravel(), enlarged.ravel())[0, 1] > 0.7


def test_any_unconditional_diffusers_network_serves(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path)  # fmt: skip
    teacher = SrDiffusion(tmp_path, tap="down1", timestep=0)
    assert not teacher.conditional
    assert teacher.features(LOW).shape == (3, 8, 8, 8)


def test_the_fingerprint_is_of_weights_tap_and_timestep(trained):
    fingerprints = {
        SrDiffusion(trained, tap=t, timestep=n).fingerprint for t, n in (("mid", 0), ("down0", 0), ("mid", 1))
    }
    assert len(fingerprints) == 3


def test_mistakes_are_named(trained, tmp_path):
    with pytest.raises(GdrdError, match="down0, down1, mid"):
        SrDiffusion(trained, tap="up0", timestep=0)
    with pytest.raises(GdrdError, match="not a folder"):
        SrDiffusion(tmp_path, tap="mid", timestep=0)
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(GdrdError, match="cannot be loaded"):
        SrDiffusion(broken, tap="mid", timestep=0)
    (broken / "scheduler_config.json").unlink()
    with pytest.raises(GdrdError, match="no scheduler_config.json"):
        SrDiffusion(broken, tap="mid", timestep=0)
    (broken / "config.json").write_text(
        '{"_class_name": "VQModel", "down_block_types": [1], "sample_size": 8, "in_channels": 3}'
    )
    with pytest.raises(GdrdError, match="describes a VQModel"):
        SrDiffusion(broken, tap="mid", timestep=0)
    with pytest.raises(GdrdError, match="divisible by 4"):
        SrSettings(size=18, channels=(8, 8, 8), layers=1, steps=1, batch=1, learning_rate=1, ema=0)


def test_pixels_survive_the_way_to_torch_and_back():
    np.testing.assert_array_equal(to_uint8(to_tensor(LOW)), LOW)

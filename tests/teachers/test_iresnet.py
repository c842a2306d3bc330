"""InsightFace's iresnet, from its weights alone."""

import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import raises
from safetensors.torch import save_file

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.teachers import load_discriminative
from gdrd_jax.teachers.iresnet import _network

FACES = np.random.default_rng(0).integers(256, size=(3, 112, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return _network((2, 2, 2, 2), 16, 7).state_dict()


def test_insightfaces_own_network_is_reproduced(shared, tmp_path):
    fixtures = shared.parent / "fixtures"
    spec = importlib.util.spec_from_file_location("recipe", fixtures / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    made = json.loads((fixtures / "iresnet18.json").read_text())
    arrays = recipe.iresnet_weights([(key, tuple(shape)) for key, shape in made["shapes"]], made["seed"])
    torch.save({key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}, tmp_path / "backbone.pth")
    expected = np.load(fixtures / "iresnet18.npz")
    found = load_discriminative(tmp_path / "backbone.pth").embed(expected["images_rgb_uint8"])
    difference = np.abs(found - expected["embedding"]).max() / np.abs(expected["embedding"]).max()
    print(f"largest difference, relative: {difference:.1e}")
    assert difference < 1e-4


def test_every_layout_of_a_file_gives_the_same_embeddings(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "b.pt")
    save_file({k: v.contiguous() for k, v in weights.items() if "batches" not in k}, tmp_path / "c.safetensors")
    teachers = [load_discriminative(tmp_path / name) for name in ("a.pth", "b.pt", "c.safetensors")]
    first = teachers[0].embed(FACES)
    assert first.shape == (3, 16) and teachers[0].dim == 16 and teachers[0].preprocessing == "arcface"
    for teacher in teachers[1:]:
        np.testing.assert_array_equal(teacher.embed(FACES), first)
    other = load_discriminative(tmp_path / "a.pth", preprocessing="imagenet")
    assert other.fingerprint != teachers[0].fingerprint and not np.allclose(other.embed(FACES), first)
    pixels = torch.from_numpy(FACES).permute(0, 3, 1, 2).float().requires_grad_()
    embedded = other.differentiable()(pixels)
    np.testing.assert_allclose(embedded.detach(), other.embed(FACES), rtol=1e-3, atol=1e-4)
    embedded.sum().backward()
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_the_input_size_is_that_of_the_last_layer(tmp_path):
    torch.manual_seed(0)
    network = _network((2, 2, 2, 2), 16, 10).eval()
    torch.save(network.state_dict(), tmp_path / "m.pth")
    teacher, faces = load_discriminative(tmp_path / "m.pth"), resize_all(FACES, 160)
    assert teacher.input_size == 160
    with torch.inference_mode():
        expected = network(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(teacher.embed(faces), expected, rtol=1e-3, atol=1e-4)
    with raises("teacher-option", "input_size", "'iresnet'"):
        load_discriminative(tmp_path / "m.pth", input_size=112)


class Evil:
    def __reduce__(self):
        return open, ("pwned", "w")


def test_what_is_no_iresnet_is_told(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(code, *facts):
        with raises(code, "m.pth", *facts):
            load_discriminative(tmp_path / "m.pth")

    refused("file-missing")
    torch.save({**weights, "fc.weight": weights["fc.weight"][:, :99]}, tmp_path / "m.pth")
    refused("weights-mismatch", "fc.weight is [16, 99] where [16, 25088] fits")
    torch.save({key: value for key, value in weights.items() if key != "layer2.0.bn3.bias"}, tmp_path / "m.pth")
    refused("weights-mismatch", "layer2.0.bn3.bias is missing")
    torch.save({**weights, "extra": torch.zeros(1)}, tmp_path / "m.pth")
    refused("weights-mismatch", "extra is not expected")
    torch.save({"layer1.0.x": torch.zeros(1)}, tmp_path / "m.pth")
    refused("iresnet-unknown", "iresnet18, ", "1, 0, 0, 0 blocks")
    torch.save([1, 2], tmp_path / "m.pth")
    refused("weights-no-state-dict")
    torch.save(weights, tmp_path / "m.pth")
    (tmp_path / "m.pth").write_bytes((tmp_path / "m.pth").read_bytes()[:5000])
    refused("weights-unreadable")
    (tmp_path / "m.pth").write_bytes(pickle.dumps({"fc.weight": Evil()}))
    refused("weights-unreadable", "never run")
    torch.save({"fc.weight": Evil()}, tmp_path / "m.pth")
    refused("weights-with-code", "open", "never run")
    assert not (tmp_path / "pwned").exists()


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


LAYOUTS = {
    "a trainer's": lambda w: {
        "epoch": 3, "state_dict_backbone": prefixed(w, "module."),
        "state_dict_softmax_fc": {"weight": torch.zeros(9, 16)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "Lightning's": lambda w: {"state_dict": {**prefixed(w, "model."), "head.kernel": torch.zeros(16, 9)}, "epoch": 1},
    "compiled": lambda w: prefixed(w, "_orig_mod."),
    "several prefixes": lambda w: {**prefixed(w, "module.net.backbone."), "module.head.weight": torch.zeros(9, 16)},
    "model": lambda w: {"model": w}, "network": lambda w: {"network": w}, "backbone": lambda w: {"backbone": w},
    "model_state_dict": lambda w: {"model_state_dict": w}, "net": lambda w: {"net": prefixed(w, "encoder.")},
    "a dictionary in another": lambda w: {"checkpoint": {"ema": {"weights": w}}, "args": {"lr": 0.1}},
    "tensors among other things": lambda w: {**w, "epoch": 3, "best": 0.5},
}  # fmt: skip


NAMES = ("checkpoint.pt", "model.ckpt", "model_best.pth.tar", "pytorch_model.bin", "weights", "net.onnx")


@pytest.mark.parametrize("layout, name", [(layout, NAMES[i % len(NAMES)]) for i, layout in enumerate(LAYOUTS)])
def test_what_training_programs_leave_is_read(weights, plain_embeddings, tmp_path, caplog, layout, name):
    torch.save(LAYOUTS[layout](weights), tmp_path / name)
    with caplog.at_level("INFO"):
        found = load_discriminative(str(tmp_path / name)).embed(FACES)
    np.testing.assert_array_equal(found, plain_embeddings)
    if layout == "Lightning's":
        assert "keys begin with 'model.'; 1 other entries are left out: state_dict.head.kernel" in caplog.text


@pytest.fixture(scope="module")
def plain_embeddings(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "a.pth"
    torch.save(weights, path)
    return load_discriminative(path).embed(FACES)


def test_of_several_networks_none_is_guessed(weights, tmp_path):
    for content, names in (
        ({"state_dict": weights, "ema": prefixed(weights, "module.")}, ["'state_dict', 'ema: module.*'"]),
        ({**prefixed(weights, "student."), **prefixed(weights, "teacher.")}, ["student.*", "teacher.*"]),
    ):
        torch.save(content, tmp_path / "m.pth")
        with raises("weights-several-networks", *names):
            load_discriminative(tmp_path / "m.pth")


def test_another_network_is_named_by_its_keys(tmp_path):
    keys = {"stem.0.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    for content, code, fact in (
        (keys, "iresnet-unknown", "first keys are stem.0.weight, head.weight"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "weights-no-state-dict", "'epoch', 'args'"),
    ):
        torch.save(content, tmp_path / "m.pth")
        with raises(code, fact):
            load_discriminative(tmp_path / "m.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "m.pth")
    with raises("teacher-option", "m.pth", "'iresnet'", "output", "'y'"):
        load_discriminative(tmp_path / "m.pth", output="y")

"""What a network's file is counts by its content; what is neither a graph nor weights is named for what it is."""

import argparse
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import guided_diffusion, raises, save_recognizer
from safetensors.torch import save

from gdrd_jax.teachers import load_discriminative, load_generative
from gdrd_jax.teachers.checkpoint import check_weights
from gdrd_jax.teachers.file_kind import ONNX, PYTORCH, SAFETENSORS, file_kind
from gdrd_jax.utils.errors import GdrdError

WEIGHTS = {"layer1.0.conv1.weight": torch.zeros(2, 2)}


def torch_bytes(content, **settings):
    data = io.BytesIO()
    torch.save(content, data, **settings)
    return data.getvalue()


def zip_bytes(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return data.getvalue()


def npz_bytes():
    data = io.BytesIO()
    np.savez(data, a=np.zeros(1))
    return data.getvalue()


def script_bytes():
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), data)
    return data.getvalue()


@pytest.mark.parametrize("suffix", ["", ".onnx", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors"])
def test_the_suffix_means_nothing(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_recognizer(path)
    assert file_kind(path) == ONNX
    assert load_discriminative(path).dim == 48
    for content, kind in (
        (torch_bytes(WEIGHTS), PYTORCH), (torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False), PYTORCH),
        (save(WEIGHTS), SAFETENSORS),
    ):  # fmt: skip
        path.write_bytes(content)
        assert file_kind(str(path)) == kind
        with raises("iresnet-unknown", "iresnet18", "1, 0, 0, 0 blocks"):
            load_discriminative(path)


OTHERS = {
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(90),
    "a TensorFlow Lite network": b"\x1c\0\0\0TFL3" + bytes(90),
    "ONNX Runtime's own format": b"\x1c\0\0\0ORTM" + bytes(90),
    "MXNet weights": (0x112).to_bytes(8, "little") + bytes(90),
    "a JSON file": b'{\n  "nodes": []}',
    "an NCNN network": b"7767517\n75 83\n",
    "an XML file": b'<?xml version="1.0"?>\n<net name="x">',
    "a web page": b"\n<!DOCTYPE html><html><head><title>Google Drive",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a compressed archive": b"\x1f\x8b\x08" + bytes(90),
    "a tar archive": bytes(257) + b"ustar\x0000" + bytes(300),
    "a NumPy array": b"\x93NUMPY" + bytes(90),
    "a NumPy archive": npz_bytes(),
    "a Keras network": zip_bytes("config.json", "model.weights.h5"),
    "a network of torch.export": zip_bytes("net/archive_format", "net/models/model.json"),
    "a zip archive (photos/a.jpg)": zip_bytes("photos/a.jpg"),
    "a picture": b"\x89PNG\r\n" + bytes(90),
    "it is empty": b"",
    "the bytes 67 61 72 62": b"garbage and more",
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_neither_is_named(tmp_path, what):
    for name in ("net.onnx", "net.pth", "net"):
        (tmp_path / name).write_bytes(OTHERS[what])
        loads = (file_kind, load_discriminative, check_weights, lambda path: load_generative("pgdiff", path))
        for load in loads:
            with raises("network-format", tmp_path / name, what):
                load(str(tmp_path / name))
        (tmp_path / name).write_bytes(script_bytes())
        for load in loads:
            with raises("network-torchscript", tmp_path / name, "never run", "state_dict()"):
                load(str(tmp_path / name))


def test_folders_and_missing_files_are_named(tmp_path):
    for load in (load_discriminative, lambda path: load_generative("pgdiff", path)):
        with raises("network-is-a-folder", tmp_path):
            load(tmp_path)
        with raises("file-missing", tmp_path / "none"):
            load(tmp_path / "none")


def test_a_graph_holds_no_weights_of_a_diffusion_network(tmp_path):
    with raises("weights-are-onnx", "m.pth", "PyTorch or safetensors"):
        load_generative("pgdiff", save_recognizer(tmp_path / "m.pth"))
    with raises("weights-are-onnx", "m.pth"):
        check_weights(tmp_path / "m.pth")


def test_a_damaged_graph_is_no_traceback(tmp_path):
    whole = save_recognizer(tmp_path / "m.onnx").read_bytes()
    for length in range(3, len(whole), 7):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        with pytest.raises(GdrdError, match="m.onnx") as caught:
            load_discriminative(tmp_path / "m.onnx")
        assert caught.value.code in ("onnx-unloadable", "network-format")


def test_a_pickle_of_other_things_is_not_run(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(np.zeros(3)))
    with raises("weights-unreadable", "m.pkl", "never run", "torch.save("):
        load_discriminative(tmp_path / "m.pkl")
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.ckpt")
    with raises("weights-with-code", "m.ckpt", "(argparse.Namespace)", "never run"):
        load_discriminative(tmp_path / "m.ckpt")


def test_paths_may_be_strings(tmp_path):
    path = str(save_recognizer(tmp_path / "m.onnx"))
    assert load_discriminative(path).dim == 48
    torch.save(guided_diffusion(), tmp_path / "g.pth")
    teacher = load_generative("pgdiff", str(tmp_path / "g.pth"), tap="block1", input_size=16)
    assert teacher.features(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 32, 16, 16)
    with raises("diffusers-folder", tmp_path):
        load_generative("diffusers", str(tmp_path))


def test_the_order_of_an_onnx_files_fields_means_nothing(tmp_path):
    data = save_recognizer(tmp_path / "m.onnx").read_bytes()
    assert data[0] == 8  # ir_version, two bytes
    (tmp_path / "m.onnx").write_bytes(data[2:] + data[:2])
    assert file_kind(tmp_path / "m.onnx") == ONNX and load_discriminative(tmp_path / "m.onnx").dim == 48


def test_weights_that_are_not_finite_or_quantized_are_refused(tmp_path):
    weights = guided_diffusion()
    key = "input_blocks.0.0.weight"
    for value, code, fact in (
        (torch.full_like(weights[key], float("nan")), "weights-not-finite", "0.weight"),
        (torch.quantize_per_tensor(weights[key], 0.1, 0, torch.qint8), "weights-not-loadable", "input_blocks.0"),
        (weights[key].to("meta"), "weights-not-loadable", "input_blocks.0"),
    ):
        torch.save({**weights, key: value}, tmp_path / "g.pth")
        with raises(code, fact):
            load_generative("pgdiff", tmp_path / "g.pth", tap="block1", input_size=16)

"""What a network's file is, by its content and not by its suffix; imports nothing heavy."""

import os
import re
import zipfile
from pathlib import Path

from gdrd_jax.teachers.onnx_files import is_onnx
from gdrd_jax.utils.errors import GdrdError, no_file

ONNX, PYTORCH, SAFETENSORS = "ONNX", "PyTorch", "safetensors"
LONGEST_HEADER = 100_000_000  # bytes of a safetensors header, its format's own limit
TORCHSCRIPT = (
    "a TorchScript archive, which is a program and is never run; save its weights alone: "
    "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
)
# Pattern of a file's first bytes, and what such a file is; the first match counts.
BEGINNINGS = (
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, for example)"),
    (rb"....TFL3", "a TensorFlow Lite network"),
    (rb"....ORTM", "a network in ONNX Runtime's own format; give the .onnx file that it was made from"),
    (rb"\x12\x01\x00\x00\x00\x00\x00\x00", "MXNet weights (.params)"),
    (rb"ftrt|ptrt", "a TensorRT engine"),
    (rb"7767517\s", "an NCNN network (.param)"),
    (rb"GGUF", "a GGUF file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run 'git lfs pull'"),
    (
        rb"(?i)\s*<(!doctype html|html|head|body)",
        "a web page, such as a failed download leaves; download the file again",
    ),
    (rb"\s*<(\?xml|net\b)", "an XML file (OpenVINO, for example)"),
    (rb"\s*\{", "a JSON file, which may describe a network but holds no weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf\x27\x1c|Rar!|\x28\xb5\x2f\xfd", "a compressed archive; unpack it"),
    (rb".{257}ustar", "a tar archive; unpack it"),
    (rb"\x89PNG|\xff\xd8\xff", "a picture"),
)


def file_kind(path: str | os.PathLike) -> str:
    """`ONNX`, `PYTORCH` or `SAFETENSORS`.

    Only the beginning is looked at, and a zip archive's list of members: a damaged file may pass for its kind.

    Args:
      path: a network's file, with any suffix or none.

    Raises:
      GdrdError: the file is missing or of another format, which the message names.
    """
    path = Path(path)
    if path.is_dir():
        raise GdrdError(f"{path} is a folder; give the file of a network", "network-is-a-folder")
    if not path.is_file():
        raise no_file(path)
    with path.open("rb") as file:
        begin, size = file.read(512), path.stat().st_size
    if begin.startswith(b"PK"):
        return _of_archive(path)
    if re.match(rb"\x80[\x02-\x05]", begin):  # a pickle, of torch.save as it was before torch 1.6
        return PYTORCH
    length = int.from_bytes(begin[:8], "little")
    if begin[8:9] == b"{" and 1 < length <= LONGEST_HEADER:
        return SAFETENSORS
    for pattern, what in BEGINNINGS:
        if re.match(pattern, begin, re.DOTALL):
            raise GdrdError(f"{path} is {what}; give an ONNX, PyTorch or safetensors file", "network-format")
    # As all known exporters begin a file: with ir_version. A file that is cut short is named by what reads it.
    if re.match(rb"\x08[\x01-\x7f][\x10-\x7f]", begin) or is_onnx(path):
        return ONNX
    found = f"it begins with the bytes {begin[:8].hex(' ')}" if size else "it is empty"
    raise GdrdError(
        f"{path} is neither an ONNX graph nor a file of weights (PyTorch, safetensors): {found}; get it again, or "
        "convert it",
        "network-format",
    )


def _of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):  # cut short; what reads it says so
        return PYTORCH
    inside = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        raise GdrdError(f"{path} is {TORCHSCRIPT}", "network-torchscript")
    if "data.pkl" in inside:
        return PYTORCH
    if "model.weights.h5" in names:
        what = "a Keras network"
    elif any("serialized_exported_program" in name or name == "archive_format" for name in inside):
        what = "a network of torch.export; save its state_dict, or export it to ONNX"
    elif names and all(name.endswith(".npy") for name in names):
        what = "a NumPy archive (.npz)"
    else:
        what = f"a zip archive ({', '.join(names[:3]) or 'empty'}); unpack it"
    raise GdrdError(f"{path} is {what}; give an ONNX, PyTorch or safetensors file", "network-format")

"""Weights as people have them: a file of tensors, read without running what may be in it."""

import zipfile
from pathlib import Path

from gdrd_jax.errors import GdrdError, first_line, require

SHOWN = 3  # keys named in a message


def check_weights(path: Path) -> None:
    """Finds at once what is no file of weights, or was cut short; imports nothing heavy.

    Raises:
      GdrdError: naming it.
    """
    with path.open("rb") as file:
        begin = file.read(2)
    whole = zipfile.is_zipfile(path) if begin == b"PK" else begin[:1] == b"\x80" or path.suffix == ".safetensors"
    if not whole:
        raise GdrdError(f"{path} is no file of weights, or is cut short; get it again")


def read_state_dict(path: Path) -> dict:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file, on the CPU.

    A dictionary under "state_dict" or "model" is unpacked and a leading "module." dropped. A pickle is
    read by `torch.load(weights_only=True)`, which refuses all but tensors and plain containers.

    Raises:
      GdrdError: no such file, truncated, code in it, or no tensors.
    """
    if not path.is_file():
        raise GdrdError(f"there is no file {str(path)!r}")
    torch = require("torch", "teachers")
    try:
        if path.suffix == ".safetensors":
            weights = require("safetensors.torch", "teachers").load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except GdrdError:
        raise
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own
        raise GdrdError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors, which "
            f"is never run ({first_line(error)})"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise GdrdError(f"{path} holds no state_dict: a dictionary of tensors, or one under 'state_dict'")
    return {str(key).removeprefix("module."): value for key, value in weights.items()}


def load(module, weights: dict, where: str, names: dict[str, str] | None = None):
    """Loads tensors into a torch module; returns it.

    Args:
      module: a `torch.nn.Module`.
      weights: key to tensor.
      where: named in errors.
      names: layer of `weights` -> layer of `module`, where they are called differently.

    Raises:
      GdrdError: keys or shapes do not fit, naming the first as `weights` has them.
    """
    here = {inside: outside for outside, inside in (names or {}).items()}
    wanted = {}
    for key, tensor in module.state_dict().items():
        layer, _, kind = key.rpartition(".")
        wanted[f"{here.get(layer, layer)}.{kind}" if layer else key] = (key, list(tensor.shape))
    odd = [f"{key} is missing" for key in wanted if key not in weights]
    odd += [f"{key} is not expected" for key in weights if key not in wanted]
    odd += [
        f"{key} is {list(weights[key].shape)} where {shape} fits"
        for key, (_, shape) in wanted.items() if key in weights and list(weights[key].shape) != shape
    ]  # fmt: skip
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise GdrdError(f"{where} does not fit: {'; '.join(odd[:SHOWN])}{more}")
    module.load_state_dict({inside: weights[key] for key, (inside, _) in wanted.items()})
    return module


def part(weights: dict, prefix: str) -> dict:
    """The tensors below a prefix, by the rest of their keys."""
    return {key[len(prefix) + 1 :]: value for key, value in weights.items() if key.startswith(prefix + ".")}

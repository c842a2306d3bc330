"""Weights as people have them: a file of tensors, read without running what may be in it."""

import logging
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from gdrd_jax.teachers.file_kind import ONNX, SAFETENSORS, file_kind
from gdrd_jax.utils.errors import GdrdError, first_line, require

SHOWN = 3  # keys named in a message
DEEPEST = 4  # dictionaries in one another that are looked through
LOG = logging.getLogger(__name__)


def check_weights(path: str | os.PathLike) -> None:
    """Finds at once a file that holds no weights, or was cut short; imports nothing heavy.

    Raises:
      GdrdError: naming it.
    """
    path, kind = Path(path), file_kind(path)
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    _require_weights(path, kind)
    if archive and not zipfile.is_zipfile(path):
        raise GdrdError(f"{path} is no file of weights, or is cut short; get it again", "weights-unreadable")


def read_state_dict(path: str | os.PathLike, block: str, foreign: dict[str, str] | None = None) -> dict:
    """The tensors of one network, on the CPU, by their keys in this network.

    A trainer's checkpoint is searched for the dictionary that holds the network, and a common prefix of its keys
    ("module.", "backbone.", ...) is removed. Other entries, such as a head, are ignored; the log lists them.
    A pickle is read by `torch.load(weights_only=True)`, which refuses all but tensors and plain containers.

    Args:
      path: of a PyTorch or safetensors file; its content counts, not its suffix.
      block: what keys of the network begin with, and no other's, such as "layer1.0.".
      foreign: beginning of keys beside the network's, which mean that it is another one -> what it is.

    Raises:
      GdrdError: no such file, another kind of file, truncated, code in it, no tensors, several such networks, or a
        foreign one.
    """
    path = Path(path)
    content = _read(path)
    found = dict(_state_dicts(content))
    if not found:
        inside = f"; it holds {', '.join(map(repr, list(content)[:SHOWN]))}" if isinstance(content, dict) else ""
        raise GdrdError(
            f"{path} holds no state_dict: a dictionary of tensors, or one under 'state_dict'{inside}",
            "weights-no-state-dict",
        )
    fitting = {
        (name, prefix): weights for name, weights in found.items() for prefix in sorted(_prefixes(weights, block))
    }  # fmt: skip
    if len(fitting) > 1:
        names = ", ".join(repr(": ".join(filter(None, (name, prefix and f"{prefix}*")))) for name, prefix in fitting)
        raise GdrdError(
            f"{path} holds several such networks ({names}); save the tensors of one of them alone, with torch.save",
            "weights-several-networks",
        )
    if not fitting:  # what reads them says what is missing
        return {str(key).removeprefix("module."): value for key, value in max(found.values(), key=len).items()}
    (((name, prefix), weights),) = fitting.items()
    for begin, what in (foreign or {}).items():
        if any(key.startswith(begin) for key in weights):
            raise GdrdError(
                f"{path} holds {what} (it has keys {begin}*), which is not supported", "weights-of-another-network"
            )
    others = [f"{name}.{key}" if name else key for key in weights if not key.startswith(prefix)]
    others += [other or "tensors at the top" for other in found if other != name]
    if name or prefix or others:
        LOG.info(
            "%s: the network is %s%s%s", path, f"under {name!r}" if name else "at the top",
            f", its keys begin with {prefix!r}" if prefix else "",
            f"; {len(others)} other entries are left out: {', '.join(others[:SHOWN])}"
            + (", ..." if len(others) > SHOWN else "") if others else "",
        )  # fmt: skip
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _require_weights(path: Path, kind: str) -> None:
    if kind == ONNX:
        raise GdrdError(
            f"{path} is an ONNX file; give the weights as a PyTorch or safetensors file", "weights-are-onnx"
        )


def _read(path: Path):
    kind = file_kind(path)
    _require_weights(path, kind)
    torch = require("torch", "teachers")
    try:
        if kind == SAFETENSORS:
            return require("safetensors.torch", "teachers").load_file(path)
        with path.open("rb") as file:  # of a name torch.load looks at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except GdrdError:
        raise
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if kind == SAFETENSORS:
            raise GdrdError(
                f"{path} cannot be read: it is damaged or cut short ({first_line(error)}); get it again",
                "weights-unreadable",
            ) from error
        remedy = "where it was made, save its tensors alone: torch.save(network.state_dict(), 'weights.pth')"
        if foreign:
            raise GdrdError(
                f"{path} cannot be read as weights: it holds more than tensors ({foreign[1]}), and what it holds is "
                f"never run; {remedy}",
                "weights-with-code",
            ) from error
        # Torch's own text may advise to load the file without this protection.
        detail = "" if "weights_only" in first_line(error) else f" ({first_line(error)})"
        raise GdrdError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors, which is never run{detail}; "
            f"{remedy}",
            "weights-unreadable",
        ) from error


def _state_dicts(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict]]:
    """Names of the dictionaries that hold tensors, "" or such as "state_dict" or "model.ema", and their tensors."""
    torch = require("torch", "teachers")
    if not isinstance(content, dict) or depth > DEEPEST:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        yield from _state_dicts(value, f"{name}.{key}" if name else str(key), depth + 1)


def _prefixes(weights: dict, block: str) -> set[str]:
    """What stands before `block` in the keys: nothing, or a name that ends with a point."""
    found = (re.match(rf"(|.*?\.){re.escape(block)}", key) for key in weights)
    return {match.group(1) for match in found if match}


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
        raise GdrdError(f"{where} does not fit: {'; '.join(odd[:SHOWN])}{more}", "weights-mismatch")
    try:
        bad = next((key for key in wanted if not weights[key].isfinite().all()), None)
        module.load_state_dict({inside: weights[key] for key, (inside, _) in wanted.items()})
    except (RuntimeError, NotImplementedError) as error:  # of quantized tensors, or tensors without values
        raise GdrdError(
            f"{where} holds tensors that cannot be loaded ({first_line(error)}); save them as float",
            "weights-not-loadable",
        ) from error
    if bad:
        raise GdrdError(
            f"{where}: {bad} has values that are not finite; the file is damaged, or its training diverged",
            "weights-not-finite",
        )
    return module


def part(weights: dict, prefix: str) -> dict:
    """The tensors below a prefix, by the rest of their keys."""
    return {key[len(prefix) + 1 :]: value for key, value in weights.items() if key.startswith(prefix + ".")}

"""ONNX recognizers in torch, converted by onnx2torch, with corrections of three of its conversions."""

import logging
from pathlib import Path

import numpy as np

from gdrd_jax.teachers import torch_network
from gdrd_jax.utils.errors import first_line, require

LOG = logging.getLogger(__name__)
FURTHEST = 0.01  # of a converted network's output from ONNX Runtime's, relative


def in_torch(model, path: Path):
    """The network converted by onnx2torch, on this process' GPU or the CPU; its weights have no gradients.

    Args:
      model: as `onnx_graph.make_batch_dynamic` returns it.
      path: of its file, for messages.

    Returns:
      A `torch.nn.Module`, or None, and the reason is logged, where onnx2torch cannot convert the graph. What it can,
      it may convert wrongly: see `agrees`.
    """
    device = torch_network.device()
    try:
        network = _converted(model).to(device).eval().requires_grad_(False)
    except Exception as error:  # whatever a converter of one node raises
        LOG.warning("%s: onnx2torch cannot convert it (%s); ONNX Runtime runs it", path, first_line(error))
        return None
    if device.type == "cuda":  # where convolutions of this layout are several times faster in bfloat16
        network = network.to(memory_format=require("torch", "teachers").channels_last)
    return network


def _converted(model):
    """As onnx2torch converts it, but for what its version 1.5.15 converts wrongly."""
    from onnx import helper

    onnx2torch, nn = require("onnx2torch", "teachers"), require("torch.nn", "teachers")
    for node in model.graph.node:
        # onnx2torch takes 1 for the default.
        if node.op_type == "CumSum" and all(attribute.name != "reverse" for attribute in node.attribute):
            node.attribute.append(helper.make_attribute("reverse", 0))
    network = onnx2torch.convert(model)
    for name, module in list(network.named_modules()):
        if type(module).__name__ == "OnnxSlice":
            network.set_submodule(name, _slice())
        elif isinstance(module, nn.LayerNorm):  # whose shape onnx2torch takes from a shape inference that may fail
            module.normalized_shape = tuple(module.weight.shape)
    return network


def _slice():
    """ONNX's Slice; onnx2torch's indexes by a list, which torch will read as a tensor."""
    torch = require("torch", "teachers")

    class Slice(torch.nn.Module):
        def forward(self, x, starts, ends, axes=None, steps=None):
            starts, ends = starts.tolist(), ends.tolist()
            axes = range(len(starts)) if axes is None else axes.tolist()
            steps = [1] * len(starts) if steps is None else steps.tolist()
            for axis, *bounds in zip(axes, starts, ends, steps):
                kept = range(x.shape[axis])[slice(*bounds)]
                x = x.index_select(axis, torch.tensor(kept, dtype=torch.int64, device=x.device))
            return x

    return Slice()


def flat(embeddings: np.ndarray, count: int) -> np.ndarray:
    """A network's output `[N, D]`, `[N, D, 1, 1]`, or of one face `[D]`, as float32 `[count, D]`."""
    return np.asarray(embeddings, np.float32).reshape(count, -1)


def agrees(converted: np.ndarray, reference: np.ndarray, path: Path) -> bool:
    """Whether a converted network gives what ONNX Runtime gives; logs how much it does not.

    Args:
      converted, reference: `[N, D]` of the same faces.
      path: of the network's file, for the message.
    """
    difference = np.inf
    if converted.shape == reference.shape and np.isfinite(converted).all():
        lengths = np.maximum(np.linalg.norm(reference, axis=1), 1e-30)
        difference = (np.linalg.norm(converted - reference, axis=1) / lengths).max()
    if difference <= FURTHEST:
        return True
    LOG.warning(
        "%s: onnx2torch converts it wrongly (its embeddings are off by %.2g, relative); ONNX Runtime runs it",
        path, difference,
    )  # fmt: skip
    return False

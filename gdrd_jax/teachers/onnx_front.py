"""What an ONNX recognizer does to its pixels before the network begins, and so which range of pixels it expects.

Exporters write the normalization into the graph in many ways: Sub and Div, Mul and Add, a BatchNormalization, one
channel after the other. Instead of matching these, the front of the graph, which is every operation that maps each
pixel by itself with constants, is run on uniform pictures. The range that comes out as normalized pixels is the one
that goes in.
"""

from typing import NamedTuple

import numpy as np

from gdrd_jax.errors import GdrdError, first_line

# Operations that keep the values of pixels, or map each by itself.
KEEPING = {
    "Cast", "CastLike", "Concat", "DepthToSpace", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Gather",
    "Identity", "Neg", "Pad", "QuantizeLinear", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
SUMS, PRODUCTS, OF_FIRST = {"Add", "Sub", "Sum"}, {"Mul", "Max", "Min"}, {"Div", "BatchNormalization", "Clip"}
# What may follow the front: layers, which take pixels of any range. Any other operation may be a part of the
# normalization that is not understood.
LAYERS = {
    "AveragePool", "Conv", "ConvInteger", "DynamicQuantizeLinear", "FusedConv", "Gemm", "GlobalAveragePool",
    "InstanceNormalization", "LayerNormalization", "MatMul", "MaxPool", "QLinearConv",
}  # fmt: skip
# Name in `arcface.PREPROCESSING` -> the lowest and highest red, green and blue that it makes of pixels in 0..255.
RANGES = {
    "inside": [[0, 255]] * 3, "unit": [[0, 1]] * 3, "arcface": [[-1, 1]] * 3,
    "imagenet": [[-2.118, 2.249], [-2.036, 2.429], [-1.804, 2.640]],
}  # fmt: skip
# Of normalized pixels, of bytes minus a mean, and of pixels of unit variance: how wide their range is.
NORMALIZED, CENTERED_BYTES, UNIT_VARIANCE = (0.8, 6.0), (200, 300), (2.9, 6.6)
LARGEST_SHIFT = 0.2  # of the center of these from 0, relative to the width
CLOSE = 0.02  # difference between values that pass for the same, relative to the width
CLOSE_BYTES = 0.001  # the same of bytes, where half a step more is another range


class Front(NamedTuple):
    """What the front of a graph says.

    Attributes:
      preprocessing: name in `arcface.PREPROCESSING` of what the graph is to be fed with.
      proven: whether the graph's constants say so; if not, "arcface" is assumed.
      warning: one sentence where the assumption is a weak one, else "".
    """

    preprocessing: str
    proven: bool
    warning: str = ""


def read_front(model, shape: tuple[int, ...], dtype: type) -> Front:
    """Which pixels an ONNX graph is to be fed with, by the constants at its front.

    A graph whose first operation is a layer says nothing: "arcface", what most recognizers take, is assumed. Whether
    the channels are RGB or BGR cannot be read from constants.

    Args:
      model: an ONNX `ModelProto` with one input.
      shape: of one face: 1, 3 and the two sides in the graph's order.
      dtype: of the input.

    Raises:
      GdrdError: the constants fit no range of pixels, or several.
    """
    if np.issubdtype(dtype, np.integer):
        return Front("inside", proven=True)
    nodes, ends, followers, statistics = _front(model)
    unknown = sorted(followers - LAYERS)
    warning = (
        f"its graph begins with {', '.join(unknown)}, from which the range of its pixels cannot be read, so its "
        "preprocessing is a guess; give it"
    )
    if not nodes:
        return Front("arcface", False, warning if unknown else "")
    try:
        found = _run(model, nodes, ends, shape, dtype)
        by_statistics = _run(model, nodes, ends, shape, dtype, neutral=True) if statistics else {}
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise GdrdError(f"the front of the graph cannot be run alone ({first_line(error)})") from error
    if _unchanged(found):
        return Front("arcface", False, warning if unknown else "")
    fitting = [name for name, ends in found.items() if _fits(name, ends)]
    if by_statistics and not _unchanged(by_statistics):
        # Means and variances of a trained network's own pixels say more than what it learned to make of them.
        fitting = [name for name, ends in by_statistics.items() if _centered(ends, *UNIT_VARIANCE)] or fitting
    if len(fitting) == 1:
        return Front(fitting[0], True, warning if unknown else "")
    became = "; ".join(
        f"{name} pixels become {low.min():.3g} to {high.max():.3g}" for name, (low, high) in found.items()
    )
    raise GdrdError(
        f"the constants of the graph's first operations ({', '.join(dict.fromkeys(n.op_type for n in nodes))}) fit "
        f"{'several ranges' if fitting else 'no range'} of pixels ({became or 'none is mapped linearly'})"
    )


def _scales_channels(node, constants: dict) -> bool:
    """Whether a convolution is none but scales and shifts every color by itself, as some converters write it."""
    return node.op_type == "Conv" and node.input[1] in constants and list(constants[node.input[1]].dims) == [3, 1, 1, 1]


def _front(model) -> tuple[list, list[str], set[str], bool]:
    """Nodes of the front, values that leave it, operations that take these, and whether a BatchNormalization is in it.

    Nodes that compute the front's constants are among the front's, in the graph's order.
    """
    graph, tensors = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    pixels, constants = {graph.input[0].name}, {"", *tensors}
    nodes, of_constants, ends, followers, statistics = [], {}, [], set(), False
    for node in graph.node:
        kind, taken = node.op_type, [name for name in node.input if name in pixels]
        known = all(name in pixels or name in constants for name in node.input)
        if any(attribute.HasField("g") for attribute in node.attribute):  # a branch may take whatever it likes
            known = False
        if known and (not taken or kind in ("Shape", "Size")):
            constants.update(node.output)
            of_constants.update(dict.fromkeys(node.output, node))
        elif known and (
            kind in KEEPING | SUMS
            or (kind in PRODUCTS and len(taken) == 1)
            or (kind in OF_FIRST and taken == [node.input[0]])
            or _scales_channels(node, tensors)
        ):
            pixels.update(node.output)
            nodes.append(node)
            statistics |= kind == "BatchNormalization"
        elif taken:
            followers.add(kind)
            ends += [name for name in taken if name not in ends]
    ends += [value.name for value in graph.output if value.name in pixels and value.name not in ends]
    return _with_constants(nodes, of_constants), ends, followers, statistics


def _with_constants(nodes: list, of_constants: dict) -> list:
    """The nodes, each behind those that compute its constants."""
    found = []

    def add(node) -> None:
        for name in node.input:
            if name in of_constants:
                add(of_constants[name])
        if node not in found:
            found.append(node)

    for node in nodes:
        add(node)
    return found


def _run(
    model, nodes: list, ends: list[str], shape: tuple[int, ...], dtype: type, *, neutral: bool = False
) -> dict[str, tuple]:
    """Name of a range -> what its lowest and its highest pixels become, flat; only where all between is linear.

    With `neutral` a BatchNormalization does not scale and shift as it has learned.
    """
    import onnxruntime
    from onnx import helper

    taken = {name for node in nodes for name in node.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in taken}
    graph = helper.make_graph(
        [_on_uniform(node, constants, neutral) for node in nodes], "front", [model.graph.input[0]],
        [helper.make_empty_tensor_value_info(name) for name in ends], list(constants.values()),
    )  # fmt: skip
    front = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by the error
    session = onnxruntime.InferenceSession(front.SerializeToString(), options, providers=["CPUExecutionProvider"])
    where = [3 if axis == shape.index(3) else 1 for axis in range(len(shape))]

    def after(color: np.ndarray) -> np.ndarray:
        face = np.broadcast_to(color.reshape(where), shape).astype(dtype)
        found = session.run(None, {model.graph.input[0].name: face})
        return np.concatenate([np.asarray(value, np.float64).ravel() for value in found])

    found = {}
    for name, colors in RANGES.items():
        low, high = np.array(colors, np.float64).T
        values, middle = (after(low), after(high)), after((low + high) / 2)
        if np.all(np.abs(sum(values) / 2 - middle) <= CLOSE * np.abs(values[1] - values[0])):
            found[name] = values
    return found


def _on_uniform(node, constants: dict, neutral: bool):
    """The node as it is run on uniform pictures: Pad adds no pixels of another value; `neutral` as `_run` has it."""
    from onnx import NodeProto, helper, numpy_helper

    changed = NodeProto()
    changed.CopyFrom(node)
    if node.op_type == "Pad":
        changed.input[:] = node.input[:2]
        del changed.attribute[:]
        changed.attribute.extend(a for a in node.attribute if a.name == "pads")
        changed.attribute.append(helper.make_attribute("mode", "edge"))
    if neutral and node.op_type == "BatchNormalization" and all(name in constants for name in node.input[1:3]):
        for at, value in ((1, 1), (2, 0)):
            like = numpy_helper.to_array(constants[node.input[at]])
            changed.input[at] = f"{node.input[at]}:neutral"
            constants[changed.input[at]] = numpy_helper.from_array(np.full_like(like, value), changed.input[at])
    return changed


def _unchanged(found: dict[str, tuple]) -> bool:
    return all(name in found and _is(found[name], *RANGES[name][0]) for name in ("arcface", "unit"))


def _is(ends: tuple[np.ndarray, np.ndarray], low: float, high: float, close: float = CLOSE) -> bool:
    """Whether the lowest and the highest pixels become these numbers."""
    return all(np.all(np.abs(found - value) <= close * (high - low)) for found, value in zip(ends, (low, high)))


def _centered(ends: tuple[np.ndarray, np.ndarray], least: float, most: float) -> bool:
    """Whether 0 is near the center of every pixel's range, whose width is between these."""
    low, high = ends
    width = high - low
    return bool(np.all((width >= least) & (width <= most)) and np.all(np.abs(high + low) / 2 <= LARGEST_SHIFT * width))


def _fits(name: str, ends: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether pixels of a range become those that a network begins with."""
    if _is(ends, 0, 1) or _is(ends, 0, 255, CLOSE_BYTES) or _is(ends, -1, 1):
        return True
    # Nobody normalizes what ImageNet's statistics have normalized before, other than into one of the plain ranges.
    return name != "imagenet" and (_centered(ends, *NORMALIZED) or _centered(ends, *CENTERED_BYTES))

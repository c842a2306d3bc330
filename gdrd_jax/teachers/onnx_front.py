"""Infers the pixel range that an ONNX recognizer expects from the normalization at the front of its graph.

Exporters write the normalization into the graph in many ways: Sub and Div, Mul and Add, a BatchNormalization, one
channel after the other. Instead of matching these patterns, this module runs the front of the graph (all operations
that map each pixel independently, with constants) on uniform images of each candidate range. The range that the front
maps to normalized pixels is the one that the network expects.
"""

from typing import NamedTuple

import numpy as np

from gdrd_jax.utils.errors import GdrdError, first_line

# Operations that keep the values of pixels, or map each by itself.
KEEPING = {
    "Cast", "CastLike", "Concat", "DepthToSpace", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Gather",
    "Identity", "Neg", "Pad", "QuantizeLinear", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
SUMS, PRODUCTS, OF_FIRST = {"Add", "Sub", "Sum"}, {"Mul", "Max", "Min"}, {"Div", "BatchNormalization", "Clip"}
# Layers, which may follow the front. Any other operation may be an unrecognized part of the normalization.
LAYERS = {
    "AveragePool", "Conv", "ConvInteger", "DynamicQuantizeLinear", "FusedConv", "Gemm", "GlobalAveragePool",
    "InstanceNormalization", "LayerNormalization", "MatMul", "MaxPool", "QLinearConv",
}  # fmt: skip
# Name in `PREPROCESSING` -> [minimum, maximum] of red, green and blue after preprocessing pixels in 0..255.
RANGES = {
    "in_graph": [[0, 255]] * 3, "unit": [[0, 1]] * 3, "arcface": [[-1, 1]] * 3,
    "imagenet": [[-2.118, 2.249], [-2.036, 2.429], [-1.804, 2.640]],
}  # fmt: skip
# Minimum and maximum width of the range of normalized, mean-centered 8-bit, and unit-variance pixels.
NORMALIZED, CENTERED_BYTES, UNIT_VARIANCE = (0.8, 6.0), (200, 300), (2.9, 6.6)
LARGEST_SHIFT = 0.2  # maximum distance of a range's center from 0, relative to its width
CLOSE = 0.02  # tolerance for equal values, relative to the width of the range
IMAGENET_BGR, IMAGENET_BGR_STD = np.array([103.53, 116.28, 123.675]), np.array([57.375, 57.12, 58.395])
BGR_WARNING = (
    "its constants are ImageNet's mean in the order blue, green, red, but it is fed with RGB; exchange the channels of "
    "its first convolution, or give the preprocessing"
)
CLOSE_BYTES = 0.001  # the same of bytes, where half a step more is another range


class Front(NamedTuple):
    """Preprocessing inferred from the front of a graph.

    Attributes:
      preprocessing: name in `preprocessing.PREPROCESSING` of the input that the graph expects.
      proven: whether the graph's constants say so; if not, "arcface" is assumed.
      warning: one sentence where the assumption is a weak one, else "".
    """

    preprocessing: str
    proven: bool
    warning: str = ""


def read_front(model, shape: tuple[int, ...], dtype: type) -> Front:
    """Infers the pixel range that an ONNX graph expects from the constants at its front.

    If the first operation is a layer, nothing can be inferred, and "arcface", the most common range, is assumed. The
    channel order, RGB or BGR, is not inferred.

    Args:
      model: an ONNX `ModelProto` with one input.
      shape: shape of one image, `(1, 3, S, S)` or `(1, S, S, 3)`.
      dtype: NumPy type of the input.

    Raises:
      GdrdError: the constants fit no range of pixels, or several.
    """
    if np.issubdtype(dtype, np.integer):
        return Front("in_graph", proven=True)
    nodes, ends, followers, statistics = _front(model)
    # Behind a mean of pixels an operation that is not known is most likely the network's.
    unknown = [] if any(node.op_type == "AveragePool" for node in nodes) else sorted(followers - LAYERS)
    warning = (
        f"its graph begins with {', '.join(unknown)}, so the range of its pixels cannot be inferred and its "
        "preprocessing is a guess; choose one"
    )
    if not nodes:
        return Front("arcface", False, warning if unknown else "")
    try:
        found = _run(model, nodes, ends, shape, dtype)
        by_statistics = _run(model, nodes, ends, shape, dtype, neutral=True) if statistics else {}
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise GdrdError(
            f"the first operations of the graph cannot be run alone ({first_line(error)})", "onnx-front-not-run"
        ) from error
    if _unchanged(found):
        return Front("arcface", False, warning if unknown else "")
    fitting = [name for name, ends in found.items() if _fits(name, ends)]
    if by_statistics and not _unchanged(by_statistics):
        # Running statistics describe the pixels of the training data; the learned scale and shift do not.
        fitting = [name for name, ends in by_statistics.items() if _centered(ends, *UNIT_VARIANCE)] or fitting
    if len(fitting) == 1:
        bgr = BGR_WARNING if _is_bgr(found) else ""
        return Front(fitting[0], True, warning if unknown else bgr)
    became = "; ".join(
        f"{name} pixels become {low.min():.3g} to {high.max():.3g}" for name, (low, high) in found.items()
    )
    raise GdrdError(
        f"the constants of the graph's first operations ({', '.join(dict.fromkeys(n.op_type for n in nodes))}) fit "
        f"{'several ranges' if fitting else 'no range'} of pixels ({became or 'none is mapped linearly'})",
        "preprocessing-unclear",
    )


def _maps_pixels(node, constants: dict) -> bool:
    """Whether a layer maps each color or each pixel by itself, or takes means of pixels without a border of zeros.

    Some converters write a normalization, or an exchange of channels, as a convolution or a matrix product.
    """
    if node.op_type == "AveragePool":
        return not any(attribute.name == "pads" and any(attribute.ints) for attribute in node.attribute)
    if node.op_type not in ("Conv", "MatMul") or node.input[1] not in constants:
        return False
    return list(constants[node.input[1]].dims) in ([3, 1, 1, 1], [3, 3, 1, 1], [3, 3])


def _front(model) -> tuple[list, list[str], set[str], bool]:
    """Nodes of the front, names of its outputs, operations that consume them, and whether it has a BatchNormalization.

    The nodes include those that compute the front's constants, each before its consumer.
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
            or _maps_pixels(node, tensors)
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
    """Name of each range that the front maps linearly -> its minimum and maximum after the front, flattened.

    If `neutral`, the learned scale and shift of a BatchNormalization are replaced by 1 and 0.
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
    options.log_severity_level = 4  # the error says what fails
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
    """A copy of the node for uniform images: Pad repeats the edge; for `neutral` see `_run`."""
    from onnx import NodeProto, helper, numpy_helper

    changed = NodeProto()
    changed.CopyFrom(node)
    if node.op_type == "Pad":
        # The value that is padded with is of no use to the mode "edge"; opset 18 has the axes behind it.
        changed.input[:] = [*node.input[:2], *([""] if node.input[3:] else []), *node.input[3:]]
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


def _is_bgr(found: dict[str, tuple]) -> bool:
    """Whether black becomes ImageNet's mean with blue first: at both layouts the channels appear in their order."""
    black, _ = found.get("in_graph", found.get("unit", (np.zeros(0), None)))
    _, first = np.unique(np.round(black, 4), return_index=True)
    channels = black[np.sort(first)]
    if len(channels) != 3 or not channels.all():
        return False
    bgr = np.array([IMAGENET_BGR, IMAGENET_BGR / IMAGENET_BGR_STD])
    ratios = np.abs(channels / channels[2] - bgr / bgr[:, 2:]).max(axis=1)
    return bool(ratios.min() < CLOSE)


def _is(ends: tuple[np.ndarray, np.ndarray], low: float, high: float, close: float = CLOSE) -> bool:
    """Whether the lowest and the highest pixels become these numbers."""
    return all(np.all(np.abs(found - value) <= close * (high - low)) for found, value in zip(ends, (low, high)))


def _centered(ends: tuple[np.ndarray, np.ndarray], least: float, most: float) -> bool:
    """Whether 0 is near the center of every pixel's range, whose width is between these."""
    low, high = ends
    width = high - low
    return bool(np.all((width >= least) & (width <= most)) and np.all(np.abs(high + low) / 2 <= LARGEST_SHIFT * width))


def _fits(name: str, ends: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether the front maps this range to normalized pixels."""
    if _is(ends, 0, 1) or _is(ends, 0, 255, CLOSE_BYTES) or _is(ends, -1, 1):
        return True
    # A graph does not center pixels again that ImageNet's statistics have already normalized.
    return name != "imagenet" and (_centered(ends, *NORMALIZED) or _centered(ends, *CENTERED_BYTES))

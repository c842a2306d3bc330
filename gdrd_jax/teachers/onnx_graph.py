"""ONNX recognizers as they are found, made to run for any batch size."""

import numpy as np


def make_batch_dynamic(model, *, free_reshapes: bool = True):
    """Makes an ONNX `ModelProto` of a recognizer acceptable to ONNX Runtime, for any batch size.

    Folds `Constant` nodes, and `DequantizeLinear` (and a following `Reshape`) of constants to float32, removes
    graph inputs that are constants or used by no node, and frees the batch dimension: of input and outputs, and
    where a `Reshape` fixes it at 1. A PRelu's slopes are given the shape that ONNX wants, where MXNet's exporter
    wrote another.

    Args:
      model: changed in place.
      free_reshapes: take a Reshape to [1, ...] for one of a batch of one; it may be of something else.

    Returns:
      `model`.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        while node.input and not node.input[-1]:  # an input left out; onnx2torch takes its name for a value's
            node.input.pop()
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif all(name in constants for name in node.input) and node.op_type == "DequantizeLinear":
            constants[node.output[0]] = _dequantize(node, *(constants[name] for name in node.input))
        elif all(name in constants for name in node.input) and node.op_type == "Reshape":
            constants[node.output[0]] = constants[node.input[0]].reshape(constants[node.input[1]])
        elif (
            free_reshapes
            and node.op_type == "Reshape"
            and len(shape := constants.get(node.input[1], ()))
            and shape[0] == 1
        ):
            name = f"{node.input[1]}:any_batch"
            # 0 keeps the dimension as it is.
            constants[name] = np.array([0, *constants[node.input[1]][1:]], np.int64)
            node.input[1] = name
            nodes.append(node)
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used]),
        (graph.input, inputs),
    ):
        del field[:]
        field.extend(kept)
    for value in graph.input:
        _free_batch(value, 1)
    for value in graph.output:
        _free_batch(value, 2)  # a single dimension may be the embedding's
    _mend_slopes(model)
    return model


def _free_batch(value, least_rank: int) -> None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) >= least_rank:
        dims[0].dim_param = "N"


def _mend_slopes(model) -> None:
    """MXNet's slopes `[C]` of feature maps `[N, C, H, W]` become `[C, 1, 1]`; ONNX would take them for one a column."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    slopes = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 1}
    odd = [node for node in graph.node if node.op_type == "PRelu" and node.input[1] in slopes]
    if not odd:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info)
    }
    for node in odd:
        shape, slope = shapes.get(node.input[0], []), slopes[node.input[1]]
        if len(shape) == 4 and shape[1] == slope.dims[0]:
            name = f"{slope.name}:of_channels"
            if all(tensor.name != name for tensor in graph.initializer):
                graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(slope).reshape(-1, 1, 1), name))
            node.input[1] = name


def reshapes_a_batch_of_one(model) -> bool:
    """Whether `make_batch_dynamic`'s graph has a Reshape to a constant shape [1, ...]."""
    from onnx import numpy_helper

    ones = {t.name for t in model.graph.initializer if t.data_type == t.INT64 and _first(numpy_helper.to_array(t)) == 1}
    return any(node.op_type == "Reshape" and node.input[1] in ones for node in model.graph.node)


def _first(shape: np.ndarray | None) -> int | None:
    return None if shape is None or shape.ndim != 1 or not len(shape) else int(shape[0])


def _dequantize(node, quantized: np.ndarray, scale: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
    """ONNX `DequantizeLinear`: one scale a tensor, a slice of `axis`, or `block_size` elements of it."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)

    def spread(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        if block:
            return np.take(np.repeat(x, block, axis), range(quantized.shape[axis]), axis)
        if x.size == 1:
            return x.reshape(())
        return x.reshape([-1 if i == axis % quantized.ndim else 1 for i in range(quantized.ndim)])

    return ((quantized.astype(np.float32) - spread(zero)) * spread(scale)).astype(np.float32)

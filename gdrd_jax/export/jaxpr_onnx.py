"""Writes a JAX function as nodes of an ONNX graph, from its jaxpr: for students without a writer of their own.

It knows the primitives of convolutional networks. The package jax2onnx knows more, but its newest version (0.17.1)
needs an older Orbax than this package.
"""

import dataclasses
import string
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from gdrd_jax.export.graph import Graph
from gdrd_jax.utils.errors import GdrdError

SAME_NAMED = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "exp": "Exp",
    "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "sign": "Sign",
    "floor": "Floor", "ceil": "Ceil", "erf": "Erf", "sin": "Sin", "cos": "Cos", "eq": "Equal", "lt": "Less",
    "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not", "xor": "Xor",
}  # fmt: skip
OF_BOOLEANS = {"and", "or", "not", "xor"}  # in JAX of the bits of integers, too
CALLS = {
    "jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "checkpoint", "remat2", "closed_call",
    "core_call",
}  # fmt: skip
IDENTITIES = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint", "device_put"}
LAST = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the jaxpr.

    Attributes:
      ref: its name in the graph, or the array itself if it is known.
      own: shape of `ref`.
      shape: shape of the array, to which `ref` is still to be broadcast: most operators of ONNX do that themselves.
      sign_of: name of the array that is above 0 where this one is true; None of others.
    """

    ref: str | np.ndarray
    own: tuple
    shape: tuple
    sign_of: str | None = None


def write(graph: Graph, function: Callable[[jax.Array], jax.Array], name: str, shape: Sequence[int]) -> str:
    """Adds the nodes of a function of images, each of which it treats on its own.

    Args:
      graph: gets the nodes.
      function: uint8 `[N, *shape]` -> float32 `[N, D]`.
      name: of its argument in the graph; N is free.
      shape: of one image.

    Returns:
      The name of its result.

    Raises:
      GdrdError: it uses a primitive, or a form of one, that is not known here.
    """
    (count,) = jax.export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((count, *shape), jnp.uint8)
    try:
        closed = jax.make_jaxpr(function)(images)
    except Exception:  # whatever it raises where it asks for the batch's size as an integer: then image by image
        closed = jax.make_jaxpr(jax.vmap(lambda image: function(image[None])[0]))(images)
    first, writer = len(graph.nodes), _Writer(graph, name, count)
    (result,) = writer.run(closed.jaxpr, closed.consts, [Value(name, images.shape, images.shape)])
    found = writer.name(result)
    graph.keep({found}, first)
    return found


class _Writer:
    def __init__(self, graph: Graph, images: str, count):
        self.graph, self.images, self.count = graph, images, count
        self._count: str | None = None  # name of the batch's size, int64 `[1]`

    def run(self, jaxpr: Jaxpr, consts: Sequence, given: Sequence[Value]) -> list[Value]:
        known = dict(zip(jaxpr.constvars, map(constant, consts))) | dict(zip(jaxpr.invars, given))

        def read(atom) -> Value:
            return constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            known |= dict(zip(eqn.outvars, self._outputs(eqn, [read(atom) for atom in eqn.invars])))
        return [read(atom) for atom in jaxpr.outvars]

    def _outputs(self, eqn: JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
        kind, shapes = eqn.primitive.name, [var.aval.shape for var in eqn.outvars]
        if kind in CALLS:
            inner = next(value for value in eqn.params.values() if isinstance(value, ClosedJaxpr | Jaxpr))
            jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
            return self.run(jaxpr, consts, inputs)
        if kind in IDENTITIES or (kind == "convert_element_type" and self._is_stored_alike(eqn)):
            return inputs
        if kind == "dim_as_value":
            raise unsupported(kind, "the batch's size as a number")
        fixed = all(isinstance(size, int) for shape in shapes for size in shape)
        if fixed and all(isinstance(value.ref, np.ndarray) for value in inputs):
            with jax.ensure_compile_time_eval():
                found = eqn.primitive.bind(*(np.broadcast_to(v.ref, v.shape) for v in inputs), **eqn.params)
            return [constant(value) for value in (found if eqn.primitive.multiple_results else [found])]
        if kind in OF_BOOLEANS and eqn.invars[0].aval.dtype != bool:
            raise unsupported(kind, "integers")
        if kind in SAME_NAMED:
            return [self._elementwise(SAME_NAMED[kind], inputs, shapes[0])]
        rule = getattr(self, f"_{kind}", None)
        if rule is None:
            raise unsupported(kind)
        found = rule(eqn, *inputs)
        if isinstance(found, list):
            return [Value(name, shape, shape) for name, shape in zip(found, shapes)]
        return [found if isinstance(found, Value) else Value(found, shapes[0], shapes[0])]

    @staticmethod
    def _is_stored_alike(eqn: JaxprEqn) -> bool:
        return stored(eqn.invars[0].aval.dtype) == stored(eqn.params["new_dtype"])

    # What operators take.

    def name(self, value: Value) -> str:
        """The name of the whole array."""
        ref = self.whole(value)
        return ref if isinstance(ref, str) else self.graph.add("Identity", ref)

    def whole(self, value: Value) -> str | np.ndarray:
        """The array, or the name of it, broadcast to its shape."""
        if value.own == value.shape:
            return value.ref
        return self.graph.add("Expand", value.ref, self._sizes(value.shape))

    def _sizes(self, shape: Sequence) -> str | np.ndarray:
        """A shape, as an array where it does not depend on N."""
        if all(isinstance(size, int) for size in shape):
            return np.array(shape, np.int64)
        return self.graph.add("Concat", *(self._size(size) for size in shape), axis=0)

    def _size(self, size) -> str | np.ndarray:
        if isinstance(size, int):
            return np.array([size], np.int64)
        times = size // self.count
        if not isinstance(times, int) or times * self.count != size:
            raise unsupported("reshape", f"the size {size}")
        if self._count is None:
            first = np.array([0], np.int64), np.array([1], np.int64)
            self._count = self.graph.add("Slice", self.graph.add("Shape", self.images), *first)
        return self._count if times == 1 else self.graph.add("Mul", self._count, np.array([times], np.int64))

    def _reshaped(self, x: str | np.ndarray, shape: Sequence) -> str:
        free = [not isinstance(size, int) for size in shape]
        if sum(free) == 1:
            return self.graph.add("Reshape", x, np.array([-1 if f else n for f, n in zip(free, shape)], np.int64))
        return self.graph.add("Reshape", x, self._sizes(shape))

    def _transposed(self, x: str | np.ndarray, order: Sequence[int]) -> str | np.ndarray:
        if list(order) == sorted(order):
            return x
        return x.transpose(order) if isinstance(x, np.ndarray) else self.graph.add("Transpose", x, perm=list(order))

    def _elementwise(self, kind: str, inputs: Sequence[Value], shape: tuple) -> Value:
        zero = len(inputs) == 2 and is_zero(inputs[1])
        if kind == "Max" and zero:
            kind, inputs = "Relu", inputs[:1]
        refs = [value.ref for value in inputs]
        sign_of = refs[0] if kind == "Greater" and zero else None
        return Value(self.graph.add(kind, *refs), common([value.own for value in inputs]), shape, sign_of)

    def _of(self, kind: str, *refs: str | np.ndarray, like: Value) -> Value:
        """An operator on a single array, element by element, and on constants."""
        return Value(self.graph.add(kind, *refs), like.own, like.shape)

    # A method for each primitive that is not in a table above, of its equation and its inputs.

    def _select_n(self, eqn, which: Value, *cases: Value) -> Value:
        if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
            raise unsupported("select_n", "more than two cases")
        if which.sign_of and which.sign_of == cases[1].ref and is_zero(cases[0]):
            return self._of("Relu", cases[1].ref, like=cases[1])
        own = common([value.own for value in (which, *cases)])
        refs = which.ref, cases[1].ref, cases[0].ref
        return Value(self.graph.add("Where", *refs), own, eqn.outvars[0].aval.shape)

    def _ne(self, eqn, *inputs: Value) -> Value:
        same = self._elementwise("Equal", inputs, eqn.outvars[0].aval.shape)
        return self._of("Not", same.ref, like=same)

    def _clamp(self, eqn, least: Value, x: Value, most: Value) -> Value:
        shape = eqn.outvars[0].aval.shape
        return self._elementwise("Min", [self._elementwise("Max", [x, least], shape), most], shape)

    def _square(self, eqn, x: Value) -> Value:
        return self._of("Mul", x.ref, x.ref, like=x)

    def _integer_pow(self, eqn, x: Value) -> Value:
        if eqn.params["y"] == 2:
            return self._square(eqn, x)
        return self._of("Pow", x.ref, np.float32(eqn.params["y"]), like=x)

    def _rsqrt(self, eqn, x: Value) -> Value:
        return self._of("Reciprocal", self.graph.add("Sqrt", x.ref), like=x)

    def _log1p(self, eqn, x: Value) -> Value:
        return self._of("Log", self.graph.add("Add", x.ref, np.float32(1)), like=x)

    def _expm1(self, eqn, x: Value) -> Value:
        return self._of("Sub", self.graph.add("Exp", x.ref), np.float32(1), like=x)

    def _round(self, eqn, x: Value) -> Value:
        if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
            raise unsupported("round", "halves rounded away from zero")
        return self._of("Round", x.ref, like=x)

    def _convert_element_type(self, eqn, x: Value) -> Value:
        to = self.graph.onnx.helper.np_dtype_to_tensor_dtype(stored(eqn.params["new_dtype"]))
        return Value(self.graph.add("Cast", x.ref, to=to), x.own, x.shape)

    def _broadcast_in_dim(self, eqn, x: Value, *_sizes: Value) -> Value:
        shape, where = tuple(eqn.params["shape"]), eqn.params["broadcast_dimensions"]
        own = [1] * len(shape)
        for axis, size in zip(where, x.own):
            own[axis] = size
        if tuple(own) == x.own:
            return dataclasses.replace(x, shape=shape)
        ref = x.ref.reshape(own) if isinstance(x.ref, np.ndarray) else self._reshaped(x.ref, own)
        return Value(ref, tuple(own), shape)

    def _reshape(self, eqn, x: Value, *_sizes: Value) -> str:
        if eqn.params.get("dimensions") is not None:
            raise unsupported("reshape", "an order of axes")
        return self._reshaped(self.whole(x), eqn.outvars[0].aval.shape)

    def _squeeze(self, eqn, x: Value) -> str:
        return self._reshaped(self.whole(x), eqn.outvars[0].aval.shape)

    def _expand_dims(self, eqn, x: Value) -> str:
        return self._reshaped(self.whole(x), eqn.outvars[0].aval.shape)

    def _transpose(self, eqn, x: Value) -> str | np.ndarray:
        return self._transposed(self.name(x), eqn.params["permutation"])

    def _concatenate(self, eqn, *parts: Value) -> str:
        return self.graph.add("Concat", *map(self.whole, parts), axis=eqn.params["dimension"])

    def _tile(self, eqn, x: Value) -> str:
        return self.graph.add("Tile", self.whole(x), np.array(eqn.params["reps"], np.int64))

    def _rev(self, eqn, x: Value) -> str:
        axes = np.array(eqn.params["dimensions"], np.int64)
        return self.graph.add(
            "Slice", self.whole(x), np.full_like(axes, -1), np.full_like(axes, -LAST), axes, -(axes**0)
        )

    def _slice(self, eqn, x: Value) -> str:
        starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
        return self._sliced(x, starts, ends, eqn.params["strides"] or [1] * len(starts))

    def _sliced(self, x: Value, starts: Sequence, ends: Sequence, steps: Sequence[int]) -> str:
        ends = [LAST if end == size else end for end, size in zip(ends, x.shape)]
        if not all(isinstance(number, int | np.integer) for number in (*starts, *ends)):
            raise unsupported("slice", "bounds that depend on the batch's size")
        bounds = (np.array(numbers, np.int64) for numbers in (starts, ends, range(len(starts)), steps))
        return self.graph.add("Slice", self.whole(x), *bounds)

    def _split(self, eqn, x: Value) -> list[str]:
        axis, found, start = eqn.params["axis"], [], 0
        for size in eqn.params["sizes"]:
            bounds = [(start, start + size) if i == axis else (0, n) for i, n in enumerate(x.shape)]
            found.append(self._sliced(x, *zip(*bounds), [1] * len(bounds)))
            start += size
        return found

    def _gather(self, eqn, x: Value, indices: Value) -> str | np.ndarray:
        given, after = eqn.params, eqn.outvars[0].aval.shape
        free = [axis for axis, size in enumerate(x.shape) if not isinstance(size, int)]
        if (
            not isinstance(indices.ref, np.ndarray)
            or len(free) != 1
            or given["slice_sizes"][free[0]] != x.shape[free[0]]
        ):
            raise unsupported("gather", "indices that depend on the input, or of images")
        # Where each element comes from in an image is the same for all images.
        axis, single = free[0], [size if isinstance(size, int) else 1 for size in x.shape]
        places = jax.lax.gather(
            np.arange(np.prod(single), dtype=np.int32).reshape(single), indices.ref, given["dimension_numbers"],
            [size if isinstance(size, int) else 1 for size in given["slice_sizes"]], mode=given["mode"], fill_value=-1,
        )  # fmt: skip
        if places.min() < 0:
            raise unsupported("gather", "indices out of bounds")
        where = next(i for i, size in enumerate(after) if not isinstance(size, int))
        order = [axis, *(i for i in range(len(single)) if i != axis)]
        flat = self._reshaped(self._transposed(self.whole(x), order), (self.count, int(np.prod(single))))
        found = self.graph.add("Gather", flat, np.asarray(places.squeeze(where), np.int64), axis=1)
        back = [*range(1, where + 1), 0, *range(where + 1, len(after))]
        return self._transposed(found, back)

    def _pad(self, eqn, x: Value, value: Value) -> str:
        low, high, inner = zip(*eqn.params["padding_config"])
        if any(inner) or min(*low, *high) < 0:
            raise unsupported("pad", "negative or inner padding")
        return self.graph.add("Pad", self.whole(x), np.array([*low, *high], np.int64), value.ref)

    def _reduce_sum(self, eqn, x: Value) -> str:
        return self.graph.add("ReduceSum", self.whole(x), np.array(eqn.params["axes"], np.int64), keepdims=0)

    def _reduce_max(self, eqn, x: Value) -> str:
        return self.graph.add("ReduceMax", self.whole(x), axes=list(eqn.params["axes"]), keepdims=0)

    def _reduce_min(self, eqn, x: Value) -> str:
        return self.graph.add("ReduceMin", self.whole(x), axes=list(eqn.params["axes"]), keepdims=0)

    def _reduce_prod(self, eqn, x: Value) -> str:
        return self.graph.add("ReduceProd", self.whole(x), axes=list(eqn.params["axes"]), keepdims=0)

    def _argmax(self, eqn, x: Value) -> str:
        found = self.graph.add("ArgMax", self.whole(x), axis=eqn.params["axes"][0], keepdims=0)
        to = self.graph.onnx.helper.np_dtype_to_tensor_dtype(stored(eqn.params["index_dtype"]))
        return self.graph.add("Cast", found, to=to)

    def _dot_general(self, eqn, x: Value, y: Value) -> str:
        (of_x, of_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
        ranks = len(x.shape), len(y.shape)
        if tuple(of_x) == (ranks[0] - 1,) and ranks[1] == 2 and not batch_x:
            kernel = self._transposed(self.whole(y), (of_y[0], 1 - of_y[0]))
            return self.graph.add("Gemm" if ranks[0] == 2 else "MatMul", self.whole(x), kernel)
        letters = iter(string.ascii_lowercase)
        names: list[dict[int, str]] = [{}, {}]
        for a, b in [*zip(batch_x, batch_y), *zip(of_x, of_y)]:
            names[0][a] = names[1][b] = next(letters)
        for rank, own in zip(ranks, names):
            own.update({axis: next(letters) for axis in range(rank) if axis not in own})
        result = [names[0][a] for a in batch_x]
        for own, skipped in zip(names, ({*batch_x, *of_x}, {*batch_y, *of_y})):
            result += [own[axis] for axis in sorted(own) if axis not in skipped]
        first, second = ("".join(own[axis] for axis in sorted(own)) for own in names)
        equation = f"{first},{second}->{''.join(result)}"
        return self.graph.add("Einsum", self.whole(x), self.whole(y), equation=equation)

    def _conv_general_dilated(self, eqn, x: Value, kernel: Value) -> str:
        given, numbers = eqn.params, eqn.params["dimension_numbers"]
        if any(n != 1 for n in given["lhs_dilation"]) or given["batch_group_count"] != 1:
            raise unsupported("conv_general_dilated", "dilated input (a transposed convolution) or groups of the batch")
        if min(min(pair) for pair in given["padding"]) < 0:
            raise unsupported("conv_general_dilated", "negative padding")
        low, high = zip(*given["padding"])
        found = self.graph.add(
            "Conv", self._transposed(self.whole(x), numbers.lhs_spec),
            self._transposed(self.whole(kernel), numbers.rhs_spec),
            strides=list(given["window_strides"]), pads=[*low, *high], dilations=list(given["rhs_dilation"]),
            group=given["feature_group_count"],
        )  # fmt: skip
        return self._transposed(found, np.argsort(numbers.out_spec).tolist())

    def _reduce_window_max(self, eqn, x: Value) -> str:
        return self._pooled(eqn, x, "MaxPool")

    def _reduce_window_sum(self, eqn, x: Value) -> str:
        mean = self._pooled(eqn, x, "AveragePool", count_include_pad=1)
        return self.graph.add("Mul", mean, np.float32(np.prod(eqn.params["window_dimensions"])))

    def _pooled(self, eqn, x: Value, kind: str, **attributes) -> str:
        given, rank = eqn.params, len(x.shape)
        if any(n != 1 for n in (*given["base_dilation"], *given["window_dilation"])):
            raise unsupported(eqn.primitive.name, "dilation")
        moves = zip(given["window_dimensions"], given["window_strides"], given["padding"])
        pooled = [axis for axis, move in enumerate(moves) if move != (1, 1, (0, 0))]
        order = [axis for axis in range(rank) if axis not in pooled] + pooled
        sizes = [x.shape[axis] for axis in pooled]
        low, high = zip(*(given["padding"][axis] for axis in pooled))
        planes = self.graph.add(
            "Reshape", self._transposed(self.whole(x), order), np.array([-1, 1, *sizes], np.int64)
        )  # fmt: skip
        found = self.graph.add(
            kind, planes, kernel_shape=[given["window_dimensions"][axis] for axis in pooled],
            strides=[given["window_strides"][axis] for axis in pooled], pads=[*low, *high], **attributes,
        )  # fmt: skip
        after = eqn.outvars[0].aval.shape
        return self._transposed(self._reshaped(found, [after[axis] for axis in order]), np.argsort(order).tolist())


def constant(value) -> Value:
    """A known array."""
    array = np.asarray(value)
    array = array.astype(stored(array.dtype))
    return Value(array, array.shape, array.shape)


def stored(dtype) -> np.dtype:
    """The type in the graph: all floating-point numbers are float32."""
    return np.dtype(np.float32) if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


def is_zero(value: Value) -> bool:
    """Whether an array is known to be 0 everywhere."""
    return isinstance(value.ref, np.ndarray) and not value.ref.any()


def common(shapes: Sequence[tuple]) -> tuple:
    """The shape to which arrays are broadcast together, where sizes may depend on N."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded))


def unsupported(primitive: str, form: str = "") -> GdrdError:
    """The refusal of a primitive, or a form of it."""
    return GdrdError(
        f"the student uses JAX's primitive {primitive!r}{form and f' with {form}'}, which cannot be written as ONNX "
        "here; compute it another way, or export StableHLO alone: --format stablehlo",
        "export-primitive",
    )

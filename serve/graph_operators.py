"""The operators that a graph may hold, and for each what it accepts and what comes out: types and shapes. Torch-free.

They are those that `byol export` writes; tests/test_serve_graph_operators.py keeps the two equal. Each rule is that of
ONNX's operator set 20. What ONNX Runtime would divide by, index with or allocate is bounded here, before it sees it.
Shapes: N batch, C channels, M and K sides of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from byol.serve.graph_values import BOOL, DTYPES, FLOAT, FLOAT16, INT8, INT32, INT64, MAX_KNOWN, UINT8, Value, known
from byol.serve.graph_values import refuse_unless as require
from byol.serve.strict_json import BundleError

_FLOATS = (DTYPES[FLOAT], DTYPES[FLOAT16])
_NUMBERS = (*_FLOATS, DTYPES[INT64], DTYPES[INT32])
_LARGEST = 65_535  # of a kernel, stride, padding


# --------------------------------------------------------------------------------------------------- attributes


class Attribute(NamedTuple):
    """Its field in an ONNX attribute, and which values are legal."""

    field: str
    legal: Callable[[Any], bool]
    words: str


def _whole(least: int, most: int) -> Attribute:
    return Attribute("i", lambda value: least <= value <= most, f"{least} to {most}")


def _wholes(least: int, most: int) -> Attribute:
    return Attribute("ints", lambda values: all(least <= v <= most for v in values), f"each {least} to {most}")


def _text(*legal: bytes) -> Attribute:
    return Attribute("s", lambda value: value in legal, " or ".join(text.decode() for text in legal))


_FLAG, _ZERO, _AXIS, _COUNT = _whole(0, 1), _whole(0, 0), _whole(-8, 7), _whole(1, _LARGEST)
_AXES, _LENGTHS, _PADS = _wholes(-8, 7), _wholes(1, _LARGEST), _wholes(0, _LARGEST)
_NUMBER = Attribute("f", math.isfinite, "a finite number")
_WINDOW = {"auto_pad": _text(b"NOTSET"), "dilations": _LENGTHS, "kernel_shape": _LENGTHS, "pads": _PADS} | {
    "strides": _LENGTHS
}


# -------------------------------------------------------------------------------------------------------- nodes


@dataclass(frozen=True)
class Node:
    """One operation: its inputs in order (None where left out), attributes by name, and how many outputs it names."""

    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: int = 1

    def __getitem__(self, place: int) -> Value:
        value = self.inputs[place] if place < len(self.inputs) else None
        require(value is not None, f"lacks its input {place}")
        assert value is not None
        return value

    def optional(self, place: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def given(self) -> list[Value]:
        """All inputs, none of which may be left out."""
        return [self[place] for place in range(len(self.inputs))]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or what ONNX takes where it is absent."""
        return self.attributes.get(name, default)

    def axis(self, rank: int, default: int) -> int:
        """The attribute `axis` as 0 to rank - 1."""
        return _axis(self.get("axis", default), rank)


Rule = Callable[[Node], list[Value]]


@dataclass(frozen=True)
class Operator:
    """`inputs`: how few and how many it takes; `rule`: from a node to its outputs, raising `BundleError`."""

    rule: Rule
    inputs: tuple[int, int]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def _axis(axis: int, rank: int) -> int:
    require(-rank <= axis < rank, f"axis {axis} does not exist in {rank} axes")
    return axis % rank


def _axes(axes: Sequence[int], rank: int) -> list[int]:
    found = [_axis(axis, rank) for axis in axes]
    require(len(set(found)) == len(found), f"axes {list(axes)} name one twice")
    return found


def _is_float(*values: Value) -> None:
    for value in values:
        if value.dtype not in _FLOATS:
            raise BundleError(f"is not defined here for {value.dtype}, only for float32 and float16")


def _alike(values: Sequence[Value]) -> np.dtype[Any]:
    kinds = {value.dtype for value in values}
    if len(kinds) > 1:
        raise BundleError(f"mixes {' and '.join(sorted(map(str, kinds)))}")
    return values[0].dtype


def _broadcast(values: Sequence[Value]) -> tuple[int, ...]:
    shapes = [value.shape for value in values]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        raise BundleError(f"cannot bring the shapes {listed} together") from None


# -------------------------------------------------------------------------------------------- element by element


def _follow(function: Callable[..., Any], values: Sequence[Value], result: Value) -> Value:
    """The result with its numbers, where those of all inputs are known and few."""
    numbers = [value.numbers for value in values]
    if result.size > MAX_KNOWN or any(n is None for n in numbers):
        return result
    with np.errstate(all="ignore"):
        return replace(result, numbers=np.asarray(function(*numbers), result.dtype).reshape(result.shape))


def _elementwise(function: Callable[..., Any] | None = None) -> Rule:
    """Of one or more float tensors, brought to one shape; `function` where shapes may be computed with it."""

    def rule(node: Node) -> list[Value]:
        values = node.given()
        _is_float(*values)
        result = Value(_alike(values), _broadcast(values))
        return [_follow(function, values, result) if function else result]

    return rule


def _compare(function: Callable[..., Any]) -> Rule:
    def rule(node: Node) -> list[Value]:
        values = node.given()
        _is_float(*values)
        _alike(values)
        return [_follow(function, values, Value(DTYPES[BOOL], _broadcast(values)))]

    return rule


def _where(node: Node) -> list[Value]:
    condition, *values = node.given()
    require(condition.dtype == DTYPES[BOOL], "needs truth values to choose by")
    return [Value(_alike(values), _broadcast([condition, *values]))]


def _identity(node: Node) -> list[Value]:
    return [node[0]]


def _clip(node: Node) -> list[Value]:
    bounds = [value for value in map(node.optional, (1, 2)) if value is not None]
    _is_float(node[0], *bounds)
    _alike([node[0], *bounds])
    require(all(bound.shape == () for bound in bounds), "needs bounds that are single numbers")
    return [Value(node[0].dtype, node[0].shape)]


def _cast(node: Node) -> list[Value]:
    kind = node.get("to", 0)
    require(kind in DTYPES, f"to is {kind}, which is not among the types that a graph may use")
    value, dtype = node[0], DTYPES[kind]
    result = Value(dtype, value.shape)
    exact = value.numbers is not None and bool(np.isfinite(value.numbers).all() and (abs(value.numbers) < 2**31).all())
    return [_follow(lambda numbers: numbers.astype(dtype), [value], result) if exact else result]


def _softmax(node: Node) -> list[Value]:
    _is_float(node[0])
    node.axis(len(node[0].shape), -1)
    return [Value(node[0].dtype, node[0].shape, work=4)]


# ------------------------------------------------------------------------------------------------------- shapes


def _transpose(node: Node) -> list[Value]:
    shape = node[0].shape
    perm = node.get("perm", list(range(len(shape)))[::-1])
    require(sorted(perm) == list(range(len(shape))), f"perm is {perm}, no order of {len(shape)} axes")
    return [Value(node[0].dtype, tuple(shape[axis] for axis in perm))]


def _reshape(node: Node) -> list[Value]:
    value, wanted = node[0], known(node.optional(1), "the shape")
    require(all(size >= -1 for size in wanted) and wanted.count(-1) <= 1, f"cannot make the shape {wanted}")
    require(len(wanted) <= len(value.shape) or 0 not in wanted[len(value.shape) :], f"cannot make the shape {wanted}")
    kept = not node.get("allowzero", 0)  # 0: as it was; otherwise an axis without elements, which is refused
    shape = [value.shape[place] if size == 0 and kept else size for place, size in enumerate(wanted)]
    rest = math.prod(size for size in shape if size != -1)
    require(rest > 0 and value.size % rest == 0, f"cannot make {wanted} of {list(value.shape)}")
    shape = [value.size // rest if size == -1 else size for size in shape]
    require(math.prod(shape) == value.size, f"cannot make {wanted} of {list(value.shape)}")
    return [Value(value.dtype, tuple(shape))]


def _flatten(node: Node) -> list[Value]:
    shape, axis = node[0].shape, node.get("axis", 1)
    require(-len(shape) <= axis <= len(shape), f"axis {axis} does not exist in {len(shape)} axes")
    axis = axis + len(shape) if axis < 0 else axis
    return [Value(node[0].dtype, (math.prod(shape[:axis]), math.prod(shape[axis:])))]


def _squeeze(node: Node) -> list[Value]:
    value, named = node[0], node.optional(1)
    ones = [axis for axis, size in enumerate(value.shape) if size == 1]
    axes = ones if named is None else _axes(known(named, "axes"), len(value.shape))
    require(set(axes) <= set(ones), f"cannot take the axes {axes} out of {list(value.shape)}")
    result = Value(value.dtype, tuple(size for axis, size in enumerate(value.shape) if axis not in axes))
    return [_follow(lambda numbers: numbers, [value], result)]


def _unsqueeze(node: Node) -> list[Value]:
    value, named = node[0], known(node.optional(1), "axes")
    axes = set(_axes(named, len(value.shape) + len(named)))
    old = iter(value.shape)
    shape = tuple(1 if axis in axes else next(old) for axis in range(len(value.shape) + len(axes)))
    return [_follow(lambda numbers: numbers, [value], Value(value.dtype, shape))]


def _concat(node: Node) -> list[Value]:
    values = node.given()
    rank = len(values[0].shape)
    require(all(len(value.shape) == rank for value in values), "joins tensors with different numbers of axes")
    axis = node.axis(rank, 0)
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    require("axis" in node.attributes and len(rests) == 1, "joins tensors whose other axes differ")
    length = sum(value.shape[axis] for value in values)
    result = Value(_alike(values), (*values[0].shape[:axis], length, *values[0].shape[axis + 1 :]))
    return [_follow(lambda *numbers: np.concatenate(numbers, axis), values, result)]


def _split(node: Node) -> list[Value]:
    value, sizes = node[0], node.optional(1)
    axis = node.axis(len(value.shape), 0)
    length, parts = value.shape[axis], node.get("num_outputs", 0)
    require((sizes is None) == (parts == node.outputs), "needs either sizes or the number of its outputs")
    each = -(-length // node.outputs)
    lengths = known(sizes, "sizes") if sizes else [each] * (parts - 1) + [length - each * (parts - 1)]
    require(len(lengths) == node.outputs and sum(lengths) == length, f"cannot cut {length} into {lengths}")
    return [Value(value.dtype, (*value.shape[:axis], part, *value.shape[axis + 1 :])) for part in lengths]


def _slice(node: Node) -> list[Value]:
    value = node[0]
    starts, ends = (known(node.optional(place), what) for place, what in ((1, "starts"), (2, "ends")))
    axes = known(node.inputs[3], "axes") if node.optional(3) else list(range(len(starts)))
    steps = known(node.inputs[4], "steps") if node.optional(4) else [1] * len(starts)
    require(len({*map(len, (starts, ends, axes, steps))}) == 1, "needs as many starts as ends, axes and steps")
    shape = list(value.shape)
    for start, end, axis, step in zip(starts, ends, _axes(axes, len(shape)), steps, strict=True):
        require(1 <= step <= _LARGEST, f"steps by {step}; only 1 to {_LARGEST} are allowed")
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return [Value(value.dtype, tuple(shape))]


def _pad(node: Node) -> list[Value]:
    value, pads, fill = node[0], known(node.optional(1), "pads"), node.optional(2)
    axes = _axes(known(node.inputs[3], "axes"), len(value.shape)) if node.optional(3) else range(len(value.shape))
    require(len(pads) == 2 * len(axes) and all(0 <= pad <= _LARGEST for pad in pads), f"cannot pad by {pads}")
    require(fill is None or (fill.shape == () and fill.dtype == value.dtype), "needs one number to pad with")
    shape = list(value.shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        inside = node.get("mode", b"constant") != b"reflect" or max(before, after) < shape[axis]
        require(inside, f"cannot mirror {max(before, after)} of {shape[axis]}")
        shape[axis] += before + after
    return [Value(value.dtype, tuple(shape))]


def _shape(node: Node) -> list[Value]:
    sizes = node[0].shape[slice(node.get("start", 0), node.attributes.get("end"))]
    return [Value(DTYPES[INT64], (len(sizes),), np.array(sizes, np.int64))]


def _range(node: Node) -> list[Value]:
    values = node.given()
    require(all(value.shape == () and value.numbers is not None for value in values), "has bounds that are not known")
    start, end, step = (float(value.numbers or 0) for value in values)
    require(math.isfinite(end - start) and step > 0, f"cannot count from {start} to {end} by {step}")
    return [Value(_alike(values), (math.ceil((end - start) / step),))]


# ------------------------------------------------------------------------------------------------------ windows


def _windows(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The sizes that are left of the `spatial` axes."""
    count = len(spatial)
    strides, dilations = node.get("strides", [1] * count), node.get("dilations", [1] * count)
    pads = node.get("pads", [0] * (2 * count))
    fits = len(kernel) == len(strides) == len(dilations) == count and len(pads) == 2 * count
    require(fits and 1 <= count <= 3, f"has kernel, strides, dilations or pads that do not suit {count} axes")
    sizes = []
    for place, size in enumerate(spatial):
        before, after = pads[place], pads[place + count]
        reach = dilations[place] * (kernel[place] - 1) + 1
        room = size + before + after - reach
        require(room >= 0, f"has a kernel of {reach} for {size + before + after} pixels")
        steps = -(-room // strides[place]) if node.get("ceil_mode", 0) else room // strides[place]
        if node.get("ceil_mode", 0) and steps * strides[place] >= size + before:  # it would begin in the padding
            steps -= 1
        sizes.append(steps + 1)
    return sizes


def _conv(node: Node) -> list[Value]:
    values = node.given()
    image, weight, group = node[0], node[1], node.get("group", 1)
    _is_float(*values)
    require(3 <= len(image.shape) == len(weight.shape), "needs image and weight with equal numbers of axes")
    outputs, inputs, *kernel = weight.shape
    require(node.get("kernel_shape", kernel) == kernel, f"has kernel_shape that is not its weight's {kernel}")
    fits = image.shape[1] == inputs * group and outputs % group == 0
    require(fits, f"has weights {list(weight.shape)} in {group} groups for {image.shape[1]} channels")
    require(all(bias.shape == (outputs,) for bias in values[2:]), "has a bias that is not one number per channel")
    sizes = _windows(node, image.shape[2:], kernel)
    return [Value(_alike(values), (image.shape[0], outputs, *sizes), work=inputs * math.prod(kernel))]


def _pool(node: Node) -> list[Value]:
    image, kernel = node[0], node.get("kernel_shape", [])
    require(image.dtype in (*_FLOATS, DTYPES[UINT8], DTYPES[INT8]), f"is not defined here for {image.dtype}")
    require(len(image.shape) >= 3, "needs an image")
    pads = node.get("pads", [0] * (2 * len(kernel)))
    require(all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=False)), "pads by its kernel or more")
    sizes = _windows(node, image.shape[2:], kernel)
    return [Value(image.dtype, (*image.shape[:2], *sizes), work=math.prod(kernel))]


def _global_pool(node: Node) -> list[Value]:
    shape = node[0].shape
    _is_float(node[0])
    require(len(shape) >= 3, "needs an image")
    return [Value(node[0].dtype, (*shape[:2], *[1] * (len(shape) - 2)), work=math.prod(shape[2:]))]


def _reduce(node: Node) -> list[Value]:
    value, named = node[0], node.optional(1)
    _is_float(value)
    axes = _axes(known(named, "axes"), len(value.shape)) if named is not None else []
    if not axes and not node.get("noop_with_empty_axes", 0):
        axes = list(range(len(value.shape)))
    kept = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    shape = kept if node.get("keepdims", 1) else [size for axis, size in enumerate(kept) if axis not in axes]
    return [Value(value.dtype, tuple(shape), work=math.prod(value.shape[axis] for axis in axes))]


# ----------------------------------------------------------------------------------------------------- products


def _matmul(node: Node) -> list[Value]:
    left, right = node.given()
    _is_float(left, right)
    require(len(left.shape) >= 2 and len(right.shape) >= 2, "needs matrices")
    require(left.shape[-1] == right.shape[-2], f"cannot multiply {list(left.shape)} by {list(right.shape)}")
    batches = _broadcast([replace(v, shape=v.shape[:-2], numbers=None) for v in (left, right)])
    return [Value(_alike([left, right]), (*batches, left.shape[-2], right.shape[-1]), work=left.shape[-1])]


def _gemm(node: Node) -> list[Value]:
    values = node.given()
    _is_float(*values)
    require(len(node[0].shape) == len(node[1].shape) == 2, "needs matrices")
    rows, inner = node[0].shape[:: -1 if node.get("transA", 0) else 1]
    again, columns = node[1].shape[:: -1 if node.get("transB", 0) else 1]
    result = Value(_alike(values), (rows, columns), work=inner)
    fits = inner == again and _broadcast([result, *values[2:]]) == result.shape
    require(fits, f"cannot multiply {list(node[0].shape)} by {list(node[1].shape)}")
    return [result]


# -------------------------------------------------------------------------------------------- norms, fewer bits


def _layer_norm(node: Node) -> list[Value]:
    values = node.given()
    _is_float(*values)
    _alike(values)
    axis = node.axis(len(node[0].shape), -1)
    require(all(value.shape == node[0].shape[axis:] for value in values[1:]), "has scales of another shape")
    return [Value(node[0].dtype, node[0].shape, work=8)]


def _channel_norm(node: Node) -> list[Value]:
    values = node.given()
    _is_float(*values)
    _alike(values)
    image = node[0]
    fits = len(image.shape) >= 3 and all(value.shape == image.shape[1:2] for value in values[1:])
    require(fits, "has scales that are not one number per channel")
    return [Value(image.dtype, image.shape, work=8)]


def _quantize(node: Node) -> list[Value]:
    value, scale, zero = node[0], node[1], node.optional(2)
    _is_float(value, scale)
    _check_scale(node, value, scale, zero)
    dtype = zero.dtype if zero is not None else DTYPES[UINT8]
    require(dtype in (DTYPES[UINT8], DTYPES[INT8]), f"makes {dtype}; only 8 bits are allowed")
    return [Value(dtype, value.shape)]


def _dequantize(node: Node) -> list[Value]:
    value, scale, zero = node[0], node[1], node.optional(2)
    _is_float(scale)
    _check_scale(node, value, scale, zero)
    require(value.dtype in (DTYPES[UINT8], DTYPES[INT8], DTYPES[INT32]), f"takes {value.dtype}, which is no integer")
    require(zero is None or zero.dtype == value.dtype, "has a zero point of another type")
    return [Value(scale.dtype, value.shape)]


def _check_scale(node: Node, value: Value, scale: Value, zero: Value | None) -> None:
    """One scale, or one for each channel along `axis`."""
    one = scale.shape in ((), (1,))
    along = one or scale.shape == (value.shape[node.axis(len(value.shape), 1)],)
    require(along and (zero is None or zero.shape == scale.shape), "has scales that are not one number per channel")


_REDUCE = Operator(_reduce, (1, 2), {"keepdims": _FLAG, "noop_with_empty_axes": _FLAG})
_SCALED = {"axis": _AXIS, "saturate": _FLAG}
OPERATORS: dict[str, Operator] = {
    "Add": Operator(_elementwise(np.add), (2, 2)),
    "AveragePool": Operator(_pool, (1, 1), {**_WINDOW, "ceil_mode": _FLAG, "count_include_pad": _FLAG}),
    "Cast": Operator(_cast, (1, 1), {"to": _whole(1, 16), "saturate": _FLAG}),
    "Clip": Operator(_clip, (1, 3)),
    "Concat": Operator(_concat, (1, 256), {"axis": _AXIS}),
    "Conv": Operator(_conv, (2, 3), {**_WINDOW, "group": _COUNT}),
    "DequantizeLinear": Operator(_dequantize, (2, 3), _SCALED),
    "Div": Operator(_elementwise(np.divide), (2, 2)),
    "Flatten": Operator(_flatten, (1, 1), {"axis": _AXIS}),
    "HardSigmoid": Operator(_elementwise(), (1, 1), {"alpha": _NUMBER, "beta": _NUMBER}),
    "HardSwish": Operator(_elementwise(), (1, 1)),
    "Neg": Operator(_elementwise(), (1, 1)),
    "Sigmoid": Operator(_elementwise(), (1, 1)),
    "Gelu": Operator(_elementwise(), (1, 1), {"approximate": _text(b"none", b"tanh")}),
    "Gemm": Operator(_gemm, (2, 3), {"alpha": _NUMBER, "beta": _NUMBER, "transA": _FLAG, "transB": _FLAG}),
    "LayerNormalization": Operator(
        _layer_norm, (2, 3), {"axis": _AXIS, "epsilon": _NUMBER, "stash_type": _whole(FLOAT, FLOAT)}
    ),
    "MatMul": Operator(_matmul, (2, 2)),
    "MaxPool": Operator(_pool, (1, 1), {**_WINDOW, "ceil_mode": _FLAG, "storage_order": _ZERO}),
    "Mul": Operator(_elementwise(np.multiply), (2, 2)),
    "Pad": Operator(_pad, (2, 4), {"mode": _text(b"constant", b"reflect", b"edge")}),
    "QuantizeLinear": Operator(_quantize, (2, 3), _SCALED),
    "ReduceMean": _REDUCE,
    "Relu": Operator(_elementwise(), (1, 1)),
    "Reshape": Operator(_reshape, (2, 2), {"allowzero": _FLAG}),
    "Slice": Operator(_slice, (3, 5)),
    "Softmax": Operator(_softmax, (1, 1), {"axis": _AXIS}),
    "Split": Operator(_split, (1, 2), {"axis": _AXIS, "num_outputs": _COUNT}),
    "Squeeze": Operator(_squeeze, (1, 2)),
    "Sub": Operator(_elementwise(np.subtract), (2, 2)),
    "Transpose": Operator(_transpose, (1, 1), {"perm": _wholes(0, 7)}),
    "Unsqueeze": Operator(_unsqueeze, (2, 2)),
}
# Only in front of the encoder that takes pictures of any size: what computes with the picture's own.
RESIZING: dict[str, Operator] = {
    "Abs": Operator(_elementwise(np.abs), (1, 1)),
    "Ceil": Operator(_elementwise(np.ceil), (1, 1)),
    "Floor": Operator(_elementwise(np.floor), (1, 1)),
    "Less": Operator(_compare(np.less), (2, 2)),
    "Max": Operator(_elementwise(np.maximum), (2, 2)),
    "Min": Operator(_elementwise(np.minimum), (2, 2)),
    "Range": Operator(_range, (3, 3)),
    "ReduceSum": _REDUCE,
    "Round": Operator(_elementwise(), (1, 1)),
    "Shape": Operator(_shape, (1, 1), {"start": _AXIS, "end": _AXIS}),
    "Where": Operator(_where, (3, 3)),
}

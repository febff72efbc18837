"""Operators that reshape tensors: what they accept and return. Torch-free."""

from __future__ import annotations

import math

import numpy as np

from byol.bundle.graph.node import Node, alike, axes_of, follow
from byol.bundle.graph.values import DTYPES, INT64, LARGEST, Value, known
from byol.bundle.schema import check


def transpose(node: Node) -> list[Value]:
    """Transpose: axes in another order."""
    shape = node[0].shape
    perm = node.get("perm", list(range(len(shape)))[::-1])
    check(sorted(perm) == list(range(len(shape))), f"perm is {perm}, no order of {len(shape)} axes")
    return [Value(node[0].dtype, tuple(shape[axis] for axis in perm))]


def reshape(node: Node) -> list[Value]:
    """Reshape, to a shape that is known; 0 keeps an axis, -1 takes what is left."""
    value, wanted = node[0], known(node.optional(1), "the shape")
    check(all(size >= -1 for size in wanted) and wanted.count(-1) <= 1, f"cannot make the shape {wanted}")
    check(len(wanted) <= len(value.shape) or 0 not in wanted[len(value.shape) :], f"cannot make the shape {wanted}")
    kept = not node.get("allowzero", 0)  # 0: as it was; otherwise an axis without elements, which is refused
    shape = [value.shape[place] if size == 0 and kept else size for place, size in enumerate(wanted)]
    rest = math.prod(size for size in shape if size != -1)
    check(rest > 0 and value.size % rest == 0, f"cannot make {wanted} of {list(value.shape)}")
    shape = [value.size // rest if size == -1 else size for size in shape]
    check(math.prod(shape) == value.size, f"cannot make {wanted} of {list(value.shape)}")
    return [Value(value.dtype, tuple(shape))]


def flatten(node: Node) -> list[Value]:
    """Flatten: two axes, those before and those from `axis`."""
    shape, axis = node[0].shape, node.get("axis", 1)
    check(-len(shape) <= axis <= len(shape), f"axis {axis} does not exist in {len(shape)} axes")
    axis = axis + len(shape) if axis < 0 else axis
    return [Value(node[0].dtype, (math.prod(shape[:axis]), math.prod(shape[axis:])))]


def squeeze(node: Node) -> list[Value]:
    """Squeeze: without axes of size 1."""
    value, named = node[0], node.optional(1)
    ones = [axis for axis, size in enumerate(value.shape) if size == 1]
    axes = ones if named is None else axes_of(known(named, "axes"), len(value.shape))
    check(set(axes) <= set(ones), f"cannot take the axes {axes} out of {list(value.shape)}")
    result = Value(value.dtype, tuple(size for axis, size in enumerate(value.shape) if axis not in axes))
    return [follow(lambda numbers: numbers, [value], result)]


def unsqueeze(node: Node) -> list[Value]:
    """Unsqueeze: with new axes of size 1."""
    value, named = node[0], known(node.optional(1), "axes")
    axes = set(axes_of(named, len(value.shape) + len(named)))
    old = iter(value.shape)
    shape = tuple(1 if axis in axes else next(old) for axis in range(len(value.shape) + len(axes)))
    return [follow(lambda numbers: numbers, [value], Value(value.dtype, shape))]


def concat(node: Node) -> list[Value]:
    """Concat along an axis."""
    values = node.given()
    rank = len(values[0].shape)
    check(all(len(value.shape) == rank for value in values), "joins tensors with different numbers of axes")
    axis = node.axis(rank, 0)
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    check("axis" in node.attributes and len(rests) == 1, "joins tensors whose other axes differ")
    length = sum(value.shape[axis] for value in values)
    result = Value(alike(values), (*values[0].shape[:axis], length, *values[0].shape[axis + 1 :]))
    return [follow(lambda *numbers: np.concatenate(numbers, axis), values, result)]


def split(node: Node) -> list[Value]:
    """Split along an axis, into sizes that are known or into equal parts."""
    value, sizes = node[0], node.optional(1)
    axis = node.axis(len(value.shape), 0)
    length, parts = value.shape[axis], node.get("num_outputs", 0)
    check((sizes is None) == (parts == node.outputs), "needs either sizes or the number of its outputs")
    each = -(-length // node.outputs)
    lengths = known(sizes, "sizes") if sizes else [each] * (parts - 1) + [length - each * (parts - 1)]
    check(len(lengths) == node.outputs and sum(lengths) == length, f"cannot cut {length} into {lengths}")
    return [Value(value.dtype, (*value.shape[:axis], part, *value.shape[axis + 1 :])) for part in lengths]


def slice_of(node: Node) -> list[Value]:
    """Slice, forwards, by bounds that are known."""
    value = node[0]
    starts, ends = (known(node.optional(place), what) for place, what in ((1, "starts"), (2, "ends")))
    axes = known(node.inputs[3], "axes") if node.optional(3) else list(range(len(starts)))
    steps = known(node.inputs[4], "steps") if node.optional(4) else [1] * len(starts)
    check(len({*map(len, (starts, ends, axes, steps))}) == 1, "needs as many starts as ends, axes and steps")
    shape = list(value.shape)
    for start, end, axis, step in zip(starts, ends, axes_of(axes, len(shape)), steps, strict=True):
        check(1 <= step <= LARGEST, f"steps by {step}; only 1 to {LARGEST} are allowed")
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return [Value(value.dtype, tuple(shape))]


def pad(node: Node) -> list[Value]:
    """Pad by numbers that are known, not negative."""
    value, pads, fill = node[0], known(node.optional(1), "pads"), node.optional(2)
    axes = axes_of(known(node.inputs[3], "axes"), len(value.shape)) if node.optional(3) else range(len(value.shape))
    check(len(pads) == 2 * len(axes) and all(0 <= pad <= LARGEST for pad in pads), f"cannot pad by {pads}")
    check(fill is None or (fill.shape == () and fill.dtype == value.dtype), "needs one number to pad with")
    shape = list(value.shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        inside = node.get("mode", b"constant") != b"reflect" or max(before, after) < shape[axis]
        check(inside, f"cannot mirror {max(before, after)} of {shape[axis]}")
        shape[axis] += before + after
    return [Value(value.dtype, tuple(shape))]


def shape(node: Node) -> list[Value]:
    """Shape: the sizes themselves, as numbers."""
    sizes = node[0].shape[slice(node.get("start", 0), node.attributes.get("end"))]
    return [Value(DTYPES[INT64], (len(sizes),), np.array(sizes, np.int64))]


def range_of(node: Node) -> list[Value]:
    """Range between bounds that are known."""
    values = node.given()
    check(all(value.shape == () and value.numbers is not None for value in values), "has bounds that are not known")
    start, end, step = (float(value.numbers or 0) for value in values)
    check(math.isfinite(end - start) and step > 0, f"cannot count from {start} to {end} by {step}")
    return [Value(alike(values), (math.ceil((end - start) / step),))]

"""Operators that compute with neighbours: windows, products, norms, fewer bits. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from byol.bundle.graph.node import FLOATS, Node, alike, axes_of, broadcast, is_float
from byol.bundle.graph.values import DTYPES, INT8, INT32, UINT8, Value, known
from byol.bundle.schema import check


def _windows(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The output sizes of the `spatial` axes."""
    count = len(spatial)
    strides, dilations = node.get("strides", [1] * count), node.get("dilations", [1] * count)
    pads = node.get("pads", [0] * (2 * count))
    fits = len(kernel) == len(strides) == len(dilations) == count and len(pads) == 2 * count
    check(fits and 1 <= count <= 3, f"has kernel, strides, dilations or pads that do not suit {count} axes")
    ceil = bool(node.get("ceil_mode", 0))
    sizes = []
    for place, size in enumerate(spatial):
        before, after = pads[place], pads[place + count]
        reach = dilations[place] * (kernel[place] - 1) + 1
        room = size + before + after - reach
        least = 1 - strides[place] if ceil else 0  # rounded up, a window may overrun the end by less than a stride
        check(room >= least, f"has a kernel of {reach} for {size + before + after} pixels")
        steps = -(-room // strides[place]) if ceil else room // strides[place]
        if ceil and steps * strides[place] >= size + before:  # it would begin in the padding
            steps -= 1
        sizes.append(steps + 1)
    return sizes


def conv(node: Node) -> list[Value]:
    """Conv, with explicit padding."""
    values = node.given()
    image, weight, group = node[0], node[1], node.get("group", 1)
    is_float(*values)
    check(3 <= len(image.shape) == len(weight.shape), "needs image and weight with equal numbers of axes")
    outputs, inputs, *kernel = weight.shape
    check(node.get("kernel_shape", kernel) == kernel, f"has kernel_shape that is not its weight's {kernel}")
    fits = image.shape[1] == inputs * group and outputs % group == 0
    check(fits, f"has weights {list(weight.shape)} in {group} groups for {image.shape[1]} channels")
    check(all(bias.shape == (outputs,) for bias in values[2:]), "has a bias that is not one number per channel")
    sizes = _windows(node, image.shape[2:], kernel)
    return [Value(alike(values), (image.shape[0], outputs, *sizes), work=inputs * math.prod(kernel))]


def pool(node: Node) -> list[Value]:
    """MaxPool and AveragePool."""
    image, kernel = node[0], node.get("kernel_shape", [])
    check(image.dtype in (*FLOATS, DTYPES[UINT8], DTYPES[INT8]), f"is not defined here for {image.dtype}")
    check(len(image.shape) >= 3, "needs an image")
    pads = node.get("pads", [0] * (2 * len(kernel)))
    check(all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=False)), "pads by its kernel or more")
    sizes = _windows(node, image.shape[2:], kernel)
    return [Value(image.dtype, (*image.shape[:2], *sizes), work=math.prod(kernel))]


def global_pool(node: Node) -> list[Value]:
    """GlobalAveragePool."""
    shape = node[0].shape
    is_float(node[0])
    check(len(shape) >= 3, "needs an image")
    return [Value(node[0].dtype, (*shape[:2], *[1] * (len(shape) - 2)), work=math.prod(shape[2:]))]


def reduce(node: Node) -> list[Value]:
    """Reductions over axes that are known."""
    value, named = node[0], node.optional(1)
    is_float(value)
    axes = axes_of(known(named, "axes"), len(value.shape)) if named is not None else []
    if not axes and not node.get("noop_with_empty_axes", 0):
        axes = list(range(len(value.shape)))
    kept = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    shape = kept if node.get("keepdims", 1) else [size for axis, size in enumerate(kept) if axis not in axes]
    return [Value(value.dtype, tuple(shape), work=math.prod(value.shape[axis] for axis in axes))]


def matmul(node: Node) -> list[Value]:
    """MatMul of matrices, or of equal stacks of them."""
    left, right = node.given()
    is_float(left, right)
    check(len(left.shape) >= 2 and len(right.shape) >= 2, "needs matrices")
    check(left.shape[-1] == right.shape[-2], f"cannot multiply {list(left.shape)} by {list(right.shape)}")
    batches = broadcast([replace(v, shape=v.shape[:-2], numbers=None) for v in (left, right)])
    return [Value(alike([left, right]), (*batches, left.shape[-2], right.shape[-1]), work=left.shape[-1])]


def gemm(node: Node) -> list[Value]:
    """Gemm."""
    values = node.given()
    is_float(*values)
    check(len(node[0].shape) == len(node[1].shape) == 2, "needs matrices")
    rows, inner = node[0].shape[:: -1 if node.get("transA", 0) else 1]
    again, columns = node[1].shape[:: -1 if node.get("transB", 0) else 1]
    result = Value(alike(values), (rows, columns), work=inner)
    fits = inner == again and broadcast([result, *values[2:]]) == result.shape
    check(fits, f"cannot multiply {list(node[0].shape)} by {list(node[1].shape)}")
    return [result]


def layer_norm(node: Node) -> list[Value]:
    """LayerNormalization over the last axes."""
    values = node.given()
    is_float(*values)
    alike(values)
    axis = node.axis(len(node[0].shape), -1)
    check(all(value.shape == node[0].shape[axis:] for value in values[1:]), "has scales of another shape")
    return [Value(node[0].dtype, node[0].shape, work=8)]


def channel_norm(node: Node) -> list[Value]:
    """InstanceNormalization."""
    values = node.given()
    is_float(*values)
    alike(values)
    image = node[0]
    fits = len(image.shape) >= 3 and all(value.shape == image.shape[1:2] for value in values[1:])
    check(fits, "has scales that are not one number per channel")
    return [Value(image.dtype, image.shape, work=8)]


def quantize(node: Node) -> list[Value]:
    """QuantizeLinear to 8 bits."""
    value, scale, zero = node[0], node[1], node.optional(2)
    is_float(value, scale)
    _check_scale(node, value, scale, zero)
    dtype = zero.dtype if zero is not None else DTYPES[UINT8]
    check(dtype in (DTYPES[UINT8], DTYPES[INT8]), f"makes {dtype}; only 8 bits are allowed")
    return [Value(dtype, value.shape)]


def dequantize(node: Node) -> list[Value]:
    """DequantizeLinear from 8 bits, and of biases from 32."""
    value, scale, zero = node[0], node[1], node.optional(2)
    is_float(scale)
    _check_scale(node, value, scale, zero)
    check(value.dtype in (DTYPES[UINT8], DTYPES[INT8], DTYPES[INT32]), f"takes {value.dtype}, which is no integer")
    check(zero is None or zero.dtype == value.dtype, "has a zero point of another type")
    return [Value(scale.dtype, value.shape)]


def _check_scale(node: Node, value: Value, scale: Value, zero: Value | None) -> None:
    """One scale, or one for each channel along `axis`."""
    one = scale.shape in ((), (1,))
    along = one or scale.shape == (value.shape[node.axis(len(value.shape), 1)],)
    check(along and (zero is None or zero.shape == scale.shape), "has scales that are not one number per channel")

"""Operations that torch's exporter would write as shape arithmetic, written without: attention, elements, pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20

op: Any = opset20  # its annotations are for the values of ONNX functions, not for those of an export
END = torch.iinfo(torch.int64).max


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale * query key^T + mask) value, by torch's definition of scaled dot-product attention."""
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == onnx.TensorProto.BOOL):
        raise ValueError("causal, grouped or boolean-masked attention is not supported")
    rank = len(key.shape)
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    factor = op.Constant(value_float=query.shape[-1] ** -0.5 if scale is None else scale)
    logits = op.MatMul(op.Mul(query, factor), transposed)
    if attn_mask is not None:
        logits = op.Add(logits, attn_mask)
    return op.MatMul(op.Softmax(logits, axis=-1), value)


def _adaptive_average_pool(image: Any, output_size: Any) -> Any:
    """Averages over equal windows. torch would arrange the result in memory as the image is: shape arithmetic."""
    sizes, wanted = list(image.shape[-2:]), list(output_size)
    if wanted == [1, 1]:
        return op.ReduceMean(image, op.Constant(value_ints=[-2, -1]), keepdims=1)
    if any(size % parts for size, parts in zip(sizes, wanted, strict=True)):
        raise ValueError(f"pooling {sizes} to {wanted} is not supported: the windows are not equal")
    windows = [size // parts for size, parts in zip(sizes, wanted, strict=True)]
    return op.AveragePool(image, kernel_shape=windows, strides=windows)


def _select(tensor: Any, dim: int, index: int) -> Any:
    """One element along an axis, as a slice: the exporter's Gather would hide among those that compute shapes."""
    start, end, axes = (op.Constant(value_ints=[n]) for n in (index, END if index == -1 else index + 1, dim))
    return op.Squeeze(op.Slice(tensor, start, end, axes), axes)


def _einsum(equation: str, tensors: Sequence[Any], path: Any = None) -> Any:
    """A product of two tensors by the letters of their axes, as one MatMul. Other sums stay: no graph may hold them."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    summed = [name for name in left if name in right and name not in output]
    once = all(len(set(names)) == len(names) for names in (left, right, output))
    if not once or {*left, *right} - {*summed} != {*output} or not right:
        return op.Einsum(*tensors, equation=equation)
    row, column = (
        ([" "] + [n for n in a if n in output and n not in b])[-1] for a, b in ((left, right), (right, left))
    )
    stack = [name for name in output if name not in (row, column)]
    rows = _arranged(tensors[0], left, [*stack, row], summed)
    columns = _arranged(tensors[1], right, [*stack, column], summed)
    rank = len(stack) + 2
    product = op.MatMul(rows, op.Transpose(columns, perm=[*range(rank - 2), rank - 1, rank - 2]))
    axes = [*stack, row, column]
    empty = [place for place, name in enumerate(axes) if name == " "]
    product = op.Squeeze(product, op.Constant(value_ints=empty)) if empty else product
    return op.Transpose(product, perm=["".join(axes).replace(" ", "").index(name) for name in output])


def _arranged(tensor: Any, names: str, order: Sequence[str], summed: Sequence[str]) -> Any:
    """A tensor with the axes `order`, of size 1 where it lacks one, and those that are `summed` as one more."""
    kept = [name for name in order if name in names]
    tensor = op.Transpose(tensor, perm=[names.index(name) for name in (*kept, *summed)])
    if len(summed) != 1:
        tensor = op.Reshape(tensor, op.Constant(value_ints=[*[0] * len(kept), -1]))
    lacking = [place for place, name in enumerate(order) if name not in names]
    return op.Unsqueeze(tensor, op.Constant(value_ints=lacking)) if lacking else tensor


def _interpolation(operation: Any) -> Callable[..., Any]:
    """Resizing by a linear map of rows and one of columns, as two products: what `operation` makes of identities."""

    def translate(image: Any, output_size: Any = None, align_corners: bool = False, scale_factors: Any = None) -> Any:
        maps = []
        for axis, pixels in enumerate(image.shape[-2:]):
            target = None if output_size is None else [output_size[axis], pixels]
            scales = None if scale_factors is None or target else [scale_factors[axis], 1.0]
            maps.append(operation(torch.eye(pixels)[None, None], target, align_corners, scales)[0, 0].numpy())
        rows, columns = (op.Constant(value=numpy_helper.from_array(values)) for values in (maps[0], maps[1].T.copy()))
        return op.MatMul(rows, op.MatMul(image, columns))

    return translate


def _nearest(image: Any, output_size: Any = None, scale_factors: Any = None) -> Any:
    def operation(given: torch.Tensor, size: Any, _: bool, scales: Any) -> torch.Tensor:
        return torch.ops.aten.upsample_nearest2d.vec(given, size, scales)  # type: ignore[no-any-return]

    return _interpolation(operation)(image, output_size, False, scale_factors)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.select.int: _select,
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
    torch.ops.aten.einsum.default: _einsum,
    torch.ops.aten.upsample_nearest2d.vec: _nearest,
    torch.ops.aten.upsample_bilinear2d.vec: _interpolation(torch.ops.aten.upsample_bilinear2d.vec),
    torch.ops.aten.upsample_bicubic2d.vec: _interpolation(torch.ops.aten.upsample_bicubic2d.vec),
}

"""What the exporter would write as shape arithmetic, written without: attention, one element, one value per image.

Everything here is exact: attention as its definition, elements and sums without rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, helper, numpy_helper
from onnxscript import opset20

op: Any = opset20  # its annotations are for the values of ONNX functions, not for those of an export
END = torch.iinfo(torch.int64).max
ZEROS = "one_zero_per_image"  # before the names of what is added to a graph


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
        raise ValueError("attention that is causal, grouped or has a mask of truth values is not supported")
    rank = len(key.shape)
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    factor = op.Constant(value_float=query.shape[-1] ** -0.5 if scale is None else scale)
    logits = op.MatMul(op.Mul(query, factor), transposed)
    if attn_mask is not None:
        logits = op.Add(logits, attn_mask)
    return op.MatMul(op.Softmax(logits, axis=-1), value)


def _select(tensor: Any, dim: int, index: int) -> Any:
    """One element along an axis, as a slice: the exporter's Gather would hide among those that compute shapes."""
    start, end, axes = (op.Constant(value_ints=[n]) for n in (index, END if index == -1 else index + 1, dim))
    return op.Squeeze(op.Slice(tensor, start, end, axes), axes)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.select.int: _select,
}


def spread_by_sum(graph: GraphProto) -> None:
    """Repeat constants for every image (class tokens, say) as constant + zeros, one zero per image.

    The exporter expands them to a shape computed from the batch. The zeros are 0 times a pixel, which is never
    infinite. Only an expansion along the batch alone is replaced; the graph is changed in place.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in graph.initializer}
    found = [node for node in graph.node if node.op_type == "Expand" and _along_batch(node, graph, makers, constants)]
    if not found:
        return
    ranks = {node.output[0]: len(constants[node.input[0]].dims) for node in found}
    nodes = _zeros(graph, sorted(set(ranks.values())))
    for node in graph.node:
        if node in found:
            node = helper.make_node("Add", [node.input[0], f"{ZEROS}_{ranks[node.output[0]]}"], node.output)
        nodes.append(node)
    _replace(graph, nodes)


def _along_batch(
    node: NodeProto, graph: GraphProto, makers: dict[str, NodeProto], constants: dict[str, onnx.TensorProto]
) -> bool:
    """Whether an Expand repeats a float constant of leading size 1 once per image, and in no other direction."""
    constant, shape = constants.get(node.input[0]), makers.get(node.input[1])
    if constant is None or constant.data_type != onnx.TensorProto.FLOAT or list(constant.dims[:1]) != [1]:
        return False
    if shape is None or shape.op_type != "Concat" or not all(name in constants for name in shape.input[1:]):
        return False
    batch = makers.get(shape.input[0])
    if batch is None or batch.op_type != "Shape" or batch.input[0] != graph.input[0].name:
        return False
    ends = {item.name: helper.get_attribute_value(item) for item in batch.attribute}
    sizes = [int(size) for name in shape.input[1:] for size in numpy_helper.to_array(constants[name])]
    own = constant.dims[1:]
    same = len(sizes) == len(own) and all(size in (1, dim) for size, dim in zip(sizes, own, strict=True))
    return same and (ends.get("start", 0), ends.get("end")) == (0, 1)


def _zeros(graph: GraphProto, ranks: list[int]) -> list[NodeProto]:
    """Nodes that make zeros, float32 of shape (B, 1, ... 1), for each number of axes wanted."""
    corner = {f"{ZEROS}_start": [0, 0, 0], f"{ZEROS}_end": [1, 1, 1], f"{ZEROS}_axes": [1, 2, 3]}
    shapes = {f"{ZEROS}_shape_{rank}": [-1] + [1] * (rank - 1) for rank in ranks}
    for name, values in {**corner, **shapes}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), f"{ZEROS}_factor"))
    return [
        helper.make_node("Slice", [graph.input[0].name, *corner], [f"{ZEROS}_pixel"]),  # (B, 1, 1, 1)
        helper.make_node("Cast", [f"{ZEROS}_pixel"], [f"{ZEROS}_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{ZEROS}_float", f"{ZEROS}_factor"], [ZEROS]),
        *(helper.make_node("Reshape", [ZEROS, f"{ZEROS}_shape_{rank}"], [f"{ZEROS}_{rank}"]) for rank in ranks),
    ]


def _replace(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Make these the graph's nodes, in their order, and drop nodes and constants that no output needs."""
    wanted = {item.name for item in graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    constants = [item for item in graph.initializer if item.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(constants)

"""The operators that a graph may hold, with the types and shapes that each accepts and returns. Torch-free.

They are those that `byol export` writes (tested in tests/bundle/graph/test_operators.py), with the rules of ONNX's
operator set 20. Whatever ONNX Runtime would divide by, index with or allocate is bounded here first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from byol.bundle.graph import layers, shaping
from byol.bundle.graph.node import Attribute, Node, Operator, Rule, alike, broadcast, follow, is_float
from byol.bundle.graph.values import BOOL, DTYPES, FLOAT, LARGEST, Value
from byol.bundle.schema import check

# --------------------------------------------------------------------------------------------------- attributes


def _whole(least: int, most: int) -> Attribute:
    return Attribute("i", lambda value: least <= value <= most, f"{least} to {most}")


def _wholes(least: int, most: int) -> Attribute:
    return Attribute("ints", lambda values: all(least <= v <= most for v in values), f"each {least} to {most}")


def _text(*legal: bytes) -> Attribute:
    return Attribute("s", lambda value: value in legal, " or ".join(text.decode() for text in legal))


_FLAG, _ZERO, _AXIS, _COUNT = _whole(0, 1), _whole(0, 0), _whole(-8, 7), _whole(1, LARGEST)
_LENGTHS, _PADS = _wholes(1, LARGEST), _wholes(0, LARGEST)
_NUMBER = Attribute("f", math.isfinite, "a finite number")
_WINDOW = {"auto_pad": _text(b"NOTSET"), "dilations": _LENGTHS, "kernel_shape": _LENGTHS, "pads": _PADS}
_WINDOW |= {"strides": _LENGTHS}


# -------------------------------------------------------------------------------------------- element by element


def _elementwise(function: Callable[..., Any] | None = None) -> Rule:
    """Of one or more float tensors, brought to one shape; `function` where shapes may be computed with it."""

    def rule(node: Node) -> list[Value]:
        values = node.given()
        is_float(*values)
        result = Value(alike(values), broadcast(values))
        return [follow(function, values, result) if function else result]

    return rule


def _compare(function: Callable[..., Any]) -> Rule:
    def rule(node: Node) -> list[Value]:
        values = node.given()
        is_float(*values)
        alike(values)
        return [follow(function, values, Value(DTYPES[BOOL], broadcast(values)))]

    return rule


def _where(node: Node) -> list[Value]:
    condition, *values = node.given()
    check(condition.dtype == DTYPES[BOOL], "needs truth values to choose by")
    return [Value(alike(values), broadcast([condition, *values]))]


def _clip(node: Node) -> list[Value]:
    bounds = [value for value in map(node.optional, (1, 2)) if value is not None]
    is_float(node[0], *bounds)
    alike([node[0], *bounds])
    check(all(bound.shape == () for bound in bounds), "needs bounds that are single numbers")
    return [Value(node[0].dtype, node[0].shape)]


def _cast(node: Node) -> list[Value]:
    kind = node.get("to", 0)
    check(kind in DTYPES, f"to is {kind}, a type that a graph may not use")
    value, dtype = node[0], DTYPES[kind]
    result = Value(dtype, value.shape)
    exact = value.numbers is not None and bool(np.isfinite(value.numbers).all() and (abs(value.numbers) < 2**31).all())
    return [follow(lambda numbers: numbers.astype(dtype), [value], result) if exact else result]


def _softmax(node: Node) -> list[Value]:
    is_float(node[0])
    node.axis(len(node[0].shape), -1)
    return [Value(node[0].dtype, node[0].shape, work=4)]


# ---------------------------------------------------------------------------------------------------- the list

_REDUCE = Operator(layers.reduce, (1, 2), {"keepdims": _FLAG, "noop_with_empty_axes": _FLAG})
_SCALED = {"axis": _AXIS, "saturate": _FLAG}
OPERATORS: dict[str, Operator] = {
    "Abs": Operator(_elementwise(np.abs), (1, 1)),
    "Add": Operator(_elementwise(np.add), (2, 2)),
    "AveragePool": Operator(layers.pool, (1, 1), {**_WINDOW, "ceil_mode": _FLAG, "count_include_pad": _FLAG}),
    "Cast": Operator(_cast, (1, 1), {"to": _whole(1, 16), "saturate": _FLAG}),
    "Clip": Operator(_clip, (1, 3)),
    "Concat": Operator(shaping.concat, (1, 256), {"axis": _AXIS}),
    "Conv": Operator(layers.conv, (2, 3), {**_WINDOW, "group": _COUNT}),
    "DequantizeLinear": Operator(layers.dequantize, (2, 3), _SCALED),
    "Div": Operator(_elementwise(np.divide), (2, 2)),
    "Elu": Operator(_elementwise(), (1, 1), {"alpha": _NUMBER}),
    "Erf": Operator(_elementwise(), (1, 1)),
    "Exp": Operator(_elementwise(), (1, 1)),
    "Flatten": Operator(shaping.flatten, (1, 1), {"axis": _AXIS}),
    "Gelu": Operator(_elementwise(), (1, 1), {"approximate": _text(b"none", b"tanh")}),
    "Gemm": Operator(layers.gemm, (2, 3), {"alpha": _NUMBER, "beta": _NUMBER, "transA": _FLAG, "transB": _FLAG}),
    "GlobalAveragePool": Operator(layers.global_pool, (1, 1)),
    "HardSigmoid": Operator(_elementwise(), (1, 1), {"alpha": _NUMBER, "beta": _NUMBER}),
    "HardSwish": Operator(_elementwise(), (1, 1)),
    "InstanceNormalization": Operator(layers.channel_norm, (3, 3), {"epsilon": _NUMBER}),
    "LayerNormalization": Operator(
        layers.layer_norm, (2, 3), {"axis": _AXIS, "epsilon": _NUMBER, "stash_type": _whole(FLOAT, FLOAT)}
    ),
    "LeakyRelu": Operator(_elementwise(), (1, 1), {"alpha": _NUMBER}),
    "Log": Operator(_elementwise(), (1, 1)),
    "MatMul": Operator(layers.matmul, (2, 2)),
    "Max": Operator(_elementwise(np.maximum), (2, 2)),
    "MaxPool": Operator(layers.pool, (1, 1), {**_WINDOW, "ceil_mode": _FLAG, "storage_order": _ZERO}),
    "Min": Operator(_elementwise(np.minimum), (2, 2)),
    "Mish": Operator(_elementwise(), (1, 1)),
    "Mul": Operator(_elementwise(np.multiply), (2, 2)),
    "Neg": Operator(_elementwise(), (1, 1)),
    "PRelu": Operator(_elementwise(), (2, 2)),
    "Pad": Operator(shaping.pad, (2, 4), {"mode": _text(b"constant", b"reflect", b"edge")}),
    "Pow": Operator(_elementwise(), (2, 2)),
    "QuantizeLinear": Operator(layers.quantize, (2, 3), _SCALED),
    "Reciprocal": Operator(_elementwise(), (1, 1)),
    "ReduceL2": _REDUCE,
    "ReduceMax": _REDUCE,
    "ReduceMean": _REDUCE,
    "ReduceSum": _REDUCE,
    "Relu": Operator(_elementwise(), (1, 1)),
    "Reshape": Operator(shaping.reshape, (2, 2), {"allowzero": _FLAG}),
    "Sigmoid": Operator(_elementwise(), (1, 1)),
    "Slice": Operator(shaping.slice_of, (3, 5)),
    "Softmax": Operator(_softmax, (1, 1), {"axis": _AXIS}),
    "Softplus": Operator(_elementwise(), (1, 1)),
    "Split": Operator(shaping.split, (1, 2), {"axis": _AXIS, "num_outputs": _COUNT}),
    "Sqrt": Operator(_elementwise(), (1, 1)),
    "Squeeze": Operator(shaping.squeeze, (1, 2)),
    "Sub": Operator(_elementwise(np.subtract), (2, 2)),
    "Tanh": Operator(_elementwise(), (1, 1)),
    "Transpose": Operator(shaping.transpose, (1, 1), {"perm": _wholes(0, 7)}),
    "Unsqueeze": Operator(shaping.unsqueeze, (2, 2)),
}
# Only in front of the encoder that takes pictures of any size: what computes with the picture's own.
RESIZING: dict[str, Operator] = {
    "Ceil": Operator(_elementwise(np.ceil), (1, 1)),
    "Floor": Operator(_elementwise(np.floor), (1, 1)),
    "Less": Operator(_compare(np.less), (2, 2)),
    "Range": Operator(shaping.range_of, (3, 3)),
    "Round": Operator(_elementwise(), (1, 1)),
    "Shape": Operator(shaping.shape, (1, 1), {"start": _AXIS, "end": _AXIS}),
    "Where": Operator(_where, (3, 3)),
}

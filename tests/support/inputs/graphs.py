"""Small graphs with the interface of a bundle, one for each operator that a graph may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from tests.support.tiny import tiny_manifest, write_tiny_bundle

SIZE, DIM = 16, 8

_TEXT = """
<ir_version: 10, opset_import: ["": 20]>
tiny (uint8[batch, {size}, {size}, 3] images) => (float[batch, {dim}] features)
{{
  pixels = Cast <to = 1> (images)
  planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
  {lines}
  flat = Flatten <axis = 1> (x)
  features = MatMul (flat, last)
}}
"""


def floats(*shape: int) -> np.ndarray:
    """Positive numbers around 1, in a fixed order."""
    count = int(np.prod(shape))
    values: np.ndarray = (np.arange(count) % 7 / 7 + 0.5).astype(np.float32).reshape(shape)
    return values


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def graph(lines: str, width: int, **constants: np.ndarray) -> ModelProto:
    """A graph that makes `x` (B, ...) of `planes` float (B, 3, 16, 16); x has `width` elements per image."""
    model: ModelProto = onnx.parser.parse_model(_TEXT.format(size=SIZE, dim=DIM, lines=lines))
    constants = {**constants, "last": floats(width, DIM)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def bundle_of(model: ModelProto | bytes, path: Path) -> Path:
    """A bundle around the graph, every hash right."""
    write_tiny_bundle(path, SIZE, DIM)
    (path / "encoder.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    tiny_manifest(path, SIZE, DIM).write(path)
    return path


_ONE = floats(3, 1, 1)
ALL = 3 * SIZE * SIZE
GRAPHS: dict[str, ModelProto] = {
    "Add": graph("x = Add (planes, c)", ALL, c=_ONE),
    "AveragePool": graph(
        "x = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1,"
        " ceil_mode = 1> (planes)",
        3 * 81,
    ),
    # As in a ResNet whose last stage halves a map of one pixel.
    "AveragePool past the end": graph(
        "x = AveragePool <kernel_shape = [17, 18], strides = [2, 3], ceil_mode = 1> (planes)", 3
    ),
    "Clip": graph("x = Clip (planes, low, high)", ALL, low=number(0), high=number(6)),
    "Concat": graph("x = Concat <axis = 1> (planes, planes)", 2 * ALL),
    "Conv": graph(
        "x = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], dilations = [1, 1], group = 3>"
        " (planes, w, b)",
        6 * 64,
        w=floats(6, 1, 3, 3),
        b=floats(6),
    ),
    "Div": graph("x = Div (planes, c)", ALL, c=_ONE),
    "DequantizeLinear": graph(
        "q = QuantizeLinear (planes, s, z)\n d = DequantizeLinear (q, s, z)\n"
        " v = DequantizeLinear <axis = 0> (w, t, y)\n u = DequantizeLinear <axis = 0> (b, e, n)\n"
        " o = Conv (d, v, u)\n r = Relu (o)\n p = QuantizeLinear (r, s, z)\n x = DequantizeLinear (p, s, z)",
        4 * 196,
        s=number(0.02),
        z=np.array(128, np.uint8),
        w=np.ones((4, 3, 3, 3), np.int8),
        t=floats(4),
        y=np.zeros(4, np.int8),
        b=np.ones(4, np.int32),
        e=floats(4),
        n=np.zeros(4, np.int32),
    ),
    "Gelu": graph('x = Gelu <approximate = "tanh"> (planes)', ALL),
    "Gemm": graph(
        "f = Flatten (planes)\n x = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, w, b)",
        5,
        w=floats(5, ALL),
        b=floats(5),
    ),
    "HardSigmoid": graph("x = HardSigmoid <alpha = 0.2, beta = 0.5> (planes)", ALL),
    "HardSwish": graph("x = HardSwish (planes)", ALL),
    "LayerNormalization": graph(
        "x = LayerNormalization <axis = -1, epsilon = 0.00001> (planes, w, b)", ALL, w=floats(SIZE), b=floats(SIZE)
    ),
    "MatMul": graph(
        "t = Transpose <perm = [0, 1, 3, 2]> (planes)\n a = MatMul (planes, t)\n m = Mul (a, c)\n s = Softmax (m)\n"
        " x = MatMul (s, planes)",
        ALL,
        c=number(0.1),
    ),
    "MaxPool": graph("x = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (planes)", 3 * 64),
    "Mul": graph("x = Mul (planes, c)", ALL, c=_ONE),
    "Neg": graph("x = Neg (planes)", ALL),
    "Pad": graph("x = Pad (planes, p, c, a)", 3 * 18 * 17, p=ints(1, 0, 1, 1), c=number(0), a=ints(2, 3)),
    "QuantizeLinear": graph(
        "q = QuantizeLinear <axis = 1> (planes, s, z)\n x = DequantizeLinear <axis = 1> (q, s, z)",
        ALL,
        s=floats(3),
        z=np.zeros(3, np.uint8),
    ),
    "ReduceMean": graph("x = ReduceMean <keepdims = 0> (planes, a)", 3, a=ints(2, 3)),
    "Relu": graph("x = Relu (planes)", ALL),
    "Reshape": graph("x = Reshape (planes, s)", ALL, s=ints(-1, 3, 64, 4)),
    "Sigmoid": graph("x = Sigmoid (planes)", ALL),
    "Slice": graph("x = Slice (planes, s, e, a, t)", 3 * 16 * 7, s=ints(1), e=ints(-1), a=ints(3), t=ints(2)),
    "Softmax": graph("x = Softmax <axis = 1> (planes)", ALL),
    "Split": graph("y, z = Split <axis = 3, num_outputs = 2> (planes)\n x = Add (y, z)", ALL // 2),
    "Squeeze": graph("m = ReduceMean (planes, a)\n x = Squeeze (m, a)", ALL // SIZE, a=ints(2)),
    "Sub": graph("x = Sub (planes, c)", ALL, c=_ONE),
    "Unsqueeze": graph("x = Unsqueeze (planes, a)", ALL, a=ints(1, 3)),
    **{name: graph(f"x = {name} (planes)", ALL) for name in ("Abs", "Erf", "Exp", "Log", "Mish", "Reciprocal")},
    **{name: graph(f"x = {name} (planes)", ALL) for name in ("Softplus", "Sqrt", "Tanh")},
    **{name: graph(f"x = {name} <alpha = 0.5> (planes)", ALL) for name in ("Elu", "LeakyRelu")},
    **{name: graph(f"x = {name} (planes, c)", ALL, c=_ONE) for name in ("Max", "Min", "Pow", "PRelu")},
    **{name: graph(f"x = {name} <keepdims = 0> (planes, a)", 3, a=ints(2, 3)) for name in ("ReduceL2", "ReduceMax")},
    "ReduceSum": graph("x = ReduceSum <noop_with_empty_axes = 1> (planes)", ALL),
    "GlobalAveragePool": graph("x = GlobalAveragePool (planes)", 3),
    "InstanceNormalization": graph("x = InstanceNormalization (planes, c, c)", ALL, c=floats(3)),
    # Parts of real encoders, for what ONNX Runtime makes of several nodes at once.
    "residual block": graph(
        "a = Conv <pads = [1, 1, 1, 1]> (planes, w, b)\n r = Relu (a)\n c = Conv <pads = [1, 1, 1, 1]> (r, w, b)\n"
        " d = Add (c, planes)\n e = Relu (d)\n x = ReduceMean <keepdims = 0> (e, axes)",
        3,
        w=floats(3, 3, 3, 3),
        b=floats(3),
        axes=ints(2, 3),
    ),
    "transformer block": graph(
        "p = Conv <strides = [4, 4]> (planes, w)\n f = Reshape (p, s)\n t = Transpose <perm = [0, 2, 1]> (f)\n"
        " n = LayerNormalization (t, g, b)\n q = MatMul (n, k)\n q1 = Add (q, v)\n q2 = Reshape (q1, h)\n"
        " q3 = Transpose <perm = [2, 0, 3, 1, 4]> (q2)\n i0, j0, l0 = Split <axis = 0, num_outputs = 3> (q3)\n"
        " i = Squeeze (i0, zero)\n j = Squeeze (j0, zero)\n l = Squeeze (l0, zero)\n"
        " jt = Transpose <perm = [0, 1, 3, 2]> (j)\n i1 = Mul (i, c)\n o = MatMul (i1, jt)\n a = Softmax (o)\n"
        " y = MatMul (a, l)\n y1 = Transpose <perm = [0, 2, 1, 3]> (y)\n y2 = Reshape (y1, m)\n y3 = Add (y2, t)\n"
        " u = Gelu (y3)\n x = ReduceMean <keepdims = 0> (u, one)",
        12,
        w=floats(12, 3, 4, 4),
        s=ints(-1, 12, 16),
        g=floats(12),
        b=floats(12),
        k=floats(12, 36),
        v=floats(36),
        h=ints(-1, 16, 3, 3, 4),
        zero=ints(0),
        c=number(0.5),
        m=ints(-1, 16, 12),
        one=ints(1),
    ),
}

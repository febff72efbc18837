"""The encoder with fewer bits: fp16 for GPUs, int8 for CPUs. Both are made from the proven fp32 graph.

Shapes: N images, S the encoder's image size.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper

from byol.export.graph import check_clean, quiet, strip

CALIBRATION_BATCH = 32
# What is worth quantizing, and what passes integers on between convolutions. The rest (norms, softmax) stays in fp32.
LAYERS, PASSING = ["Conv", "Gemm", "MatMul"], ["MaxPool", "Relu", "Add"]


def fp16_graph(encoder: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16; input uint8 and output float32 as before."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        proto: ModelProto = convert_float_to_float16(_copy(encoder), keep_io_types=True)
    return _finished(proto, encoder)


def int8_graph(encoder: ModelProto, images: np.ndarray) -> ModelProto:
    """Static quantization, QDQ, per-channel weights; activation ranges from `images`, uint8 (N, S, S, 3).

    Weights have 7 bits. Without VNNI, x86 adds two products of a byte and a weight in 16 bits and cuts off what does
    not fit: features would depend on the CPU (docs/export.md). 2 * 255 * 64 fits.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = encoder.graph.input[0].name

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self._feeds = iter([{name: images[start : start + CALIBRATION_BATCH]} for start in starts])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            _copy(encoder),
            path,
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_quantized(encoder),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(encoder),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},  # what follows them is fp32
        )
        proto = onnx.load(path)
    return _finished(proto, encoder)


def _quantized(encoder: ModelProto) -> list[str]:
    """Operators to quantize: between layer norms (transformers, ConvNeXt) the layers only.

    The norms are computed in fp32 anyway, and the sums before them range too widely for 8 bits: of a ViT-S/16's cosine
    they cost 5 %, the layers 0.1 %.
    """
    normalised = any(node.op_type == "LayerNormalization" for node in encoder.graph.node)
    return LAYERS if normalised else LAYERS + PASSING


def _kept(encoder: ModelProto) -> list[str]:
    """The nodes that stay in fp32: what normalises the input, in place, and products without weights (attention)."""
    weights = {tensor.name for tensor in encoder.graph.initializer}
    layers = [node for node in encoder.graph.node if node.op_type in LAYERS]
    before = itertools.takewhile(lambda node: node.op_type not in LAYERS, encoder.graph.node)
    return [node.name for node in (*before, *(node for node in layers if not weights.intersection(node.input)))]


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _finished(proto: ModelProto, encoder: ModelProto) -> ModelProto:
    """Without the converter's traces, with the encoder's metadata, checked."""
    strip(proto)
    helper.set_model_props(proto, {item.key: item.value for item in encoder.metadata_props})
    check_clean(proto)
    return proto

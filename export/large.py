"""Weights of 2 GiB and more: protobuf takes no such message, so they leave the graph for a file beside it."""

from __future__ import annotations

from onnx import ModelProto
from onnx.external_data_helper import set_external_data

from byol.bundle.model import check_graph

LIMIT = 2**31 - 2**24  # bytes of weights; the rest of a message is for the graph itself
SMALL = 1024  # bytes up to which a tensor stays inside: shapes and scalars, which the checks compute with
ALIGNMENT = 4096  # of each tensor in the file, so that it can be mapped


def is_large(proto: ModelProto) -> bool:
    """Whether the weights do not fit into one protobuf message with their graph."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) >= LIMIT


def move_weights(proto: ModelProto, file: str) -> dict[str, bytes]:
    """Move the weights of a large graph into the content of `file`, in place, and check the graph; nothing else."""
    if not is_large(proto):
        return {}
    parts, end = [], 0
    for tensor in proto.graph.initializer:
        data = tensor.raw_data
        if len(data) <= SMALL:
            continue
        set_external_data(tensor, file, offset=end, length=len(data))
        tensor.ClearField("raw_data")
        padding = -len(data) % ALIGNMENT
        parts += [data, bytes(padding)]
        end += len(data) + padding
    weights = {file: b"".join(parts)}
    check_graph(proto, weights)
    return weights

"""A graph in memory, and weights moved to a file beside it: a protobuf message ends at 2 GiB."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto
from onnx.external_data_helper import set_external_data

LIMIT = 2**31 - 2**24  # bytes of weights; the rest of a message is for the graph itself
SMALL = 1024  # bytes up to which a tensor stays inside: shapes and scalars, which the checks compute with
ALIGNMENT = 4096  # of each tensor in the file, so that it can be mapped


@dataclass(frozen=True)
class Model:
    """The bytes of an ONNX graph, and by name the content of its files of weights (normally none)."""

    graph: bytes
    weights: Mapping[str, bytes] = field(default_factory=dict)


def check_graph(proto: Any, files: Mapping[str, bytes] | None = None) -> None:
    """onnx's full check, also of a graph with weights in files. Raises onnx's `ValidationError`."""
    import onnx

    if not files:
        onnx.checker.check_model(proto, full_check=True)
        return
    with tempfile.TemporaryDirectory() as folder:  # the files must exist, but are not read
        for name in files:
            (Path(folder) / name).touch()
        path = Path(folder) / "graph.onnx"
        path.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(path, full_check=True)


def is_large(proto: ModelProto) -> bool:
    """Whether the weights do not fit into one protobuf message with their graph."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) >= LIMIT


def move_weights(proto: ModelProto, file: str) -> dict[str, bytes]:
    """Move a large graph's weights, in place, into the returned content of `file`; small graphs stay as they are."""
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

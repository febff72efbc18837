"""A graph in memory, with the files that hold weights too large for it: a protobuf message ends at 2 GiB."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    """The bytes of an ONNX graph, and by name the content of the files it keeps weights in (normally none)."""

    graph: bytes
    weights: Mapping[str, bytes] = field(default_factory=dict)


def check_graph(proto: Any, files: Mapping[str, bytes] | None = None) -> None:
    """onnx's full check, also of a graph with weights in files. Raises onnx's `ValidationError`."""
    import onnx

    if not files:
        onnx.checker.check_model(proto, full_check=True)
        return
    with tempfile.TemporaryDirectory() as folder:  # the check wants the files to exist, and does not read them
        for name in files:
            (Path(folder) / name).touch()
        path = Path(folder) / "graph.onnx"
        path.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(path, full_check=True)

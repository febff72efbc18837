"""A graph in memory, with the files that hold weights too large for it: a protobuf message ends at 2 GiB."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from byol.serve.strict_json import BundleError

_EXTERNAL = b"location"  # the key under which ONNX names the file that a tensor lies in


@dataclass(frozen=True)
class Model:
    """The bytes of an ONNX graph, and by name the content of the files it keeps weights in (normally none)."""

    graph: bytes
    weights: Mapping[str, bytes] = field(default_factory=dict)


def weight_files(name: str, graph: bytes) -> dict[str, int]:
    """The files that a graph (`name`, for errors) keeps weights in, and how many bytes of each it needs.

    Raises `BundleError` when something else than an initializer lies outside, or at no clear place.
    """
    if _EXTERNAL not in graph:
        return {}
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        proto = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's own
        raise BundleError(f"{name} is not an ONNX file: {error}") from error
    outside = [tensor for tensor in proto.graph.initializer if uses_external_data(tensor)]
    everywhere = [t for part in (proto.graph, *proto.functions) for t in _tensors(part) if uses_external_data(t)]
    if len(everywhere) > len(outside):
        raise BundleError(f"{name} keeps something in another file that is no weight of the graph")
    files: dict[str, int] = {}
    for tensor in outside:
        try:
            info = ExternalDataInfo(tensor)
            start, length = int(info.offset or 0), int(info.length or "")
        except (TypeError, ValueError) as error:
            raise BundleError(f"{name} does not say where {tensor.name!r} lies in another file: {error}") from error
        if start < 0 or length < 0 or not info.location:
            raise BundleError(f"{name} does not say where {tensor.name!r} lies in another file")
        files[info.location] = max(files.get(info.location, 0), start + length)
    return files


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


def _tensors(graph: Any) -> Iterator[Any]:
    """Initializers and the tensors in attributes of a graph or function, those of inner graphs included."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _tensors(inner)

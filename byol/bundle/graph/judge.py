"""Decide whether a stranger's graph may run: what it holds, promises and costs. Torch-free.

ONNX Runtime trusts what it loads: it opens files that a graph names, computes constants of any size while it loads, and
ends the process on some divisions by zero. So a graph is judged before ONNX Runtime sees it, by the rules that
docs/bundle.md states: only fields, operators and attributes that are known, every size known in advance and bounded.
Nothing is run to find out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byol.bundle.graph.message import fields, parse
from byol.bundle.graph.operators import OPERATORS, RESIZING
from byol.bundle.graph.values import FLOAT, UINT8, Value, stored
from byol.bundle.graph.walk import Step, walk
from byol.bundle.manifest import ANY_SIZE, MANIFEST, Manifest, graph_interface
from byol.bundle.schema import BundleError, check, plain
from byol.limits import MAX_BATCH_SIZE, limit
from byol.text import on_one_line

OPSET = 20  # whose rules `operators.py` holds
IR_VERSIONS = range(4, 11)  # since 4 a weight need not be an input too, which a caller could replace
PICTURES = ((3072, 4096), (1, 4096), (4096, 1))  # that the graph for any size must take: 12 megapixels, narrow ones
_OUTSIDE = 1  # the data_location of a tensor that lies in another file
_SPELLED = {FLOAT: "tensor(float)", UINT8: "tensor(uint8)"}  # as ONNX Runtime spells types


def judge(name: str, content: bytes, manifest: Manifest, pictures: Sequence[tuple[int, int]] = ()) -> dict[str, int]:
    """Judge the graph `name` of a bundle; returns its files of weights, and how many bytes of each it needs.

    `pictures`: heights and widths that the graph for any size will be given, besides S x S and `PICTURES`. Raises
    `BundleError` for anything that `byol export` would not write.
    """
    try:
        proto = parse(content)
        _check_versions(proto, manifest)
        _check_interface(proto.graph, name, manifest)
        weights, files = weights_of(proto.graph)
        _check_nodes(proto.graph, name, weights, manifest, pictures)
    except BundleError as error:
        raise BundleError(f"{name} is refused: {on_one_line(str(error))}") from error
    return files


def _check_versions(proto: Any, manifest: Manifest) -> None:
    fields(proto)
    contract = json.dumps(plain(manifest.preprocess), sort_keys=True)
    notes = {item.key: item.value for item in proto.metadata_props if fields(item)}
    check(len(notes) == len(proto.metadata_props), "its metadata has a key twice")
    noted = notes.get("preprocess", contract)
    check(noted == contract, f"{MANIFEST} says preprocess {contract}, it has {noted:.300}")
    imports = [(fields(item), item) for item in proto.opset_import]
    check([item.domain in ("", "ai.onnx") for _, item in imports] == [True], "it uses domains other than ONNX's own")
    found = {"opset": proto.opset_import[0].version, "ir_version": proto.ir_version}
    for what, version in found.items():
        said = getattr(manifest.onnx, what)
        check(version == said, f"{MANIFEST} says {what} {said}, it has {version}")
    check(found["opset"] == OPSET, f"its opset is {found['opset']}; this byol knows {OPSET}")
    legal = f"{IR_VERSIONS[0]} to {IR_VERSIONS[-1]}"
    check(found["ir_version"] in IR_VERSIONS, f"its IR version is {found['ir_version']}; this byol knows {legal}")


def _check_interface(graph: Any, name: str, manifest: Manifest) -> None:
    """The graph's one input and its outputs are what the manifest says, for any number of images."""
    fields(graph)
    ends = [_end(item) for item in (*graph.input, *graph.output)]
    found, wanted = [(end, kind, shape[1:]) for end, kind, shape in ends], graph_interface(manifest, name)
    check(len(graph.input) == 1 and found == wanted, f"it has the interface {found}, the manifest says {wanted}")
    check(all(isinstance(shape[0], str) for *_, shape in ends), "it takes a fixed number of images")


def _end(item: Any) -> tuple[str, str, list[int | str]]:
    tensor = item.type.tensor_type
    for message in (item, item.type, tensor, tensor.shape):
        fields(message)
    sizes = [fields(size) for size in tensor.shape.dim]
    shape = [size.get("dim_value", size.get("dim_param", 0)) for size in sizes] or [0]
    return item.name, _SPELLED.get(tensor.elem_type, f"type {tensor.elem_type}"), shape


def weights_of(graph: Any) -> tuple[dict[str, Value], dict[str, int]]:
    """The initializers by name, and how many bytes they need of which files."""
    weights: dict[str, Value] = {}
    files: dict[str, int] = {}
    for tensor in graph.initializer:
        content = fields(tensor)
        check(tensor.name not in weights and tensor.name != "", f"it has two weights {tensor.name!r:.60}, or no name")
        try:
            weights[tensor.name] = stored(tensor, content, _outside(tensor, content, files))
        except BundleError as error:
            raise BundleError(f"its weight {tensor.name!r:.60} {error}") from error
    for name, end in files.items():
        held = sum(weights[tensor.name].bytes for tensor in graph.initializer if _file_of(tensor) == name)
        check(held <= end, f"its weights need {held:,} bytes of {name!r:.60}, of which they name {end:,}: they overlap")
    return weights, files


def _file_of(tensor: Any) -> str | None:
    return next((item.value for item in tensor.external_data if item.key == "location"), None)


def _outside(tensor: Any, content: Mapping[str, Any], files: dict[str, int]) -> int | None:
    """The bytes of a tensor in another file, which is noted in `files`; None when it lies in the graph."""
    if tensor.data_location != _OUTSIDE:
        check("external_data" not in content, "lies in the graph and in another file")
        return None
    found = {item.key: item.value for item in tensor.external_data if fields(item)}
    plain = found.keys() <= {"location", "offset", "length"} and len(found) == len(tensor.external_data)
    check(plain, "says more of another file than location, offset and length, or one of them twice")  # `prepacked`, say
    start, length = found.get("offset", "0"), found.get("length", "")
    clear = all(text.isascii() and text.isdecimal() and len(text) < 16 for text in (start, length))
    check(clear and found.get("location", "") != "", "does not say where it lies in another file")
    files[found["location"]] = max(files.get(found["location"], 0), int(start) + int(length))
    return int(length)


def _check_nodes(
    graph: Any, name: str, weights: Mapping[str, Value], manifest: Manifest, pictures: Sequence[tuple[int, int]]
) -> None:
    most = limit("BYOL_GRAPH_NODES")
    check(len(graph.node) <= most, f"it has {len(graph.node):,} nodes (at most {most:,}; BYOL_GRAPH_NODES)")
    operators = OPERATORS | (RESIZING if name == ANY_SIZE else {})
    steps = [Step.of(number, node, operators) for number, node in enumerate(graph.node)]
    size, ends = manifest.image_size, (graph.input[0].name, [item.name for item in graph.output])
    shapes = [(batch, size, size) for batch in (1, MAX_BATCH_SIZE)]
    if name == ANY_SIZE:
        shapes += [(1, *picture) for picture in (*PICTURES, *pictures)]
    promised = [dims for _, _, dims in graph_interface(manifest, name)[1:]]
    for shape in shapes:
        for dims, value in zip(promised, walk(steps, weights, ends, (*shape, 3)), strict=True):
            fits = value.dtype == np.float32 and value.shape == (shape[0], *dims)
            check(fits, f"for {shape[0]} images it gives {value.dtype} {list(value.shape)}, not {[shape[0], *dims]}")

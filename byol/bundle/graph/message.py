"""What an ONNX message of a bundle may hold: known fields and attributes, nothing else. Torch-free.

A list of what is allowed rules out at once what a graph could hide: functions, inner graphs, sparse tensors, shapes
that contradict, and whatever a later ONNX adds.
"""

from __future__ import annotations

from typing import Any

from byol.bundle.graph.node import Attribute
from byol.bundle.schema import BundleError, check

_FIELDS = {
    "ModelProto": {"ir_version", "opset_import", "producer_name", "producer_version", "model_version", "doc_string"}
    | {"domain", "graph", "metadata_props"},
    "GraphProto": {"name", "doc_string", "node", "initializer", "input", "output"},
    "NodeProto": {"name", "doc_string", "op_type", "domain", "input", "output", "attribute"},
    "AttributeProto": {"name", "doc_string", "type", "f", "i", "s", "ints"},
    "TensorProto": {"name", "doc_string", "dims", "data_type", "raw_data", "float_data", "int32_data", "int64_data"}
    | {"data_location", "external_data"},
    "ValueInfoProto": {"name", "doc_string", "type"},
    "TypeProto": {"tensor_type"},
    "Tensor": {"elem_type", "shape"},
    "TensorShapeProto": {"dim"},
    "Dimension": {"dim_value", "dim_param"},
    "OperatorSetIdProto": {"domain", "version"},
    "StringStringEntryProto": {"key", "value"},
}
_ATTRIBUTE_TYPES = {"f": 1, "i": 2, "s": 3, "ints": 7}  # ONNX's number for the field that is set


def parse(content: bytes) -> Any:
    """The ONNX model in a file's bytes. Raises `BundleError`."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise BundleError("it is not an ONNX file") from error


def fields(message: Any) -> dict[str, Any]:
    """The fields of a message that are set. Raises `BundleError` for one that is not known."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    kind, found = message.DESCRIPTOR.name, {}
    for descriptor, value in message.ListFields():
        if descriptor.name not in _FIELDS[kind]:
            raise BundleError(f"it holds {kind}.{descriptor.name}, which a graph may not have")
        if descriptor.type == descriptor.TYPE_STRING:  # protobuf gives bytes where it is not UTF-8
            texts = [value] if isinstance(value, str | bytes) else value
            check(all(isinstance(text, str) for text in texts), f"it holds a {kind} with text that is not UTF-8")
        found[descriptor.name] = value
    check(len(UnknownFieldSet(message)) == 0, f"it holds a {kind} with fields that ONNX does not define")
    return found


def attribute(item: Any, legal: Attribute | None) -> Any:
    """The value of a node's attribute. Raises `BundleError` unless it is one that its operator may have."""
    found = fields(item)
    if legal is None:
        raise BundleError(f"has an attribute {item.name!r:.60}, which is not known")
    others = (found.keys() & _ATTRIBUTE_TYPES.keys()) - {legal.field}
    check(item.type == _ATTRIBUTE_TYPES[legal.field] and not others, f"has an attribute {item.name} of another type")
    value = getattr(item, legal.field)
    value = list(value) if legal.field == "ints" else value
    check(legal.legal(value), f"has {item.name} = {value!r:.60}; legal: {legal.words}")
    return value

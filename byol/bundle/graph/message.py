"""Parse a bundle's ONNX messages: known fields and attributes, nothing else. Torch-free.

Listing what is allowed rules out all that a graph could hide: functions, inner graphs, sparse tensors, contradicting
shapes, and whatever a later ONNX adds.
"""

from __future__ import annotations

from typing import Any

from byol.bundle.graph.node import Attribute
from byol.bundle.schema import BundleError, check
from byol.limits import limit

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
FIELDS_OF_A_NODE = 40  # with its share of weights; most have half of it
_VARINT, _LENGTH, _FIXED, _DEEPEST = 0, 2, {1: 8, 5: 4}, 100  # protobuf's ways of writing a field
_ATTRIBUTE_TYPES = {"f": 1, "i": 2, "s": 3, "ints": 7}  # ONNX's number for the field that is set


def parse(content: bytes) -> Any:
    """The ONNX model in a file's bytes. Raises `BundleError`."""
    import onnx
    from google.protobuf.message import DecodeError

    _require_few_fields(content, onnx.ModelProto.DESCRIPTOR)
    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise BundleError("it is not an ONNX file") from error


def _require_few_fields(content: bytes, kind: Any) -> None:
    """Raise `BundleError` for more fields than any graph has: of two bytes each, they take a hundred once parsed."""
    left = most = FIELDS_OF_A_NODE * limit("BYOL_GRAPH_NODES")
    place, inside = 0, [(len(content), kind)]  # where the messages end that the place is in, and which they are
    try:
        while inside:
            end, kind = inside[-1]
            if place >= end:
                inside.pop()
                continue
            left -= 1
            check(left >= 0, f"it has more than {most:,} fields (BYOL_GRAPH_NODES)")
            place, part = _behind_field(content, place, kind)
            if part is not None:
                check(part[0] <= end and len(inside) < _DEEPEST, "it is not an ONNX file")
                inside.append(part)
    except IndexError:
        raise BundleError("it is not an ONNX file") from None


def _behind_field(content: bytes, place: int, kind: Any) -> tuple[int, tuple[int, Any] | None]:
    """Where a field ends, or, if it is a message itself, where its content begins, with its end and kind."""
    key, place = _varint(content, place)
    wire = key & 7
    if wire == _VARINT:
        return _varint(content, place)[1], None
    if wire != _LENGTH:
        check(wire in _FIXED, "it is not an ONNX file")
        return place + _FIXED[wire], None
    length, place = _varint(content, place)
    field = kind.fields_by_number.get(key >> 3)
    if field is None or field.message_type is None:
        return place + length, None
    return place, (place + length, field.message_type)


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of protobuf's, and where it ends."""
    value, shift = 0, 0
    while (byte := content[place]) > 127:
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        check(shift < 70, "it is not an ONNX file")
    return value | byte << shift, place + 1


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
        raise BundleError(f"has an unknown attribute {item.name!r:.60}")
    others = (found.keys() & _ATTRIBUTE_TYPES.keys()) - {legal.field}
    check(item.type == _ATTRIBUTE_TYPES[legal.field] and not others, f"has an attribute {item.name} of another type")
    value = getattr(item, legal.field)
    value = list(value) if legal.field == "ints" else value
    check(legal.legal(value), f"has {item.name} = {value!r:.60}; expected {legal.words}")
    return value

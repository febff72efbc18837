"""KServe's open inference protocol, version 2, with Triton's extension for binary tensors.

A body is JSON, or, where the header `Inference-Header-Content-Length` says how long its JSON is, JSON and the tensors
behind it. Shapes: N images, S the encoder's image size, D outputs per image.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from byol import __version__
from byol.serve.server.engine import Item
from byol.serve.server.intake import json_object
from byol.serve.server.refusals import Refused

HEADER = "Inference-Header-Content-Length"
INPUT = "images"
VERSION = "1"
EXTENSIONS = ["binary_tensor_data"]
_UNSUPPORTED = ("shared_memory_region", "classification")


@dataclass(frozen=True)
class Model:
    """What clients are told of a model: its input is uint8 (N, S, S, 3), or N encoded pictures; its output (N, D)."""

    name: str
    output: str
    size: int
    dim: int

    def metadata(self) -> dict[str, Any]:
        """The answer to `GET /v2/models/NAME`."""
        size = self.size
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, size, size, 3]}],
            "outputs": [{"name": self.output, "datatype": "FP32", "shape": [-1, self.dim]}],
        }


@dataclass(frozen=True)
class Question:
    """What a client asks: the images, its own id of the request, and whether the output comes as bytes."""

    items: Sequence[Item]
    id: str | None
    binary: bool


def server() -> dict[str, Any]:
    """The answer to `GET /v2`."""
    return {"name": "byol", "version": __version__, "extensions": EXTENSIONS}


def question(model: Model, body: bytes, length: str | None, most: int) -> Question:
    """The body of `POST /v2/models/NAME/infer`, whose JSON has `length` bytes (None: all). Raises `Refused`."""
    head, tensors = _split(body, length)
    found = json_object(head)
    name = found.get("id")
    if name is not None and not isinstance(name, str):
        raise Refused(400, "id must be a string")
    return Question(_items(model, found, tensors, most), name, _wants_bytes(model, found))


def _split(body: bytes, length: str | None) -> tuple[bytes, memoryview]:
    if length is None:
        return body, memoryview(b"")
    if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(body)):
        raise Refused(400, f"{HEADER} is no length of a part of the body")
    return body[: int(length)], memoryview(body)[int(length) :]


def _items(model: Model, found: dict[str, Any], tensors: memoryview, most: int) -> Sequence[Item]:
    given = found.get("inputs")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise Refused(400, f"inputs must be a list of one tensor, {INPUT!r}")
    tensor = given[0]
    shape, parameters = tensor.get("shape"), _parameters(tensor)
    if tensor.get("name") != INPUT:
        raise Refused(400, f"the input's name must be {INPUT!r}")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(400, "shape must be a list of numbers")
    if not 1 <= shape[0] <= most:
        raise Refused(413 if shape[0] else 400, f"{shape[0]} images; one request may have 1 to {most}")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(tensors)):
        raise Refused(400, f"binary_data_size is not the {len(tensors)} bytes behind the JSON")
    if size is None and len(tensors):
        raise Refused(400, "there are bytes behind the JSON, but the input has no binary_data_size")
    content = tensors if size is not None else tensor.get("data")
    if tensor.get("datatype") == "UINT8" and shape[1:] == [model.size, model.size, 3]:
        return list(_pixels(content, shape))
    if tensor.get("datatype") == "BYTES" and shape[1:] in ([], [1]):
        return _encoded(content, shape[0])
    expected = [-1, *(model.size, model.size, 3)]
    raise Refused(400, f"the input must be UINT8 of shape {expected}, or BYTES of shape [-1]: encoded pictures")


def _parameters(found: dict[str, Any]) -> dict[str, Any]:
    parameters = found.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused(400, "parameters must be an object")
    if unsupported := [name for name in _UNSUPPORTED if name in parameters]:
        raise Refused(400, f"{unsupported[0]} is not supported")
    return parameters


def _pixels(content: Any, shape: list[int]) -> np.ndarray:
    """Preprocessed images, uint8 (N, S, S, 3), from bytes or from numbers in lists, nested or not."""
    try:
        flat = content if isinstance(content, memoryview) else bytes(_flat(content, len(shape)))
        return np.frombuffer(flat, np.uint8).reshape(shape)
    except (TypeError, ValueError) as error:
        raise Refused(400, f"data must be as many whole numbers from 0 to 255 as the shape {shape} says") from error


def _flat(content: Any, depth: int) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError
    flat: list[Any] = content
    for _ in range(depth):
        if flat and isinstance(flat[0], list):
            flat = list(chain.from_iterable(flat))
    return flat  # what is not a number fails as such


def _encoded(content: Any, count: int) -> list[bytes]:
    """Encoded pictures: in bytes each behind its length, in JSON as base64."""
    pictures = _elements(content) if isinstance(content, memoryview) else _decoded(_flat_texts(content))
    if len(pictures) != count:
        raise Refused(400, f"the shape says {count} pictures, the data holds {len(pictures)}")
    return pictures


def _elements(content: memoryview) -> list[bytes]:
    found, place = [], 0
    while place < len(content):
        end = place + 4 + int.from_bytes(content[place : place + 4], "little")
        if end > len(content) or place + 4 > len(content):
            raise Refused(400, "the data ends within a picture")
        found.append(bytes(content[place + 4 : end]))
        place = end
    return found


def _flat_texts(content: Any) -> list[str]:
    texts = content if isinstance(content, list) else []
    if texts and isinstance(texts[0], list):
        texts = [text for one in texts if isinstance(one, list) for text in one]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "data must be a list of pictures in base64")
    return texts


def _decoded(texts: list[str]) -> list[bytes]:
    try:
        return [binascii.a2b_base64(text, strict_mode=True) for text in texts]
    except ValueError as error:
        raise Refused(400, "data must be a list of pictures in base64") from error


def _wants_bytes(model: Model, found: dict[str, Any]) -> bool:
    outputs = found.get("outputs") or [{"name": model.output}]
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise Refused(400, f"outputs must be a list of one tensor, {model.output!r}, or left out")
    if outputs[0].get("name") != model.output:
        raise Refused(400, f"the only output of {model.name} is {model.output!r}")
    every = _parameters(found).get("binary_data_output", False)
    return bool(_parameters(outputs[0]).get("binary_data", every))


def reply(model: Model, asked: Question, outputs: np.ndarray) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where the output follows as bytes."""
    tensor: dict[str, Any] = {"name": model.output, "datatype": "FP32", "shape": list(outputs.shape)}
    content = outputs.astype("<f4").tobytes() if asked.binary else b""
    if asked.binary:
        tensor["parameters"] = {"binary_data_size": len(content)}
    else:
        tensor["data"] = outputs.ravel().tolist()
    said: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "outputs": [tensor]}
    head = json.dumps(said if asked.id is None else {**said, "id": asked.id}).encode()
    return head + content, len(head) if asked.binary else None

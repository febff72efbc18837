"""What `/openapi.json` says of bodies, which the routes read themselves."""

from __future__ import annotations

from typing import Any

_PICTURE = {"type": "string", "format": "binary"}
_STRING = {"type": "string"}
_OBJECT = {"type": "object"}


def _body(**kinds: dict[str, Any]) -> dict[str, Any]:
    content = {name.replace("__", "/").replace("_", "-"): {"schema": schema} for name, schema in kinds.items()}
    return {"required": True, "content": content}


PICTURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "array", "items": _PICTURE}}}
            },
            "image/*": {"schema": _PICTURE},
        },
    }
}

EMBEDDINGS: dict[str, Any] = {
    "requestBody": _body(
        application__json={
            "type": "object",
            "required": ["input", "model"],
            "properties": {
                "input": {
                    "description": "A picture as a data URL (data:image/...;base64,...), or a list of them.",
                    "oneOf": [_STRING, {"type": "array", "items": _STRING}],
                },
                "model": _STRING,
                "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
                "dimensions": {"type": "integer"},
            },
        }
    )
}

MODEL: dict[str, Any] = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": _STRING}]}

INFER: dict[str, Any] = {
    **MODEL,
    "requestBody": _body(
        application__json={
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": _STRING,
                "parameters": _OBJECT,
                "inputs": {"type": "array", "items": _OBJECT},
                "outputs": {"type": "array", "items": _OBJECT},
            },
        },
        application__octet_stream=_PICTURE,
    ),
}

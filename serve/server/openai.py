"""OpenAI's API of embeddings, for pictures as data URLs."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from byol.serve.server.refusals import Refused

DATA_URL = re.compile(r"data:image/[\w.+-]{1,64}(?:;[\w.+=-]{1,64}){0,4};base64,", re.ASCII | re.IGNORECASE)
EXPECTED = "expected a data URL (data:image/...;base64,...); other URLs are never fetched, and texts have no features"


@dataclass(frozen=True)
class Question:
    """What a client asks: encoded pictures, and whether vectors come as base64 of little-endian float32."""

    pictures: list[bytes]
    as_base64: bool


def question(found: dict[str, Any], model: str, dim: int, most: int) -> Question:
    """The body of `POST /v1/embeddings`. Raises `Refused`, naming the field at fault."""
    if not isinstance(found.get("model"), str):
        raise Refused(400, f"model is missing; this server's is {model!r}", "model")
    if found["model"] != model:
        raise Refused(404, f"there is no such model; this server's is {model!r}", "model", "model_not_found")
    kind = found.get("encoding_format", "float")
    if kind not in ("float", "base64"):
        raise Refused(400, "encoding_format must be float or base64", "encoding_format")
    if found.get("dimensions", dim) != dim:
        raise Refused(400, f"dimensions must be {dim}, or left out", "dimensions")
    given = found.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise Refused(400, f"input: {EXPECTED}, or a list of them", "input")
    if len(texts) > most:
        raise Refused(413, f"{len(texts)} images are more than the {most} that one request may have", "input")
    return Question([_picture(i, text) for i, text in enumerate(texts)], kind == "base64")


def _picture(index: int, text: Any) -> bytes:
    start = DATA_URL.match(text) if isinstance(text, str) else None
    if start is None:
        raise Refused(400, f"input[{index}]: {EXPECTED}", f"input[{index}]")
    try:
        return binascii.a2b_base64(text[start.end() :], strict_mode=True)
    except ValueError as error:  # characters outside ASCII too
        raise Refused(400, f"input[{index}]: its base64 is damaged", f"input[{index}]") from error


def embeddings(features: np.ndarray, model: str, as_base64: bool) -> dict[str, Any]:
    """The answer to features (N, D). An image counts as one token."""

    def one(row: np.ndarray) -> str | list[float]:
        return base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist()

    data = [{"object": "embedding", "index": i, "embedding": one(row)} for i, row in enumerate(features)]
    usage = {"prompt_tokens": len(features), "total_tokens": len(features)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def models(model: str) -> dict[str, Any]:
    """The answer to `GET /v1/models`."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "byol"}]}

"""JSON that may come from a stranger: no key twice, no number that is not finite, nothing too deep. Torch-free."""

from __future__ import annotations

import json
import math
from typing import Any


def read_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text (bytes: UTF-8). Raises `ValueError`, in one line."""
    try:
        characters = text.decode("utf-8") if isinstance(text, bytes) else text
        data = json.loads(characters, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except _Refused:
        raise
    except RecursionError as error:
        raise ValueError("not valid JSON (nested too deep)") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


class _Refused(ValueError):
    """JSON that other readers take and this one does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _Refused(f"the key {key!r:.80} stands twice in one object")
        unique[key] = value
    return unique


def _refuse(name: str) -> None:
    raise _Refused(f"{name} is not a number that it may hold")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"{text:.40} is too large for a float")
    return value

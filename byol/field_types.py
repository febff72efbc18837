"""Whether the fields of a dataclass hold what their annotations say. Standard library only."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

_COUNTS = {2: "two", 3: "three"}
LARGEST_FLOAT = 3e38  # float32's, in which all of it is computed


def check_fields(settings: Any) -> None:
    """Raises `ValueError` that names the first field whose value is of another type or length, or not float32's.

    For fields of bool, int, float, str, fixed-length tuples of float, and dataclasses.
    """
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), str(field.type)
        if not _fits(value, kind):
            raise ValueError(f"{field.name} is {value!r:.100}; legal: {_legal(kind)}")


def _fits(value: object, kind: str) -> bool:
    numbers = _numbers(kind)
    if numbers:
        return isinstance(value, list | tuple) and len(value) == numbers and all(_fits(part, "float") for part in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
    if kind in ("bool", "str"):
        return type(value).__name__ == kind
    return dataclasses.is_dataclass(value) and type(value).__name__ == kind


def _legal(kind: str) -> str:
    numbers = _numbers(kind)
    if numbers:
        return f"{_COUNTS[numbers]} finite numbers, at most 3e38"
    words = {
        "bool": "true or false",
        "int": "a whole number of at most 64 bits",
        "float": "a finite number, at most 3e38",
        "str": "text",
    }
    return words.get(kind, f"a {kind}")


def _numbers(kind: str) -> int:
    """The length of a tuple of floats, 0 for another type."""
    return len(re.findall("float", kind)) if kind.startswith("tuple[") else 0

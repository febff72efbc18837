"""Strict values from strangers: JSON without duplicate keys or infinite numbers, fields of their annotated types."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
from typing import Any

LARGEST_FLOAT = 3e38  # about float32's largest: everything is computed in float32
_COUNTS = {2: "two", 3: "three"}
_ANY_LENGTH = ", ...]"  # how the annotation of such a tuple ends


def read_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text (bytes: UTF-8). Raises `ValueError` with a one-line message."""
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
    """JSON that other readers accept and this one does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _Refused(f"the key {key!r:.80} appears twice in one object")
        unique[key] = value
    return unique


def _refuse(name: str) -> None:
    raise _Refused(f"{name} is not allowed as a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"{text:.40} is too large for a float")
    return value


def check_fields(settings: Any) -> None:
    """Raise `ValueError` naming the first field whose value has a wrong type or length, or exceeds float32.

    For fields of bool, int, float, str, None, unions of these, tuples of float or `tuple[..., ...]`, and dataclasses.
    """
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), str(field.type)
        require_legal(_fits(value, kind), field.name, value, _legal(kind))


def require_legal(condition: bool, name: str, value: object, legal: str) -> None:
    """Raises `ValueError` that names a setting, its value and the legal ones unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {value!r:.100}; expected {legal}")


def fits(value: object, kind: str) -> bool:
    """Whether an argument is of a type that `check_fields` knows ("int", "float"); numbers may be NumPy's."""
    if type(value) not in (bool, int, float) and isinstance(value, numbers.Real):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return _fits(value, kind)


def _fits(value: object, kind: str) -> bool:
    if " | " in kind:
        return any(_fits(value, one) for one in kind.split(" | "))
    if kind.endswith(_ANY_LENGTH):
        one = kind.removeprefix("tuple[").removesuffix(_ANY_LENGTH)
        return isinstance(value, list | tuple) and all(_fits(part, one) for part in value)
    numbers = _numbers(kind)
    if numbers:
        return isinstance(value, list | tuple) and len(value) == numbers and all(_fits(part, "float") for part in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
    if kind == "None":
        return value is None
    if kind in ("bool", "str"):
        return type(value).__name__ == kind
    return dataclasses.is_dataclass(value) and type(value).__name__ == kind


def _legal(kind: str) -> str:
    if kind.endswith(_ANY_LENGTH):
        return "whole numbers of at most 64 bits" if "int" in kind else "finite numbers, at most 3e38"
    numbers = _numbers(kind)
    if numbers:
        return f"{_COUNTS[numbers]} finite numbers, at most 3e38"
    words = {
        "bool": "true or false",
        "int": "a whole number of at most 64 bits",
        "float": "a finite number, at most 3e38",
        "str": "text",
        "int | float": "a finite number, at most 3e38",
        "int | None": "a whole number of at most 64 bits, or null",
    }
    return words.get(kind, f"a {kind}")


def _numbers(kind: str) -> int:
    """The length of a tuple of floats, 0 for another type."""
    return len(re.findall("float", kind)) if kind.startswith("tuple[") else 0

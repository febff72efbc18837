"""Dataclasses from JSON, strictly: no unknown or double key, no other type, no infinite number."""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from byol import strict_json
from byol.text import is_plain

LONGEST = 2000  # characters of a message


class BundleError(ValueError):
    """A bundle that is damaged, incomplete or not understood. The message names the file and the field.

    Long messages are cut short.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


def check(ok: bool, message: str) -> None:
    """Raise `BundleError` unless ok."""
    if not ok:
        raise BundleError(message)


def read_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text. Raises `BundleError`."""
    try:
        return strict_json.read_object(text)
    except ValueError as error:
        raise BundleError(str(error)) from error


def build(cls: Any, value: dict[str, Any]) -> Any:
    """An instance of a dataclass from a JSON object. Raises `BundleError` naming the place."""
    return _build_dataclass(cls, value, "")


def is_text(value: str) -> bool:
    """Whether a text is free of control characters, line ends and changes of writing direction."""
    return all(map(is_plain, value))


def _build(hint: Any, value: Any, where: str) -> Any:
    """The JSON value as the annotated type. Raises `BundleError` naming the place."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):  # X | None
        return None if value is None else _build(arguments[0], value, where)
    if origin is tuple:
        check(isinstance(value, list), f"{where} must be a list, found {_kind(value)}")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        check(isinstance(value, dict), f"{where} must be an object, found {_kind(value)}")
        return {key: _build(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if is_dataclass(hint):
        return _build_dataclass(hint, value, where)
    if hint is float and type(value) is int:
        value = _as_float(value, where)
    check(type(value) is hint, f"{where} must be {hint.__name__}, found {_kind(value)}")
    check(hint is not float or math.isfinite(value), f"{where} must be finite, found {value}")
    check(hint is not str or is_text(value), f"{where} is {value!r:.80}: control characters are not allowed")
    return value


def _build_dataclass(cls: Any, value: Any, where: str) -> Any:
    check(isinstance(value, dict), f"{where or 'the manifest'} must be an object, found {_kind(value)}")
    hints = get_type_hints(cls)
    dot = f"{where}." if where else ""
    unknown = sorted(set(value) - set(hints))
    check(
        not unknown,
        f"unknown key {dot}{unknown[0]}; this byol does not know it; upgrade byol" if unknown else "",
    )
    # In a file everything is spelt out, so that other readers need no table of defaults; only null fields may lack.
    for name, hint in hints.items():
        check(name in value or type(None) in get_args(hint), f"{dot}{name} is missing")
    built = {name: _build(hint, value.get(name), dot + name) for name, hint in hints.items()}
    try:
        return cls(**built)
    except BundleError as error:
        raise BundleError(f"{where}: {error}" if where.startswith("files") else str(error)) from error


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise BundleError(f"{where} is too large for a float") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value!r:.40}")


def plain(value: Any) -> Any:
    """Dataclasses as JSON values, without those that are None."""
    if is_dataclass(value):
        items = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {k: v for k, v in items.items() if v is not None}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value

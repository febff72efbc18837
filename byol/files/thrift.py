"""Thrift's compact protocol, as far as Parquet's headers need it: integers, texts, structs and lists of them.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits
MOST_DEPTH = 16

# Numbers of the fields to keep: None for an integer, a mapping for a struct, a list of one mapping for a list of them.
Wanted = Mapping[int, Any]
NOTHING: Wanted = {}


def _kept_as(wanted: Any) -> type:
    return int if wanted is None else list if isinstance(wanted, list) else dict


class CutOff(ValueError):
    """The bytes end within a struct."""


class Reader:
    """Structs one after the other in some bytes. `place` is where the next one begins.

    `values` and `structs` bound the values read and the structs kept, whatever the bytes claim.
    """

    def __init__(self, data: bytes, values: int, structs: int = 100) -> None:
        self.place = 0
        self._data, self._values, self._structs = data, values, structs

    def struct(self, wanted: Wanted, depth: int = 0) -> dict[int, Any]:
        """Field number to value of the fields that are wanted. Raises `ValueError` when it is damaged, deep or long."""
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 15
            number = number + step if step else self._signed()
            value = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, wanted.get(number), depth)
            if number in fields:
                raise ValueError("a header has a field twice")
            if number in wanted:
                if not isinstance(value, _kept_as(wanted[number])):
                    raise ValueError("a header has a field of the wrong type")
                fields[number] = value
        return fields

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        self._values -= 1
        if self._values < 0 or depth > MOST_DEPTH:
            raise ValueError("a header is too deep or too long")
        if kind in INTEGERS:
            return self._signed()
        if kind == STRUCT:
            return self.struct(wanted if isinstance(wanted, Mapping) else NOTHING, depth + 1)
        if kind in (LIST, SET):
            return self._list(wanted, depth)
        return self._skip(kind, depth)

    def _list(self, wanted: Any, depth: int) -> list[Any] | None:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        if not isinstance(wanted, list):
            for _ in range(count):
                self._value(head & 15, None, depth + 1)
            return None
        self._structs -= count
        if self._structs < 0 or head & 15 != STRUCT:
            raise ValueError("a header lists too much")
        return [self._value(STRUCT, wanted[0], depth + 1) for _ in range(count)]

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (TRUE, FALSE, BYTE):  # in a list, where also a boolean has a byte of its own
            self._byte()
        elif kind == DOUBLE:
            self.place += 8
        elif kind == BINARY:
            length = self._unsigned()
            self.place += length
        elif kind == MAP:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._value(kinds >> 4, None, depth + 1)
                self._value(kinds & 15, None, depth + 1)
        else:
            raise ValueError(f"a header has a value of unknown type {kind}")

    def _byte(self) -> int:
        if self.place >= len(self._data):
            raise CutOff("the file ends within a header")
        self.place += 1
        return self._data[self.place - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a header has a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned() & (1 << 64) - 1
        return (value >> 1) ^ -(value & 1)


# ----------------------------------------------------------------------------------------------------- writing


class Short(int):
    """An integer of 32 bits; any other has 64."""


Value = int | bytes | Mapping[int, Any] | list[Any]


def written(value: Value) -> bytes:
    """A struct (field number to value, in steps of up to 15), or a part of one, as bytes; no number is negative."""
    if isinstance(value, int):
        return _varint(value << 1)
    if isinstance(value, bytes):
        return _varint(len(value)) + value
    if isinstance(value, list):
        return bytes([0xF0 | _kind_of(value[0])]) + _varint(len(value)) + b"".join(map(written, value))
    steps = zip(value.items(), [0, *value], strict=False)
    heads = ((bytes([(number - last) << 4 | _kind_of(part)]), part) for (number, part), last in steps)
    return b"".join(head + written(part) for head, part in heads) + b"\0"


def _kind_of(value: Value) -> int:
    if isinstance(value, int):
        return 5 if isinstance(value, Short) else 6
    return BINARY if isinstance(value, bytes) else LIST if isinstance(value, list) else STRUCT


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])

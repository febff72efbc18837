"""Thrift's compact protocol, as far as Parquet's page headers need it: integers and structs; all else is skipped.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Torch-free.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits
MOST_VALUES = 1000  # of one header, whatever counts it claims
MOST_DEPTH = 8


def read_struct(stream: BinaryIO) -> dict[int, Any]:
    """The struct that begins here: field number to integer, boolean, struct, or None for what is skipped.

    Raises `ValueError` when it is damaged, deep or long.
    """
    return _Reader(stream).struct(0)


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MOST_VALUES

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            step, kind = kind >> 4, kind & 15
            number = number + step if step else self._signed()
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MOST_DEPTH:
            raise ValueError("a header is deeper or longer than any")
        if kind in INTEGERS:
            return self._signed()
        if kind == STRUCT:
            return self.struct(depth + 1)
        return self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (TRUE, FALSE, BYTE):  # in a list, where also a boolean has a byte of its own
            self._byte()
        elif kind == DOUBLE:
            self._stream.seek(8, os.SEEK_CUR)
        elif kind == BINARY:
            self._stream.seek(self._unsigned(), os.SEEK_CUR)
        elif kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            self._skip_all([head & 15], count, depth)
        elif kind == MAP:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            self._skip_all([kinds >> 4, kinds & 15], count, depth)
        else:
            raise ValueError(f"a header holds a value of no kind that there is ({kind})")

    def _skip_all(self, kinds: list[int], count: int, depth: int) -> None:
        for _ in range(count):
            for kind in kinds:
                self._value(kind, depth + 1)

    def _byte(self) -> int:
        found = self._stream.read(1)
        if not found:
            raise ValueError("the file ends within a header")
        return found[0]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a header holds a number of more than 63 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

"""Columns of a listing, held as arrays: ten million names and labels without a Python object for each. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

T = TypeVar("T")


class Computed(Sequence[T]):
    """A sequence of `length` items, each made by `item(i)` on demand."""

    def __init__(self, length: int, item: Callable[[int], T]):
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._item(i) for i in range(*place.indices(self._length))]
        return self._item(range(self._length)[place])


class Names(Sequence[str]):
    r"""File names as bytes in one Arrow array; an item is text in which bytes that are not UTF-8 read `\xNN`."""

    def __init__(self, raw: Any):
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [_text(raw) for raw in self.raw[place].to_pylist()]
        return _text(self.raw[place].as_py())

    @classmethod
    def of(cls, chunks: Sequence[Any]) -> Names:
        """Names from Arrow arrays of bytes, in their order."""
        return cls(pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_binary()))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


class Labels(Sequence["str | None"]):
    """The class of each image: `codes` int32 (N,), the place in `names` (sorted, distinct), -1 for no class.

    The constructor takes names in any order, duplicates included, with codes to match. `why` explains why images lack a
    class; empty if that is obvious.
    """

    def __init__(self, codes: np.ndarray, names: Sequence[str], why: str = ""):
        self.names, self.why = sorted(set(names)), why
        place = {name: i for i, name in enumerate(self.names)}
        places = np.array([*(place[name] for name in names), -1], np.int32)  # the last one is found by code -1
        self.codes = places[codes]

    @classmethod
    def of(cls, labels: Sequence[str | None]) -> Labels:
        """The labels of a plain sequence."""
        number: dict[str, int] = {}
        codes = (-1 if label is None else number.setdefault(label, len(number)) for label in labels)
        numbers = np.fromiter(codes, np.int32, len(labels))  # before `number` is read: it fills as they are made
        return cls(numbers, list(number))

    @classmethod
    def all(cls, label: str | None, count: int, why: str = "") -> Labels:
        """The same label, or none, for each of `count` images."""
        return cls(np.full(count, -1 if label is None else 0, np.int32), [] if label is None else [label], why)

    @classmethod
    def none(cls, count: int) -> Labels:
        """No label for any of `count` images."""
        return cls.all(None, count)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, place: int) -> str | None: ...
    @overload
    def __getitem__(self, place: slice) -> list[str | None]: ...
    def __getitem__(self, place: int | slice) -> str | list[str | None] | None:
        if isinstance(place, slice):
            return [self._name(code) for code in self.codes[place]]
        return self._name(self.codes[place])

    def _name(self, code: int) -> str | None:
        return self.names[code] if code >= 0 else None

    @property
    def missing(self) -> np.ndarray:
        """The places of the images without a class, int64."""
        return np.flatnonzero(self.codes < 0)

    @property
    def classes(self) -> list[str]:
        """The classes that occur, sorted."""
        return [self.names[code] for code in np.unique(self.codes) if code >= 0]

    def take(self, indices: Sequence[int] | np.ndarray) -> Labels:
        """The labels of some images, in the given order."""
        return Labels(self.codes[np.asarray(indices, np.int64)], self.names, self.why)

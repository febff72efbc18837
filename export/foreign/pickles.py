"""What the pickle of a checkpoint says, read off its opcodes before torch computes it. Nothing is executed here.

`torch.load(weights_only=True)` runs no code from a file, but it hashes the keys, calls the constructors and allocates
the storages that the file asks for. A state dict needs little of that: keys that are text or numbers, calls that build
tensors and containers, and tensors that lie within what the file holds. All else is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
ORDERED = "collections.OrderedDict"
TEXT = "_codecs.encode"  # how Python 3 writes bytes for Python 2
SETS = ("builtins.set", "__builtin__.set")
CALLED = (*TENSORS, *PARAMETERS, ORDERED, TEXT, *SETS, "collections.Counter", "torch.Size", "torch.device")
LEAVES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORAGES = {
    **{"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8},
    **{"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1},
}  # bytes of an element


class MoreThanTensors(ValueError):
    """A pickle that asks for more than a state dict needs. The message is what."""


@dataclass(frozen=True)
class Named:
    """A function or class that the file names."""

    name: str


@dataclass(frozen=True)
class Made:
    """What a call makes."""

    by: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers: `size` bytes, of which an element has `element`."""

    size: int
    element: int


class _Mark:
    pass


MARK = _Mark()
Claim = Callable[[str, int], None]  # the key and the bytes of a storage; raises `ValueError` where there is none


def require_state_dict(content: io.BytesIO, claim: Claim, most: int) -> None:
    """Read one pickle to its end. `most`: bytes that all tensors together may have.

    Raises `MoreThanTensors`, and `ValueError` when it is damaged or its tensors lie outside their storages.
    """
    try:
        _Reader(claim, most).read(content)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error


class _Reader:
    """A pickle's stack and memo, with tuples and lists as such, dictionaries as empty ones, and no object at all."""

    def __init__(self, claim: Claim, most: int) -> None:
        self._claim, self._left = claim, most
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, content: io.BytesIO) -> None:
        for opcode, argument, _ in pickletools.genops(content):
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in LEAVES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            stack.append(tuple(self._pop(TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_marked()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "STOP"):
            self._compose(name, argument)

    def _compose(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_marked()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_marked()
            _require_keys(items[::2])
        elif name == "GLOBAL":
            stack.append(Named(argument.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._called(function, arguments))
        elif name == "BUILD" and stack[-2] == Made(ORDERED):
            stack.pop()  # its attributes
        elif name == "NEWOBJ":
            raise MoreThanTensors(f"GLOBAL {_name(self._pop(2)[0])}")
        else:
            raise MoreThanTensors(f"opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_marked(self) -> list[Any]:
        place = next(i for i in range(len(self._stack) - 1, -1, -1) if self._stack[i] is MARK)
        items = self._pop(len(self._stack) - place)
        return items[1:]

    def _storage(self, said: Any) -> Storage:
        kind, cls, key, _, count = said[:5]
        element = STORAGES.get(_name(cls).rpartition(".")[2].removesuffix("Storage"))
        if kind != "storage" or element is None or any(more is not None for more in said[5:]):
            raise MoreThanTensors(f"storage {_name(cls)}")
        _require_keys([key])
        self._claim(str(key), _count(count) * element)
        return Storage(count * element, element)

    def _called(self, function: Any, arguments: Sequence[Any]) -> Any:
        name = _name(function)
        if name not in CALLED:
            raise MoreThanTensors(f"GLOBAL {name}")
        if name == "torch.Size":
            return arguments[0]
        if name == TEXT and arguments[1] != "latin1":
            raise MoreThanTensors(f"text in {arguments[1]!r:.40}")
        if name in SETS:
            _require_keys(arguments[0])
        if name == ORDERED and arguments:  # Python 2 gives its pairs
            _require_keys([pair[0] for pair in arguments[0]])
        if name in TENSORS:
            self._left -= _tensor_bytes(name, arguments)
            if self._left < 0:
                raise ValueError("its tensors have more elements than a file of this size can hold")
        return Made(name)


def _name(item: Any) -> str:
    if not isinstance(item, Named):
        raise MoreThanTensors("a call of something without a name")
    return item.name


def _require_keys(keys: Sequence[Any]) -> None:
    for key in keys:
        if not isinstance(key, str | int | float):
            raise MoreThanTensors("a key that is neither text nor a number")


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a tensor whose shape is not made of numbers from 0 up")
    return value


def _tensor_bytes(name: str, arguments: Sequence[Any]) -> int:
    """The bytes of a tensor's elements. Raises `ValueError` when one would lie outside its storage."""
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("a tensor without one stride per dimension")
    element = storage.element if name == TENSORS[0] else _element_of(arguments[6])
    count = math.prod(map(_count, shape))
    last = _count(offset) + sum((n - 1) * _count(step) for n, step in zip(shape, strides, strict=True))
    if count and (last + 1) * element > storage.size:
        raise ValueError("a tensor that reaches beyond its storage")
    return count * element


def _element_of(dtype: Any) -> int:
    found = getattr(torch, _name(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise MoreThanTensors(_name(dtype))
    return found.itemsize

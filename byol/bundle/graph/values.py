"""A graph's values before it runs: type, shape, and the numbers of small ones. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from byol.bundle.schema import check

# ONNX's numbers of the types that a graph may use.
FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10
DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype(np.float32),
    UINT8: np.dtype(np.uint8),
    INT8: np.dtype(np.int8),
    INT32: np.dtype(np.int32),
    INT64: np.dtype(np.int64),
    BOOL: np.dtype(np.bool_),
    FLOAT16: np.dtype(np.float16),
}
# Where a tensor's content may lie beside `raw_data`; float16 and the short integers share ONNX's field for int32.
_FIELDS = {FLOAT: "float_data", INT64: "int64_data"} | dict.fromkeys((UINT8, INT8, INT32, BOOL, FLOAT16), "int32_data")
MAX_RANK = 8
LARGEST = 65_535  # of a kernel, stride, padding
MAX_KNOWN = 64  # elements of a tensor whose numbers are followed: shapes, axes, bounds


@dataclass(frozen=True)
class Value:
    """A tensor that a graph works with. `numbers`: its content, where that is small and does not depend on pixels.

    `work`: multiplications that one of its elements takes to compute.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    numbers: np.ndarray | None = None
    work: int = 1

    def __post_init__(self) -> None:
        check(len(self.shape) <= MAX_RANK, f"has {len(self.shape)} axes, more than {MAX_RANK}")
        check(all(size >= 1 for size in self.shape), f"has the shape {list(self.shape)}, which holds nothing")

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.size * self.dtype.itemsize


def known(value: Value | None, what: str) -> list[int]:
    """The integers of a small tensor that decides on shapes; it must not depend on pixels. Raises `BundleError`."""
    check(value is not None and value.numbers is not None, f"{what} is not known before it runs")
    assert value is not None
    assert value.numbers is not None
    check(value.dtype == DTYPES[INT64] and len(value.shape) <= 1, f"{what} is not a list of 64-bit integers")
    return [int(number) for number in value.numbers.reshape(-1)]


def stored(tensor: Any, fields: dict[str, Any], outside: int | None = None) -> Value:
    """The value of an ONNX tensor; `fields` are those set, `outside` its bytes in another file, if it lies there.

    Raises `BundleError` unless type, shape and content agree.
    """
    kind, shape = tensor.data_type, tuple(tensor.dims)
    check(kind in DTYPES, f"has ONNX's type {kind}, which a graph may not use")
    value = Value(DTYPES[kind], shape)
    contents = [name for name in ("raw_data", "float_data", "int32_data", "int64_data") if name in fields]
    if outside is not None:
        check(not contents and outside == value.bytes, f"needs {value.bytes} bytes of another file, not {outside}")
        return value
    check(contents in (["raw_data"], [_FIELDS[kind]]), "does not hold its content in one of ONNX's two ways")
    content = fields[contents[0]]
    found, wanted = len(content), value.bytes if contents == ["raw_data"] else value.size
    check(found == wanted, f"of shape {list(shape)} needs {wanted} bytes or numbers and has {found}")
    if value.size > MAX_KNOWN:
        return value
    return Value(value.dtype, shape, _numbers(content, value))


def _numbers(content: bytes | Sequence[float], value: Value) -> np.ndarray | None:
    if isinstance(content, bytes):
        return np.frombuffer(content, value.dtype.newbyteorder("<")).astype(value.dtype).reshape(value.shape)
    if value.dtype in (DTYPES[FLOAT], DTYPES[INT64]):
        return np.array(content, value.dtype).reshape(value.shape)
    return None

"""A node of a graph as rules see it, and their shared helpers. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from byol.bundle.graph.values import DTYPES, FLOAT, FLOAT16, MAX_KNOWN, Value
from byol.bundle.schema import BundleError, check

FLOATS = (DTYPES[FLOAT], DTYPES[FLOAT16])


class Attribute(NamedTuple):
    """Its field in an ONNX attribute, and which values are legal."""

    field: str
    legal: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Node:
    """One operation: its inputs in order (None where left out), attributes by name, and how many outputs it names."""

    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: int = 1

    def __getitem__(self, place: int) -> Value:
        value = self.inputs[place] if place < len(self.inputs) else None
        check(value is not None, f"lacks its input {place}")
        assert value is not None
        return value

    def optional(self, place: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def given(self) -> list[Value]:
        """All inputs, none of which may be left out."""
        return [self[place] for place in range(len(self.inputs))]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or ONNX's `default` where it is absent."""
        return self.attributes.get(name, default)

    def axis(self, rank: int, default: int) -> int:
        """The attribute `axis` as 0 to rank - 1."""
        return axis_of(self.get("axis", default), rank)


Rule = Callable[[Node], list[Value]]


@dataclass(frozen=True)
class Operator:
    """`inputs`: how few and how many it takes; `rule`: from a node to its outputs, raising `BundleError`."""

    rule: Rule
    inputs: tuple[int, int]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def axis_of(axis: int, rank: int) -> int:
    """An axis as 0 to rank - 1. Raises `BundleError`."""
    check(-rank <= axis < rank, f"axis {axis} does not exist in {rank} axes")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> list[int]:
    """Axes as 0 to rank - 1, none twice. Raises `BundleError`."""
    found = [axis_of(axis, rank) for axis in axes]
    check(len(set(found)) == len(found), f"axes {list(axes)} name one twice")
    return found


def is_float(*values: Value) -> None:
    """Raise `BundleError` unless all are float32 or float16."""
    for value in values:
        if value.dtype not in FLOATS:
            raise BundleError(f"is not defined here for {value.dtype}, only for float32 and float16")


def alike(values: Sequence[Value]) -> np.dtype[Any]:
    """The type that all have. Raises `BundleError`."""
    kinds = {value.dtype for value in values}
    if len(kinds) > 1:
        raise BundleError(f"mixes {' and '.join(sorted(map(str, kinds)))}")
    return values[0].dtype


def broadcast(values: Sequence[Value]) -> tuple[int, ...]:
    """The shape that NumPy would bring them to. Raises `BundleError`."""
    shapes = [value.shape for value in values]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        raise BundleError(f"cannot bring the shapes {listed} together") from None


def follow(function: Callable[..., Any], values: Sequence[Value], result: Value) -> Value:
    """The result with its numbers, if those of all inputs are known and few."""
    numbers = [value.numbers for value in values]
    if result.size > MAX_KNOWN or any(n is None for n in numbers):
        return result
    with np.errstate(all="ignore"):
        return replace(result, numbers=np.asarray(function(*numbers), result.dtype).reshape(result.shape))

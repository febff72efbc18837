"""Follow a graph node by node, in types and shapes, without computing it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from byol.bundle.graph.message import attribute, fields
from byol.bundle.graph.node import Node, Operator
from byol.bundle.graph.values import DTYPES, UINT8, Value
from byol.bundle.schema import BundleError, check
from byol.limits import limit

_IN_ALL = 32  # times the activations that may live at once: those of all nodes together, should none be given back
_UNFOLDED = 4  # times the weights that constants made of them may take: int8 becomes float32


@dataclass(frozen=True)
class Step:
    """A node with its operator's rule; `title` names it in errors."""

    title: str
    operator: Operator
    attributes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]

    @classmethod
    def of(cls, number: int, node: Any, operators: Mapping[str, Operator]) -> Step:
        """The node as a step. Raises `BundleError` for an operator or an attribute that is not known."""
        fields(node)
        title = f"node {number} ({node.op_type:.40})"
        operator = operators.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise BundleError(f"{title} is not an operator that a graph may use")
        try:
            attributes = {item.name: attribute(item, operator.attributes.get(item.name)) for item in node.attribute}
        except BundleError as error:
            raise BundleError(f"{title} {error}") from error
        check(len(attributes) == len(node.attribute), f"{title} has an attribute twice")
        least, most = operator.inputs
        check(least <= len(node.input) <= most, f"{title} has {len(node.input)} inputs, not {least} to {most}")
        check(len(node.output) >= 1, f"{title} has no output")
        return cls(title, operator, attributes, list(node.input), list(node.output))

    def run(self, values: Mapping[str, Value]) -> list[Value]:
        """Its outputs. Raises `BundleError`."""
        for name in self.inputs:
            check(name == "" or name in values, f"{self.title} needs {name!r:.60}, which no earlier node makes")
        inputs = [values[name] if name else None for name in self.inputs]
        try:
            outputs = self.operator.rule(Node(inputs, self.attributes, len(self.outputs)))
        except BundleError as error:
            raise BundleError(f"{self.title} {error}") from error
        check(len(outputs) == len(self.outputs), f"{self.title} has {len(self.outputs)} outputs, not {len(outputs)}")
        return outputs


class _Cost:
    """The cost of the nodes so far, for `images` images; `constants`: bytes of the graph's weights."""

    def __init__(self, images: int, constants: int) -> None:
        self._images, megabytes = images, limit("BYOL_GRAPH_MB") * 10**6
        self._most, self._work = images * megabytes, images * limit("BYOL_GRAPH_GIGAPRODUCTS") * 10**9
        self._most_kept = _UNFOLDED * constants + megabytes
        self._live = self._total = self._kept = self._done = 0

    def add(self, title: str, value: Value, constant: bool) -> None:
        """Count an output of the node `title`. Raises `BundleError` beyond a limit."""
        self._done += value.size * value.work
        if constant:
            self._kept += value.bytes
        else:
            self._live += value.bytes
            self._total += value.bytes
        self._check(title, "MB", self._live, self._most, "BYOL_GRAPH_MB", 10**6)
        self._check(title, "MB in all", self._total, _IN_ALL * self._most, "BYOL_GRAPH_MB", 10**6)
        self._check(title, "billion products", self._done, self._work, "BYOL_GRAPH_GIGAPRODUCTS", 10**9)
        over = f"{title} makes constants of {self._kept / 1e6:,.0f} MB (at most {self._most_kept / 1e6:,.0f})"
        check(self._kept <= self._most_kept, over)

    def _check(self, title: str, what: str, found: int, most: int, name: str, unit: int) -> None:
        if found > most:
            each = self._images * unit
            raise BundleError(f"{title} takes one image to {found // each:,} {what} (at most {most // each:,}; {name})")

    def free(self, value: Value) -> None:
        """No node after this needs the value."""
        self._live -= value.bytes


def walk(
    steps: Sequence[Step], weights: Mapping[str, Value], ends: tuple[str, Sequence[str]], images: tuple[int, ...]
) -> list[Value]:
    """The outputs of a graph for images uint8 (N, H, W, 3). `ends`: the names of its input and of its outputs.

    Values that depend on no image may be computed at load time, and stay. All others live from the node that makes them
    to the last one that needs them. Raises `BundleError` for a broken rule or limit.
    """
    given, wanted = ends
    check(given not in weights, "its input is also a weight")
    values = {**weights, given: Value(DTYPES[UINT8], images)}
    changing = {given}
    cost = _Cost(images[0], sum(value.bytes for value in weights.values()))
    last = {name: step for step in steps for name in step.inputs}  # the last step that needs it
    for step in steps:
        outputs, constant = step.run(values), changing.isdisjoint(step.inputs)
        for name, value in zip(step.outputs, outputs, strict=True):
            check(name != "" and name not in values, f"{step.title} makes {name!r:.60}, which already exists")
            values[name] = value
            changing |= set() if constant else {name}
            cost.add(step.title, value, constant)
        for name in {name for name in step.inputs if last[name] is step and name in changing} - {*wanted, given}:
            cost.free(values[name])
    for name in wanted:
        check(name in values, f"no node makes its output {name!r}")
    return [values[name] for name in wanted]

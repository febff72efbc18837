"""What the exporter leaves to be computed from the batch's size or from weights alone, computed once and for all.

Every size but the batch's is fixed. So a value that depends on no pixel is the same for every batch, or is repeated for
every image, or is a shape in which only the number of images is open. None of them needs to know that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from byol.serve.session import open_session

BATCHES = (2, 3)  # a value is known by what it is for these
SMALL = 1024  # bytes of a weight that a shape may follow from
ZEROS = "one_zero_per_image"  # before the names of what is added to a graph

Shapes = dict[str, tuple[int, ...]]
Pair = tuple[np.ndarray, np.ndarray]  # a value for each of the two batches


def settle(proto: ModelProto) -> None:
    """Rewrite a graph, in place, without shape arithmetic, constant parts and batch-norm, as far as it can be.

    Exact, but for batch-norm, which becomes one product and one sum, each with numbers that are rounded once. That two
    numbers of images tell for all, the gate tries with others.
    """
    graph = proto.graph
    (first, values), (second, others) = (_known(proto, batch) for batch in BATCHES)
    pairs = {name: (values[name], others[name]) for name in values.keys() & others.keys()}
    free = _free_of_pixels(graph, first.keys() & second.keys())
    writer = _Writer(graph, first, second, pairs)
    for node in graph.node:
        writer.add(node, free=bool(free & set(node.output)))
    _replace(graph, writer.nodes, writer.weights)


# ------------------------------------------------------------------------------------------- what is known


def _known(proto: ModelProto, batch: int) -> tuple[Shapes, dict[str, np.ndarray]]:
    """For so many images, the shapes of a graph's values, and the numbers of those free of pixels that feed others."""
    values: dict[str, np.ndarray] = {}
    while True:  # each round may know more shapes, and so more numbers
        shapes = _shapes(proto, batch, values)
        free = _free_of_pixels(proto.graph, shapes.keys())
        needed = {name for node in proto.graph.node if not free & set(node.output) for name in node.input} & free
        if needed == values.keys():
            return shapes, values
        values = _computed(proto, free, needed, shapes)


def _shapes(proto: ModelProto, batch: int, values: dict[str, np.ndarray]) -> Shapes:
    """The shapes of a graph's values for so many images, where ONNX can tell; large weights are not read."""
    bare = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    graph = bare.graph
    graph.name = "shapes"
    graph.node.extend(node for node in proto.graph.node if not values.keys() >= set(node.output))
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    for end in (*graph.input, *graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = batch
    made = {name for node in graph.node for name in node.output}
    settled = [numpy_helper.from_array(value, name) for name, value in values.items() if name not in made]
    for tensor in (*proto.graph.initializer, *settled):
        if len(tensor.raw_data) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in (*proto.graph.initializer, *settled)}
    for item in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = item.type.tensor_type.shape.dim
        if item.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            shapes[item.name] = tuple(size.dim_value for size in sizes)
    return shapes


def _free_of_pixels(graph: GraphProto, sized: AbstractSet[str]) -> set[str]:
    """The values that nodes make of weights alone, and of the shapes of values that have known ones (`sized`)."""
    weights = {tensor.name for tensor in graph.initializer} | {""}
    free: set[str] = set()
    for node in graph.node:
        known = sized if node.op_type == "Shape" else weights | free
        if known >= set(node.input):
            free |= set(node.output)
    return free


def _computed(proto: ModelProto, free: set[str], needed: set[str], shapes: Shapes) -> dict[str, np.ndarray]:
    """The numbers of the values `needed`, of those free of pixels, where the graph's values have these shapes."""
    values, names, nodes = {}, set(needed), []
    for node in reversed(proto.graph.node):
        if not names & free & set(node.output):
            continue
        if node.op_type == "Shape":
            ends = _attributes(node)
            sizes = shapes[node.input[0]][slice(ends.get("start", 0), ends.get("end"))]
            values[node.output[0]] = np.array(sizes, np.int64)
        else:
            nodes.append(node)
            names |= set(node.input)
    wanted = sorted(needed - values.keys())
    if not wanted:
        return {name: values[name] for name in needed}
    part = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in names)
    part.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    found = open_session(part.SerializeToString(), "cpu", lambda _: {}).run({})
    return {name: values[name] for name in needed & values.keys()} | dict(zip(wanted, found, strict=True))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


# ------------------------------------------------------------------------------------------- what is written


class _Writer:
    """The nodes and weights of the new graph. `values`: those that are free of pixels and feed others, by batch."""

    def __init__(self, graph: GraphProto, first: Shapes, second: Shapes, values: dict[str, Pair]) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._image, self._shapes, self._values = graph.input[0].name, (first, second), values
        self._given = {tensor.name: tensor for tensor in graph.initializer}
        self._made: dict[Any, str] = {}  # what was added already, and its name
        self._same: dict[str, str] = {}  # values that are others under another name

    def add(self, node: NodeProto, free: bool) -> None:
        """The node, with what is known put in; what is free of pixels as it is, for those that nothing is known of."""
        if free:
            self.nodes.append(node)
            return
        node = NodeProto.FromString(node.SerializeToString())
        for place, name in enumerate(node.input):
            node.input[place] = self._same.get(name, name)
        if node.op_type == "Expand" and node.input[1] in self._values:
            self._expand(node)
            return
        for place, name in enumerate(node.input):
            if name in self._values:
                node.input[place] = self._settled(node, place, name)
        if node.op_type == "BatchNormalization":
            self._scale(node)
        else:
            self.nodes.append(node)

    def _settled(self, node: NodeProto, place: int, name: str) -> str:
        """The name of what replaces an input; its own where nothing can."""
        first, second = self._values[name]
        if np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            return self._weight(first)
        is_shape = node.op_type == "Reshape" and place == 1 and first.shape == second.shape
        if is_shape and (first != second).sum() == 1:
            return self._weight(np.where(first == second, first, -1))
        if first.dtype == np.float32 and _is_repeated(first, second):
            return self._repeated(first[:1])
        return name

    def _weight(self, value: np.ndarray) -> str:
        key = value.dtype.str, value.shape, value.tobytes()
        if key not in self._made:
            self._made[key] = f"settled_{len(self._made)}"
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), self._made[key]))
            self._given[self._made[key]] = self.weights[-1]
        return self._made[key]

    def _repeated(self, value: np.ndarray) -> str:
        """A value (1, ...) for every image: plus a zero from each, as no number of images is known."""
        weight = self._weight(value)
        if ("repeated", weight) not in self._made:
            name = self._made["repeated", weight] = f"{weight}_per_image"
            self.nodes.append(helper.make_node("Add", [weight, self._zeros(value.ndim)], [name]))
        return self._made["repeated", weight]

    def _zeros(self, rank: int) -> str:
        """The name of zeros, float32 of shape (B, 1, ... 1): 0 times a pixel, which is never infinite."""
        if ZEROS not in self._made:
            self._made[ZEROS] = ZEROS
            corner = [self._weight(np.array(numbers, np.int64)) for numbers in ([0] * 3, [1] * 3, [1, 2, 3])]
            self.nodes += [
                helper.make_node("Slice", [self._image, *corner], [f"{ZEROS}_pixel"]),  # (B, 1, 1, 1)
                helper.make_node("Cast", [f"{ZEROS}_pixel"], [f"{ZEROS}_float"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{ZEROS}_float", self._weight(np.array(0, np.float32))], [ZEROS]),
            ]
        name = f"{ZEROS}_{rank}"
        if name not in self._made:
            self._made[name] = name
            shape = self._weight(np.array([-1] + [1] * (rank - 1), np.int64))
            self.nodes.append(helper.make_node("Reshape", [ZEROS, shape], [name]))
        return name

    def _expand(self, node: NodeProto) -> None:
        """Repeat along axes by adding zeros that have them: exact, and needs no shape."""
        data, output = node.input[0], node.output[0]
        zeros = self._zeros_along(data, node.input[1])
        if zeros is None:
            self.nodes.append(node)
            return
        names = [f"settled_{output}_{number}" for number in range(len(zeros) - 1)] + [output]
        for name, zero in zip(names, zeros, strict=False):
            self.nodes.append(helper.make_node("Add", [data, zero], [name]))
            data = name
        if not zeros:
            self._same[output] = data

    def _zeros_along(self, data: str, wanted: str) -> list[str] | None:
        """Zeros whose sum with `data` has the shape that the value `wanted` says; None where there are none."""
        sizes = [shapes.get(data) for shapes in self._shapes]
        targets = [tuple(value) for value in self._values[wanted]]
        after = [
            np.broadcast_shapes(size, target) for size, target in zip(sizes, targets, strict=True) if size is not None
        ]
        if len(after) < len(sizes):
            return None
        rank, zeros = len(after[0]), []
        before = [(1,) * (rank - len(size)) + size for size in sizes if size is not None]
        for axis in range(rank):
            have, want = (tuple(sizes[axis] for sizes in both) for both in (before, after))
            if have != want and want[0] == want[1]:
                zeros.append(self._weight(np.zeros((want[0], *[1] * (rank - axis - 1)), np.float32)))
            elif have != want and axis == 0 and want == BATCHES:
                zeros.append(self._zeros(rank))
            elif have != want:
                return None
        return zeros

    def _scale(self, node: NodeProto) -> None:
        """A batch-norm with its statistics, as a product and a sum per channel."""
        data, *names = node.input
        known = data in self._shapes[0] and set(names) <= self._given.keys()
        if not known or _attributes(node).get("training_mode"):
            self.nodes.append(node)
            return
        scale, bias, mean, variance = (numpy_helper.to_array(self._given[name]).astype(np.float64) for name in names)
        factor = scale / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
        shape = (-1, *[1] * (len(self._shapes[0][data]) - 2))
        product, total = (self._weight(v.reshape(shape).astype(np.float32)) for v in (factor, bias - mean * factor))
        scaled = f"settled_{node.output[0]}"
        self.nodes.append(helper.make_node("Mul", [data, product], [scaled]))
        self.nodes.append(helper.make_node("Add", [scaled, total], [node.output[0]]))


def _is_repeated(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether both are the same row for every image."""
    if first.ndim == 0 or (len(first), len(second)) != BATCHES or first.shape[1:] != second.shape[1:]:
        return False
    return bool((first == first[:1]).all() and (second == first[:1]).all())


def _replace(graph: GraphProto, nodes: Sequence[NodeProto], weights: Sequence[TensorProto]) -> None:
    """Make these the graph's nodes, in their order, with further weights; drop what no output needs."""
    wanted = {item.name for item in graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    constants = [item for item in (*graph.initializer, *weights) if item.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(constants)

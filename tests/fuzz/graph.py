"""Graphs changed at random, judged, and what passes run in a process of its own: none may crash, hang or eat memory.

`run` looks for such a graph. A find is kept as `fuzz-graph.onnx` in the working directory.
"""

from __future__ import annotations

import contextlib
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from byol.bundle.graph.judge import judge
from byol.bundle.graph.operators import OPERATORS
from byol.bundle.manifest import Manifest
from byol.bundle.schema import BundleError
from tests.fuzz._tries import tries
from tests.support.inputs.graphs import DIM, GRAPHS, SIZE
from tests.support.tiny import tiny_manifest, write_tiny_bundle

SECONDS, MEMORY = 30, 4 << 30  # that a run may take in the child, start included
NUMBERS = (
    -(2**63),
    -(2**31),
    -65535,
    -17,
    -3,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    15,
    16,
    17,
    255,
    65535,
    2**31,
    2**63 - 1,
)


class Found(AssertionError):
    """A graph that was judged fit to run and is not."""


# ------------------------------------------------------------------------------------------------------- changes


def change_number(model: ModelProto, random: random.Random) -> None:
    attributes = [a for node in model.graph.node for a in node.attribute if a.type in (2, 7)]
    if not attributes:
        return
    attribute = random.choice(attributes)
    if attribute.type == AttributeProto.INT:
        attribute.i = random.choice(NUMBERS)
    elif attribute.ints and random.random() < 0.8:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(NUMBERS)
    elif attribute.ints and random.random() < 0.5:
        attribute.ints.pop()
    else:
        attribute.ints.append(random.choice(NUMBERS))


def change_operator(model: ModelProto, random: random.Random) -> None:
    random.choice(model.graph.node).op_type = random.choice(sorted(OPERATORS))


def add_attribute(model: ModelProto, random: random.Random) -> None:
    node = random.choice(model.graph.node)
    legal = OPERATORS[node.op_type].attributes if node.op_type in OPERATORS else {}
    if not legal:
        return
    name = random.choice(sorted(legal))
    values = {"i": random.choice(NUMBERS), "f": random.choice((0.0, -1.0, 1e30, 1e-30)), "s": b"NOTSET"}
    value = (
        values.get(legal[name].field)
        if legal[name].field != "ints"
        else [random.choice(NUMBERS)] * random.randint(1, 4)
    )
    for number, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[number]
            break
    node.attribute.append(helper.make_attribute(name, value))


def drop_attribute(model: ModelProto, random: random.Random) -> None:
    node = random.choice(model.graph.node)
    if node.attribute:
        del node.attribute[random.randrange(len(node.attribute))]


def change_weight(model: ModelProto, random: random.Random) -> None:
    """Another number in a list of integers; another shape, type or content of any weight, sizes kept right or not."""
    tensor = random.choice(model.graph.initializer)
    values = numpy_helper.to_array(tensor).copy()
    if tensor.data_type == TensorProto.INT64 and values.size and random.random() < 0.8:
        values.reshape(-1)[random.randrange(values.size)] = random.choice(NUMBERS)
    elif random.random() < 0.3:
        values = values.astype(random.choice(("float32", "float16", "int64", "int32", "int8", "uint8", "bool")))
    elif random.random() < 0.5:
        shape = [random.choice((1, 1, 2, 3, 4, 8, 16)) for _ in range(random.randint(0, 5))]
        values = values.reshape(-1)[:1].repeat(max(1, int(np.prod(shape)))).reshape(shape)
    else:
        values = values.astype(values.dtype) * 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def change_dims(model: ModelProto, random: random.Random) -> None:
    dims = random.choice(model.graph.initializer).dims
    if dims and random.random() < 0.7:
        dims[random.randrange(len(dims))] = random.choice(NUMBERS)
    else:
        dims.append(random.choice((0, 1, 1, 2)))


def rewire(model: ModelProto, random: random.Random) -> None:
    node = random.choice(model.graph.node)
    names = [name for other in model.graph.node for name in other.output]
    names += [tensor.name for tensor in model.graph.initializer] + ["images", ""]
    if node.input and random.random() < 0.8:
        node.input[random.randrange(len(node.input))] = random.choice(names)
    elif node.input and random.random() < 0.5:
        node.input.pop()
    else:
        node.input.append(random.choice(names))


def insert_node(model: ModelProto, random: random.Random) -> None:
    """A node of another graph behind a value of this one, in the place of that value."""
    place = random.randrange(len(model.graph.node))
    other = random.choice(random.choice(list(GRAPHS.values())).graph.node)
    node = NodeProto()
    node.CopyFrom(other)
    old = random.choice(model.graph.node[place].output or [""])
    del node.output[:]
    node.output.append(f"new{random.randrange(10**6)}")
    names = [tensor.name for tensor in model.graph.initializer]
    for number, name in enumerate(node.input):
        node.input[number] = old if number == 0 else name if name in names else random.choice(names)
    for later in model.graph.node[place + 1 :]:
        for number, name in enumerate(later.input):
            if name == old:
                later.input[number] = node.output[0]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], node, *nodes[place + 1 :]])


def repeat_node(model: ModelProto, random: random.Random) -> None:
    """The same node many times, one behind the other: what doubles then explodes."""
    place = random.randrange(len(model.graph.node))
    node = model.graph.node[place]
    if not node.output or not node.input:
        return
    last, chain = node.output[0], []
    for number in range(random.choice((1, 2, 8, 40))):
        copy = NodeProto()
        copy.CopyFrom(node)
        old = copy.input[0]
        for at, name in enumerate(copy.input):
            if name == old:
                copy.input[at] = last
        last = copy.output[0] = f"{node.output[0]}_{number}_{random.randrange(10**6)}"
        chain.append(copy)
    for later in model.graph.node[place + 1 :]:
        for at, name in enumerate(later.input):
            if name == node.output[0]:
                later.input[at] = last
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], *chain, *nodes[place + 1 :]])


def fit_the_end(model: ModelProto, random: random.Random) -> None:
    """Whatever comes in, features of the right shape go out: a mean over all, spread over the features."""
    nodes, end = list(model.graph.node), model.graph.node[-1]
    source = random.choice([name for node in nodes[:-1] for name in node.output] or ["pixels"])
    weights = {"end_axis": np.array([1]), "end_spread": np.ones((1, DIM), np.float32)}
    if weights.keys() & {tensor.name for tensor in model.graph.initializer}:
        return
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    del model.graph.node[-1]
    model.graph.node.extend(
        [
            helper.make_node("Flatten", [source], ["end_flat"]),
            helper.make_node("Cast", ["end_flat"], ["end_float"], to=1),
            helper.make_node("ReduceMean", ["end_float", "end_axis"], ["end_mean"]),
            helper.make_node("MatMul", ["end_mean", "end_spread"], [end.output[0]]),
        ]
    )


CHANGES = (
    *(change_number, change_number, change_operator, add_attribute, drop_attribute, change_weight, change_weight),
    *(change_dims, rewire, rewire, insert_node, insert_node, repeat_node),
)


def mutated(random: random.Random) -> bytes:
    """A graph with a few changes; now and then a few changed bytes too."""
    model = ModelProto()
    model.CopyFrom(random.choice(list(GRAPHS.values())))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        with contextlib.suppress(ValueError, TypeError, IndexError):  # onnx's checks, of what earlier changes broke
            random.choice(CHANGES)(model, random)
    if random.random() < 0.7:
        fit_the_end(model, random)
    content = bytearray(model.SerializeToString())
    if random.random() < 0.15:
        for _ in range(random.randint(1, 4)):
            content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


# ------------------------------------------------------------------------------------------------------ children

_CHILD = """
import struct, sys
import numpy as np
from byol.bundle.model import Model
from byol.serve.session import SessionError, open_session
images = [np.random.default_rng(n).integers(0, 256, (n, {size}, {size}, 3), dtype=np.uint8) for n in (1, 2, 3)]
while head := sys.stdin.buffer.read(8):
    content = sys.stdin.buffer.read(struct.unpack("<q", head)[0])
    answer = "ran"
    try:
        session = open_session(Model(content), "cpu", lambda _: {{"images": images[0]}})
        for batch in images[1:]:
            session.run({{"images": batch}})
    except SessionError as error:
        answer = str(error)
    sys.stdout.buffer.write((answer.replace(chr(10), " ")[:300] + chr(10)).encode())
    sys.stdout.buffer.flush()
"""


class Child:
    """A process that runs graphs one after another, with little memory and time for each."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, content: bytes) -> str:
        """What became of the graph. Raises `Found`."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<q", len(content)) + content)
            process.stdin.flush()
            answer = self._answer(process)
        except BrokenPipeError:
            answer = b""
        if answer:
            return answer.decode().strip()
        self.close()
        raise Found(f"the process ended with {process.returncode} (-9: more than {SECONDS} s)")

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        if not ready:
            process.kill()
            return b""
        return process.stdout.readline()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD.format(size=SIZE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def attempt(content: bytes, manifest: Manifest, child: Child) -> str:
    """`refused`, or what became of a graph that was not. Raises `Found`."""
    started = time.monotonic()
    try:
        judge("encoder.onnx", content, manifest)
    except BundleError:
        return "refused"
    finally:
        if time.monotonic() - started > SECONDS:
            raise Found("judging took too long")
    answer = child.run(content)
    if "bad_alloc" in answer or "Failed to allocate" in answer:
        raise Found(answer)
    return "ran" if answer == "ran" else "failed"


def run(seconds: float = 0.0, seed: int | None = None, most: int | None = None) -> Counter[str]:
    """How many graphs were refused, ran, and failed with an error. Raises `Found`."""
    outcomes: Counter[str] = Counter()
    generator, child = random.Random(seed), Child()
    with tempfile.TemporaryDirectory() as folder:
        manifest = tiny_manifest(write_tiny_bundle(Path(folder) / "tiny", SIZE, DIM), SIZE, DIM)
        try:
            for _ in tries(seconds, most):
                content = mutated(generator)
                try:
                    outcomes[attempt(content, manifest, child)] += 1
                except Exception:
                    Path("fuzz-graph.onnx").write_bytes(content)
                    raise
        finally:
            child.close()
    return outcomes

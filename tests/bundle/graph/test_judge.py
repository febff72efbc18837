"""Graphs that a stranger could send, every hash right: each is refused in one line before ONNX Runtime sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from byol.bundle.folder import Bundle
from byol.bundle.graph.message import parse
from byol.bundle.schema import BundleError
from byol.serve import Encoder
from byol.serve.proof import verify
from tests.support.command_line import byol
from tests.support.inputs.graphs import ALL, DIM, SIZE, bundle_of, floats, graph, ints, number

Change = Callable[[ModelProto], None]


def copy_of(model: ModelProto, change: Change) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def with_node(node: NodeProto, *weights: TensorProto) -> ModelProto:
    """A harmless graph with one more node in front."""

    def change(model: ModelProto) -> None:
        model.graph.node.insert(0, node)
        model.graph.initializer.extend(weights)

    return copy_of(RELU, change)


def node(operator: str, inputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, ["new"], **attributes)


def weight(name: str, value: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(value, name)


def inner(nodes: list[NodeProto], *outputs: str) -> GraphProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "inner", [], ends)


RELU = graph("x = Relu (planes)", ALL)

# ---------------------------------------------------------------------- what is hidden, or runs code of its own


def function_bomb(model: ModelProto) -> None:
    """Each function calls the one before it ten times."""
    for level in range(12):
        body = [
            helper.make_node("Relu" if level == 0 else f"f{level - 1}", ["a"], ["b"], domain="" if level == 0 else "f")
        ]
        body += [helper.make_node(body[0].op_type, ["b"], [f"b{i}"], domain=body[0].domain) for i in range(9)]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
        model.functions.append(helper.make_function("f", f"f{level}", ["a"], ["b8"], body, opsets))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "f11", "f"


def sparse(place: str) -> TensorProto:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    onnx.external_data_helper.set_external_data(values, place, 0, 4)
    return values


def sparse_constant(model: ModelProto) -> None:
    constant = NodeProto(op_type="Constant", output=["new"])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    attribute = constant.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(helper.make_sparse_tensor(sparse("/etc/passwd"), indices, [4]))
    model.graph.node.insert(0, constant)


def sparse_weight(model: ModelProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(sparse("secret.bin"), indices, [4]))


def training(model: ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(model.graph)


def lying_shape(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("planes", TensorProto.FLOAT, ["batch", 1]))


def quantized_elsewhere(model: ModelProto) -> None:
    model.graph.quantization_annotation.add().tensor_name = "planes"


def unknown_field(model: ModelProto) -> None:
    model.graph.node[0].MergeFromString(b"\xfa\x07\x01a")  # field 127, which ONNX does not define


def attribute_reference(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].ref_attr_name = "elsewhere"


ENDLESS = helper.make_node(
    *("Loop", ["", "yes"], ["new"]), body=inner([helper.make_node("Constant", [], ["on"], value_int=1)], "on")
)
HIDDEN: dict[str, tuple[ModelProto, str]] = {
    "endless loop": (with_node(ENDLESS, weight("yes", np.array(True))), r"node 0 \(Loop\) is not an operator"),
    "branch": (
        with_node(node("If", ["yes"], then_branch=inner([], "a"), else_branch=inner([], "a"))),
        r"\(If\) is not an op",
    ),
    "inner graph in a harmless node": (
        with_node(node("Relu", ["planes"], body=inner([], "a"))),
        r"it holds AttributeProto\.g, which a graph may not have",
    ),
    "function bomb": (copy_of(RELU, function_bomb), r"it holds ModelProto\.functions, which a graph may not have"),
    "foreign domain": (
        copy_of(RELU, lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1))),
        "domains other than ONNX's own",
    ),
    "foreign operator": (
        with_node(node("Relu", ["planes"], domain="com.microsoft")),
        r"node 0 \(Relu\) is not an operator",
    ),
    "sparse constant in a file": (copy_of(RELU, sparse_constant), "not an operator"),
    "sparse weight in a file": (copy_of(RELU, sparse_weight), r"GraphProto\.sparse_initializer"),
    "training": (copy_of(RELU, training), r"ModelProto\.training_info"),
    "shape that contradicts": (copy_of(RELU, lying_shape), r"GraphProto\.value_info"),
    "annotation": (copy_of(RELU, quantized_elsewhere), r"GraphProto\.quantization_annotation"),
    "unknown field": (copy_of(RELU, unknown_field), "NodeProto with fields that ONNX does not define"),
    "attribute of a function": (copy_of(RELU, attribute_reference), r"AttributeProto\.ref_attr_name"),
    "unknown attribute": (with_node(node("Relu", ["planes"], alpha=1.0)), "unknown attribute 'alpha'"),
    "attribute of another type": (with_node(node("Softmax", ["planes"], axis=1.0)), "axis of another type"),
    "newer operators": (copy_of(RELU, lambda m: setattr(m.opset_import[0], "version", 24)), "says opset 20, it has 24"),
    "text that is none": (copy_of(RELU, lambda m: m.graph.node[0].MergeFromString(b"\x1a\x02\xff\xfe")), "not UTF-8"),
}

# ------------------------------------------------------------------------- what would crash, or take all memory

_DOUBLE = "\n".join(f"d{i + 1} = Concat <axis = 3> (d{i}, d{i})" for i in range(30))
_IMAGE = {"w": floats(3, 3, 3, 3)}
HUNGRY: dict[str, tuple[ModelProto, str]] = {
    "constant of any size": (with_node(node("ConstantOfShape", ["s"]), weight("s", ints(1 << 40))), "not an operator"),
    "expansion": (with_node(node("Expand", ["last", "s"]), weight("s", ints(1 << 20, 1, 1))), "not an operator"),
    "tiles": (with_node(node("Tile", ["last", "s"]), weight("s", ints(1 << 20, 1))), "not an operator"),
    "range": (
        with_node(node("Range", ["a", "b", "c"]), *(weight(n, number(i)) for i, n in enumerate("abc"))),
        "not an op",
    ),
    "enlargement": (with_node(node("Resize", ["planes", "", "s"]), weight("s", floats(4) * 1e6)), "not an operator"),
    "padded constant": (
        graph("x = Relu (planes)\n y = Pad (c, p)", ALL, c=floats(1, 1), p=ints(60000, 60000, 60000, 60000)),
        r"node 3 \(Pad\) makes constants of 57,601 MB \(at most 512\)",
    ),
    "padded picture": (
        graph("x = Pad (planes, p)", 1, p=ints(0, 0, 9999, 9999, 0, 0, 0, 0)),
        r"1,203 MB \(at most 512; BYOL_GRAPH_MB\)",
    ),
    "doubling": (graph(f"d0 = Relu (planes)\n {_DOUBLE}\n x = Relu (d30)", 1), "MB .at most 512"),
    "outer product of constants": (
        graph("x = Relu (planes)\n y = MatMul (a, b)", ALL, a=floats(30_000, 1), b=floats(1, 30_000)),
        "makes constants of 3,600 MB",
    ),
    "integers divided by zero": (
        graph("x = Relu (planes)\n y = Div (a, b)", ALL, a=ints(1), b=ints(0)),
        r"node 3 \(Div\) is not defined here for int64",
    ),
    "rest of a division by zero": (with_node(node("Mod", ["a", "a"]), weight("a", ints(0))), "not an operator"),
    "stride 0": (
        graph("x = Conv <strides = [0, 1]> (planes, w)", 1, **_IMAGE),
        r"strides = \[0, 1\]; expected each 1 to",
    ),
    "dilation 0": (graph("x = Conv <dilations = [1, 0]> (planes, w)", 1, **_IMAGE), "dilations"),
    "group 0": (graph("x = Conv <group = 0> (planes, w)", 1, **_IMAGE), "group = 0"),
    "negative padding": (graph("x = Conv <pads = [-1, 0, 0, 0]> (planes, w)", 1, **_IMAGE), "pads"),
    "kernel 0": (graph("x = MaxPool <kernel_shape = [0, 2]> (planes)", 1), "kernel_shape"),
    "kernel larger than the picture": (
        graph("x = MaxPool <kernel_shape = [99, 2]> (planes)", 1),
        "kernel of 99 for 16",
    ),
    "padding wider than the kernel": (
        graph("x = MaxPool <kernel_shape = [2, 2], pads = [2, 0, 0, 0]> (planes)", 1),
        "pads by its kernel or more",
    ),
    "weight without elements": (graph("x = Relu (planes)", ALL, e=floats(0, 3)), "which holds nothing"),
    "slice of nothing": (graph("x = Slice (planes, a, a)", 1, a=ints(0)), "which holds nothing"),
    "step 0": (graph("x = Slice (planes, a, b, a, a)", 1, a=ints(0), b=ints(9)), "steps by 0"),
    "reshape to nothing": (graph("x = Reshape <allowzero = 1> (planes, s)", 1, s=ints(0, -1)), "cannot make"),
    "split into zero": (graph("y, x = Split <axis = 3> (planes, s)", 1, s=ints(16, 0)), "which holds nothing"),
    "axis that is not there": (graph("x = Softmax <axis = 5> (planes)", ALL), "axis 5 does not exist in 4 axes"),
    "shape that depends on pixels": (
        graph("x = Reshape (planes, i)\n i = Cast <to = 7> (pixels)", ALL),
        "no earlier node makes",
    ),
}

# ----------------------------------------------------------------------------------- what contradicts, or is broken


def end(model: ModelProto, change: Callable[[onnx.TypeProto.Tensor], None]) -> None:
    change(model.graph.input[0].type.tensor_type)


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def huge_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 10**15


def other_field(model: ModelProto) -> None:
    model.graph.initializer[0].float_data.extend([0.0])


def overlapping(model: ModelProto, copies: int) -> None:
    """Some weights that are the same bytes of another file."""
    first = model.graph.initializer[0]
    for place in range(copies):
        again = model.graph.initializer.add()
        again.CopyFrom(first)
        again.name = f"again {place}"
        onnx.external_data_helper.set_external_data(again, "README.md", 0, len(first.raw_data))
        again.ClearField("raw_data")


def outside(model: ModelProto, **place: Any) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], **place)
    model.graph.initializer[0].ClearField("raw_data")


def outside_and(model: ModelProto, key: str) -> None:
    outside(model, location="README.md", offset=0, length=ALL * DIM * 4)
    model.graph.initializer[0].external_data.add(key=key, value="README.md")


def noted_twice(model: ModelProto) -> None:
    for value in ("{}", "a"):
        model.metadata_props.add(key="classes", value=value)


WRONG: dict[str, tuple[ModelProto | bytes, str]] = {
    "no message": (b"\xff" * 40, "not an ONNX file"),
    "ONNX Runtime's own format": (b"\x30\x00\x00\x00ORTM" + b"\0" * 60, "is refused: "),
    "nothing": (b"", "is refused: "),
    "deep nesting": (b"\x3a\x02" * 5000, "is refused: "),
    "fixed batch": (copy_of(RELU, fixed_batch), "takes a fixed number of images"),
    "two inputs": (copy_of(RELU, lambda m: m.graph.input.append(m.graph.input[0])), "it has the interface"),
    "no output": (copy_of(RELU, lambda m: m.graph.ClearField("output")), "it has the interface"),
    "input of another type": (
        copy_of(RELU, lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT)),
        "it has the interface",
    ),
    "input that is a weight": (
        copy_of(RELU, lambda m: setattr(m.graph.initializer[0], "name", "images")),
        "also a weight",
    ),
    "output of another shape": (graph("x = ReduceMean (planes)", 1), r"gives float32 \[1, 8\], not \[4096, 8\]"),
    "weight shorter than its shape": (
        copy_of(RELU, huge_shape),
        r"weight 'last' of shape \[1000000000000000, 8\] needs",
    ),
    "weight stored twice": (copy_of(RELU, other_field), "does not hold its content in one of ONNX's two ways"),
    "weight of text": (
        copy_of(
            RELU,
            lambda m: m.graph.initializer[0].CopyFrom(
                TensorProto(name="last", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
            ),
        ),
        "TensorProto.string_data",
    ),
    "two weights of one name": (
        copy_of(RELU, lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "two weights",
    ),
    "weights in no file": (copy_of(RELU, lambda m: outside(m, location="w.bin")), "does not say where it lies"),
    "weights in a strange file": (
        copy_of(RELU, lambda m: outside(m, location="/etc/passwd", offset=0, length=ALL * DIM * 4)),
        "a file that the manifest does not list",
    ),
    "weights outside, of another length": (
        copy_of(RELU, lambda m: outside(m, location="README.md", length=8)),
        "of another file, not 8",
    ),
    "weights outside, with more to be read there": (
        copy_of(RELU, lambda m: outside_and(m, "prepacked_0")),
        "says more of another file",
    ),
    "weights outside, in two files": (copy_of(RELU, lambda m: outside_and(m, "location")), "or one of them twice"),
    "metadata twice": (copy_of(RELU, noted_twice), "its metadata has a key twice"),
    "weights outside, on top of each other": (
        copy_of(RELU, lambda m: overlapping(m, copies=3)),
        "they overlap",
    ),
    "value twice": (with_node(helper.make_node("Relu", ["last"], ["planes"])), "'planes', which already exists"),
    "nodes out of order": (with_node(node("Relu", ["x"])), "needs 'x', which no earlier node makes"),
    "outputs that it lacks": (with_node(helper.make_node("Relu", ["last"], ["a", "b"])), "has 2 outputs, not 1"),
    "inputs that it lacks": (with_node(node("Add", ["last"])), "has 1 inputs, not 2 to 2"),
}
HOSTILE = HIDDEN | HUNGRY | WRONG


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is not touched."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was created"))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("no_session")
def test_hostile_graphs_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    model, message = HOSTILE[name]
    bundle = bundle_of(model, tmp_path / "bundle")
    with pytest.raises(BundleError, match=message) as caught:
        Encoder(bundle, "cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    (problem,) = verify(bundle).problems
    assert problem == str(caught.value)


def inside(field: int, content: bytes) -> bytes:
    """A field of protobuf's that holds a message."""
    size = len(content)
    return bytes([field << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


@pytest.mark.parametrize(
    "content",
    [
        b"\x72\0" * 5000,  # metadata
        inside(7, b"\x0a\0" * 5000),  # nodes
        inside(7, inside(1, b"\x2a\0" * 5000)),  # attributes of one
        inside(7, inside(5, b"\x08\1" * 5000)),  # sizes of a weight's axes
        b"\xf8\x7f\0" * 5000,  # fields that ONNX does not define
    ],
)
def test_fields_of_two_bytes_are_counted_before_each_takes_a_hundred(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse(content)
    monkeypatch.setenv("BYOL_GRAPH_NODES", "100")
    monkeypatch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(BundleError, match=r"more than 4,000 fields \(BYOL_GRAPH_NODES\)"):
        parse(content)


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x05", b"\x0b", b"\xff" * 11, b"\x3a\x02\x0a\x05", b"\x09\0"])
def test_what_is_cut_off_is_no_onnx_file(content: bytes) -> None:
    with pytest.raises(BundleError, match="not an ONNX file"):
        parse(content)


@pytest.mark.parametrize("command", ["info", "extract", "bench", "linear", "triton"])
@pytest.mark.usefixtures("no_session")
def test_every_way_to_a_graph_leads_past_the_check(command: str, tmp_path: Path) -> None:
    bundle = bundle_of(HIDDEN["endless loop"][0], tmp_path / "bundle")
    np.savez(
        tmp_path / "data.npz", images=np.zeros((4, SIZE, SIZE, 3), np.uint8), labels=np.array(["a", "b", "a", "b"])
    )
    data = tmp_path / "data.npz"
    words: dict[str, tuple[object, ...]] = {
        "info": ("info", "--verify", bundle),
        "extract": ("extract", bundle, data, "--out", tmp_path / "f.npz"),
        "bench": ("bench", bundle),
        "linear": ("linear", bundle, "--train", data, "--test", data),
    }
    if command == "triton":
        from byol.export.triton import write_repository

        with pytest.raises(BundleError, match="node 0"):
            write_repository(bundle, tmp_path / "models")
        return
    done = byol(*words[command])
    assert done.code == 1
    assert "encoder.onnx is refused: node 0 (Loop) is not an operator that a graph may use" in done.out + done.err
    assert "Traceback" not in done.out + done.err


def test_limits_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(graph("t = MatMul (planes, planes)\n x = Relu (t)", ALL), tmp_path / "bundle")
    opened = Bundle.open(bundle)
    opened.model("encoder.onnx")
    monkeypatch.setenv("BYOL_GRAPH_NODES", "5")
    with pytest.raises(BundleError, match=r"it has 6 nodes \(at most 5; BYOL_GRAPH_NODES\)"):
        opened.model("encoder.onnx")
    monkeypatch.delenv("BYOL_GRAPH_NODES")
    wide = bundle_of(
        graph(
            "p = Pad (planes, n)\n t = MatMul (p, p)\n x = ReduceMean (t, a)",
            3 * 1017,
            a=ints(2),
            n=ints(0, 0, 1, 1, 0, 0, 1000, 1000),
        ),
        tmp_path / "w",
    )
    Bundle.open(wide).model("encoder.onnx")
    monkeypatch.setenv("BYOL_GRAPH_GIGAPRODUCTS", "3")
    with pytest.raises(BundleError, match=r"to 3 billion products \(at most 3; BYOL_GRAPH_GIGAPRODUCTS\)"):
        Bundle.open(wide).model("encoder.onnx")
    monkeypatch.delenv("BYOL_GRAPH_GIGAPRODUCTS")
    monkeypatch.setenv("BYOL_GRAPH_MB", "10")
    with pytest.raises(BundleError, match=r"MB \(at most 10; BYOL_GRAPH_MB\)"):
        Bundle.open(wide).model("encoder.onnx")


def test_what_onnx_runtime_refuses_itself_is_one_line_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A graph that the rules allow and this ONNX Runtime cannot load or run, and ONNX Runtime's own prints."""
    from byol.serve.errors import SessionError
    from byol.serve.session import open_session

    for content in (b"nonsense", RELU.SerializeToString()[:200], graph("x = Relu (planes)", 5).SerializeToString()):
        with pytest.raises(SessionError) as caught:
            open_session(content, "cpu", lambda _: {"images": np.zeros((1, SIZE, SIZE, 3), np.uint8)})
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_only_onnx_is_read(tmp_path: Path) -> None:
    """What is in ONNX Runtime's own format never passes for ONNX, nor is it loaded where no bundle is judged."""
    from byol.serve.errors import SessionError
    from byol.serve.session import open_session

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "own.ort")
    onnxruntime.InferenceSession(RELU.SerializeToString(), options, providers=["CPUExecutionProvider"])
    own = (tmp_path / "own.ort").read_bytes()
    assert own[4:8] == b"ORTM"
    onnxruntime.InferenceSession(own, providers=["CPUExecutionProvider"])  # it is a graph that could be run
    with pytest.raises(BundleError, match=r"encoder\.onnx is refused"):
        Encoder(bundle_of(own, tmp_path / "bundle"), "cpu")
    with pytest.raises(SessionError, match="cannot load the graph"):
        open_session(own, "cpu", lambda _: {"images": np.zeros((1, SIZE, SIZE, 3), np.uint8)})


def test_the_golden_picture_of_any_size_is_judged_before_it_is_run(place: Path, tmp_path: Path) -> None:
    """The graph that takes any size is judged for the very sizes that it is given."""
    opened = Bundle.open(place / "bundle")
    opened.model("encoder.any-size.onnx", [(100, 30)])
    with pytest.raises(BundleError, match=r"encoder\.any-size\.onnx is refused: .* MB"):
        opened.model("encoder.any-size.onnx", [(60_000, 60_000)])

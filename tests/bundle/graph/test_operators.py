"""Each operator that a graph may hold: what is said of its output is what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from byol.bundle.graph.judge import judge, weights_of
from byol.bundle.graph.operators import OPERATORS
from byol.bundle.graph.walk import Step, walk
from tests.support.inputs.graphs import DIM, GRAPHS, SIZE
from tests.support.tiny import tiny_manifest, write_tiny_bundle


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory):
    return tiny_manifest(write_tiny_bundle(tmp_path_factory.mktemp("tiny"), SIZE, DIM), SIZE, DIM)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_value_has_the_shape_that_is_foretold(name, manifest):
    model = GRAPHS[name]
    assert judge("encoder.onnx", model.SerializeToString(), manifest) == {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [output for node in model.graph.node for output in node.output]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    found = onnxruntime.InferenceSession(shown.SerializeToString()).run(names, {"images": images})
    steps = [Step.of(number, node, OPERATORS) for number, node in enumerate(model.graph.node)]
    foretold = walk(steps, weights_of(model.graph)[0], ("images", names), images.shape)
    assert [(v.dtype, v.shape) for v in foretold] == [(v.dtype, v.shape) for v in found]


def test_every_operator_has_a_graph():
    used = {node.op_type for model in GRAPHS.values() for node in model.graph.node}
    assert used == set(OPERATORS)

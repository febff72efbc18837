"""The graph for pictures of any size computes what Pillow does in front of the encoder."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from byol.export.any_size import any_size_graph
from byol.images.decode import Preprocess


def pixels_as_features(size: int) -> ModelProto:
    """An encoder whose features are its input."""
    nodes = [helper.make_node("Cast", ["images"], ["features"], to=TensorProto.FLOAT)]
    ends = [
        helper.make_tensor_value_info(name, kind, ["batch", size, size, 3])
        for name, kind in (("images", TensorProto.UINT8), ("features", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(nodes, "pixels", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module", params=[24, 96], ids=["whole", "cropped"])
def resizer(request):
    preprocess = Preprocess.for_size(request.param)
    model = any_size_graph(pixels_as_features(request.param), preprocess)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return preprocess, lambda pictures: session.run(None, {"images": pictures})[0]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 3))
def test_any_height_and_width_gives_pillows_pixels(resizer, height, width, seed):
    preprocess, resize = resizer
    pixels = picture(height, width, seed)
    found, expected = resize(pixels[None])[0], preprocess(Image.fromarray(pixels)).astype(np.float32)
    # Both round to whole levels after each axis; where a value lies at a half, Pillow's integers decide otherwise, and
    # the second axis can pass that on. Simple ratios have many halves: over 800 sizes the worst were 3 levels and, of
    # 25 x 12 pixels enlarged to 24, 0.32 on average.
    assert np.abs(found - expected).max() <= 4
    assert np.abs(found - expected).mean() <= 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2), (1500, 24)])
def test_extreme_shapes(resizer, shape):
    preprocess, resize = resizer
    pixels = picture(shape[0], shape[1], 0)
    found = resize(pixels[None])[0]
    assert np.abs(found - preprocess(Image.fromarray(pixels))).max() <= 2


def test_a_batch_of_one_size(resizer):
    _, resize = resizer
    pixels = np.stack([picture(50, 70, seed) for seed in range(3)])
    assert np.array_equal(resize(pixels), np.concatenate([resize(p[None]) for p in pixels]))

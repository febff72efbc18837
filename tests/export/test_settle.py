"""Shape arithmetic, constant parts, batch-norm: what the exporter leaves of them goes, the features stay torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.bundle.graph.operators import OPERATORS
from byol.export.graph import encoder_to_onnx
from byol.export.parity import measure
from byol.export.settle import settle
from tests.support.networks import randomise_norms

SIZE = 12
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


class Module(nn.Module):
    """A function of images (B, 3, 12, 12) as an encoder; `parts` are modules that it is given."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def exported(encoder: nn.Module) -> onnx.ModelProto:
    """The graph, which reproduces torch for 1, 2, 3 and 33 images, and holds what the judge knows."""
    proto = encoder_to_onnx(encoder, SIZE, MEAN, STD)
    parity, _ = measure(encoder, proto.SerializeToString(), SIZE, MEAN, STD)
    assert parity.max_relative_error < 1e-5
    assert {node.op_type for node in proto.graph.node} <= OPERATORS.keys()
    return proto


def channels_last(x: Tensor, convolution: nn.Module, norm: nn.Module, pool: nn.Module) -> Tensor:
    """A ConvNeXt block: its norm leaves the image with the channels last in memory."""
    return pool(norm(convolution(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).flatten(1)  # type: ignore[no-any-return]


def evonorm(x: Tensor, convolution: nn.Module) -> Tensor:
    """A deviation per group, expanded to every pixel of it."""
    x = convolution(x)
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, 3, channels // 3, height, width)
    deviation = grouped.var(dim=(2, 3, 4), keepdim=True).add(1e-5).sqrt().expand(grouped.shape)
    return (x / deviation.reshape(x.shape)).mean((2, 3))


def standardised(x: Tensor, convolution: nn.Module) -> Tensor:
    """NFNet's convolution: its weight is normalised by a batch-norm over weights."""
    weight: Any = convolution.weight
    flat = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True, momentum=0.0)
    return F.conv2d(x, flat.reshape_as(weight)).mean((2, 3))


torch.manual_seed(0)
CONVOLUTION = nn.Conv2d(3, 6, 3, padding=1)
EQUATIONS = {  # for each, the axes of a second tensor; the first is (B, 6, 12, 12) after a convolution
    **{"bchw,cd->bdhw": (6, 5), "bchw,hkw->bchk": (12, 5, 12), "bchw,hw->bc": (12, 12), "bchw,bchw->bhw": None},
    **{"bchw,dkc->bdhkw": (2, 3, 6), "bchw,c->bhcw": (6,), "b c h w, w->bch": (12,)},
}


def einsum(equation: str) -> nn.Module:
    sizes = EQUATIONS[equation]
    factor = None if sizes is None else torch.randn(sizes)

    def function(x: Tensor, convolution: nn.Module) -> Tensor:
        x = convolution(x)
        return torch.einsum(equation, x, x.sigmoid() if factor is None else factor).flatten(1)

    return Module(function, CONVOLUTION)


ENCODERS = {
    "pooling of channels last": Module(channels_last, CONVOLUTION, nn.LayerNorm(6), nn.AdaptiveAvgPool2d(1)),
    "pooling to windows": Module(lambda x, pool: pool(x).flatten(1), nn.AdaptiveAvgPool2d((2, 3))),
    "group norm": nn.Sequential(CONVOLUTION, nn.GroupNorm(2, 6), nn.Flatten()),
    "batch-norm first": randomise_norms(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), CONVOLUTION, nn.Flatten())),
    "batch-norm of features": randomise_norms(
        nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.BatchNorm1d(8))
    ),
    "deviation of groups": Module(evonorm, CONVOLUTION),
    "standardised weights": Module(standardised, CONVOLUTION),
    "bilinear": Module(lambda x: F.interpolate(x, (7, 20), mode="bilinear").flatten(1)),
    "bicubic, corners": Module(lambda x: F.interpolate(x, (7, 20), mode="bicubic", align_corners=True).flatten(1)),
    "nearest, scaled": Module(lambda x: F.interpolate(x, scale_factor=(2.0, 0.7), mode="nearest").flatten(1)),
    **{equation: einsum(equation) for equation in EQUATIONS},
    "a sum that changes nothing": Module(lambda x: x.slice_scatter(x + 1).mean((2, 3))),
    "numbers of positions": Module(lambda x: (x.flatten(2) * torch.arange(x.shape[2] * x.shape[3])).mean(2)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_timms_models_do_exports_clean_and_exact(name: str) -> None:
    proto = exported(ENCODERS[name].eval())
    assert len({item.name for item in proto.graph.initializer}) == len(proto.graph.initializer)
    if name == "standardised weights":  # computed once, at export
        assert [node.op_type for node in proto.graph.node if node.op_type != "Cast"].count("Conv") == 1
        assert len(proto.graph.node) < 8


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.mean((2, 3)) * x.shape[0], r"may not contain \(Shape"),
        (lambda x: F.adaptive_avg_pool2d(x, 5).flatten(1), "cannot export this encoder to ONNX: .*"),
        (lambda x: torch.einsum("bchw,bcij,bckl->bc", x, x, x), r"may not contain \(Einsum"),
        (lambda x: torch.einsum("bchh,bchw->bcw", x, x).flatten(1), r"may not contain \(Einsum"),
        (lambda x: x.flatten(1)[:, x.sum((1, 2, 3)).long() % 7], r"may not contain \(Gather"),
    ],
)
def test_what_depends_on_the_number_of_images_or_on_pixels_is_refused(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        encoder_to_onnx(Module(function), SIZE, MEAN, STD)
    assert "\n" not in str(caught.value)


TEXT = """
<ir_version: 10, opset_import: ["": 20]>
g (uint8[batch, 4, 4, 3] images) => (float[batch, 48] features)
<float[1, 4, 4, 3] c = {{{c}}}, int64[1] rest = {{48}}, int64[3] one = {{4, 4, 3}}>
{{
  x = Cast <to = 1> (images)
  n = Shape <start = 0, end = 1> (images)
  whole = Concat <axis = 0> (n, one)
  every = Expand (c, whole)
  z = Add (x, every)
  same = Expand (z, whole)
  flat = Concat <axis = 0> (n, rest)
  features = Reshape (same, flat)
}}
"""


def test_shapes_with_the_batch_in_them_are_settled_by_hand() -> None:
    """A constant for every image, an expansion that changes nothing, a shape whose first number is open."""
    constant = np.arange(48, dtype=np.float32)
    proto = onnx.parser.parse_model(TEXT.format(c=", ".join(map(str, constant))))
    settle(proto)
    assert [node.op_type for node in proto.graph.node] == [
        "Cast",
        "Slice",
        "Cast",
        "Mul",
        "Reshape",
        "Add",
        "Add",
        "Reshape",
    ]
    onnx.checker.check_model(proto, full_check=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    (found,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"images": images})
    np.testing.assert_array_equal(found, images.reshape(5, 48) + constant)

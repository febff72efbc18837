"""Pictures of any size: resizing and cropping in front of the encoder, as a part of its graph.

It computes what `byol.images.decode.Preprocess` lets Pillow do: two matrix products per colour plane, whose weights are
Pillow's antialiased bicubic kernel, rounded to whole grey levels after each as Pillow does.
Shapes: B batch, H W the picture, h w the part of it that counts, S the encoder's image size.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, helper

from byol.images.decode import Preprocess

# The part of a picture that is used: its central square, and the pixels around that the kernel still reaches.
_HEAD = """
<ir_version: {ir}, opset_import: ["": {opset}]>
encoder (uint8[batch, height, width, 3] pictures) => (uint8[batch, {size}, {size}, 3] resized)
<float[1] zero = {{0}}, float[1] half = {{0.5}}, float[1] one = {{1}}, float[1] two = {{2}}, float grey = {{255}},
 float black = {{0}}, float step = {{1}}, float[1] crop = {{{crop}}}, float[1] resize = {{{resize}}},
 float[1] size = {{{size}}}, int64[1] across = {{1}}, int64[2] both = {{1, 2}},
 float[1] inner3 = {{1.5}}, float[1] inner2 = {{-2.5}}, float[1] outer3 = {{-0.5}}, float[1] outer2 = {{2.5}},
 float[1] outer1 = {{-4}}, float[{size}, 1] middles = {{{middles}}}>
{{
  y_pixels = Shape <start = 1, end = 2> (pictures)
  x_pixels = Shape <start = 2, end = 3> (pictures)
  y_length = Cast <to = 1> (y_pixels)
  x_length = Cast <to = 1> (x_pixels)
  shorter = Min (y_length, x_length)
  cropped = Mul (shorter, crop)
  side = Div (cropped, resize)
  scale = Div (side, size)
  stretch = Max (scale, one)
  reach = Mul (two, stretch)
{axes}
  starts = Concat <axis = 0> (y_first, x_first)
  ends = Concat <axis = 0> (y_last, x_last)
  part = Slice (pictures, starts, ends, both)
  planes = Transpose <perm = [0, 3, 1, 2]> (part)
  levels = Cast <to = 1> (planes)
  x_kernel = Transpose <perm = [1, 0]> (x_weights)
  x_resampled = MatMul (levels, x_kernel)
  x_rounded = Round (x_resampled)
  narrow = Clip (x_rounded, black, grey)
  y_resampled = MatMul (y_weights, narrow)
  y_rounded = Round (y_resampled)
  small = Clip (y_rounded, black, grey)
  pixels = Transpose <perm = [0, 2, 3, 1]> (small)
  resized = Cast <to = 2> (pixels)
}}
"""

# For one axis (n = h or w): the first and last pixel, and the kernel's weights (S, n), each row summing to 1.
_AXIS = """
  {a}_margin = Sub ({a}_length, side)
  {a}_start = Div ({a}_margin, two)
  {a}_end = Add ({a}_start, side)
  {a}_before = Sub ({a}_start, reach)
  {a}_low = Floor ({a}_before)
  {a}_from = Max ({a}_low, zero)
  {a}_first = Cast <to = 7> ({a}_from)
  {a}_after = Add ({a}_end, reach)
  {a}_high = Ceil ({a}_after)
  {a}_to = Min ({a}_high, {a}_length)
  {a}_last = Cast <to = 7> ({a}_to)
  {a}_range_start = Squeeze ({a}_from)
  {a}_range_end = Squeeze ({a}_to)
  {a}_numbers = Range ({a}_range_start, {a}_range_end, step)
  {a}_places = Add ({a}_numbers, half)
  {a}_offsets = Mul (middles, scale)
  {a}_centres = Add ({a}_offsets, {a}_start)
  {a}_differences = Sub ({a}_places, {a}_centres)
  {a}_distances = Abs ({a}_differences)
  {a}_t = Div ({a}_distances, stretch)
  {a}_i3 = Mul ({a}_t, inner3)
  {a}_i2 = Add ({a}_i3, inner2)
  {a}_i1 = Mul ({a}_i2, {a}_t)
  {a}_i0 = Mul ({a}_i1, {a}_t)
  {a}_inner = Add ({a}_i0, one)
  {a}_o4 = Mul ({a}_t, outer3)
  {a}_o3 = Add ({a}_o4, outer2)
  {a}_o2 = Mul ({a}_o3, {a}_t)
  {a}_o1 = Add ({a}_o2, outer1)
  {a}_o0 = Mul ({a}_o1, {a}_t)
  {a}_outer = Add ({a}_o0, two)
  {a}_is_near = Less ({a}_t, one)
  {a}_is_far = Less ({a}_t, two)
  {a}_tail = Where ({a}_is_far, {a}_outer, zero)
  {a}_raw = Where ({a}_is_near, {a}_inner, {a}_tail)
  {a}_sums = ReduceSum <keepdims = 1> ({a}_raw, across)
  {a}_weights = Div ({a}_raw, {a}_sums)
"""


def any_size_graph(encoder: ModelProto, preprocess: Preprocess) -> ModelProto:
    """The encoder's graph for uint8 pictures (B, H, W, 3), H and W free, one size in a batch."""
    size = preprocess.crop
    text = _HEAD.format(
        ir=encoder.ir_version,
        opset=encoder.opset_import[0].version,
        size=size,
        crop=preprocess.crop,
        resize=preprocess.resize,
        middles=", ".join(str(number + 0.5) for number in range(size)),
        axes="".join(_AXIS.format(a=axis) for axis in "yx"),
    )
    front = onnx.parser.parse_model(text)
    picture, image = front.graph.input[0].name, encoder.graph.input[0].name
    merged = onnx.compose.merge_models(
        front, encoder, io_map=[(front.graph.output[0].name, image)], prefix1="resize_", name="encoder"
    )
    for node in merged.graph.node:  # the input keeps the name that it has in every graph of a bundle
        for place, name in enumerate(node.input):
            if name == f"resize_{picture}":
                node.input[place] = image
    merged.graph.input[0].name = image
    merged.producer_name = encoder.producer_name
    del merged.opset_import[1:], merged.graph.value_info[:]  # said twice, and not wanted
    helper.set_model_props(merged, {item.key: item.value for item in encoder.metadata_props})
    onnx.checker.check_model(merged, full_check=True)
    return merged

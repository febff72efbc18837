"""An encoder as a clean ONNX graph: uint8 images in, features out.

Cast, layout and normalisation lie inside; batch-norm is folded into the convolutions; the batch is the only dynamic
axis; nothing of the exporting machine is left in the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from onnx_ir.passes.common import IdentityEliminationPass
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from byol.bundle.graph.operators import OPERATORS
from byol.bundle.model import check_graph, is_large
from byol.export.settle import settle
from byol.export.translate import TRANSLATIONS
from byol.text import first_line

OPSET = 20
INPUT, OUTPUT = "images", "features"


class ServingEncoder(nn.Module):
    """The encoder with its input contract: uint8 (B, S, S, 3) RGB to float32 (B, D)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.encoder = encoder
        # (x / 255 - mean) / std as one product and one sum, each number rounded once.
        mean64, std64 = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * std64)).float())  # (3, 1, 1)
        self.register_buffer("shift", (-mean64 / std64).float())

    def forward(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        # Without `contiguous` the exporter carries strides along as shape arithmetic.
        pixels = images.permute(0, 3, 1, 2).contiguous().float()  # (B, 3, S, S)
        features: Tensor = self.encoder(pixels * self.scale + self.shift)
        return features


def encoder_to_onnx(
    encoder: nn.Module,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """The graph of an encoder for images of size x size, with `metadata` in the file.

    Raises `ValueError` when torch cannot export it, or when the graph would not be clean.
    """
    try:
        proto = _traced(ServingEncoder(encoder, mean, std).eval(), size)
        settle(proto)
    except MemoryError:
        raise
    except Exception as error:  # whatever the exporter, its optimizer, and the rules for some model's operations raise
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"torch cannot export this encoder to ONNX: {reason}; choose another --arch") from error
    strip(proto)
    onnx.helper.set_model_props(proto, metadata or {})
    check_clean(proto)
    return proto


def _traced(model: nn.Module, size: int) -> onnx.ModelProto:
    """What torch makes of a model of uint8 images (B, S, S, 3). Raises whatever torch does."""
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    # With attention's definition only: of others the exporter forgets how their result lies in memory.
    with quiet(), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            external_data=False,
            optimize=True,
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None  # None only without dynamo
    IdentityEliminationPass()(program.model)  # the optimizer makes some of what changes nothing
    return program.model_proto


def check_clean(proto: onnx.ModelProto) -> None:
    """Raise `ValueError` when the graph holds what a bundle's may not, shape arithmetic say, or is not valid ONNX."""
    found = sorted({node.op_type for node in proto.graph.node} - OPERATORS.keys())
    if found or proto.functions:
        what = ", ".join(found) or "local functions"
        raise ValueError(
            f"this encoder needs ONNX operators that a bundle may not contain ({what}); choose another --arch "
            "(docs/export.md lists tested ones)"
        )
    if is_large(proto):  # onnx's check takes one message; a large graph is checked without its weights
        return
    try:
        check_graph(proto)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the exported graph is not valid ONNX: {first_line(error)}; choose another --arch") from error


def strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its machine and source, and what torch calls itself."""
    proto.producer_name, proto.producer_version, proto.doc_string = "byol", "", ""
    del proto.metadata_props[:]
    graph = proto.graph
    graph.name, graph.doc_string = "encoder", ""
    del graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporter prints and logs; errors are exceptions."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

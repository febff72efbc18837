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
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from byol.export.large import is_large
from byol.export.translate import TRANSLATIONS, spread_by_sum
from byol.serve.model import check_graph

OPSET = 20
INPUT, OUTPUT = "images", "features"

# Batch-norm must be folded; shape arithmetic means that some size was not fixed at export.
SHAPE_OPS = {"Shape", "Size", "Gather", "Range", "Expand", "ConstantOfShape", "NonZero", "Where", "Loop", "If", "Scan"}
FORBIDDEN_OPS = SHAPE_OPS | {"BatchNormalization"}


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


class _Tracer(torch.fx.Tracer):
    """Takes convolutions as they are, also those that pad in a way of their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """A copy of an encoder in eval mode with every batch-norm folded into the convolution before it.

    Raises `ValueError` when one cannot be folded.
    """
    traced = torch.fx.GraphModule(encoder.eval(), _Tracer().trace(encoder))
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        conv = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) > 1:
            raise ValueError(f"batch-norm {node.target} does not follow a convolution of its own; it cannot be folded")
        traced.set_submodule(source.target, fuse_conv_bn_eval(conv, modules[node.target]))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


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
    # The norms of timm's models branch on their mode, which fx cannot follow; there the exporter's optimizer folds.
    folded = fold_batch_norm(encoder) if isinstance(encoder, torchvision.models.ResNet) else encoder.eval()
    model = ServingEncoder(folded, mean, std).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        with quiet():
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
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"torch cannot export this encoder to ONNX: {reason}; choose another --arch") from error
    assert program is not None  # None only without dynamo
    proto = program.model_proto
    spread_by_sum(proto.graph)
    strip(proto)
    onnx.helper.set_model_props(proto, metadata or {})
    check_clean(proto)
    return proto


def check_clean(proto: onnx.ModelProto) -> None:
    """Raise `ValueError` when the graph holds batch-norm or shape arithmetic, or is not valid ONNX."""
    found = sorted({node.op_type for node in proto.graph.node} & FORBIDDEN_OPS)
    if found or proto.functions:
        raise ValueError(
            f"the exported graph is not clean: it holds {', '.join(found) or 'local functions'}; choose another --arch"
        )
    if not is_large(proto):  # onnx's check takes one message; a large graph is checked without its weights
        check_graph(proto)


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

"""From a run to a bundle: ONNX and safetensors files, verified against torch. Needs the `train` extra."""

from typing import TYPE_CHECKING

from byol.doors import lazy

if TYPE_CHECKING:
    from byol.export.exporter import export_bundle

__all__ = ["export_bundle"]

__getattr__, __dir__ = lazy(__name__, {"export_bundle": "byol.export.exporter"})

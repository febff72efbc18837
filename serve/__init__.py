"""Serve a bundle through ONNX Runtime: images in, features out; kNN and linear probe on them. No torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byol.serve.classify import ImageClassifier
    from byol.serve.encoder import Encoder
    from byol.serve.evaluate.knn import KNNClassifier
    from byol.serve.evaluate.linear import LinearProbe

__all__ = ["Encoder", "ImageClassifier", "KNNClassifier", "LinearProbe"]

# Here, because the command line needs them before it loads ONNX Runtime.
DEVICES = ("auto", "cpu", "cuda")
VARIANT_NAMES = ("auto", "fp32", "fp16", "int8")
PART_IMAGES = 16_384  # of a folder's part: 134 MB of features at D = 2048
MAX_BATCH_SIZE = 4096  # keeps a slip of the keyboard from taking all memory

_MODULES = {"Encoder": "encoder", "ImageClassifier": "classify", "KNNClassifier": "knn", "LinearProbe": "linear"}


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `byol knn --help` does not load ONNX Runtime and SciPy.
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"byol.serve.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'byol.serve' has no attribute {name!r}")

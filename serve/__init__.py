"""Serve a bundle through ONNX Runtime: images in, features out; kNN and linear probe on them. No torch."""

from typing import TYPE_CHECKING

from byol.doors import lazy

if TYPE_CHECKING:
    from byol.serve.encoder import Encoder, ImageClassifier
    from byol.serve.errors import DeviceError
    from byol.serve.evaluate.knn import KNNClassifier
    from byol.serve.evaluate.linear import LinearProbe
    from byol.serve.features.read import read_features
    from byol.serve.proof import verify

__all__ = [
    "DeviceError",
    "Encoder",
    "ImageClassifier",
    "KNNClassifier",
    "LinearProbe",
    "read_features",
    "verify",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DeviceError": "byol.serve.errors",
        "Encoder": "byol.serve.encoder",
        "ImageClassifier": "byol.serve.encoder",
        "KNNClassifier": "byol.serve.evaluate.knn",
        "LinearProbe": "byol.serve.evaluate.linear",
        "read_features": "byol.serve.features.read",
        "verify": "byol.serve.proof",
    },
)

"""byol: train an image encoder by BYOL, export it as a verified ONNX bundle, serve it without torch.

Importing this package imports neither torch nor onnxruntime.
"""

from pathlib import Path
from typing import Any

from byol.telemetry import turn_off

__version__ = "0.1.0"

turn_off()  # before anything here imports onnxruntime

# In a checkout, `byol.export` and `byol.serve` lie beside this folder, not inside it (see pyproject.toml).
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name == "load_encoder":  # needs torch, so it is imported when it is asked for
        from byol.pretrained import load_encoder

        return load_encoder
    raise AttributeError(f"module 'byol' has no attribute {name!r}")

"""byol: train an image encoder by BYOL, export it as a verified ONNX bundle, serve it without torch.

Importing this package imports neither torch nor onnxruntime.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from byol.doors import lazy
from byol.telemetry import turn_off

if TYPE_CHECKING:
    from byol.pretrained import load_encoder as load_encoder
    from byol.training.config import TrainConfig as TrainConfig
    from byol.training.job import train as train

__version__ = "0.1.0"
__all__ = ["TrainConfig", "__version__", "load_encoder", "train"]

turn_off()  # before anything here imports onnxruntime

# In a checkout, `byol.export` and `byol.serve` lie beside this folder, not inside it (see pyproject.toml).
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

__getattr__, __dir__ = lazy(
    __name__,
    {
        "TrainConfig": "byol.training.config",
        "load_encoder": "byol.pretrained",
        "train": "byol.training.job",
    },
)

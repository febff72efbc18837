"""TensorBoard event files beside `metrics.jsonl`, for those who watch runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises `ValueError` when tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError("--tensorboard needs one more package: pip install 'byol[tensorboard]'") from error


class EventLog:
    """Writes each line of metrics as scalars into `RUN/tensorboard/`.

    Steps after `start`, which a resumed run does again, are purged from what TensorBoard shows. Raises `ValueError`
    when tensorboard is not installed.
    """

    def __init__(self, run: Path, start: int):
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / FOLDER), purge_step=start + 1 if start else None)

    def log(self, record: dict[str, Any]) -> None:
        """Add one line of metrics."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

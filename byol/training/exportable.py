"""The door from training to export: whether an encoder can be exported, asked before it is trained."""

from __future__ import annotations

from byol.console import note
from byol.encoders import TIMM
from byol.encoders.build import Pretrained
from byol.text import first_line, missing

TESTED_SIZE = 512  # pixels up to which torchvision's ResNets need no asking: the tests export them


def require_exportable(source: Pretrained) -> None:
    """Raise `ValueError` when `byol export` would refuse an encoder of this architecture at its size.

    Takes seconds, which ResNets of a usual size are spared. Where export is not installed, a note says that nothing was
    checked.
    """
    if not source.arch.startswith(TIMM) and source.image_size <= TESTED_SIZE:
        return
    try:
        from byol.export.exporter import try_export
    except ModuleNotFoundError as error:
        note(f"not checked whether {source.arch} can be exported: {missing(str(error.name), 'train', 'the check')}")
        return
    try:
        try_export(source)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the exporter raises of some model
        raise ValueError(
            f"{source.arch} at {source.image_size} px could be trained, but not exported: {first_line(error)}; "
            "--no-export-check trains it nevertheless"
        ) from error

"""Ask export, before training, whether an encoder can be exported."""

from __future__ import annotations

from byol.console import note
from byol.encoders import TIMM
from byol.encoders.pretrained import Pretrained
from byol.text import first_line, missing

TESTED_SIZE = 512  # pixels up to which torchvision's ResNets need no asking: the tests export them


def require_exportable(source: Pretrained) -> None:
    """Raise `ValueError` when `byol export` would refuse an encoder of this architecture at its size.

    Takes seconds; ResNets of usual sizes are not checked. Where export is not installed, a note says so.
    """
    if not source.arch.startswith(TIMM) and source.image_size <= TESTED_SIZE:
        return
    try:
        from byol.export.exporter import try_export
    except ModuleNotFoundError as error:
        note(f"did not check whether {source.arch} can be exported: {missing(str(error.name), 'train', 'the check')}")
        return
    try:
        try_export(source)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the exporter may raise anything
        raise ValueError(
            f"{source.arch} at {source.image_size} px can be trained but not exported: {first_line(error)}; "
            "add --no-export-check to train it anyway"
        ) from error

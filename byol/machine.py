"""How this process keeps memory it has freed."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of handing them back to the system; whether it was told.

    Activations and decoded images are blocks of some MB, allocated and freed at every step. By default each one is
    mapped afresh and every page of it faults again. Elsewhere (macOS, Windows, musl) nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older glibc refuses a threshold above 32 MB.
    mapped = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))

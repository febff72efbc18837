"""Whether ONNX Runtime reports its use, which its builds do by default since 1.29. Torch-free.

Only a variable in the environment before its first import keeps it from that, so `import byol` sets it; processes that
are started later inherit it. A setting of the user's own stands.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
_OFF = {"1", "true", "yes", "y", "on"}  # in any case; ONNX Runtime takes anything else as a wish to report

_too_late = False


def turn_off() -> None:
    """Keep ONNX Runtime from reporting, unless the environment says what it is to do."""
    global _too_late
    _too_late = "onnxruntime" in sys.modules and VARIABLE not in os.environ
    os.environ.setdefault(VARIABLE, "1")


def state() -> str:
    """ "off", or why it is not, for people."""
    value = os.environ.get(VARIABLE, "")
    if _too_late:
        return f"on: onnxruntime was imported before byol; import byol first, or set {VARIABLE}=1"
    if value.strip().lower() not in _OFF:
        return f"on: {VARIABLE} is {value!r:.40} in the environment; 1 turns it off"
    return "off"

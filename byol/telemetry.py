"""Keeps ONNX Runtime from reporting its use, as its builds do by default since 1.29. Torch-free.

Only an environment variable set before its first import prevents that, so `import byol` sets it, and child processes
inherit it. The user's own setting stays.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
_OFF = {"1", "true", "yes", "y", "on"}  # in upper or lower case; anything else makes ONNX Runtime report

_too_late = False


def turn_off() -> None:
    """Keep ONNX Runtime from reporting, unless the environment already decides."""
    global _too_late
    _too_late = "onnxruntime" in sys.modules and VARIABLE not in os.environ
    os.environ.setdefault(VARIABLE, "1")


def state() -> str:
    """ "off", or "on" with the reason and the remedy."""
    value = os.environ.get(VARIABLE, "")
    if _too_late:
        return f"on: onnxruntime was imported before byol; import byol first, or set {VARIABLE}=1"
    if value.strip().lower() not in _OFF:
        return f"on: {VARIABLE} is {value!r:.40} in the environment; 1 turns it off"
    return "off"

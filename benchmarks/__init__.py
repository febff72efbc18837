"""Measurements behind every performance claim, see README.md here."""

import byol  # noqa: F401 - before onnxruntime, which it keeps from reporting

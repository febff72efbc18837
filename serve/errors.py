"""What a session raises. Light to import."""


class DeviceError(ValueError):
    """The requested device cannot be used; the message names what is missing."""


class SessionError(ValueError):
    """ONNX Runtime refused a graph or failed to run it."""

"""The gate of a derived graph (fewer bits, any size, a classifier): it must reproduce what its reference computes.

Shapes: N images, D outputs per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime

from byol.bundle.manifest import Parity
from byol.bundle.model import Model
from byol.bundle.parity import GATES, compare_features
from byol.serve.session import open_session


def run_graph(model: bytes | Model, name: str, batches: Sequence[np.ndarray]) -> np.ndarray:
    """The first output (N, D) of a graph on the CPU for batches of images (B, H, W, 3), fed as input `name`."""
    session = open_session(model, "cpu", lambda _: {name: batches[0][:1]})
    return np.concatenate([session.run({name: batch})[0] for batch in batches])


def pass_gate(
    graph: str, model: bytes | Model, name: str, batches: Sequence[np.ndarray], expected: np.ndarray, reference: str
) -> Parity:
    """How far a graph is from the `expected` outputs (N, D) that `reference` computed.

    `graph` is its file name, which chooses the gate. Raises `ValueError` beyond the gate.
    """
    found = run_graph(model, name, batches)
    error, cosine = compare_features(expected, found)
    problem = GATES[graph].problem(error, cosine)
    if problem:
        raise ValueError(f"{graph} is refused: it does not reproduce {reference}: {problem}")
    sizes = tuple(sorted({len(batch) for batch in batches}))
    return Parity(error, cosine, len(found), sizes, "CPUExecutionProvider", onnxruntime.__version__, reference)

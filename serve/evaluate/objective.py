"""Loss and gradient of multinomial logistic regression as one ONNX graph, on any device, without autograd.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper
from scipy.special import softmax

from byol.serve.providers.cuda import free_memory
from byol.serve.session import Feeds, open_beside

# Samples and logits computed at once. On a CPU, what stays in the caches: a sample is read twice, a logit often.
PIECE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
DEVICE_SHARE = 0.5  # of a GPU's free memory, for the samples
CURVATURE_SAMPLES = 4096


class Objective:
    """loss = -mean log softmax(x W^T + b)[y] + l2 / 2 |W|^2 and its gradient, for fixed x (N, D) and y (N,).

    The samples are evaluated in pieces of `rows` (None: what suits the device). What fits is copied to the device once,
    so that an evaluation moves only W, b and their gradients; the rest of the pieces goes there each time.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, classes: int, device: str, rows: int | None = None) -> None:
        samples, self.dim = x.shape
        self.classes = classes
        model = objective_graph(samples, self.dim, classes).SerializeToString()
        self._some = x[:: -(-samples // CURVATURE_SAMPLES)]  # evenly: classes often lie together
        places = y[:, None]
        warm_up = self._parameters(self.zeros()) | {"x": x[:1], "y": places[:1]}
        self._session = open_beside(model, device, lambda _: warm_up)
        self.device, self.reason = self._session.device, self._session.reason
        rows = rows or max(1, PIECE_BYTES[self.device] // (4 * (self.dim + classes)))
        room = DEVICE_SHARE * free_memory(self.device)
        self._pieces: list[Feeds] = []
        for start in range(0, samples, rows):
            piece = {"x": x[start : start + rows], "y": places[start : start + rows]}
            room -= piece["x"].nbytes
            keep = self._session.on_device if room >= 0 else np.asarray
            self._pieces.append({name: keep(values) for name, values in piece.items()})

    def __call__(self, parameters: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Loss and gradient at `parameters`, float64 (C * (D + 1)): W row by row, then b."""
        feeds = self._parameters(parameters)
        weight = feeds["weight"].astype(np.float64)  # as the graph sees it
        loss = l2 / 2 * float(np.vdot(weight, weight))
        weight_gradient, bias_gradient = l2 * weight, np.zeros(self.classes)
        for piece in self._pieces:
            part, weight_part, bias_part = self._session.run({**feeds, **piece})
            loss += float(part)
            weight_gradient += weight_part
            bias_gradient += bias_part
        return loss, np.append(weight_gradient, bias_gradient)

    def curvature(self, parameters: np.ndarray, l2: float) -> np.ndarray:
        """The diagonal of the Hessian, float64 (C * (D + 1)), from at most `CURVATURE_SAMPLES` samples."""
        weight, bias = self.split(parameters)
        p = softmax(self._some @ weight.astype(np.float32).T + bias.astype(np.float32), axis=1)  # (n, C)
        spread = p * (1 - p)
        by_weight = spread.T @ np.square(self._some) / len(p) + l2
        return np.append(by_weight, spread.mean(0)).astype(np.float64)

    def zeros(self) -> np.ndarray:
        """The parameters at which all classes are equally probable."""
        return np.zeros(self.classes * (self.dim + 1))

    def _parameters(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        weight, bias = self.split(parameters)
        return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}

    def split(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (C, D) and b (C,) of a parameter vector."""
        return parameters[: -self.classes].reshape(self.classes, self.dim), parameters[-self.classes :]


def objective_graph(samples: int, dim: int, classes: int) -> ModelProto:
    """Inputs x, y (N, 1), weight, bias; outputs loss (float64 scalar), weight_gradient (C, D), bias_gradient (C,).

    With P the softmax and Y the one-hot labels: -sum over samples of log P[y] / N, (P - Y)^T x / N, and the sum over
    samples of (P - Y) / N, with N = `samples` however many x holds: pieces add up. The mean is taken in float64: a
    float32 sum over many samples is too coarse for the line search near the optimum.
    """
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "weight", "bias"], ["logits"], transB=1),  # (N, C)
        node("LogSoftmax", ["logits"], ["log_p"], axis=1),  # (N, C)
        node("GatherElements", ["log_p", "y"], ["log_likelihood"], axis=1),  # (N, 1)
        node("Cast", ["log_likelihood"], ["log_likelihood_64"], to=TensorProto.DOUBLE),
        node("ReduceSum", ["log_likelihood_64"], ["total"], keepdims=0),  # scalar
        node("Div", ["total", "minus_samples"], ["loss"]),
        node("Exp", ["log_p"], ["p"]),  # (N, C)
        node("GatherElements", ["p", "y"], ["p_of_truth"], axis=1),
        node("Sub", ["p_of_truth", "one"], ["residual_of_truth"]),
        node("ScatterElements", ["p", "y", "residual_of_truth"], ["residual"], axis=1),  # P - Y
        node("Gemm", ["residual", "x"], ["weight_gradient"], transA=1, alpha=1 / samples),  # (C, D)
        node("ReduceSum", ["residual", "sample_axis"], ["residual_sum"], keepdims=0),  # (C,)
        node("Mul", ["residual_sum", "per_sample"], ["bias_gradient"]),
    ]
    constants = [
        helper.make_tensor("sample_axis", TensorProto.INT64, [1], [0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("minus_samples", TensorProto.DOUBLE, [], [-samples]),
        helper.make_tensor("per_sample", TensorProto.FLOAT, [], [1 / samples]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("x", TensorProto.FLOAT, ["N", dim]),
        value("y", TensorProto.INT64, ["N", 1]),
        value("weight", TensorProto.FLOAT, [classes, dim]),
        value("bias", TensorProto.FLOAT, [classes]),
    ]
    outputs = [
        value("loss", TensorProto.DOUBLE, []),
        value("weight_gradient", TensorProto.FLOAT, [classes, dim]),
        value("bias_gradient", TensorProto.FLOAT, [classes]),
    ]
    graph = helper.make_graph(nodes, "logistic_regression", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

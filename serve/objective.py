"""Loss and gradient of multinomial logistic regression as one ONNX graph, on any device, without autograd.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from byol.serve.session import Feeds, free_memory, open_session

LOGITS = 16 << 20  # computed at once (64 MB, of which the graph holds a few)
DEVICE_SHARE = 0.5  # of a GPU's free memory, for the samples


class Objective:
    """loss = -mean log softmax(x W^T + b)[y] + l2 / 2 |W|^2 and its gradient, for fixed x (N, D) and y (N,).

    The samples are evaluated in pieces of `rows` (None: what keeps the logits small). What fits is copied to the device
    once, so that an evaluation moves only W, b and their gradients; the rest of the pieces goes there each time.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, classes: int, device: str, rows: int | None = None) -> None:
        samples, self.dim = x.shape
        self.classes = classes
        model = objective_graph(samples, self.dim, classes).SerializeToString()
        zeros = self._parameters(np.zeros(classes * (self.dim + 1)), 0.0)
        self._session = open_session(model, device, lambda _: zeros | {"x": x[:1], "y": y[:1]})
        self.device, self.reason = self._session.device, self._session.reason
        rows = rows or max(1, LOGITS // classes)
        room = DEVICE_SHARE * free_memory(self.device)
        self._pieces: list[Feeds] = []
        for start in range(0, samples, rows):
            piece = {"x": x[start : start + rows], "y": y[start : start + rows]}
            room -= piece["x"].nbytes
            keep = self._session.on_device if room >= 0 else np.asarray
            self._pieces.append({name: keep(values) for name, values in piece.items()})

    def __call__(self, parameters: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Loss and gradient at `parameters`, float64 (C * (D + 1)): W row by row, then b."""
        loss, gradient = 0.0, np.zeros(len(parameters))
        for number, piece in enumerate(self._pieces):  # the penalty counts once
            feeds = self._parameters(parameters, 0.0 if number else l2)
            part, weight, bias = self._session.run({**feeds, **piece})
            loss += float(part)
            gradient += np.concatenate([weight.ravel(), bias.ravel()])
        return loss, gradient

    def _parameters(self, parameters: np.ndarray, l2: float) -> dict[str, np.ndarray]:
        weight, bias = self.split(parameters)
        return {
            "weight": weight.astype(np.float32),
            "bias": bias.astype(np.float32),
            "l2": np.array(l2, np.float32),
        }

    def split(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (C, D) and b (C,) of a parameter vector."""
        return parameters[: -self.classes].reshape(self.classes, self.dim), parameters[-self.classes :]


def objective_graph(samples: int, dim: int, classes: int) -> ModelProto:
    """Inputs x, y, weight, bias, l2; outputs loss (float64 scalar), weight_gradient (C, D), bias_gradient (C,).

    With P the softmax and Y the one-hot labels: dW = (P - Y)^T x / N + l2 W, db = sum over samples of (P - Y) / N, with
    N = `samples` however many x holds: pieces add up. The mean is taken in float64: a float32 sum over many samples is
    too coarse for the line search near the optimum.
    """
    node = helper.make_node
    nodes = [
        node("OneHot", ["y", "depth", "off_on"], ["one_hot"]),  # (N, C)
        node("Gemm", ["x", "weight", "bias"], ["logits"], transB=1),  # (N, C)
        node("LogSoftmax", ["logits"], ["log_p"], axis=1),  # (N, C)
        node("Mul", ["one_hot", "log_p"], ["picked"]),
        node("ReduceSum", ["picked", "class_axis"], ["log_likelihood"], keepdims=0),  # (N,)
        node("Cast", ["log_likelihood"], ["log_likelihood_64"], to=TensorProto.DOUBLE),
        node("ReduceSum", ["log_likelihood_64"], ["total_log_likelihood"], keepdims=0),  # scalar
        node("Div", ["total_log_likelihood", "samples"], ["mean_log_likelihood"]),
        node("Cast", ["weight"], ["weight_64"], to=TensorProto.DOUBLE),
        node("Mul", ["weight_64", "weight_64"], ["squares"]),
        node("ReduceSum", ["squares"], ["squared_norm"], keepdims=0),  # scalar
        node("Cast", ["l2"], ["l2_64"], to=TensorProto.DOUBLE),
        node("Mul", ["l2_64", "half"], ["half_l2"]),
        node("Mul", ["half_l2", "squared_norm"], ["penalty"]),
        node("Sub", ["penalty", "mean_log_likelihood"], ["loss"]),
        node("Exp", ["log_p"], ["p"]),
        node("Sub", ["p", "one_hot"], ["difference"]),
        node("Mul", ["difference", "per_sample"], ["residual"]),  # (N, C)
        node("Gemm", ["residual", "x"], ["weight_gradient_data"], transA=1),  # (C, D)
        node("Mul", ["l2", "weight"], ["weight_gradient_l2"]),
        node("Add", ["weight_gradient_data", "weight_gradient_l2"], ["weight_gradient"]),
        node("ReduceSum", ["residual", "sample_axis"], ["bias_gradient"], keepdims=0),  # (C,)
    ]
    constants = [
        helper.make_tensor("class_axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("sample_axis", TensorProto.INT64, [1], [0]),
        helper.make_tensor("half", TensorProto.DOUBLE, [], [0.5]),
        helper.make_tensor("samples", TensorProto.DOUBLE, [], [samples]),
        helper.make_tensor("per_sample", TensorProto.FLOAT, [], [1 / samples]),
        helper.make_tensor("depth", TensorProto.INT64, [1], [classes]),
        helper.make_tensor("off_on", TensorProto.FLOAT, [2], [0.0, 1.0]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("x", TensorProto.FLOAT, ["N", dim]),
        value("y", TensorProto.INT64, ["N"]),
        value("weight", TensorProto.FLOAT, [classes, dim]),
        value("bias", TensorProto.FLOAT, [classes]),
        value("l2", TensorProto.FLOAT, []),
    ]
    outputs = [
        value("loss", TensorProto.DOUBLE, []),
        value("weight_gradient", TensorProto.FLOAT, [classes, dim]),
        value("bias_gradient", TensorProto.FLOAT, [classes]),
    ]
    graph = helper.make_graph(nodes, "logistic_regression", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

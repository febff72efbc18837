"""A small valid bundle without torch: one convolution, ReLU, mean over the picture. Its golden features are NumPy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from byol.bundle.folder import describe_file
from byol.bundle.manifest import Architecture, Graph, Manifest, Parity, PreprocessSpec, Training
from byol.bundle.parity import compare_features
from byol.images.decode import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERNEL, STRIDE = 3, 2


def write_tiny_bundle(path: Path, size: int = 16, dim: int = 8, seed: int = 0) -> Path:
    """Write the bundle into the folder `path` and return it. Another `seed` gives another encoder."""
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    weight = generator.normal(0, 0.3, (dim, 3, KERNEL, KERNEL)).astype(np.float32)
    bias = generator.normal(0, 0.1, dim).astype(np.float32)
    (path / "encoder.onnx").write_bytes(tiny_model(weight, bias, size).SerializeToString())
    save_file({"conv.weight": weight, "conv.bias": bias}, path / "encoder.safetensors")
    images = generator.integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    golden = reference_features(images, weight, bias)
    save_file({"images": images, "features": golden}, path / "golden.safetensors")
    (path / "README.md").write_text("A tiny bundle for tests.\n")
    tiny_manifest(path, size, dim).write(path)
    return path


def tiny_manifest(path: Path, size: int, dim: int) -> Manifest:
    preprocess = Preprocess.for_size(size)
    parity = Parity(0.0, 1.0, 39, (1, 2, 3, 33), "CPUExecutionProvider", "1.31.1", "torch", "2.15.0")
    return Manifest(
        architecture=Architecture("tests", "tiny", "cifar"),
        feature_dim=dim,
        image_size=size,
        preprocess=PreprocessSpec(preprocess.resize, preprocess.crop, MEAN, STD, jpeg_margin=preprocess.jpeg_margin),
        onnx=Graph(opset=20, ir_version=10),
        files={
            "encoder.onnx": describe_file(path / "encoder.onnx", "fp32", parity),
            "encoder.safetensors": describe_file(path / "encoder.safetensors"),
            "golden.safetensors": describe_file(path / "golden.safetensors"),
            "README.md": describe_file(path / "README.md"),
        },
        training=Training("noise", images=100, steps=10, epochs=1.0, config_sha256="0" * 64),
        byol_version="0.1.0",
    )


def tiny_model(weight: np.ndarray, bias: np.ndarray, size: int) -> ModelProto:
    def constant(name: str, values: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(values, name)

    scale = 1 / (255 * np.array(STD, np.float32))
    shift = np.array(MEAN, np.float32) / np.array(STD, np.float32)
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("Mul", ["pixels", "scale"], ["scaled"]),
        node("Sub", ["scaled", "shift"], ["normalised"]),
        node("Transpose", ["normalised"], ["planes"], perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "weight", "bias"], ["maps"], strides=[STRIDE, STRIDE]),
        node("Relu", ["maps"], ["active"]),
        node("ReduceMean", ["active", "axes"], ["features"], keepdims=0),
    ]
    constants = [
        constant("scale", scale),
        constant("shift", shift),
        constant("weight", weight),
        constant("bias", bias),
        constant("axes", np.array([2, 3], np.int64)),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(bias)])
    graph = helper.make_graph(nodes, "tiny", [images], [features], constants)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model


def reference_features(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The same encoder in float64 NumPy: uint8 (N, S, S, 3) to float32 (N, D)."""
    x = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    windows = sliding_window_view(x, (KERNEL, KERNEL), axis=(1, 2))[:, ::STRIDE, ::STRIDE]  # (N, h, w, 3, k, k)
    maps = np.einsum("nhwcij,dcij->nhwd", windows, weight.astype(np.float64)) + bias
    features: np.ndarray = np.maximum(maps, 0).mean((1, 2)).astype(np.float32)
    return features


def tiny_reference(bundle: Path, images: np.ndarray) -> np.ndarray:
    """Reference features of preprocessed images, from the weights in a bundle that `write_tiny_bundle` wrote."""
    from safetensors.numpy import load_file

    weights = load_file(bundle / "encoder.safetensors")
    return reference_features(images, weights["conv.weight"], weights["conv.bias"])


def assert_same_features(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to float32 rounding: 1e-5 is 100 times the usual error of this small graph."""
    error, cosine = compare_features(expected, found)
    assert error < 1e-5
    assert cosine > 0.999999


def write_images(root: Path, classes: dict[str, int], size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
    """Write PNG files `root/<class>/<n>.png`: noise around a colour of the class, so that classes can be told apart."""
    generator = np.random.default_rng(seed)
    for label, count in classes.items():
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(abs(hash_text(label))).integers(40, 216, 3)
        for n in range(count):
            noise = generator.normal(0, 25, (size[1], size[0], 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{n:03}.png")
    return root


def hash_text(text: str) -> int:
    """A hash that is the same in every process."""
    return sum((i + 1) * byte for i, byte in enumerate(text.encode()))

"""A session's device is what it says: without CUDA, with a driver only, with a CPU wheel, with a silent fallback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from byol import machine
from byol.serve import Encoder, session
from byol.serve.commands.doctor import convolution
from byol.serve.errors import DeviceError, SessionError
from byol.serve.providers import cuda
from byol.serve.session import open_session
from tests.support.command_line import byol
from tests.support.tiny import write_tiny_bundle

IMAGE = {"x": np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)}


def here_is_cuda() -> bool:
    return cuda.build_problem() is None and machine.driver_problem() is None


without_cuda = pytest.mark.skipif(here_is_cuda(), reason="this machine has a GPU")


def test_cpu_session_computes() -> None:
    opened = open_session(convolution(), "cpu", lambda device: IMAGE)
    (sums,) = opened.run(IMAGE)
    expected = sum(IMAGE["x"][0, 0, i : i + 6, j : j + 6] for i in range(3) for j in range(3))
    np.testing.assert_array_equal(sums[0, 0], expected)
    assert (opened.device, opened.inference.get_providers()) == ("cpu", ["CPUExecutionProvider"])


def test_kept_inputs_give_the_same_result() -> None:
    opened = open_session(convolution(), "cpu", lambda device: IMAGE)
    expected = opened.run(IMAGE)[0]
    kept = opened.on_device(IMAGE["x"])
    for _ in range(2):
        np.testing.assert_array_equal(opened.run({"x": kept})[0], expected)


def test_threads_come_from_the_affinity_mask() -> None:
    opened = open_session(convolution(), "cpu", lambda device: IMAGE, shares_cores=True)
    options = opened.inference.get_session_options()
    assert options.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_sums_of_eight_bit_products_are_exact_on_every_cpu() -> None:
    """A byte and a weight of 8 bits, twice, exceed 16 bits: 64,770. Exact with VNNI, and by the option without."""
    weights = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    ends = [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, 64])]
    ends += [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])]
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feeds = {"x": np.full((4, 64), 255, np.uint8)}
    opened = open_session(model.SerializeToString(), "cpu", lambda _: feeds)
    assert opened.inference.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
    assert (opened.run(feeds)[0] == 64 * 255 * 127).all()


def test_unknown_device_and_unusable_graph() -> None:
    with pytest.raises(DeviceError, match="device is 'gpu'; expected one of auto, cpu, cuda"):
        open_session(convolution(), "gpu", lambda device: IMAGE)
    with pytest.raises(SessionError, match="cannot load the graph"):
        open_session(b"nonsense", "cpu", lambda device: IMAGE)
    with pytest.raises(SessionError, match="failed on cpu"):
        open_session(convolution(), "cpu", lambda device: {"y": IMAGE["x"]})


@without_cuda
def test_auto_takes_the_cpu_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_session(convolution(), "auto", lambda device: IMAGE)
    assert opened.device == "cpu"
    assert "NVIDIA driver" in opened.reason or "built without CUDA" in opened.reason
    assert capfd.readouterr() == ("", "")


@without_cuda
def test_cuda_fails_on_a_machine_without_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match=r"CUDA cannot be used: .*(driver|without CUDA)"):
        open_session(convolution(), "cuda", lambda device: IMAGE)
    assert capfd.readouterr() == ("", "")


def test_cpu_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"onnxruntime \S+ is built without CUDA .*pip install '\.\[gpu\]'"):
        open_session(convolution(), "cuda", lambda device: IMAGE)
    monkeypatch.setattr(session, "driver_problem", lambda: None)
    assert "built without CUDA" in open_session(convolution(), "auto", lambda device: IMAGE).reason


@without_cuda
def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As if a driver were there: ONNX Runtime really tries, falls back silently, and we notice."""
    monkeypatch.setattr(cuda, "build_problem", lambda: None)
    monkeypatch.setattr(session, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "missing_libraries", lambda: ["libcurand.so.10"])
    with pytest.raises(
        DeviceError,
        match=r"cannot be loaded: libcurand\.so\.10 \(to get them, .*pip install '\.\[gpu\]'",
    ):
        open_session(convolution(), "cuda", lambda device: IMAGE)
    opened = open_session(convolution(), "auto", lambda device: IMAGE)
    assert opened.device == "cpu"
    assert "libcurand.so.10" in opened.reason
    assert capfd.readouterr().out == ""


@without_cuda
def test_silent_fallback_with_every_library_there_is_noticed_and_explained(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "build_problem", lambda: None)
    monkeypatch.setattr(session, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "missing_libraries", list)
    reason = r"CUDA cannot be used: ONNX Runtime fell back to the CPU: .*(libcuda\.so\.1|driver|CUDA)"
    with pytest.raises(DeviceError, match=reason):
        open_session(convolution(), "cuda", lambda device: IMAGE)
    assert capfd.readouterr() == ("", "")


def test_session_that_names_cuda_but_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN is loaded at the first convolution: the session exists, its first run fails."""

    class Inference:
        def __init__(self, *arguments: object, **options: object) -> None: ...
        def disable_fallback(self) -> None: ...
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run(self, *arguments: object) -> None:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(cuda, "build_problem", lambda: None)
    monkeypatch.setattr(session, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "missing_libraries", list)
    monkeypatch.setattr(ort, "InferenceSession", Inference)
    with pytest.raises(DeviceError, match=r"libcudnn\.so\.9"):
        open_session(convolution(), "cuda", lambda device: IMAGE)


@without_cuda
def test_device_cuda_on_the_command_line(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 16, 16, 3), np.uint8))
    done = byol("extract", bundle, tmp_path / "a.npz", "--out", tmp_path / "f.npz", "--device", "cuda", "--json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: CUDA cannot be used: ")
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.cuda
@pytest.mark.skipif(not here_is_cuda(), reason="needs a GPU")
def test_cuda_features_equal_cpu_features(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    on_cuda, on_cpu = Encoder(bundle, "cuda", batch_size=32), Encoder(bundle, "cpu")
    assert on_cuda.device == "cuda"
    np.testing.assert_allclose(on_cuda(images), on_cpu(images), rtol=1e-4, atol=1e-5)


def test_no_torch_is_imported_by_serving(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    code = (
        "import sys; from byol.serve import Encoder, KNNClassifier, LinearProbe; import numpy as np;"
        f"x = Encoder({str(bundle)!r}, 'auto')(np.zeros((4, 20, 20, 3), np.uint8)); y = [0, 1, 0, 1];"
        "KNNClassifier(2).fit(x, y).predict(x); LinearProbe(0.1).fit(x, y).predict(x);"
        "print(x.shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("(4, 8) False", 0), done.stderr

"""A plug-in counts when it is there, offers something, took the nodes, runs, and reproduces the golden features.

OpenVINO's runs in the second half, where it is installed and finds hardware of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from byol import machine
from byol.bundle.folder import Bundle
from byol.serve import DeviceError, Encoder, KNNClassifier, LinearProbe, read_features
from byol.serve.commands import doctor
from byol.serve.providers import plugins
from byol.serve.providers.installed import OPENVINO, plugin_packages
from byol.serve.session import Session, open_session
from tests.support.command_line import byol
from tests.support.plugins import LIBRARY, install_plugin, offer, pretend
from tests.support.tiny import assert_same_features, write_images, write_tiny_bundle

IMAGE = {"x": np.ones((1, 1, 8, 8), np.float32)}
OTHER = "OtherExecutionProvider"


@pytest.fixture(autouse=True)
def forget_what_was_registered() -> Iterator[None]:
    yield
    if not plugin_packages().keys() & {OPENVINO}:  # ONNX Runtime keeps a real one
        plugins._register.cache_clear()


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed plug-in whose library would be loaded."""
    install_plugin(tmp_path / "site", "onnxruntime-ep-other", LIBRARY.format(path="libother.so", provider=OTHER))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "other"


def open_on(device: str) -> Session:
    return open_session(doctor.convolution(), device, lambda _: IMAGE)


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "plugin_packages", dict)
    with pytest.raises(
        DeviceError, match=r"openvino cannot be used: .* not installed; .* pip install '\.\[openvino\]'"
    ):
        open_on("openvino")


def test_a_library_that_cannot_be_loaded_is_said_by_onnx_runtime_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "libbad.so"
    library.write_bytes(b"not a library")
    install_plugin(tmp_path, "onnxruntime-ep-bad", LIBRARY.format(path=str(library), provider="Bad"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DeviceError, match=r"bad cannot be used: onnxruntime-ep-bad 1\.2 cannot be loaded: .*libbad"):
        open_on("bad")
    assert capfd.readouterr() == ("", "")
    assert doctor._plugin("bad")["session"].startswith("bad cannot be used: ")


def test_a_plug_in_without_hardware_names_the_machine(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, offer("CPUExecutionProvider"), offer(f"{OTHER}.AUTO"))
    with pytest.raises(DeviceError, match="finds nothing here that it runs on") as caught:
        open_on(other)
    assert machine.cpu_model() in str(caught.value)
    assert doctor._plugin(other) == {
        "package": "onnxruntime-ep-other 1.2", "devices": [], "session": str(caught.value)
    }  # fmt: skip


def test_it_runs_on_the_cpu_if_it_offers_that(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = offer(OTHER, "GPU"), offer(OTHER, FULL_DEVICE_NAME="Chip")
    pretend(monkeypatch, gpu, cpu)
    assert plugins.load(other) == plugins.Plugin(other, "onnxruntime-ep-other 1.2", OTHER, cpu)
    assert [plugins.describe(device) for device in (gpu, cpu)] == ["GPU (Somebody)", "CPU (Chip)"]
    pretend(monkeypatch, gpu)
    assert plugins.load(other).hardware is gpu


def test_openvino_is_asked_for_fp32_unless_bf16_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "usable_cores", lambda: 3)
    plugin = plugins.Plugin(
        OPENVINO, "p 1", OTHER, offer(OTHER, ov_device="CPU", OPTIMIZATION_CAPABILITIES="FP32 BF16")
    )
    settings = {name: json.loads(plugin.options(name)["load_config"])["CPU"] for name in ("fp32", "int8", "bf16")}
    assert {name: chosen["INFERENCE_PRECISION_HINT"] for name, chosen in settings.items()} == {
        "fp32": "f32", "int8": "f32", "bf16": "bf16"
    }  # fmt: skip
    assert settings["fp32"]["INFERENCE_NUM_THREADS"] == "3"
    assert (plugin.lacks("bf16"), plugin.lacks("fp32")) == (None, None)


def test_bf16_is_refused_where_nothing_computes_it() -> None:
    older = plugins.Plugin(OPENVINO, "p 1", OTHER, offer(OTHER, OPTIMIZATION_CAPABILITIES="FP32 INT8"))
    unknown = plugins.Plugin("other", "p 1", OTHER, offer(OTHER, OPTIMIZATION_CAPABILITIES="BF16"))
    for plugin in (older, unknown):
        assert "does not compute bf16 with p 1; use --variant fp32" in str(plugin.lacks("bf16"))
        assert plugin.lacks("int8") is None
    with pytest.raises(DeviceError, match="device cpu does not compute bf16; use device openvino"):
        open_session(doctor.convolution(), "cpu", lambda _: IMAGE, precision="bf16")


def _assigned(**operators: list[str]) -> Any:
    """A session that says so of its nodes."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda found=found: [SimpleNamespace(op_type=one) for one in found])
        for name, found in operators.items()
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


@pytest.mark.parametrize(
    ("operators", "problem"),
    [
        ({OTHER: ["Conv", "Relu"], "CPUExecutionProvider": ["Shape", "Cast"]}, None),
        (
            {OTHER: ["Conv"], "CPUExecutionProvider": ["QLinearConv", "Relu"]},
            "leaves 2 nodes .* among them QLinearConv",
        ),
        ({"CPUExecutionProvider": ["Relu"]}, "takes none"),
        ({}, "takes none"),
    ],
)
def test_the_nodes_that_take_time_must_run_there(operators: dict[str, list[str]], problem: str | None) -> None:
    left = plugins.Plugin("other", "p 1", OTHER, offer(OTHER)).left_out(_assigned(**operators))
    if problem is None:
        assert left is None
    else:
        with pytest.raises(DeviceError, match=problem):
            raise plugins.unusable("other", str(left))


def test_a_session_that_leaves_all_to_the_cpu_is_refused(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a plug-in took nothing: a real session of ONNX Runtime's own CPU provider, which says where nodes run."""
    (cpu,) = (device for device in ort.get_ep_devices() if device.ep_name == "CPUExecutionProvider")
    plugin = plugins.Plugin(other, "p 1", OTHER, cpu)
    monkeypatch.setattr("byol.serve.session.plugins.load", lambda name: plugin)
    with pytest.raises(DeviceError, match="other cannot be used: it takes none of the graph's nodes"):
        open_on(other)


@pytest.mark.parametrize(
    ("variant", "noise", "passes"), [("fp32", 0, True), ("fp32", 1e-3, False), ("bf16", 1e-3, True), ("bf16", 1, False)]
)
def test_a_plug_in_must_reproduce_the_golden_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, noise: float, passes: bool
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")

    class Noisy(Session):
        def run(self, feeds: Any) -> list[np.ndarray]:
            (exact,) = super().run(feeds)
            return [exact * (1 + noise * np.random.default_rng(0).normal(size=exact.shape)).astype(np.float32)]

    def on_plugin(model: Any, device: str, warm_up: Any, shares_cores: bool, precision: str) -> Session:
        assert (device, precision) == (OPENVINO, variant)
        return Noisy(open_session(model, "cpu", warm_up).inference, OPENVINO, "here")

    monkeypatch.setattr("byol.serve.pipeline.open_session", on_plugin)
    if passes:
        encoder = Encoder(bundle, OPENVINO, variant=variant)
        digest = Bundle.open(bundle).digest
        assert (encoder.variant, encoder.digest) == (
            variant,
            digest if variant == "fp32" else f"{digest}/bf16@openvino",
        )
    else:
        with pytest.raises(DeviceError, match=r"openvino cannot be used: it does not reproduce .* encoder\.onnx \("):
            Encoder(bundle, OPENVINO, variant=variant)


def test_what_is_no_bundle_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12) % 2
    for classifier in (KNNClassifier(3, device=OPENVINO), LinearProbe(0.1, OPENVINO)):
        classifier.fit(x, y)
        assert (classifier.device_, classifier.reason_) == ("cpu", "openvino runs the graphs of bundles only")
    np.savez(tmp_path / "f.npz", ids=[str(i) for i in y], features=x, labels=[str(i) for i in y])
    done = byol("knn", "--train", tmp_path / "f.npz", "--device", OPENVINO, "--json")
    assert (json.loads(done.out)["device"], "device: cpu (openvino runs" in done.err) == ("cpu", True), done.err


# ---------------------------------------------------------------------------------------- OpenVINO, where it runs


@pytest.fixture
def here() -> plugins.Plugin:
    pytest.importorskip("onnxruntime_ep_openvino")
    try:
        return plugins.load(OPENVINO)
    except DeviceError as error:
        pytest.skip(str(error))


def test_openvino_computes_what_the_bundle_says(here: plugins.Plugin, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    encoder, expected = Encoder(bundle, OPENVINO), Encoder(bundle, "cpu")(images)
    assert (encoder.device, encoder.variant, encoder.digest) == (OPENVINO, "fp32", Bundle.open(bundle).digest)
    assert encoder.session.inference.get_providers()[0] == here.provider
    assert_same_features(encoder(images), expected)
    assert doctor._plugin(OPENVINO)["session"] == "ok"
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(encoder(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_same_features(result, expected)


def test_bf16_features_are_named_and_not_mixed_with_others(here: plugins.Plugin, tmp_path: Path) -> None:
    bundle, images = write_tiny_bundle(tmp_path / "bundle"), write_images(tmp_path / "images", {"cat": 5, "dog": 5})
    extract = ("extract", bundle, images, "--out", tmp_path / "parts", "--device", OPENVINO, "--json")
    done = byol(*extract, "--variant", "bf16")
    if here.lacks("bf16"):
        assert (done.code, "does not compute bf16" in done.err) == (1, True)
        return
    facts = json.loads(done.out)
    assert (facts["device"], facts["variant"], facts["images"]) == (OPENVINO, "bf16", 10)
    assert read_features(tmp_path / "parts").bundle == f"{Bundle.open(bundle).digest}/bf16@openvino"
    again = byol(*extract)
    assert (again.code, again.out) == (1, "")
    mixed = byol("knn", bundle, "--train", tmp_path / "parts", "--test", images, "--device", OPENVINO)
    assert "was extracted with bf16@openvino of this bundle" in mixed.err

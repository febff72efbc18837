"""Bundles made from real runs: only the online encoder leaves, the graph is clean, and nothing unproven is written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

import byol
from byol import load_encoder
from byol.encoders.build import build_encoder
from byol.export import exporter as export_module
from byol.export.command import export
from byol.export.exporter import export_bundle, prove
from byol.export.graph import check_clean, encoder_to_onnx
from byol.export.parity import BATCH_SIZES, measure, sample_images, torch_features
from byol.serve import Encoder
from byol.serve.proof import verify
from byol.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from byol.training.model import BYOL
from tests.support.documents import code
from tests.support.forks import Fork
from tests.support.networks import randomise_norms
from tests.support.small import RESNET18, config

MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.23, 0.24)


def write_checkpoint(path, seed=0, spoil=None):
    """A checkpoint as a run writes it, with norms that matter."""
    torch.manual_seed(seed)
    settings = config(**RESNET18)
    tensors = dict(randomise_norms(BYOL(settings), seed).state_dict())
    if spoil is not None:
        spoil(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"name": "photos", "images": 80, "digest": "0" * 16}
    save_checkpoint(path, Checkpoint(settings, 20, 2, data, tensors))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_checkpoint(folder / "last.safetensors")
    return folder


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(run, out)
    return out


@pytest.mark.parametrize(
    ("arch", "stem", "size"),
    # The last maps have more than one pixel: pooling has something to do.
    [("resnet18", "cifar", 16), ("resnet34", "imagenet", 64), ("resnet50", "imagenet", 64), ("resnet50", "cifar", 16)],
)
def test_every_encoder_kind_passes_the_gate_with_a_clean_graph(arch, stem, size):
    torch.manual_seed(1)
    encoder = randomise_norms(build_encoder(arch, stem)).eval()
    proto = encoder_to_onnx(encoder, size, MEAN, STD)
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds <= {"Transpose", "Cast", "Mul", "Add", "Conv", "Relu", "MaxPool", "ReduceMean"}
    parity, _ = measure(encoder, proto.SerializeToString(), size, MEAN, STD)
    assert parity.batch_sizes == (1, 2, 3, 33)
    assert parity.max_relative_error < 1e-4
    assert parity.min_cosine > 0.99999


def test_a_graph_with_shape_arithmetic_is_refused():
    node = onnx.helper.make_node("Shape", ["x"], ["y"])
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [1])
    with pytest.raises(ValueError, match=r"may not contain \(Shape"):
        check_clean(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])))


def test_the_gate_refuses_a_graph_that_differs():
    encoder = randomise_norms(build_encoder("resnet18", "cifar")).eval()
    graph = encoder_to_onnx(encoder, 16, MEAN, STD).SerializeToString()
    with torch.no_grad():
        encoder.layer4[1].bn2.bias[0] += 0.05
    with pytest.raises(ValueError, match="export refused: ONNX Runtime does not reproduce torch"):
        measure(encoder, graph, 16, MEAN, STD)


def test_the_bundle_holds_the_online_encoder_and_nothing_of_the_rest(run, bundle):
    checkpoint = read_checkpoint(run / "last.safetensors")
    stored = load_file(bundle / "encoder.safetensors")
    expected = {
        name.removeprefix("online.encoder."): value
        for name, value in checkpoint.tensors.items()
        if name.startswith("online.encoder.")
    }
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    graph = onnx.load(bundle / "encoder.onnx").graph
    # Every weight of the graph, head tensors would be more, has the size of the encoder's convolutions.
    convolutions = sum(v.numel() for n, v in expected.items() if v.ndim == 4)
    norms = sum(v.numel() for n, v in expected.items() if n.endswith("bias"))  # folded: one bias per channel
    in_graph = sum(int(np.prod(item.dims)) for item in graph.initializer)
    assert convolutions + norms <= in_graph <= convolutions + norms + 16
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "encoder.onnx",
        "encoder.safetensors",
        "golden.safetensors",
        "manifest.json",
    ]


def test_the_graph_is_the_interface_of_the_design(bundle):
    session = onnxruntime.InferenceSession(bundle / "encoder.onnx", providers=["CPUExecutionProvider"])
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 16, 16, 3])
    assert (output.name, output.type, output.shape) == ("features", "tensor(float)", ["batch", 512])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["preprocess"]) == json.loads((bundle / "manifest.json").read_text())["preprocess"]
    assert session.run(["features"], {"images": sample_images(7, 16)})[0].shape == (7, 512)


def test_the_manifest_says_where_it_comes_from(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["training"]["data"] == "photos"
    assert (manifest["training"]["images"], manifest["training"]["steps"], manifest["training"]["epochs"]) == (
        80,
        20,
        2.0,
    )
    assert manifest["architecture"] == {"library": "torchvision", "name": "resnet18", "stem": "cifar"}
    parity = manifest["files"]["encoder.onnx"]["parity"]
    assert parity["batch_sizes"] == list(BATCH_SIZES)
    assert parity["onnxruntime"] == onnxruntime.__version__
    assert verify(bundle).ok


def test_golden_features_are_torchs_not_onnx_runtimes(bundle):
    golden = load_file(bundle / "golden.safetensors")
    settings = config(**RESNET18)
    expected = torch_features(load_encoder(bundle), golden["images"].numpy(), settings.mean, settings.std)
    np.testing.assert_allclose(golden["features"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(run, bundle, tmp_path):
    process = Fork(["export", str(run), "--out", str(tmp_path / "again")], tmp_path / "said")
    assert process.wait() == 0, process.said
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_no_path_or_module_location_is_in_any_file(run, bundle):
    local = re.compile(rb"(?<![A-Za-z0-9])/(?:[a-z]+/)+[a-z_]+\.py|site-packages|" + str(run.parent).encode())
    for path in bundle.iterdir():
        assert not local.search(path.read_bytes()), path.name


def test_plain_torchvision_loads_the_weights_strictly(bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    names: dict[str, Any] = {}
    exec(code("bundle.md", "The weights in torch")[0], names)
    encoder = names["encoder"]
    golden = load_file(bundle / "golden.safetensors")
    settings = config(**RESNET18)
    found = torch_features(encoder, golden["images"].numpy(), settings.mean, settings.std)
    np.testing.assert_allclose(found, golden["features"].numpy(), rtol=1e-4, atol=1e-5)


def test_load_encoder_takes_a_bundle_a_run_and_a_checkpoint(run, bundle):
    states = [load_encoder(place).state_dict() for place in (bundle, run, run / "last.safetensors")]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    pictures = sample_images(4, 16)
    settings = config(**RESNET18)
    expected = torch_features(load_encoder(bundle), pictures, settings.mean, settings.std)
    np.testing.assert_allclose(Encoder(bundle, device="cpu")(list(pictures)), expected, rtol=1e-3, atol=1e-5)


def test_the_documented_fine_tuning_trains_the_encoder(bundle):
    block = code("bundle.md", "The weights in torch")[2]
    names = {"byol": byol, "torch": torch, "classes": 3, "manifest": json.loads((bundle / "manifest.json").read_text())}
    exec(block.replace('"bundle"', repr(str(bundle))), names)
    model, optimizer = names["model"], names["optimizer"]
    before = names["encoder"].conv1.weight.detach().clone()
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(names["encoder"].conv1.weight, before)


def test_load_encoder_refuses_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_encoder(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_encoder(tmp_path)


def test_load_encoder_refuses_a_damaged_or_edited_bundle(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    weights, manifest = copy / "encoder.safetensors", copy / "manifest.json"
    content, text = bytearray(weights.read_bytes()), manifest.read_text()
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="does not have the manifest's sha256"):
        load_encoder(copy)
    weights.write_bytes((bundle / "encoder.safetensors").read_bytes())
    manifest.write_text(text.replace('"image_size": 16', '"image_size": 17'))
    with pytest.raises(ValueError, match="image_size is 17"):
        load_encoder(copy)
    manifest.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match="upgrade byol"):
        load_encoder(copy)


def spoil_nan(tensors):
    tensors["online.encoder.conv1.weight"][0] = float("nan")


def spoil_missing(tensors):
    del tensors["online.encoder.bn1.bias"]


def spoil_prefix(tensors):
    tensors["online.encoder._orig_mod.conv1.weight"] = tensors.pop("online.encoder.conv1.weight")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, "not all finite"),
        (spoil_missing, "missing: bn1.bias"),
        (spoil_prefix, "unexpected: _orig_mod.conv1.weight"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_the_old_bundle_stays(bundle, tmp_path, spoil, message):
    checkpoint = write_checkpoint(tmp_path / "bad.safetensors", spoil=spoil)
    out = tmp_path / "bundle"
    out.mkdir()
    for path in bundle.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = CliRunner().invoke(export, [str(checkpoint), "--out", str(out)])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors", "bundle"]


def test_nothing_is_left_when_the_written_files_fail_their_check(quick, tmp_path, monkeypatch):
    """A weight bit flips between computing and reading back: found by the process without torch."""

    def flip_then_prove(folder):
        graph = bytearray((folder / "encoder.onnx").read_bytes())
        graph[len(graph) // 2] ^= 1
        (folder / "encoder.onnx").write_bytes(graph)
        prove(folder)

    monkeypatch.setattr(export_module, "prove", flip_then_prove)
    with pytest.raises(ValueError, match="fail their own check"):
        export_bundle(quick / "run", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_folder_one_works_in_are_not_run(bundle, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    prove(bundle)


def test_what_cannot_be_exported_is_refused_with_advice(bundle, tmp_path):
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="for another toolkit's weights, add --from auto --arch NAME"):
        export_bundle(tmp_path / "model.pth", tmp_path / "out")
    with pytest.raises(ValueError, match="is a bundle; export the run or checkpoint"):
        export_bundle(bundle, tmp_path / "out")


def test_a_folder_that_is_no_bundle_is_not_replaced(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        export_bundle(run, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_older_bundle_is_replaced(bundle, tmp_path):
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    export_bundle(write_checkpoint(tmp_path / "2.safetensors", seed=2), out)
    assert verify(out).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.safetensors", "bundle"]
    stored = load_file(out / "encoder.safetensors")["conv1.weight"]
    expected = read_checkpoint(tmp_path / "2.safetensors").encoder()["conv1.weight"]
    assert torch.equal(stored, expected)

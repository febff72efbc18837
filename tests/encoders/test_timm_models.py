"""Encoders from timm, through the real commands: a few steps, a proven bundle, timm itself loads the weights."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers.drop import DropPath
from torch import nn

from byol import load_encoder
from byol.bundle.graph.operators import OPERATORS
from byol.bundle.manifest import ENCODER, VARIANTS
from byol.encoders.build import build_encoder, feature_dim
from byol.encoders.timm_models import EXAMPLES
from byol.export.exporter import export_bundle
from byol.export.graph import encoder_to_onnx
from byol.export.parity import measure, sample_images, torch_features
from byol.export.precision import int8_graph
from byol.serve import Encoder
from byol.serve.parity import pass_gate, run_graph
from byol.training.config import TrainConfig
from byol.training.model import BYOL
from tests.support.command_line import byol
from tests.support.documents import code
from tests.support.small import REPOSITORY, config, folder

timm = pytest.importorskip("timm")

SIZE = 32
MEAN, STD = TrainConfig().mean, TrainConfig().std
# A transformer with a class token and a fixed size, a convolutional net with layer-norm, one with batch-norm.
ENCODERS = {"vit_tiny_patch16_224": 192, "convnext_atto": 320, "resnet10t": 512}
BUILT_FOR_A_SIZE = {"vit_tiny_patch16_224": {"img_size": SIZE}}
HEADS = ("projector_hidden=32", "projector_out=16", "predictor_hidden=32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=12)


@pytest.fixture(scope="module", params=ENCODERS)
def trained(request, images, tmp_path_factory):
    """(name, run, bundle) after three steps of `byol train` and `byol export`."""
    out = tmp_path_factory.mktemp(request.param)
    options = ["--arch", f"timm:{request.param}", "--image-size", str(SIZE), "--batch-size", "8", "--max-steps", "3"]
    options += ["--optimizer", "adamw", "--lr", "0.02", "--device", "cpu", "--precision", "fp32", "--no-export-check"]
    options += [word for setting in HEADS for word in ("--set", setting)]
    done = byol("train", images, "--out", out / "run", *options)
    assert done.code == 0, done.err
    assert f"timm:{request.param} at 32 px on 24 images, 3 steps of 8, cpu, fp32" in done.err
    done = byol("export", out / "run", "--out", out / "bundle")
    assert done.code == 0, done.err
    return request.param, out / "run", out / "bundle"


def of_timm(name, **arguments):
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def test_training_moves_every_parameter_of_the_encoder(trained):
    _, run, _ = trained
    settings = TrainConfig.from_dict(json.loads((run / "config.json").read_text())["config"])
    torch.manual_seed(settings.seed)
    start, end = BYOL(settings), load_file(run / "last.safetensors")
    still = [name for name, p in start.online.named_parameters() if torch.equal(p, end[f"online.{name}"])]
    assert still == []
    assert json.loads((run / "config.json").read_text())["versions"]["timm"] == timm.__version__


def test_the_bundle_is_proven_and_its_graph_is_clean(trained):
    name, _, bundle = trained
    manifest = json.loads((bundle / "manifest.json").read_text())
    expected = {"library": "timm", "name": name, "stem": "imagenet", **BUILT_FOR_A_SIZE.get(name, {})}
    assert manifest["architecture"] == expected
    assert manifest["feature_dim"] == ENCODERS[name]
    parity = manifest["files"]["encoder.onnx"]["parity"]
    assert parity["batch_sizes"] == [1, 2, 3, 33]
    assert parity["max_relative_error"] < 1e-4
    graph = onnx.load(bundle / "encoder.onnx").graph
    assert {node.op_type for node in graph.node} <= OPERATORS.keys()
    used = {name for node in graph.node for name in node.input}
    assert {item.name for item in graph.initializer} <= used
    assert byol("info", "--verify", bundle).code == 0


def test_timm_itself_loads_the_weights_and_gives_the_graphs_features(trained, monkeypatch):
    name, _, bundle = trained
    monkeypatch.chdir(bundle)
    block = code("bundle.md", "The weights in torch")[1]
    if name not in BUILT_FOR_A_SIZE:
        block = block.replace(", img_size=img_size", "")
    names = {"timm": timm, "load_file": load_file, "name": name, **BUILT_FOR_A_SIZE.get(name, {})}
    exec(block, names)
    encoder = names["encoder"]
    pictures = sample_images(5, SIZE, seed=9)
    session = onnxruntime.InferenceSession(bundle / "encoder.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["features"], {"images": pictures})[0]
    expected = torch_features(encoder, pictures, MEAN, STD)
    # The gate's own bound; features that hardly differ between images would make it meaningless.
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(expected - expected[0]).max() > 0.01 * np.abs(expected).max()


def test_eight_bits_keep_the_features(trained):
    """Also where layer norms follow the residual sums: with these in 8 bits too, ViT and ConvNeXt fail the gate."""
    _, _, bundle = trained
    encoder = onnx.load(bundle / "encoder.onnx")
    proto = int8_graph(encoder, sample_images(64, SIZE, seed=1))
    pictures = sample_images(32, SIZE, seed=2)
    expected = run_graph(encoder.SerializeToString(), "images", [pictures])
    parity = pass_gate(VARIANTS["int8"], proto.SerializeToString(), "images", [pictures], expected, ENCODER)
    assert parity.images == 32
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    weights = [onnx.numpy_helper.to_array(i) for i in proto.graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64  # features are the same on every CPU


def test_the_model_cards_code_rebuilds_the_encoder(trained):
    _, _, bundle = trained
    (rebuilt,) = re.findall(r"timm names: `(timm\.create_model\(.*\))`", (bundle / "README.md").read_text())
    encoder = eval(rebuilt, {"timm": timm})
    encoder.load_state_dict(load_file(bundle / "encoder.safetensors"), strict=True)


def test_load_encoder_and_the_served_bundle_agree(trained, images):
    name, run, bundle = trained
    states = [load_encoder(place).state_dict() for place in (bundle, run)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    pictures = sample_images(3, SIZE)
    served = Encoder(bundle, device="cpu")
    found = served(list(pictures))
    assert found.shape == (3, ENCODERS[name])
    expected = torch_features(load_encoder(bundle), pictures, MEAN, STD)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert served([next(images.rglob("*.png"))]).shape == (1, ENCODERS[name])


def test_exporting_again_gives_the_same_bytes(trained, tmp_path):
    name, run, bundle = trained
    if name != "vit_tiny_patch16_224":  # the one whose graph is rewritten after the export
        pytest.skip("shown on one encoder")
    export_bundle(run, tmp_path / "again")
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("name", "dim"), [("mobilenetv3_small_050", 1024), *ENCODERS.items()])
def test_feature_dim_is_what_a_forward_returns(name, dim):
    encoder = build_encoder(f"timm:{name}", "imagenet", SIZE)
    assert encoder.training
    assert feature_dim(encoder) == dim
    assert encoder(torch.rand(2, 3, SIZE, SIZE)).shape == (2, dim)
    assert encoder.state_dict().keys() == of_timm(name).state_dict().keys()


def test_both_networks_are_trained_without_dropout_of_their_own():
    model = BYOL(config(arch="timm:vit_tiny_patch16_224", stem="auto", image_size=SIZE)).train()
    view = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(model.online.encoder(view), model.online.encoder(view))
    assert torch.equal(model.online.encoder(view), model.target.encoder(view))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:vit_tiny_patch16_244", "did you mean vit_tiny_patch16_224"),
        ("timm:vit_tiny", "did you mean vit_tiny_patch16_224 or vit_tiny_"),
        ("timm:mobilnet", "did you mean mobile"),
        ("timm:zzz", "take one such as resnet10t, convnext_atto, vit_tiny_patch16_224; docs/export.md lists"),
        ("timm:hf-hub:someone/something", "has no model 'hf-hub:someone/something'"),
        ("timm:resnet18.a1_in1k", "pretrained weights 'a1_in1k', but training starts from random ones: use timm:res"),
    ],
)
def test_an_unknown_name_is_a_wrong_command_with_a_suggestion(arch, message, images, tmp_path):
    done = byol("train", images, "--out", tmp_path / "run", "--arch", arch)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=re.escape(message)):
        build_encoder(arch, "imagenet")


def test_a_size_that_does_not_suit_the_model_is_refused():
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224 at 8 px cannot be built: .*another --image-size"):
        build_encoder("timm:vit_tiny_patch16_224", "imagenet", 8)
    with pytest.raises(ValueError, match="stem is 'cifar'; a model of timm's has first layers of its own"):
        build_encoder("timm:resnet10t", "cifar", 32)


def test_a_transformer_learns_from_views_of_other_sizes_and_a_model_that_cannot_is_refused(images, tmp_path):
    sizes = ("--image-size", "64", "--set", "start_size=32", "--batch-size", "8", "--max-steps", "2")
    words = ("train", images, "--out", tmp_path / "run", "--device", "cpu", *sizes)
    done = byol(*words, "--arch", "timm:mixer_s16_224")
    assert (done.code, "takes one image size only" in done.err) == (1, True), done.err
    small = ("--set", "local_views=1", "--set", "local_size=32", "--set", "drop_path=0.1")
    done = byol(*words, *small, "--arch", "timm:test_vit")
    assert (done.code, "timm:test_vit at 64 px" in done.err) == (0, True), done.err
    bundle = byol("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert bundle.code == 0, bundle.err


def test_the_target_network_has_no_stochastic_depth():
    model = BYOL(TrainConfig(arch="timm:test_vit", image_size=32, drop_path=0.3))
    rates = [
        [layer.drop_prob for layer in network.modules() if isinstance(layer, DropPath)]
        for network in (model.online, model.target)
    ]
    assert max(rates[0]) > 0
    assert not any(rates[1])


class Tokens(nn.Module):
    """What transformers need of the export: two kinds of tokens, a mask, a scale, elements from the front and back."""

    mask: torch.Tensor | None

    def __init__(self, mask=None, copies=1):
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 2, 12))
        self.copies = copies
        self.register_buffer("mask", mask)

    def forward(self, x):
        batch = x.shape[0]  # not len(x), a plain number, which would fix the batch
        patches = x.flatten(2).transpose(1, 2).reshape(batch, -1, 12)  # (B, 16, 12)
        first = self.first.expand(batch, self.copies, -1)
        x = torch.cat([first, patches, self.last.expand(batch, -1, -1)], dim=1)
        x = F.scaled_dot_product_attention(x, x.roll(1, 1), x, attn_mask=self.mask, scale=0.2)
        return torch.cat([x[:, 0], x[:, -1], x[:, 3]], dim=1)


@pytest.mark.parametrize(("masked", "copies"), [(False, 1), (True, 1), (False, 2)])
def test_tokens_and_attention_export_without_shape_arithmetic(masked, copies):
    torch.manual_seed(0)
    encoder = Tokens(torch.randn(19, 19) if masked else None, copies)
    proto = encoder_to_onnx(encoder, 8, MEAN, STD)
    parity, (_, features) = measure(encoder, proto.SerializeToString(), 8, MEAN, STD)
    assert parity.max_relative_error < 1e-5  # float32 sums of at most 64 terms
    assert features.shape == (33, 36)


class Windows(nn.Module):
    """MaxViT's attention: how its result lies in memory, torch's exporter remembers in one of its passes only."""

    def __init__(self):
        from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl

        super().__init__()
        config = MaxxVitTransformerCfg(dim_head=16, window_size=(4, 4), rel_pos_type="bias")
        self.embed, self.block = nn.Conv2d(3, 32, 1), PartitionAttentionCl(32, "block", config)

    def forward(self, x):
        return self.block(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2))


def test_attention_in_windows_exports():
    torch.manual_seed(0)
    encoder = Windows().eval()
    parity, _ = measure(encoder, encoder_to_onnx(encoder, 8, MEAN, STD).SerializeToString(), 8, MEAN, STD)
    assert parity.max_relative_error < 1e-5


class Branch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_what_torch_cannot_export_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"torch cannot export this encoder to ONNX: .*; choose another --arch"
    ) as caught:
        encoder_to_onnx(Branch(), 8, MEAN, STD)
    assert "\n" not in str(caught.value)


# At timm's own size of each: there the last maps are larger than one pixel, and pooling has something to do.
OWN_SIZE = {
    **{"test_vit": "class token", "test_vit4": "resampled positions", "test_convnext": "channels last"},
    **{"test_efficientnet_ln": "LayerNorm2d", "test_efficientnet_evos": "EvoNorm", "test_nfnet": "scaled weights"},
}


@pytest.mark.parametrize("name", OWN_SIZE)
def test_families_export_at_their_own_size(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it")
    torch.manual_seed(0)
    encoder = build_encoder(f"timm:{name}", "imagenet", 160).eval()
    proto = encoder_to_onnx(encoder, 160, MEAN, STD)
    parity, _ = measure(encoder, proto.SerializeToString(), 160, MEAN, STD)
    assert parity.max_relative_error < 1e-5


def test_the_names_for_whoever_has_none_were_exported() -> None:
    with pytest.raises(ValueError, match=f"has no model ''; take one such as {', '.join(EXAMPLES)}; "):
        build_encoder("timm:", "imagenet")
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "families-cpu.json").read_bytes())["rows"]
    assert {row["row"] for row in rows if "error" in row} >= set(EXAMPLES)

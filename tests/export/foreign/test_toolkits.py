"""Checkpoints of other toolkits, written by those toolkits where they are installed: the online encoder, or a refusal.

solo-learn pins a torch of 2021 and cannot be installed beside ours; its layout is written here as its code defines it.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import dill
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from byol import load_encoder
from byol.bundle.folder import Bundle
from byol.bundle.parity import compare_features
from byol.export.foreign.input import input_of
from byol.export.foreign.toolkits import foreign_encoder
from byol.export.graph import encoder_to_onnx
from byol.export.parity import measure
from byol.serve import Encoder
from tests.support.command_line import byol
from tests.support.documents import code
from tests.support.inputs.foreign import SIZE, assert_same, features, images, refused, resnet, saved
from tests.support.networks import randomise_norms

# ------------------------------------------------------------------------------------------- written for real


def lightly_module(backbone, momentum):
    """BYOL as lightly's documentation builds it, on its own heads and helpers."""
    heads = pytest.importorskip("lightly.models.modules")
    from lightly.models.utils import deactivate_requires_grad

    class BYOL(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone
            self.projection_head = heads.BYOLProjectionHead(512, 1024, 256)
            self.prediction_head = heads.BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum = momentum
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)

    return BYOL()


def test_lightlys_documented_byol_saved_by_lightning(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    online, momentum = resnet(0), resnet(1)
    parts = lightly_module(*(nn.Sequential(*list(m.children())[:-1]) for m in (online, momentum)))

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.06})
            for name, child in parts.named_children():
                setattr(self, name, child)

        def training_step(self, batch, _):
            return sum(p.sum() for p in self.parameters()) * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module().eval(), torch.utils.data.DataLoader(TensorDataset(torch.zeros(2))))
    trainer.save_checkpoint(tmp_path / "epoch=0.ckpt")
    weights = foreign_encoder(tmp_path / "epoch=0.ckpt", "auto", "resnet18", SIZE)
    assert_same(weights, features(online))
    assert (weights.origin.toolkit, weights.stem) == ("lightly", "imagenet")
    assert weights.left == {
        "backbone_momentum": 120,
        "prediction_head": 8,
        "projection_head": 8,
        "projection_head_momentum": 8,
    }


def test_lightlys_cifar_resnet(tmp_path):
    models = pytest.importorskip("lightly.models")
    torch.manual_seed(0)
    generated = randomise_norms(models.ResNetGenerator("resnet-18", 1, num_splits=0))
    backbone = nn.Sequential(*list(generated.children())[:-1], nn.AdaptiveAvgPool2d(1)).eval()
    module = lightly_module(backbone, copy.deepcopy(randomise_norms(backbone, 1)))
    randomise_norms(backbone, 0)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "cifar.ckpt")
    weights = foreign_encoder(tmp_path / "cifar.ckpt", "lightly", "resnet18", SIZE)
    assert weights.stem == "cifar-no-relu"
    assert_same(weights, features(backbone, cut=False))


def test_byol_pytorch(tmp_path):
    package = pytest.importorskip("byol_pytorch")
    net = resnet(0)
    net.train()
    learner = package.BYOL(net, image_size=SIZE, hidden_layer="avgpool")
    learner(torch.randn(4, 3, SIZE, SIZE))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)  # the target stays behind
    torch.save(learner.state_dict(), tmp_path / "learner.pt")
    weights = foreign_encoder(tmp_path / "learner.pt", "auto", "resnet18", SIZE)
    assert weights.origin.toolkit == "byol-pytorch"
    assert_same(weights, features(net))
    torch.save(net.state_dict(), tmp_path / "improved-net.pt")  # what its README saves
    assert_same(foreign_encoder(tmp_path / "improved-net.pt", "auto", "resnet18", SIZE), features(net))


def solo_learn(path, prefix, **kind):
    """A checkpoint as solo-learn's BYOL writes it, and its online encoder."""
    online, momentum = resnet(0, **kind), resnet(1, **kind)
    module = nn.ModuleDict({prefix: online, f"momentum_{prefix}": momentum, "classifier": nn.Linear(512, 10)})
    for name in ("projector", "momentum_projector", "predictor"):
        module[name] = nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    online.fc = momentum.fc = nn.Identity()
    return saved(path, {"state_dict": module.state_dict(), "epoch": 3}), online


SOLO_LEARNS_CIFAR = {"cifar": True, "padding": 2}  # conv1 of its methods/base.py for CIFAR-10 and CIFAR-100


@pytest.mark.parametrize("prefix", ["backbone", "encoder"])
def test_solo_learns_layout(tmp_path, prefix):
    for kind, stem in (({}, "imagenet"), (SOLO_LEARNS_CIFAR, "cifar-padded")):
        path, online = solo_learn(tmp_path / "byol.ckpt", prefix, **kind)
        for toolkit in ("solo-learn", "auto")[: 1 if kind else 2]:
            weights = foreign_encoder(path, toolkit, "resnet18", SIZE)
            assert (weights.origin.toolkit, weights.stem) == ("solo-learn", stem)
            assert_same(weights, features(online))
            weights = foreign_encoder(path, toolkit, "resnet18", SIZE, prefix=prefix)
            assert (weights.origin.toolkit, weights.stem) == (f"prefix {prefix}", stem)
            assert_same(weights, features(online))


BY_ONE_OR_TWO = r"--from torchvision \(cifar stem\) or --from solo-learn \(cifar-padded stem\)"


@pytest.mark.parametrize("padding", [1, 2])
def test_of_solo_learns_common_names_nobody_can_tell_who_padded(tmp_path, padding):
    """`encoder`, `projector` and `predictor` are also what anybody calls them, whose first layer pads by 1."""
    path, online = solo_learn(tmp_path / "own.ckpt", "encoder", cifar=True, padding=padding)
    refused(
        path,
        r"say which: --from solo-learn \(cifar-padded stem\) or --from torchvision --prefix encoder \(cifar stem\)",
    )
    refused(path, BY_ONE_OR_TWO, prefix="encoder")
    toolkit = "torchvision" if padding == 1 else "solo-learn"
    assert_same(foreign_encoder(path, toolkit, "resnet18", SIZE, prefix="encoder"), features(online))


def test_a_first_layer_below_a_prefix_is_padded_as_its_toolkit_does(tmp_path):
    """solo-learn's MoCo v2 on CIFAR, whose queue and heads fit no layout of its BYOL."""
    online = resnet(0, **SOLO_LEARNS_CIFAR)
    online.fc = nn.Identity()
    tensors = {f"backbone.{name}": value for name, value in online.state_dict().items()} | {"queue": torch.ones(2, 4)}
    path = saved(tmp_path / "moco.ckpt", {"state_dict": tensors})
    refused(path, "--prefix PART")
    refused(path, BY_ONE_OR_TWO, prefix="backbone")
    weights = foreign_encoder(path, "solo-learn", "resnet18", SIZE, prefix="backbone")
    assert (weights.stem, weights.left) == ("cifar-padded", {"queue": 1})
    assert_same(weights, features(online))


def test_a_cifar_backbone_without_its_checkpoint_needs_its_toolkit(tmp_path):
    for padding, toolkit in ((1, "torchvision"), (2, "solo-learn")):
        model = resnet(0, cifar=True, padding=padding)
        path = saved(tmp_path / "plain.pth", model.state_dict())
        refused(path, BY_ONE_OR_TWO)
        assert_same(foreign_encoder(path, toolkit, "resnet18", SIZE), features(model))


def test_a_first_layer_that_two_toolkits_pad_differently_is_not_guessed(tmp_path):
    model = resnet(0, **SOLO_LEARNS_CIFAR)
    model.fc = nn.Identity()
    path = saved(tmp_path / "a.ckpt", {f"backbone.{name}": value for name, value in model.state_dict().items()})
    for prefix in (None, "backbone"):
        message = r"--from lightly \(cifar stem\) or --from solo-learn \(cifar-padded stem\)"
        refused(path, message, prefix=prefix)
    assert_same(foreign_encoder(path, "solo-learn", "resnet18", SIZE), features(model))
    assert foreign_encoder(path, "lightly", "resnet18", SIZE).stem == "cifar"
    other = resnet(0)
    other.fc = nn.Identity()
    path = saved(tmp_path / "b.ckpt", {f"backbone.{name}": value for name, value in other.state_dict().items()})
    assert_same(foreign_encoder(path, "auto", "resnet18", SIZE), features(other))


def test_a_padded_first_layer_is_exported_and_loaded_again(tmp_path):
    path, online = solo_learn(tmp_path / "byol.ckpt", "backbone", **SOLO_LEARNS_CIFAR)
    words = ("export", path, "--from", "solo-learn", "--arch", "resnet18", "--image-size", str(SIZE))
    done = byol(*words, "--out", tmp_path / "bundle")  # which compares the graph with torch
    assert done.code == 0, done.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.architecture.stem == "cifar-padded"
    assert "padded by 2" in (tmp_path / "bundle" / "README.md").read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (manifest.preprocess.mean, manifest.preprocess.std))
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = online(normalised)
        torch.testing.assert_close(load_encoder(tmp_path / "bundle")(normalised), expected, atol=1e-5, rtol=1e-4)
    assert compare_features(expected.numpy(), Encoder(tmp_path / "bundle", "cpu").encode(pixels))[0] < 1e-4


def test_swavs_checkpoints(tmp_path):
    """As its code saves them: a state dict of DistributedDataParallel, released alone or while training with more."""
    model = resnet(0)
    tensors = {f"module.{name}": value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    heads = nn.ModuleDict({"projection_head": nn.Linear(512, 8), "prototypes": nn.Linear(8, 4, bias=False)})
    tensors |= {f"module.{name}": value for name, value in heads.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    for name, content in (("a", tensors), ("b", {"epoch": 3, "state_dict": tensors, "optimizer": optimizer})):
        for toolkit in ("auto", "swav"):
            weights = foreign_encoder(saved(tmp_path / f"{name}.pth.tar", content), toolkit, "resnet18", SIZE)
            assert_same(weights, features(model))
            assert (weights.origin.toolkit, weights.left) == ("swav", {"projection_head": 2, "prototypes": 1})
            assert weights.input.std == (0.228, 0.224, 0.225)


def test_vissls_checkpoints(tmp_path):
    """Trained (trunk and heads, four containers deep), and from its model zoo (the trunk alone)."""
    model = resnet(0)
    trunk = {f"_feature_blocks.{name}": v for name, v in model.state_dict().items() if not name.startswith("fc.")}
    heads = {f"0.clf.0.{name}": v for name, v in nn.Linear(512, 8).state_dict().items()}
    base = {"model": {"trunk": trunk, "heads": heads}, "meta": {"trunk": {}, "heads": []}}
    task = {"train": True, "base_model": base, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}}
    trained = {"phase_idx": 3, "iteration": 9, "classy_state_dict": task, "type": "phase_end"}
    for toolkit in ("auto", "vissl"):
        weights = foreign_encoder(saved(tmp_path / "a.torch", trained), toolkit, "resnet18", SIZE)
        assert_same(weights, features(model))
        assert (weights.origin.toolkit, weights.left) == ("vissl", {"heads": 2})
    for content in (trunk, {"model_state_dict": trunk}):
        assert_same(foreign_encoder(saved(tmp_path / "b.torch", content), "auto", "resnet18", SIZE), features(model))


def test_torchvision_and_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = resnet(0)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    assert_same(foreign_encoder(tmp_path / "resnet18.pth", "auto", "resnet18", SIZE), features(model))
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIZE)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    weights = foreign_encoder(tmp_path / "vit.pth", "timm", "timm:vit_tiny_patch16_224", SIZE)
    assert weights.left == {"head": 2}
    with torch.no_grad():
        assert_same(weights, vit.eval().forward_head(vit.forward_features(images()), pre_logits=True))


@pytest.mark.parametrize("name", ["convnext_atto", "levit_128s"])  # whose heads are more than a classifier
def test_of_a_timm_head_what_the_features_need_is_taken(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model(name).state_dict(), tmp_path / "model.pth")
    weights = foreign_encoder(tmp_path / "model.pth", "auto", f"timm:{name}", 224)
    assert list(weights.left) in (["head"], ["head", "head_dist"])


def drawn(random, name, shape):
    """Weights that keep the size of their input, and norms that do something, also the last of each block."""
    if name == "w":
        return random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
    low, high = (0.5, 1.5) if name == "scale" else (-0.5, 0.5)
    return random.uniform(low, high, shape).astype(np.float32)


def test_deepminds_arrays_give_haikus_features(tmp_path):
    """Haiku's own ResNet-50, whose modules have the names and the padding of the released one's."""
    hk, jax = pytest.importorskip("haiku"), pytest.importorskip("jax")

    def forward(images, is_training):
        network = hk.nets.ResNet50(2048, logits_config={"with_bias": False}, name="res_net50")
        return network(images, is_training)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    pictures = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    # Of Haiku's own start only the shapes: compiling its random numbers takes as long as all the rest.
    shapes, state = jax.eval_shape(lambda *given: transformed.init(*given, True), jax.random.PRNGKey(0), pictures)
    state = jax.tree.map(lambda of: np.zeros(of.shape, of.dtype), state)
    draw = np.random.default_rng(1)
    params = {
        module: {name: drawn(draw, name, of.shape) for name, of in values.items()} for module, values in shapes.items()
    }
    params["res_net50/~/logits"]["w"] = np.eye(2048, dtype=np.float32)  # the output is the features
    _, state = transformed.apply(params, state, pictures, True)
    expected, _ = transformed.apply(params, state, pictures, False)
    del params["res_net50/~/logits"]
    arrays = {
        f"{part}/{module}/{name}": np.asarray(value)
        for part, tree in (("online_params", params), ("online_state", state), ("target_params", params))
        for module, values in tree.items()
        for name, value in values.items()
    }
    arrays["online_params/projector/linear/w"] = np.zeros((2, 2), np.float32)
    np.savez(tmp_path / "byol.npz", allow_pickle=False, **arrays)
    weights = foreign_encoder(tmp_path / "byol.npz", "auto", "resnet50", 64)
    assert (weights.origin.toolkit, weights.stem) == ("deepmind", "imagenet-same")
    with torch.no_grad():
        found = weights.encoder(torch.from_numpy(pictures).permute(0, 3, 1, 2)).numpy()
    error, cosine = compare_features(np.asarray(expected), found)
    assert error < 1e-3  # float32 of two frameworks through 53 layers: 1.2e-4 seen
    assert cosine > 0.99999
    proto = encoder_to_onnx(weights.encoder, 64, (0.5,) * 3, (0.5,) * 3)
    assert measure(weights.encoder, proto.SerializeToString(), 64, (0.5,) * 3, (0.5,) * 3)[0].max_relative_error < 1e-4
    message = "image_size is 70; padding as TensorFlow does needs a multiple of 32"
    refused(tmp_path / "byol.npz", message, arch="resnet50", size=70)
    arrays["online_params/res_net50/~/logits/w"] = np.eye(2, dtype=np.float32)
    np.savez(tmp_path / "more.npz", allow_pickle=False, **arrays)
    refused(tmp_path / "more.npz", "Name the part that is the online encoder", arch="resnet50", size=64)


def test_the_documented_conversion_of_deepminds_pickle(tmp_path, monkeypatch):
    """The released pickles hold an object with trees of arrays; its own class is not needed to see what is taken."""
    weight, mean = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    state = SimpleNamespace(
        online_params={"res_net50/~/initial_conv": {"w": weight}},
        online_state={"res_net50/~/initial_batchnorm/~/mean_ema": {"average": mean}},
        target_params={"res_net50/~/initial_conv": {"w": -weight}},
    )
    monkeypatch.chdir(tmp_path)
    with open("pretrain_res50x1.pkl", "wb") as file:
        dill.dump({"experiment_state": state}, file)
    (block,) = code("export.md", "Encoders trained elsewhere")
    exec(block, {})
    with np.load("byol.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {
            "online_params/res_net50/~/initial_conv/w",
            "online_state/res_net50/~/initial_batchnorm/~/mean_ema/average",
        }
        np.testing.assert_array_equal(arrays["online_params/res_net50/~/initial_conv/w"], weight)


# --------------------------------------------------------------------------------------------- through the command


def test_the_command_says_what_it_took_and_writes_a_bundle(tmp_path):
    model = resnet(0, cifar=True)
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "model.pth")
    done = byol(
        *("export", tmp_path / "model.pth", "--from", "torchvision", "--arch", "resnet18", "--image-size", str(SIZE)),
        *("--out", tmp_path / "bundle"),
    )
    assert done.code == 0, done.err
    assert "model.pth read as torchvision: resnet18, cifar stem\ntook: bn1 (5), conv1 (1)," in done.err
    assert "left: fc (2)\n" in done.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.training is None
    assert manifest.origin is not None
    assert (manifest.origin.toolkit, manifest.origin.file) == ("torchvision", "model.pth")
    assert "read from `model.pth` (`torchvision`, SHA-256" in (tmp_path / "bundle" / "README.md").read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (manifest.preprocess.mean, manifest.preprocess.std))
    model.fc = nn.Identity()
    with torch.no_grad():
        expected = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert compare_features(expected, Encoder(tmp_path / "bundle", "cpu").encode(pixels))[0] < 1e-4


def test_a_timm_checkpoint_needs_no_prefix_before_its_models_name(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet10t.pth")
    words = ("export", tmp_path / "resnet10t.pth", "--image-size", str(SIZE), "--from", "timm", "--arch", "resnet10t")
    done = byol(*words, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    architecture = Bundle.open(tmp_path / "bundle").manifest.architecture
    assert (architecture.library, architecture.name) == ("timm", "resnet10t")


SQUASHED = "timm's crop_mode is squash, a bundle's center"


@pytest.mark.parametrize(
    ("arch", "size", "resize", "mean", "remark"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", 224, 248, (0.5, 0.5, 0.5), ""),
        ("resnet10t", 176, 201, (0.485, 0.456, 0.406), ""),  # no tag: timm's default one
        ("convnext_base.clip_laion2b", 256, 256, (0.48145466, 0.4578275, 0.40821073), ""),
        ("convnext_base.fb_in22k_ft_in1k_384", 384, 384, (0.485, 0.456, 0.406), SQUASHED),
        ("efficientnet_b0.ra_in1k", 224, 256, (0.485, 0.456, 0.406), ""),
        ("resnet50.tv_in1k", 224, 256, (0.485, 0.456, 0.406), "timm's interpolation is bilinear, a bundle's bicubic"),
    ],
)
def test_the_input_of_timms_weights_is_timms(arch, size, resize, mean, remark):
    pytest.importorskip("timm")
    found = input_of("timm", f"timm:{arch}", None)
    assert (found.size, found.resize, found.mean, found.remark) == (size, resize, mean, remark)
    assert found.origin.startswith(f"timm's for {arch.partition('.')[0]}.")
    smaller = input_of("timm", f"timm:{arch}", 64)
    assert smaller.size == 64
    assert smaller.resize / 64 == pytest.approx(resize / size, abs=1 / 64)


def test_a_tag_says_which_input_and_is_no_architecture(tmp_path):
    """The bundle computes what timm does with its numbers; options have the last word."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    words = ("export", tmp_path / "vit.pth", "--from", "timm", "--image-size", str(SIZE), "--out", tmp_path / "bundle")
    done = byol(*words, "--arch", "vit_tiny_patch16_224.augreg_in21k")
    assert done.code == 0, done.err
    assert (
        "input: 32 px, the middle of 35; mean 0.5 0.5 0.5, std 0.5 0.5 0.5, timm's for vit_tiny_patch16_224."
        in done.err
    )
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.architecture.name == "vit_tiny_patch16_224"
    assert (manifest.preprocess.resize, manifest.preprocess.crop, manifest.preprocess.mean) == (35, 32, (0.5, 0.5, 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        expected = model.forward_head(model.forward_features(normalised), pre_logits=True).numpy()
    assert compare_features(expected, Encoder(tmp_path / "bundle", "cpu").encode(pixels))[0] < 1e-4
    done = byol(*words, "--arch", "vit_tiny_patch16_224.mine")
    assert (done.code, "timm has no weights 'mine' of vit_tiny_patch16_224; expected augreg_in21k" in done.err) == (
        1,
        True,
    )
    done = byol(*words, "--arch", "vit_tiny_patch16_224", "--mean", "0.1", "0.2", "0.3", "--std", "1", "1", "1")
    assert done.code == 0, done.err
    assert Bundle.open(tmp_path / "bundle").manifest.preprocess.mean == (0.1, 0.2, 0.3)


def test_arch_is_needed(tmp_path):
    (tmp_path / "x.pth").touch()
    done = byol("export", tmp_path / "x.pth", "--from", "lightly", "--out", tmp_path / "b")
    assert (done.code, "add --arch NAME" in done.err) == (2, True)

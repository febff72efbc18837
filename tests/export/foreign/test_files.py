"""Foreign checkpoints that are refused: nothing is guessed, no code runs, the old bundle stays."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from byol.bundle.manifest import Origin
from byol.bundle.schema import build, plain
from byol.encoders.build import MeanPool, build_encoder
from byol.export.foreign.toolkits import foreign_encoder
from byol.export.source import read_run
from byol.training.checkpoint import read_checkpoint
from tests.support.command_line import byol
from tests.support.inputs.foreign import SIZE, assert_same, features, refused, resnet, saved
from tests.support.small import config


def test_between_two_unknown_encoders_nothing_is_guessed(tmp_path):
    online, other = build_encoder("resnet18", "imagenet").state_dict(), build_encoder("resnet18", "imagenet")
    both = {f"first.{k}": v for k, v in online.items()} | {f"second.{k}": v for k, v in other.state_dict().items()}
    path = saved(tmp_path / "two.pth", both)
    refused(path, r"any known toolkit with resnet18: it holds first\.\* \(120\), second\.\* \(120\).*--prefix PART")
    weights = foreign_encoder(path, "auto", "resnet18", SIZE, prefix="first")
    torch.testing.assert_close(weights.encoder.state_dict(), online)
    assert weights.left == {"second": 120}
    refused(path, r"holds nothing under third\.\*; it holds first\.\* \(120\), second\.\* \(120\)", prefix="third")
    weights = foreign_encoder(path, "lightly", "resnet18", SIZE, prefix="second")
    torch.testing.assert_close(weights.encoder.state_dict(), other.state_dict())


def test_between_two_versions_of_a_model_nothing_is_guessed(tmp_path):
    online, average = resnet(0).state_dict(), resnet(1).state_dict()
    path = saved(tmp_path / "a.pth", {"state_dict": online, "state_dict_ema": average, "optimizer": {"state": {}}})
    refused(path, "more than once, as state_dict and state_dict_ema; choose one: --prefix state_dict$")
    for name, tensors in (("state_dict", online), ("state_dict_ema", average)):
        weights = foreign_encoder(path, "auto", "resnet18", SIZE, prefix=name)
        torch.testing.assert_close(weights.encoder.state_dict()["conv1.weight"], tensors["conv1.weight"])
        other = ({"state_dict", "state_dict_ema"} - {name}).pop()
        assert weights.left == {"fc": 2, other: 122}


def test_a_part_of_no_usual_name_must_be_named(tmp_path):
    student = {f"module.backbone.{name}": value for name, value in resnet(0).state_dict().items()}
    path = saved(tmp_path / "a.pth", {"student": student, "teacher": student, "epoch": 3})
    refused(path, r"it holds student.* \(122\), teacher.* \(122\): name one, --prefix NAME")
    for prefix in ("student.backbone", "student.module.backbone"):
        weights = foreign_encoder(path, "auto", "resnet18", SIZE, prefix=prefix)
        assert weights.left == {"backbone": 2, "teacher": 122}


def test_a_manifest_can_hold_the_name_of_the_file_and_of_the_prefix(tmp_path):
    tensors = {f"a\tb.{name}": value for name, value in resnet(0).state_dict().items()}
    path = tmp_path / os.fsdecode(b"mod\xe8l\n.pth")
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    origin = foreign_encoder(saved(path, tensors), "auto", "resnet18", SIZE, prefix="a\tb").origin
    assert (origin.toolkit, origin.file) == ("prefix a\\tb", "mod\\xe8l\\n.pth")
    assert build(Origin, plain(origin)) == origin


def test_missing_counters_are_no_obstacle(tmp_path):
    tensors = {name: value for name, value in resnet().state_dict().items() if "num_batches" not in name}
    assert_same(foreign_encoder(saved(tmp_path / "a.pth", tensors), "auto", "resnet18", SIZE), features(resnet()))
    tensors["bn1.num_batches_tracked"] = torch.tensor(1)
    refused(saved(tmp_path / "b.pth", tensors), "missing: layer1.0.bn1.num_batches_tracked")


def test_an_unexplained_tensor_is_refused(tmp_path):
    tensors = resnet().state_dict()
    refused(saved(tmp_path / "a.pth", {**tensors, "gate.weight": torch.ones(1)}), "unexpected: gate.weight")
    prefixed = {f"backbone.{k}": v for k, v in tensors.items()}
    refused(saved(tmp_path / "b.pth", {**prefixed, "mystery.weight": torch.ones(1)}), r"mystery\.\* \(1\)")


def test_another_architecture_and_missing_tensors_are_refused(tmp_path):
    path = saved(tmp_path / "a.pth", resnet().state_dict())
    refused(path, "missing: layer1.2.bn1.bias", arch="resnet34")
    refused(path, "does not look like lightly with resnet18", toolkit="lightly")
    refused(path, "arch is 'resnet19'; expected resnet18", arch="resnet19")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    tensors = resnet().state_dict()
    tensors["layer1.0.conv1.weight"][0] = float("nan")
    refused(saved(tmp_path / "a.pth", tensors), "weights are not all finite")


def test_what_needs_code_to_be_read_is_refused_with_the_way_to_convert_it(tmp_path):
    path = saved(tmp_path / "run.ckpt", {"state_dict": resnet().state_dict(), "args": argparse.Namespace(lr=1)})
    refused(
        path,
        r"(?s)run.ckpt holds more than tensors \(.*argparse.Namespace.*only if you trust it, convert it:.*"
        r"save_file.*and export run.safetensors",
    )
    tensors = {k: v.clone().contiguous() for k, v in resnet().state_dict().items()}
    save_file(tensors, tmp_path / "run.safetensors")  # what the advice writes
    assert_same(foreign_encoder(tmp_path / "run.safetensors", "auto", "resnet18", SIZE), features(resnet()))


def test_a_whole_model_and_a_program_are_refused_with_ways_that_convert_them(tmp_path, monkeypatch):
    """The advice is run as it is printed."""
    monkeypatch.chdir(tmp_path)
    torch.save(resnet(), "model.pt")
    torch.jit.script(resnet()).save("program.pt")
    for name in ("model", "program"):
        with pytest.raises(ValueError, match="convert it:") as caught:
            foreign_encoder(Path(f"{name}.pt"), "auto", "resnet18", SIZE)
        advice = str(caught.value).partition("convert it:\n")[2].rpartition("\n")[0]
        exec(textwrap.dedent(advice), {})
        assert_same(foreign_encoder(Path(f"{name}.safetensors"), "auto", "resnet18", SIZE), features(resnet()))


def test_the_conversion_keeps_the_parts_of_a_checkpoint_of_several_networks(tmp_path, monkeypatch):
    """DINO's and iBOT's layout: networks of no usual container beside an `args`; the advice is run as it is printed."""
    monkeypatch.chdir(tmp_path)
    teacher = {f"backbone.{name}": value for name, value in resnet(0).state_dict().items()}
    student = {f"module.backbone.{name}": value for name, value in resnet(1).state_dict().items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    parts = {"epoch": 3, "student": student, "teacher": teacher, "optimizer": optimizer, "fp16_scaler": None}
    torch.save({**parts, "args": argparse.Namespace(lr=1), "dino_loss": {"center": torch.zeros(1, 4)}}, "dino.pth")
    with pytest.raises(ValueError, match="convert it:") as caught:
        foreign_encoder(Path("dino.pth"), "auto", "resnet18", SIZE)
    exec(textwrap.dedent(str(caught.value).partition("convert it:\n")[2].rpartition("\n")[0]), {})
    refused(Path("dino.safetensors"), r"student\.\* \(122\), teacher\.\* \(122\).*--prefix PART")
    for prefix, seed in (("teacher.backbone", 0), ("student.backbone", 1)):
        weights = foreign_encoder(Path("dino.safetensors"), "auto", "resnet18", SIZE, prefix=prefix)
        assert_same(weights, features(resnet(seed)))


def test_what_a_hub_offers_is_told_how_to_be_exported(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.onnx").write_bytes(b"")
    advice = "for another toolkit's weights, add --from auto --arch NAME"
    for path, message in (
        (tmp_path / "model.safetensors", f"is not a byol checkpoint .*; {advice}"),
        (tmp_path, f"is neither a run nor a bundle; name the weights' file in it, and {advice}"),
        (tmp_path / "model.onnx", "is an ONNX graph; export the checkpoint that it was made from"),
    ):
        with pytest.raises(ValueError, match=message):
            read_run(path)
    refused(tmp_path / "model.onnx", "is an ONNX graph; name the checkpoint")


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_checkpoint_never_runs(tmp_path, kind, capsys):
    path = tmp_path / "evil.pt"
    if kind == "torch":
        torch.save({"state_dict": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    refused(path, "evil.pt")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense", json.dumps({"a": 1}).encode()])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name)


def test_a_truncated_checkpoint_and_one_without_tensors(tmp_path):
    path = saved(tmp_path / "a.pth", resnet().state_dict())
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "a.pth is damaged")
    refused(saved(tmp_path / "b.pth", {"epoch": 3}), "holds no named tensors")
    refused(saved(tmp_path / "c.pth", [1, 2]), "holds no named tensors")
    refused(tmp_path / "none.pth", "does not exist")


def test_a_failed_export_leaves_the_old_bundle(tmp_path):
    path = saved(tmp_path / "a.pth", resnet(cifar=True).state_dict())
    words = ("--from", "torchvision", "--image-size", str(SIZE), "--out", tmp_path / "bundle")
    assert byol("export", path, "--arch", "resnet18", *words).code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()}
    done = byol("export", path, "--arch", "resnet50", *words)
    assert (done.code, done.err.count("\n") < 30, "Traceback" in done.err) == (1, True, False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()} == before


def test_pooling_of_the_plain_model_is_ours():
    torch.testing.assert_close(MeanPool()(torch.arange(8.0).reshape(1, 2, 2, 2)), torch.tensor([[1.5, 5.5]]))


@pytest.mark.parametrize(
    "changes",
    [
        *({"data": text} for text in ('{"name": "a", "images": 0}', '{"name": "a"}', "[]", "5", "[" * 100_000)),
        *({"data": '{"name": "a", "images": "5"}'}, {"data": '{"name": 5, "images": 5}'}),
        *({"config": text} for text in ("[]", "5", "null", "[" * 100_000, '{"view1": 5}')),
        *({"step": text} for text in ("-1", "x", "9" * 5000)),
    ],
)
def test_metadata_of_our_own_checkpoints_is_not_trusted_either(tmp_path, changes):
    facts = {"step": "1", "epoch": "1", "config": json.dumps(config().to_dict()), "data": '{"name": "a", "images": 5}'}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": "1", **facts, **changes})
    with pytest.raises(ValueError, match=r"a\.safetensors has damaged metadata: ") as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_prints_the_recipe_in_lines_that_can_be_copied(tmp_path):
    torch.save(resnet(), tmp_path / "mo\x1bdel.pt")
    done = byol(
        *("export", tmp_path / "mo\x1bdel.pt", "--from", "auto", "--arch", "resnet18", "--out", tmp_path / "bundle")
    )
    assert done.code == 1
    assert "\n  from safetensors.torch import save_file\n" in done.err
    assert "mo\\x1bdel.pt holds more than tensors" in done.err
    assert "\x1b" not in done.err

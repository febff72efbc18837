"""`byol export --untrained`, and `--baselines` where it is really made: in another process, by the one export path."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from byol.bundle.folder import Bundle
from byol.export.additions import Additions
from byol.export.exporter import export_bundle
from byol.export.source import read_untrained
from byol.serve.proof import verify
from byol.training.model import BYOL
from tests.support.command_line import byol
from tests.support.small import config

CPU = ("--device", "cpu")


def begun_with(seed):
    """The online encoder as the trainer begins with it."""
    torch.manual_seed(seed)
    return BYOL(config(stem="imagenet", seed=seed)).online.encoder.state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_run_is_taken_back_to_its_first_step(quick):
    state = torch.get_rng_state()
    source = read_untrained(quick / "run")
    assert torch.equal(torch.get_rng_state(), state)  # the host's own random numbers go on as they would
    assert_same(source.encoder.state_dict(), begun_with(7))
    assert not source.encoder.training
    assert (source.untrained_seed, source.training) == (7, None)


@pytest.fixture(scope="module")
def fresh(quick, tmp_path_factory):
    """What `byol export BUNDLE --untrained` writes."""
    out = tmp_path_factory.mktemp("fresh") / "untrained"
    done = byol("export", quick / "bundle", "--untrained", "--out", out)
    assert done.code == 0, done.err
    return out


def test_a_bundle_gives_seed_0_and_everything_but_the_weights(quick, fresh):
    assert_same(load_file(fresh / "encoder.safetensors"), begun_with(0))
    assert verify(fresh).ok
    trained, untrained = (Bundle.open(folder).manifest for folder in (quick / "bundle", fresh))
    same = ("architecture", "feature_dim", "image_size", "preprocess", "onnx")
    assert [getattr(untrained, name) for name in same] == [getattr(trained, name) for name in same]
    assert (untrained.untrained_seed, untrained.training, untrained.origin) == (0, None, None)
    card = (fresh / "README.md").read_text()
    assert "It is untrained: its weights are random, of seed 0" in card
    assert "trained elsewhere" not in card
    assert "none: random weights of seed 0" in byol("info", fresh).out


def test_its_fine_tuning_does_not_pass_for_that_of_a_trained_one(quick, fresh, tmp_path):
    done = byol("finetune", fresh, quick / "train", "--out", tmp_path / "tuned")
    assert (done.code, done.err) == (
        1,
        f"Error: {fresh} is an untrained encoder; add --from-scratch, or give a trained one\n",
    )


def test_an_unusual_resize_is_kept(quick, tmp_path):
    shutil.copytree(quick / "bundle", tmp_path / "bundle")
    manifest = Bundle.open(tmp_path / "bundle").manifest
    replace(manifest, preprocess=replace(manifest.preprocess, resize=20)).write(tmp_path / "bundle")
    assert read_untrained(tmp_path / "bundle").resize == 20


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--untrained", "--from", "auto", "--arch", "resnet18"), "leave out what describes another toolkit's"),
        (("--baselines",), "--baselines needs images to measure on; add --eval-train and --eval-test"),
    ],
)
def test_contradictions_are_refused(quick, tmp_path, words, line):
    done = byol("export", quick / "run", "--out", tmp_path / "b", *words)
    assert (done.code, line in done.err, (tmp_path / "b").exists()) == (2, True, False)


def test_the_card_has_the_baselines_that_were_measured(quick, fresh, tmp_path, monkeypatch):
    given = []

    def copied(source, out):
        given.append(source)
        return shutil.copytree(fresh, out)

    monkeypatch.setattr("byol.export.exporter._export_untrained", copied)
    sets = {"eval_train": quick / "train", "eval_test": quick / "test"}
    manifest = export_bundle(quick / "run", tmp_path / "b", Additions(**sets, baselines=True))
    assert given == [quick / "run"]
    own, untrained = (top1(folder, quick) for folder in (tmp_path / "b", fresh))
    found = manifest.evaluation
    assert found is not None
    assert found.baselines is not None
    assert found.top1 == {"encoder.onnx": own}
    assert found.baselines["untrained"] == untrained
    assert found.baselines.keys() == {"untrained", "pixels"}
    card = (tmp_path / "b" / "README.md").read_text()
    assert f"; by the same kNN: untrained encoder {untrained:.2%}, raw pixels {found.baselines['pixels']:.2%}." in card
    assert Bundle.open(tmp_path / "b").manifest == manifest


def top1(bundle, quick):
    words = ("--train", quick / "train", "--test", quick / "test", "--json", *CPU)
    return json.loads(byol("knn", bundle, *words).out)["top1"]


def test_another_process_really_exports_it(quick, fresh):
    """The whole way of `--baselines`."""
    words = ("--train", quick / "train", "--test", quick / "test", "--json", *CPU)
    done = byol("knn", quick / "bundle", *words, "--baselines")
    assert done.code == 0, done.err
    assert json.loads(done.out)["baselines"]["untrained"]["top1"] == top1(fresh, quick)
    assert "left out" not in done.err

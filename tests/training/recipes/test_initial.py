"""Runs that start from the weights of a run or a bundle."""

import json
import shutil

import pytest
import torch

from byol.export import export_bundle
from byol.run import INPUTS
from byol.training import job, loop
from byol.training.checkpoint import read_checkpoint
from byol.training.model import BYOL
from byol.training.recipes.initial import read_initial
from byol.training.recipes.settings import Job
from byol.training.run_folder import RunFolder
from tests.support.command_line import byol
from tests.support.small import config, folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=12)


@pytest.fixture(scope="module")
def first(images, tmp_path_factory):
    """A trained run."""
    run = tmp_path_factory.mktemp("first") / "run"
    job.run_training(Job(images, run), config(epochs=1))
    return run


@pytest.fixture(scope="module")
def bundle(first):
    export_bundle(first, first.parent / "bundle")
    return first.parent / "bundle"


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_gives_all_its_networks_and_a_bundle_the_encoder(first, bundle):
    trained = read_checkpoint(first)
    whole = BYOL(config())
    assert read_initial(first).load_into(whole) == "encoder, projector and predictor"
    assert same(whole.state_dict(), trained.model())
    for source, settings in ((bundle, config()), (first, config(projector_out=8))):
        some = BYOL(settings)
        new = {name: value.clone() for name, value in some.state_dict().items() if ".encoder." not in name}
        assert {name.split(".")[1] for name in new} >= {"projector"}
        assert read_initial(source).load_into(some) == "encoder only; projector and predictor are new"
        assert same(some.online.encoder.state_dict(), trained.encoder())
        assert same(some.target.encoder.state_dict(), trained.encoder())
        assert same({name: value for name, value in some.state_dict().items() if name in new}, new)


def test_the_encoder_its_size_and_normalisation_come_with_the_weights(bundle):
    found = read_initial(bundle).applied_to(config(arch="resnet18", image_size=32, mean=(0.1, 0.2, 0.3)))
    assert (found.arch, found.image_size, found.mean) == ("timm:test_resnet", 16, config().mean)
    assert found.init.startswith("bundle ")
    assert found.init == read_initial(bundle).name


def test_a_run_begins_with_the_weights_given(first, images, tmp_path):
    done = byol(
        *("train", images, "--out", tmp_path / "run", "--init", first, "--set", "keep_every=9", "--max-steps", 2),
        *("--set", "projector_hidden=32", "--set", "projector_out=16", "--set", "predictor_hidden=32"),
        *("--device", "cpu", "--precision", "fp32", "--no-export-check"),
    )
    assert done.code == 0, done.err
    assert "starting from run" in done.err
    assert "encoder, projector and predictor" in done.err
    started = read_checkpoint(tmp_path / "run" / "step-00000000.safetensors")
    assert same(started.encoder(), read_checkpoint(first).encoder())
    assert started.config.init == read_initial(first).name
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["inputs"]["init"] == str(first)
    manifest = export_bundle(tmp_path / "run", tmp_path / "bundle")
    assert manifest.training is not None
    assert manifest.training.init == started.config.init
    for said in (byol("info", tmp_path / "bundle").out, (tmp_path / "bundle" / "README.md").read_text()):
        assert "started from" in said
        assert started.config.init in said


def test_a_run_killed_before_its_first_step_still_begins_with_them(first, images, tmp_path, monkeypatch):
    settings = read_initial(first).applied_to(config(epochs=1))
    job.run_training(Job(images, tmp_path / "whole", init=first), config(epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_views", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.run_training(Job(images, tmp_path / "killed", init=first), config(epochs=1))
    assert not (tmp_path / "killed" / "last.safetensors").exists()
    stored = json.loads((tmp_path / "killed" / "config.json").read_text())
    assert stored["config"]["init"] == settings.init
    job.train(images, tmp_path / "killed", config(epochs=1), resume=True, init=first)  # the same call as before
    ended = [read_checkpoint(tmp_path / name).tensors for name in ("whole", "killed")]
    assert same(*ended)

    (tmp_path / "killed" / "last.safetensors").unlink()
    stored["inputs"]["init"] = str(tmp_path / "whole")
    (tmp_path / "killed" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"was to start from the weights run .* give --init with the same ones"):
        job.run_training(Job(None, tmp_path / "killed", resume=True), None)


@pytest.mark.parametrize("began", ["run", "bundle"])
def test_a_run_and_its_bundle_do_not_stand_for_each_other_before_the_first_checkpoint(
    first, bundle, images, tmp_path, monkeypatch, began
):
    """They have the same encoder, but only a run has a projector and a predictor."""
    given, other = (first, bundle) if began == "run" else (bundle, first)
    job.run_training(Job(images, tmp_path / "whole", init=given), config(epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_views", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.run_training(Job(images, tmp_path / "killed", init=given), config(epochs=1))
    if began == "run":
        with pytest.raises(ValueError, match="the same ones: the run or checkpoint itself, since"):
            job.train(images, tmp_path / "killed", resume=True, init=other)
        other = given
    job.train(images, tmp_path / "killed", resume=True, init=other)
    assert same(*(read_checkpoint(tmp_path / name).model() for name in ("whole", "killed")))


def test_weights_that_moved_before_the_first_step_can_be_given_again(first, images, tmp_path):
    settings = read_initial(first).applied_to(config(epochs=1))
    run = RunFolder(tmp_path / "run")
    run.create(settings, {})
    run.remember(INPUTS, {"data": str(images), "init": str(tmp_path / "gone")})
    done = byol("train", "--out", run.path, "--resume")
    assert done.code == 1
    assert "gone" in done.err
    assert "has no checkpoint yet; give --init with the same ones" in done.err
    moved = tmp_path / "of another name"
    shutil.copytree(first, moved)
    done = byol("train", "--out", run.path, "--resume", "--init", moved)
    assert done.code == 0, done.err
    assert read_checkpoint(run.path).config.init == settings.init


def test_weights_are_not_given_to_a_run_that_began_without(first, images, tmp_path):
    RunFolder(tmp_path / "run").create(config(), {})
    done = byol("train", images, "--out", tmp_path / "run", "--resume", "--init", first)
    assert (done.code, "began with random weights; leave out --init" in done.err) == (2, True)


def test_a_command_that_is_repeated_goes_on_with_the_run_s_own_weights(first, bundle, images, tmp_path):
    """As a queue starts it again; other weights are not silently ignored."""
    out, words = tmp_path / "run", ("--max-steps", 2, "--batch-size", 8, "--device", "cpu", "--precision", "fp32")
    for _ in range(2):
        done = byol("train", images, "--out", out, "--init", bundle, "--resume", *words)
        assert done.code == 0, done.err
    assert "continuing after step 2" in done.err
    assert "starting from" not in done.err
    trained = read_checkpoint(out).tensors
    export_bundle(out, tmp_path / "exported")
    for other in (tmp_path / "exported", out, images):
        done = byol("train", images, "--out", out, "--init", other, "--resume", *words)
        assert done.code == 2
        assert f"continues with its own weights: {out} began with bundle " in " ".join(done.err.split())
        with pytest.raises(ValueError, match="continues with its own weights"):
            job.train(images, out, resume=True, init=other)
    assert same(read_checkpoint(out).tensors, trained)


def test_what_holds_no_weights_is_refused(images, tmp_path):
    done = byol("train", images, "--out", tmp_path / "run", "--init", images, "--max-steps", 1)
    assert done.code == 1
    assert "does not exist; a run writes it with its first checkpoint" in done.err

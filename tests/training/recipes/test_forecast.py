"""The run that fits into a given time: arithmetic by hand, and a real one that resumes exactly."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from byol.images.open import open_source
from byol.signals import Ended
from byol.training import job
from byol.training.checkpoint import read_checkpoint
from byol.training.config import TrainConfig
from byol.training.data.decoded import load_canvases
from byol.training.parallel.processes import World
from byol.training.recipes import forecast
from byol.training.recipes.dry_run import dry_run
from byol.training.recipes.forecast import LEAST_PLANNED, Pace, fitted, planned
from byol.training.recipes.settings import Job
from byol.training.setup import Plan, Setup
from tests.support.command_line import byol
from tests.support.small import config, folder

PACE = Pace(early=0.5, late=2.0, knn=10.0, warm_up=5.0, memory_gb=1.0, compiled="none")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=12)


def test_steps_fill_the_time_and_no_more():
    found = fitted(config(batch_size=10, knn_every=0), PACE, 1000, 1000.0)  # 100 steps an epoch, 2 s each
    assert found.max_steps == int((0.99 * 1000 - 5 - 20) / 2)
    assert found.knn_every == 0
    assert PACE.run(found, Plan.of(found, 1000)) <= 1000


def test_knn_takes_a_twentieth_of_the_time_at_most():
    settings = config(batch_size=10, knn_every=1)
    found = fitted(settings, PACE, 1000, 40_000.0)  # an epoch takes 200 s, and kNN 10
    assert found.knn_every == 1
    slow = fitted(settings, replace(PACE, knn=25.0), 1000, 40_000.0)
    assert slow.knn_every == 3
    for one, pace in ((found, PACE), (slow, replace(PACE, knn=25.0))):
        plan = Plan.of(one, 1000)
        assert 0.97 * 40_000 < pace.run(one, plan) <= 40_000
        assert (plan.total / 100 / one.knn_every) * pace.knn <= 0.06 * 40_000


def test_settings_that_were_named_stay_where_they_leave_a_run():
    settings, slow = config(batch_size=10, knn_every=5, warmup_epochs=50.0), replace(PACE, knn=300.0)
    time = 40_000.0  # an epoch takes 200 s: kNN is a twentieth every 30 epochs
    assert fitted(settings, PACE, 1000, time).knn_every == 5  # never more often than asked for
    free, kept = (fitted(settings, slow, 1000, time, named) for named in ((), ("knn_every", "warmup_epochs")))
    assert (free.knn_every, kept.knn_every) == (30, 5)
    assert free.warmup_epochs == pytest.approx(0.1 * free.max_steps / 100)
    assert kept.warmup_epochs == 50.0
    for one in (free, kept):
        assert 0.97 * time < slow.run(one, Plan.of(one, 1000)) <= time
    every, brief = config(batch_size=100, knn_every=1), replace(PACE, knn=300.0, late=0.5)  # 5 s an epoch
    found = fitted(every, brief, 1000, 1000.0, ("knn_every",))  # 385 s for steps and kNN: 12 steps with one each epoch
    assert found.knn_every > 1
    assert found.max_steps >= LEAST_PLANNED


def test_small_views_at_first_count_with_their_share():
    settings = config(batch_size=10, knn_every=0, start_size=8, start_share=0.5)
    assert fitted(settings, PACE, 1000, 1000.0).max_steps == int((0.99 * 1000 - 5 - 20) / 1.25)


def test_warm_up_is_a_tenth_at_most_and_what_else_was_set_stays():
    settings = config(batch_size=10, knn_every=0, warmup_epochs=10.0, checkpoint_every=7)
    found = fitted(settings, replace(PACE, late=0.1), 100, 100.0)
    assert found.checkpoint_every == 7
    assert found.warmup_epochs == pytest.approx(0.1 * found.max_steps / 10)


def test_too_little_time_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"--time leaves 50 s for training, of which a step takes 2 s: too short"):
        fitted(config(batch_size=10), PACE, 1000, 50.0)


def test_what_a_longer_run_compiles_is_measured_again(images, monkeypatch):
    asked = []

    def measured(settings, *_):
        asked.append(Setup.of(settings, 24, World()).compiled)
        return replace(PACE, late=0.001 if asked[-1] == "none" else 0.0005, compiled=asked[-1])

    monkeypatch.setattr(forecast, "measure", measured)
    monkeypatch.setattr(
        "byol.training.setup.resolve_compile", lambda choice, device, seen: "augmentation" if seen > 1000 else "none"
    )
    data = load_canvases(open_source(images), 16)
    found, pace = planned(config(knn_every=0, compile="auto"), data, World(), None, lambda: 100.0)
    assert asked == ["none", "augmentation"]
    assert pace.compiled == "augmentation"
    assert found.max_steps == int((99 - 5 - 20) / 0.0005)


def test_a_planned_run_keeps_its_length_and_resumes_exactly(images, tmp_path, monkeypatch):
    settings = config(epochs=1, knn_every=1)
    monkeypatch.setattr(forecast, "measure", lambda *_: replace(PACE, late=20.0, knn=0.0))
    ask = Job(images, tmp_path / "run", seconds=600.0)
    job.run_training(ask, settings)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    steps = stored["config"]["max_steps"]
    assert 20 <= steps <= 29
    assert stored["plan"]["seconds"] == 600
    assert read_checkpoint(tmp_path / "run").step == steps

    job.run_training(Job(images, tmp_path / "same"), TrainConfig.from_dict(stored["config"]))
    assert bytes_of(tmp_path / "same") == bytes_of(tmp_path / "run")
    monkeypatch.setattr(forecast, "measure", lambda *_: pytest.fail("a resumed run was planned anew"))
    job.run_training(replace(ask, data=None, resume=True), None)
    assert bytes_of(tmp_path / "same") == bytes_of(tmp_path / "run")


def test_a_run_of_a_given_time_is_measured_and_planned(images, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "MOST", 8)  # steps: a shorter look, so that the time may be short
    small = ("--arch", "timm:test_resnet", "--image-size", 16, "--device", "cpu", "--set", "batch_size=8")
    words = ("train", images, "--out", tmp_path / "run", "--val-data", images, "--time", "10s", "--no-export-check")
    done = byol(*words, *small)
    assert done.code == 0, done.err
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    plan, steps = stored["plan"], stored["config"]["max_steps"]
    assert plan["seconds"] == 10
    assert min(plan["late"], plan["knn"]) > 0
    assert LEAST_PLANNED <= steps <= 10 / plan["late"]
    assert read_checkpoint(tmp_path / "run").step == steps


def bytes_of(run):
    return {name: value.numpy().tobytes() for name, value in load_file(run / "last.safetensors").items()}


def test_a_dry_run_measures_and_writes_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.training.data.decoded.SMALL", 0)  # sets this small would not be kept anyway
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    found = dry_run(config(epochs=3), Job(images, tmp_path / "run", val_data=images))
    assert found.plan.total == 9
    assert found.pace.late > 0
    assert found.pace.knn > 0
    assert found.training == found.pace.run(found.config, found.plan)
    assert os.listdir(tmp_path) == []


def test_a_dry_run_warns_of_a_parent_of_parts(images, tmp_path, capsys):
    for part in ("train", "test"):
        folder(tmp_path / "set" / part, per_class=5)
    dry_run(config(), Job(tmp_path / "set", tmp_path / "run"))
    assert "warning: training on test and train; to keep test images apart, name one folder" in capsys.readouterr().err
    dry_run(config(), Job(images, tmp_path / "run"))
    assert "warning: training on" not in capsys.readouterr().err


def test_a_dry_run_without_memory_says_what_takes_less(images, tmp_path, monkeypatch):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("byol.training.recipes.dry_run.measure", full)
    with pytest.raises(Ended, match="out of memory: 8 images of 16 px at a time; use --accumulate 2 or"):
        dry_run(config(epochs=3), Job(images, tmp_path / "run"))


def test_dry_run_shows_the_recipe(images, tmp_path):
    small = ("--arch", "timm:test_resnet", "--image-size", 16, "--set", "projector_hidden=16")
    done = byol("train", images, "--out", tmp_path / "run", "--dry-run", "--json", *small, "--device", "cpu")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["config"]["preset"] == "photos-cpu-1k"
    assert values["images"] == 24
    assert values["images_per_second"] > 0
    assert "recipe: 24 images on a CPU: photos-cpu-1k" in done.err
    assert not (tmp_path / "run").exists()

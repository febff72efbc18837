"""Checkpoints beside training: which are written, from what, by one writer, and what becomes of its errors."""

import errno
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from byol.images.open import open_source
from byol.training import loop, saving
from byol.training.checkpoint import read_checkpoint, save_checkpoint
from byol.training.data.decoded import load_canvases
from byol.training.loop import Meter, fit
from byol.training.run_folder import RunFolder
from byol.training.saving import APART, Saver
from byol.training.trainer import Trainer
from tests.support.small import config, folder

FACTS = {"name": "x", "images": 24, "digest": "0"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_canvases(open_source(folder(tmp_path_factory.mktemp("data") / "train", per_class=12)), 16)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def written(monkeypatch):
    """The steps of the checkpoints written as `last`."""
    steps = []

    def noted(path, checkpoint):
        save_checkpoint(path, checkpoint)
        if path.name == "last.safetensors":
            steps.append(checkpoint.step)

    monkeypatch.setattr(saving, "save_checkpoint", noted)
    return steps


class Hands:
    """A clock that moves by so many seconds whenever it is read."""

    def __init__(self, each):
        self.each, self.now = each, 0.0

    def __call__(self):
        self.now += self.each
        return self.now


@pytest.mark.parametrize(
    ("changes", "seconds", "expected"),
    [
        ({}, 1.0, [3, 12]),  # the first epoch's, and the last step's
        ({}, APART, [3, 6, 9, 12]),
        ({"checkpoint_every": 2}, 1.0, [2, 4, 6, 8, 10, 12]),
        ({"keep_every": 2}, 1.0, [3, 6, 12]),
    ],
    ids=["short-epochs", "long-epochs", "asked-for", "kept"],
)
def test_checkpoints_that_nobody_asked_for_are_a_minute_apart(
    images, run, written, monkeypatch, changes, seconds, expected
):
    trainer = Trainer(config(epochs=4, **changes), images)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=Hands(seconds)))
    fit(trainer, run, FACTS)
    assert written == expected


def test_a_checkpoint_holds_its_step_whatever_training_does_meanwhile(images, run, monkeypatch):
    trainer, go_on = Trainer(config(epochs=4), images), threading.Event()

    def waits(path, checkpoint):
        assert go_on.wait(60)
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(saving, "save_checkpoint", waits)
    with Saver(trainer, run, FACTS) as saver:
        for step in range(2):
            trainer.step(step)
        before = {name: value.clone() for name, value in trainer.state(2, FACTS).tensors.items()}
        saver.save(2, kept=False, wait=False)
        trainer.step(2)
        assert not run.last.exists()
        go_on.set()
    stored = read_checkpoint(run.last)
    assert stored.step == 2
    assert stored.tensors.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in stored.tensors.items())


def test_there_is_one_writer_and_one_copy_at_a_time(images, run, monkeypatch):
    trainer = Trainer(config(epochs=4, checkpoint_every=1, keep_every=1), images)
    at_work, most = [], []

    def slow(path, checkpoint):
        at_work.append(path)
        most.append(len(at_work))
        time.sleep(0.02)
        save_checkpoint(path, checkpoint)
        at_work.remove(path)

    monkeypatch.setattr(saving, "save_checkpoint", slow)
    fit(trainer, run, FACTS)
    assert len(most) == 1 + 12 + 4  # untrained, of every step, and of every epoch
    assert max(most) == 1
    assert read_checkpoint(run.last).step == 12


def test_a_full_disk_ends_the_run_as_its_own_error_at_one_of_the_next_steps(images, run, monkeypatch):
    def full(path, _checkpoint):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.safetensors"):
        fit(Trainer(config(epochs=4, checkpoint_every=2), images), run, FACTS)
    assert 2 <= run.metrics()[-1]["step"] <= 4
    with pytest.raises(OSError, match="No space left"):  # at the last step, too
        fit(Trainer(config(max_steps=1), images), run, FACTS)


def test_weights_that_are_not_finite_are_not_saved(images, run):
    trainer = Trainer(config(epochs=4), images)
    with torch.no_grad():
        trainer.model.target.projector.get_parameter("0.bias")[0] = float("inf")
    with (
        pytest.raises(ValueError, match="weights are not finite after step 3; lower --lr"),
        Saver(trainer, run, FACTS) as s,
    ):
        s.save(3, kept=True, wait=True)
    assert not list(run.path.glob("*.safetensors"))


def test_an_error_of_the_run_comes_before_one_of_the_writer_which_is_waited_for(images, run, monkeypatch):
    done = []

    def slow(_path, _checkpoint):
        time.sleep(0.05)
        done.append(1)
        raise OSError("too late")

    monkeypatch.setattr(saving, "save_checkpoint", slow)

    def fails():
        with Saver(Trainer(config(), images), run, FACTS) as saver:
            saver.save(1, kept=False, wait=False)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    assert done == [1]
    assert not [one.name for one in threading.enumerate() if one.name.startswith("checkpoint")]


def test_the_clock_on_the_wall_counts_what_the_steps_do_not(images, monkeypatch):
    clock = Hands(0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock))
    meter = Meter(Trainer(config(), images))
    for _ in range(2):
        clock.now += 2.0  # a step of 8 images
        meter.add(torch.zeros(1))
        with meter.paused():
            clock.now += 1.0
    first = meter.result()
    assert (first["images_per_second"], first["wall_images_per_second"]) == (4.0, round(16 / 6, 1))
    clock.now += 10.0  # kNN, between two meters
    following = Meter(meter.trainer, meter.ended)
    clock.now += 2.0
    following.add(torch.zeros(1))
    found = following.result()
    assert (found["images_per_second"], found["wall_images_per_second"]) == (4.0, round(8 / 12, 1))

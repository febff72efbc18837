"""Signals during training: answered at once, between micro-batches too, and a second one ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from byol.files import readers
from byol.files.regular import SourceUnavailable
from byol.images.open import open_source
from byol.training.checkpoint import read_checkpoint
from byol.training.data.batches import Order
from byol.training.data.decoded import load_canvases
from byol.training.data.intake import StreamedImages
from byol.training.loop import fit
from byol.training.run_folder import RunFolder
from byol.training.stop import Interrupted, StopSignals
from byol.training.trainer import GivenUp, Trainer
from tests.support.small import REPOSITORY, config, folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_canvases(open_source(folder(tmp_path_factory.mktemp("data") / "train", per_class=12)), 16)


def _send(number):
    os.kill(os.getpid(), number)
    time.sleep(20)  # for Python's handler


def test_the_answer_does_not_wait_for_what_computes():
    said = threading.Event()
    with StopSignals(lambda text: said.set()) as stop:
        handlers = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: None)  # as while torch computes: Python's handler has not run
        os.kill(os.getpid(), signal.SIGTERM)
        assert said.wait(20)
        signal.signal(signal.SIGTERM, handlers)
        assert not stop.asked()


def test_a_signal_asks_and_afterwards_everything_is_as_before():
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    heard: list[str] = []
    with StopSignals(heard.append) as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGTERM)  # SIGINT is ignored in a background job
    assert heard[0] == "SIGTERM: finishing this step, then saving; a second signal stops at once"
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() <= threads + 1  # what would end the process waits for the end of its grace


def test_a_step_that_is_given_up_changes_nothing(images):
    trainer = Trainer(config(accumulate=4), images)
    trainer.step(0)
    before = {name: value.clone() for name, value in trainer.state(1, {}).tensors.items()}
    asked = iter([False, True])
    with pytest.raises(GivenUp):
        trainer.step(1, lambda: next(asked))
    after = trainer.state(1, {}).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole, other = Trainer(config(accumulate=4), images), trainer
    for step in (0, 1):
        whole.step(step)
    other.step(1)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True))


def test_a_run_ends_between_micro_batches(images, tmp_path, monkeypatch):
    trainer = Trainer(config(accumulate=4), images)
    run = RunFolder(tmp_path / "run")
    run.create(trainer.config, {})
    views, calls = trainer.views, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == 10:  # the second micro-batch of the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return views(*arguments)

    monkeypatch.setattr(trainer, "views", counted)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2; continue with --resume"):
        fit(trainer, run, {"name": "x", "images": 24, "digest": "0"})
    assert len(calls) == 10
    assert read_checkpoint(run.path).step == 2


def test_a_run_does_not_wait_for_a_silent_server_before_it_saves_and_ends(tmp_path, monkeypatch):
    """The signal comes while the loop waits for the fifth batch, which never comes."""
    source = open_source(folder(tmp_path / "train", per_class=12))
    stream, settings = StreamedImages(source, 16), config()
    fifth = Order(settings.seed, len(source), settings.batch_size).rows(4).tolist()
    read, log, logged, silent = stream.read, RunFolder.log, threading.Event(), threading.Event()

    def hanging(rows):
        if rows.tolist() != fifth:
            return read(rows)
        logged.wait(60)
        time.sleep(0.3)  # now the loop waits
        os.kill(os.getpid(), signal.SIGTERM)
        assert silent.wait(60), "the run waited for its images"
        raise SourceUnavailable("too late")

    def logging(run, record):
        log(run, record)
        if record["step"] == 4:
            logged.set()

    monkeypatch.setattr(stream, "read", hanging)
    monkeypatch.setattr(RunFolder, "log", logging)
    monkeypatch.setattr(readers, "GRACE", 0.05)
    run = RunFolder(tmp_path / "run")
    run.create(settings, {})
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4"), Trainer(settings, stream) as trainer:
        fit(trainer, run, {"name": "x", "images": 24, "digest": "0"})
    silent.set()
    assert read_checkpoint(run.path).step == 4


STUCK = """
import time
from byol.training import stop
stop.GRACE = 0.2
with stop.StopSignals(lambda text: print(text, flush=True)):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:  # whatever is raised here is swallowed: the main thread does not end
            pass
"""


def test_a_second_signal_ends_a_process_that_does_not_unwind():
    process = subprocess.Popen([sys.executable, "-c", STUCK], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert "finishing this step" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("stopped at once; the last checkpoint is intact")
    assert process.wait(60) == 1

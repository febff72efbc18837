"""What torch's launcher does with the processes after a signal: they may save, however long that takes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext

from byol.training.parallel import launcher
from byol.training.parallel.launcher import TO_SAVE, _time_to_save

CONTEXT: Any = object()


class Closing:
    """In place of torch's `PContext.close`: what it was told, and the signals that come while it waits."""

    def __init__(self, *meanwhile: signal.Signals):
        self.told: list[tuple[signal.Signals | None, int]] = []
        self.meanwhile = list(meanwhile)

    def __call__(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        self.told.append((death_sig, timeout))
        while self.meanwhile:
            os.kill(os.getpid(), self.meanwhile.pop(0))
            time.sleep(0.01)  # for Python's handler


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Closing:
    made = Closing()
    monkeypatch.setattr(PContext, "close", lambda _, *arguments: made(*arguments))
    return made


def test_processes_may_save_after_a_signal_and_end_soon_when_one_of_them_has_failed(closing: Closing) -> None:
    with _time_to_save():
        PContext.close(CONTEXT, signal.SIGTERM)
        PContext.close(CONTEXT)
    PContext.close(CONTEXT, signal.SIGTERM)
    assert closing.told == [(signal.SIGTERM, TO_SAVE), (None, 30), (signal.SIGTERM, 30)]
    assert TO_SAVE > 600


def test_a_second_signal_kills_them(
    closing: Closing, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "AGAIN", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    closing.meanwhile = [signal.SIGTERM]
    with _time_to_save():
        PContext.close(CONTEXT, signal.SIGINT)
    assert closing.told == [(signal.SIGINT, TO_SAVE), (signal.SIGKILL, 30)]
    assert "the last checkpoint is intact, continue with --resume" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_that_was_sent_twice_and_a_second_hang_up_are_none(
    closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing.meanwhile = [signal.SIGTERM]  # as `timeout` does
    with _time_to_save():
        PContext.close(CONTEXT, signal.SIGTERM)
        monkeypatch.setattr(launcher, "AGAIN", 0.0)
        closing.meanwhile = [signal.SIGHUP]
        PContext.close(CONTEXT, signal.SIGHUP)
    assert closing.told == [(signal.SIGTERM, TO_SAVE), (signal.SIGHUP, TO_SAVE)]

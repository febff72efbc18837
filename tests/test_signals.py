"""Handlers of signals: set for a block, put back after it, and left alone where they cannot be."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from byol.signals import HANG_UP, handled
from byol.training.stop import StopSignals

NUMBERS = (signal.SIGTERM, signal.SIGINT, HANG_UP)
read, write = signal.getsignal, signal.signal


@pytest.fixture
def set_from_c(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """As where Python is embedded: handlers that it cannot name, and that it cannot set."""
    numbers = {int(signal.SIGTERM)}

    def setting(number: int, handler: Any) -> Any:
        before = write(number, handler)  # raises for None
        return None if number in numbers else before

    monkeypatch.setattr(signal, "getsignal", lambda number: None if number in numbers else read(number))
    monkeypatch.setattr(signal, "signal", setting)
    return numbers


def handler(number: int, frame: object) -> None:
    pass


def test_handlers_are_set_for_the_block_alone_unless_the_parent_ignores_the_signal() -> None:
    before = write(signal.SIGTERM, signal.SIG_DFL)
    interrupt = write(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled((*NUMBERS, None), handler):
            assert read(signal.SIGTERM) is handler
            assert read(signal.SIGINT) is signal.SIG_IGN
        assert read(signal.SIGTERM) is signal.SIG_DFL
    finally:
        write(signal.SIGTERM, before)
        write(signal.SIGINT, interrupt)


@pytest.mark.usefixtures("set_from_c")
def test_what_a_host_handles_in_c_stays_its_own() -> None:
    before = read(signal.SIGTERM)
    interrupt = write(signal.SIGINT, signal.default_int_handler)
    try:
        with handled(NUMBERS, handler):
            assert read(signal.SIGTERM) is before
            assert read(signal.SIGINT) is handler
        assert read(signal.SIGINT) is signal.default_int_handler
        with StopSignals() as stop:
            assert read(signal.SIGTERM) is before
        assert not stop.asked()
    finally:
        write(signal.SIGINT, interrupt)
        write(signal.SIGTERM, before)

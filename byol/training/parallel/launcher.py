"""`byol train --nproc N`: torch's launcher starts N processes on this machine and passes signals on to them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from byol.children import MEETING
from byol.console import READ_ALREADY, at_work, note, standard_input
from byol.machine import usable_cores
from byol.signals import HANG_UP, handled

TO_SAVE = 3600  # seconds that the processes have after a signal
AGAIN = 1.0  # seconds after which a signal is a second one: some who send them do it twice, such as `timeout`


class _Again(Exception):
    """A second signal."""


def _passed_on() -> list[str]:
    """The signals that end the launcher and its processes, except those the parent ignores, as `nohup` does."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    return [n for n in names if hasattr(signal, n) and signal.getsignal(getattr(signal, n)) is not signal.SIG_IGN]


def launch(processes: int, arguments: Sequence[str], list_comes: bool = False) -> bool:
    """Run `byol ARGUMENTS` in several processes on this machine until all end; whether all succeeded.

    `list_comes`: standard input holds a list that all of them read.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    with tempfile.TemporaryDirectory(prefix="byol-") as folder:
        _stay_on_this_machine(Path(folder))
        if list_comes:
            kept = Path(folder) / "list"
            kept.write_bytes(standard_input())
            os.environ[READ_ALREADY] = str(kept)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            local_addr="127.0.0.1",  # else the host's name is looked up
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            max_restarts=0,
            signals_to_handle=",".join(_passed_on()),
        )
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
        try:
            with at_work(str), _time_to_save():  # the processes say what they do
                elastic_launch(config, sys.executable)("-m", "byol", *arguments)
        except (ChildFailedError, SignalException):  # the processes have said why
            return False
    return True


@contextmanager
def _time_to_save() -> Iterator[None]:
    """Within the block, processes that torch's launcher sends a signal may finish their step, measure kNN and save.

    By default it kills them after 30 s. A second signal kills them at once; a second hang-up does not, as it comes from
    both terminal and shell. When a process fails, the others still have those 30 s.
    """
    from torch.distributed.elastic.multiprocessing.api import PContext

    close = PContext.close

    def patiently(context: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        if death_sig is None:  # a process has failed
            close(context, death_sig, timeout)
            return
        try:
            with handled((signal.SIGTERM, signal.SIGINT, HANG_UP), _second(time.monotonic() + AGAIN)):
                close(context, death_sig, TO_SAVE)
        except _Again:
            close(context, signal.SIGKILL, timeout)
            note("stopped at once; the last checkpoint is intact, continue with --resume")

    PContext.close = patiently  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        PContext.close = close  # type: ignore[method-assign]


def _second(earliest: float) -> Callable[[int, Any], None]:
    def handler(number: int, _frame: object) -> None:
        if number != HANG_UP and time.monotonic() >= earliest:
            raise _Again

    return handler


def _is_news(record: logging.LogRecord) -> bool:
    """Whether torch's launcher reports a process that could not report its own end, such as a killed one."""
    message = record.getMessage()
    return "(exitcode: 1)" not in message and "closing signal" not in message


def _stay_on_this_machine(folder: Path) -> None:
    """Connect the processes by files and the loopback interface; by default torch listens on all interfaces."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[MEETING] = f"file://{folder}/processes"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")

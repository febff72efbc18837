"""`byol` in processes of its own, each the fork of one that has imported torch: an import takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PATIENCE = 300.0  # seconds, after which what hangs fails

_template = multiprocessing.get_context("forkserver")
_template.set_forkserver_preload(["byol.commands.train", "byol.training.job", "byol.encoders.timm_models"])


class Fork:
    """A running `byol WORDS...`, on one thread; `err` takes its standard error. `prepare()` runs in it before.

    With a `script`, a process that runs this source with WORDS as its arguments; `err` also takes what it prints.
    `has_children` must be said of one that starts others by `multiprocessing`; it outlives tests that leave it running.
    """

    def __init__(
        self,
        words: list[str],
        err: Path,
        prepare: Callable[[], object] | None = None,
        script: str | None = None,
        environment: Mapping[str, str] = os.environ,
        has_children: bool = False,
    ):
        self._err = err
        arguments = (words, err, prepare, script, dict(environment), os.getcwd())
        self._process = _template.Process(target=_run, args=arguments, daemon=not has_children)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        """As `subprocess.Popen` does: nothing, once it has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; the process must not end before."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert self._process.exitcode is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def wait(self) -> int:
        """Its exit status, as `subprocess.Popen` has it."""
        self._process.join(_PATIENCE)
        assert self._process.exitcode is not None, self.said
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self._err.read_text() if self._err.exists() else ""


def _run(
    words: list[str],
    err: Path,
    prepare: Callable[[], object] | None,
    script: str | None,
    environment: dict[str, str],
    folder: str,
) -> None:
    import torch

    from byol.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)  # a busy machine's cores are not waited for
    if prepare is not None:
        prepare()
    sys.argv = ["byol", *words]
    if script is None:
        main()
    else:
        os.dup2(2, 1)
        exec(script, {"__name__": "__main__"})

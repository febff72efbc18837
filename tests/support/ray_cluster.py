"""A Ray cluster of this machine that runs apart from the command."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.small import REPOSITORY

_PATIENCE = 120  # seconds, after which what hangs fails


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[str]:
    """A cluster of this machine, started as its owner would: its address for a command on one of its machines."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    words += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"]
    words += ["--include-dashboard=false", "--disable-usage-stats"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            deadline = time.monotonic() + _PATIENCE
            while not _answers(port):
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            running.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0

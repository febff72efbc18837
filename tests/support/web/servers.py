"""`byol serve` as a process of its own, on a free port, for tests that speak HTTP with it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle

PATIENCE = 60  # seconds, on a machine that does other work


class Served:
    """A running server: its `url` and `process`, the `lines` it wrote on stderr so far, a `client`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving on (http://\S+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.lines))
        self._reader = threading.Thread(target=lambda: self.lines.extend(process.stderr or ()))
        self._reader.start()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def figure(self, name: str) -> float:
        """A metric by its name and labels as `/metrics` has them; 0 where there is none yet."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def said(self) -> str:
        """Everything on stderr, once the server has ended."""
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return "".join(self.lines)


@contextlib.contextmanager
def serving(bundle: Path, *options: object, **environment: object) -> Iterator[Served]:
    """A server of this bundle; `environment` sets limits."""
    command = [sys.executable, "-m", "byol", "serve", bundle, "--port", "0", "--device", "cpu", *options]
    known = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    process = subprocess.Popen([str(word) for word in command], env=known, stderr=subprocess.PIPE, text=True)
    try:
        served = Served(process)
        yield served
        served.client.close()
    finally:
        process.kill()
        process.wait()


def write_classified(root: Path) -> Path:
    """A tiny bundle with a classifier for cats and dogs, and in `root / "images"` what it was made from."""
    write_tiny_bundle(root / "bundle")
    for part, seed in (("images", 0), ("test", 1)):
        write_images(root / part, {"cat": 6, "dog": 6}, seed=seed)
    words = ("--train", root / "images", "--test", root / "test", "--save-classifier", root / "with")
    done = byol("linear", root / "bundle", *words, "--device", "cpu")
    assert done.code == 0, done.err
    return root / "with"


def memory(process: int) -> float:
    """MB of memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def pixels_of(bundle: Path, paths: list[Path]) -> np.ndarray:
    """Pictures as a client of KServe's protocol sends them: uint8 (N, S, S, 3)."""
    from byol.bundle.folder import Bundle
    from byol.images.picture.read import read_image

    transform = Bundle.open(bundle).manifest.preprocess.transform()
    return np.stack([transform(read_image(path, least_side=transform.least_side)) for path in paths])

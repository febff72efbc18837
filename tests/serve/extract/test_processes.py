"""Extraction by several processes: the same parts as by one; a worker that dies, or its parent, loses nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from byol.serve.extract.processes import Crew, _follow, _queue, _take_share_of_machine
from byol.serve.extract.resumable import Share
from tests.support.command_line import byol
from tests.support.folders import contents
from tests.support.small import REPOSITORY, traps
from tests.support.tiny import write_images, write_tiny_bundle

CPU = ("--device", "cpu", "--part-images", 5, "--batch-size", 4)
PATIENCE = 120  # seconds, after which what hangs fails


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, images/ (62, some broken) and whole/, extracted by one process."""
    root = tmp_path_factory.mktemp("processes")
    write_tiny_bundle(root / "bundle")
    write_images(root / "images", {"cat": 30, "dog": 32})
    for path in sorted((root / "images").rglob("*.png"))[3::10]:
        path.write_bytes(b"broken")
    done = byol("extract", root / "bundle", root / "images", "--out", f"{root}/whole/", *CPU)
    assert done.code == 0, done.err
    return root


def command(place: Path, out: Path, *more: object) -> list[str]:
    words = ("extract", place / "bundle", place / "images", "--out", f"{out}/", *CPU, "--processes", 2, *more)
    return [sys.executable, "-m", "byol", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def workers_of(pid: int) -> list[int]:
    """The processes that compute for a parent."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


# The command, whose workers halt before one of their parts gets its name: they cannot have ended when they are killed.
HELD = """
import os, signal, sys
from byol.cli import main

def hold(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(tuple(os.environ["HELD"].split())):
        signal.pause()

if __name__ == "__main__":
    main()
else:  # as a worker imports it
    sys.addaudithook(hold)
"""


@contextmanager
def held(place: Path, tmp_path: Path, parts: int) -> Iterator[subprocess.Popen[str]]:
    """The command into tmp_path / "out", in the middle of its work: so many parts are there, the next two are not."""
    (tmp_path / "held").write_text(HELD)
    words = [sys.executable, str(tmp_path / "held"), *command(place, tmp_path / "out")[3:]]
    names = " ".join(part_name(number) for number in (parts, parts + 1))
    with subprocess.Popen(words, env=environment() | {"HELD": names}, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until(running, lambda: all((tmp_path / "out" / part_name(number)).exists() for number in range(parts)))
            yield running
        finally:
            running.kill()


def part_name(number: int) -> str:
    return f"data/part-{number:05d}.parquet"


def wait_until(running: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_write_what_one_does(place: Path, tmp_path: Path) -> None:
    """As the installed command, which Python takes no modules from the current folder for, in a folder of such."""
    (tmp_path / "byol").write_text("from byol.cli import main\nif __name__ == '__main__':\n    main()\n")
    here, words = traps(tmp_path / "here"), command(place, tmp_path / "out", "--json")[3:]
    run = [sys.executable, str(tmp_path / "byol"), *words]
    done = subprocess.run(run, cwd=here, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"] == 56
    assert contents(tmp_path / "out") == contents(place / "whole")


def test_more_processes_than_parts(place: Path, tmp_path: Path) -> None:
    words = command(place, tmp_path / "out", "--processes", 3, "--part-images", 40)
    subprocess.run(words, capture_output=True, check=True)
    assert [name for name in contents(tmp_path / "out") if name.startswith("data/")] == [
        "data/part-00000.parquet",
        "data/part-00001.parquet",
    ]


def test_errors_of_a_worker_are_told(place: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(place, tmp_path / "out", "--max-errors", "0"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken" not in done.stderr
    assert "use --on-error skip to leave it out" in done.stderr
    assert "Traceback" not in done.stderr


def test_max_errors_counts_the_errors_of_all(place: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(place, tmp_path / "out", "--max-errors", "5"), capture_output=True, text=True)
    assert (done.returncode, "more than --max-errors 5" in done.stderr) == (1, True), done.stderr
    subprocess.run(command(place, tmp_path / "out", "--max-errors", "6"), capture_output=True, check=True)
    assert contents(tmp_path / "out") == contents(place / "whole")


def test_a_killed_worker_ends_the_command_and_loses_nothing(place: Path, tmp_path: Path) -> None:
    with held(place, tmp_path, parts=4) as running:
        os.kill(workers_of(running.pid)[0], signal.SIGKILL)
        _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, said
    assert "a worker process ended with status -9" in said
    kept = [name for name in contents(tmp_path / "out") if name.startswith("data/part-")]
    assert kept == [part_name(number) for number in range(4)]
    assert finished(place, tmp_path / "out") == contents(place / "whole")


def test_a_killed_parent_leaves_no_worker_and_loses_nothing(place: Path, tmp_path: Path) -> None:
    for parts in (0, 2, 6):  # while the workers start, and in the middle of their work
        with held(place, tmp_path, parts) as running:
            wait_until(running, lambda running=running: len(workers_of(running.pid)) == 2)  # type: ignore[misc]
            workers = workers_of(running.pid)
            running.kill()
        deadline = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.01)
    assert finished(place, tmp_path / "out") == contents(place / "whole")


def finished(place: Path, out: Path) -> dict[str, bytes]:
    """What one process makes of what was begun."""
    done = byol("extract", place / "bundle", place / "images", "--out", f"{out}/", *CPU)
    assert done.code == 0, done.err
    return contents(out)


@pytest.mark.parametrize(("visible", "gpus", "taken"), [(None, 2, "0101"), ("3,5", 2, "3535"), (None, 4, "0123")])
def test_workers_take_turns_at_the_gpus_there_are(
    visible: str | None, gpus: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None)
    found = ""
    for index in range(4):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        _take_share_of_machine(Crew(4, gpus, Path(), "cuda", None, "fp32"), Share(index, 4))
        found += os.environ["CUDA_VISIBLE_DEVICES"]
    assert found == taken


class Worker:
    """One that ended without a word."""

    exitcode = 0

    def is_alive(self) -> bool:
        return False


def test_a_worker_that_ends_without_a_word_is_missed() -> None:
    messages: queue.Queue[Any] = queue.Queue()
    messages.put((1, "done", None))
    with pytest.raises(ValueError, match="a worker process ended with status 0"):
        _follow([Worker(), Worker()], messages, lambda count: None)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSYS, "Function not implemented"), ImportError("Function not implemented")]
)
def test_without_semaphores_one_process_is_advised(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise error

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Lock", missing)  # which a queue begins with
    with pytest.raises(ValueError, match=r": Function not implemented \(is there a /dev/shm .*; add --processes 1$"):
        _queue(context)


def test_one_file_cannot_be_written_by_several(place: Path, tmp_path: Path) -> None:
    done = byol("extract", place / "bundle", place / "images", "--out", tmp_path / "x.parquet", "--processes", 2)
    assert (done.code, "end --out in a slash" in done.err) == (2, True)

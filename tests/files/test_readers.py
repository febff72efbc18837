"""Threads that nothing waits long for: results as of any executor, and an end while a read hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from byol.files import readers
from byol.files.readers import Readers
from tests.support.small import REPOSITORY


def test_results_come_in_order_and_errors_where_they_belong() -> None:
    names = set()

    def halved(number: int) -> float:
        names.add(threading.current_thread().name)
        return 8 / number

    with Readers(2, "read") as pool:
        assert list(pool.map(halved, [1, 2, 4, 8])) == [8, 4, 2, 1]
        lost = pool.submit(halved, 0)
        with pytest.raises(ZeroDivisionError):
            lost.result()
        assert pool.submit(halved, 2).result() == 4
    assert names == {"read"}
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(halved, 1)


def test_where_the_system_has_no_more_threads_that_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"), Readers(1, "read") as pool:
        pool.submit(int)


def test_the_end_waits_for_what_was_asked_for_but_not_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, silent = threading.Event(), threading.Event()

    def read() -> None:
        reading.set()
        silent.wait(60)

    with Readers(1, "read") as pool:
        asked = [pool.submit(time.sleep, 0.01) for _ in range(3)]
    assert all(future.done() for future in asked)
    monkeypatch.setattr(readers, "GRACE", 0.05)
    pool = Readers(1, "read")
    hanging, behind = pool.submit(read), pool.submit(read)
    assert reading.wait(60)
    pool.shutdown(cancel_futures=True)
    assert behind.cancelled()
    assert not hanging.done()
    silent.set()


def test_a_result_lives_as_long_as_somebody_holds_it() -> None:
    class Large:
        pass

    with Readers(1, "read") as pool:
        future: Future[Large] | None = pool.submit(Large)
        assert future is not None
        place = weakref.ref(future.result())
        future = None
        deadline = time.monotonic() + 20
        while place() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread goes back to waiting
        assert place() is None


HANGING = """
import time
from byol.files.readers import Readers
reading = Readers(1, "read").submit(time.sleep, 600)
while not reading.running():
    time.sleep(0.01)
"""


def test_an_interpreter_does_not_wait_for_a_read() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")

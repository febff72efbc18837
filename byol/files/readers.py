"""Threads that read files, for which a process that ends does not wait. Torch-free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Call = tuple["Future[Any]", Callable[[], Any]]
GRACE = 3.0  # seconds for what has begun, when the threads are to end


class Readers(Executor):
    """Up to `count` threads, as those of a `ThreadPoolExecutor`, but nothing waits long for them.

    A read takes as long as a server or a disk is silent: minutes, or for ever. A process that was told to end, and has
    saved its work, must not wait for that: `shutdown` waits for `GRACE`, and the interpreter not at all.
    """

    def __init__(self, count: int, name: str):
        self._count, self._name, self._closed = count, name, False
        self._lock, self._threads = threading.Lock(), list[threading.Thread]()
        self._calls: SimpleQueue[Call | None] = SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in one of the threads. Raises `RuntimeError` after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if len(self._threads) < self._count:
                thread = threading.Thread(target=_work, args=(self._calls,), name=self._name, daemon=True)
                thread.start()  # a system that has no more threads refuses
                self._threads.append(thread)
            self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads; `wait` for what they have begun, within `GRACE`."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                self._cancel()
            for _ in self._threads:
                self._calls.put(None)
        end = time.monotonic() + GRACE
        for thread in self._threads if wait else ():
            thread.join(max(0.0, end - time.monotonic()))

    def _cancel(self) -> None:
        try:
            while True:
                if call := self._calls.get_nowait():
                    call[0].cancel()
        except Empty:
            return


def _work(calls: SimpleQueue[Call | None]) -> None:
    while _done(calls.get()):  # which holds no result while it waits for the next call
        pass


def _done(call: Call | None) -> bool:
    """Do one call; False when there are no more."""
    if call is None:
        return False
    future, work = call
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
            del call, future, work  # which the traceback of the error would hold, and they it
    return True

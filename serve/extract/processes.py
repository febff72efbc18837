"""Extraction by several processes on this machine, each with its share of the parts (and of the GPUs)."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from byol.files.regular import SourceUnavailable
from byol.serve.encoder import Encoder
from byol.serve.extract.engine import Advance, Extraction
from byol.serve.extract.resumable import Manifest, Share, Task, complete, fill, missing_sections
from byol.serve.features.parts import Part
from byol.text import reason_of

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Crew:
    """`count` workers, each with an encoder of its own: a bundle's variant on a device, spread over `gpus` GPUs."""

    count: int
    gpus: int
    bundle: Path
    device: str
    batch_size: int | None
    variant: str


def extract_in_processes(crew: Crew, task: Task, digest: str, dim: int, advance: Advance) -> Extraction:
    """`byol.serve.extract.resumable.extract_parts` by several processes: the same parts, the same bytes.

    Raises `ValueError` as that does, and when a worker dies; finished parts stay.
    """
    parts = task.folder(digest, dim)

    def compute(stored: Manifest | None, finished: dict[int, Part]) -> None:
        if next(missing_sections(task, parts, stored, finished), None) is None:  # begins the manifest
            return
        context = multiprocessing.get_context("spawn")
        messages = _queue(context)
        workers = [
            context.Process(target=_work, args=(crew, task, Share(index, crew.count), messages), daemon=True)
            for index in range(crew.count)
        ]
        for worker in workers:
            worker.start()
        try:
            _follow(workers, messages, advance)
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()

    return complete(task, parts, advance, compute)


def _queue(context: BaseContext) -> Any:
    """Where workers report. Raises `ValueError` where the system has no semaphores: without /dev/shm, say."""
    try:
        return context.Queue()
    except (OSError, ImportError) as error:  # the latter from a Python built without them
        raise ValueError(
            f"several processes cannot talk to each other here: {reason_of(error)} (is there a /dev/shm that can be "
            "written?); add --processes 1"
        ) from error


def _follow(workers: Sequence[BaseProcess], messages: Any, advance: Advance) -> None:
    """Pass on the workers' progress until all are done. Raises `ValueError` when one fails or dies."""
    working, ended = set(range(len(workers))), set[int]()
    while working:
        try:
            index, kind, value = messages.get(timeout=POLL_SECONDS)
        except queue.Empty:
            dead = {i for i in working if not workers[i].is_alive()}
            if dead & ended:  # no message since it was first seen dead
                code = workers[min(dead & ended)].exitcode
                raise ValueError(
                    f"a worker process ended with status {code} (was it killed for memory?); finished parts are kept, "
                    "run the same command again to continue"
                ) from None
            ended = dead
            continue
        if kind == "failed":
            raise value
        if kind == "done":
            working.discard(index)
        else:
            advance(value)


def _work(crew: Crew, task: Task, share: Share, messages: Any) -> None:
    """In a worker: compute a share, sending (worker, "advance", "failed" or "done", how much or why)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _take_share_of_machine(crew, share)
    try:
        encoder = Encoder(crew.bundle, crew.device, crew.batch_size, crew.variant)
        parts = task.folder(encoder.digest, encoder.feature_dim)
        begun = parts.manifest(), parts.finished()
        fill(encoder, task, parts, *begun, lambda n: messages.put((share.index, "advance", n)), share)
        messages.put((share.index, "done", None))
    except OSError as error:
        messages.put((share.index, "failed", OSError(error.errno, str(error))))
    except SourceUnavailable as error:
        messages.put((share.index, "failed", SourceUnavailable(str(error))))
    except Exception as error:  # as text: not every error can be sent to another process
        messages.put((share.index, "failed", ValueError(str(error) or type(error).__name__)))


def _end_with_parent() -> None:
    """End with a killed parent, so that no orphan writes beside the next run's workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _take_share_of_machine(crew: Crew, share: Share) -> None:
    """Keep to one GPU and a share of the cores, from which decoding and ONNX Runtime size their threads."""
    if crew.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(crew.gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[share.index % len(gpus)]  # read when CUDA is used first
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= crew.count:
            os.sched_setaffinity(0, cores[share.index :: crew.count])

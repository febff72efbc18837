"""Two processes on the CPU of which the first one has long work to do: the other waits for it, as long as it lives."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tests.support.forks import Fork
from tests.support.small import folder

# The time-out of collectives, lowered to what can be waited for in a test once the processes have met, and work that
# takes longer.
QUICK = """
import functools, os, sys, time
from datetime import timedelta
import torch.distributed as dist
real = dist.init_process_group
def meet(*arguments, **options):
    real(*arguments, **options)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=4), None)
dist.init_process_group = meet
from byol.training.parallel.processes import LostProcess, joined
def long_work():
    time.sleep(5)
"""

WAITING = """
with joined() as world:
    done = []
    world.first_then_others(lambda: done.append(world.first and long_work()))
    if not world.first:
        long_work()
    told = world.tell("what is said: \u00e9" if world.first else "")
    assert told == "what is said: \u00e9"
    assert world.tell("") == ""
    assert len(done) == 1
print("passed")
"""

LOST = """
try:
    with joined() as world:
        if world.first:
            print("at work", flush=True)
            time.sleep(600)
        world.wait()
except LostProcess as error:
    print(error, flush=True)
"""

TRAINING = """
from pathlib import Path
from byol.training import loop, saving
from byol.training.data import shared
def slow(module, name):
    real = getattr(module, name)
    def slowly(*arguments, **options):
        if os.environ["RANK"] == "0":
            long_work()
        return real(*arguments, **options)
    setattr(module, name, slowly)
for module, name in ((loop, "save_views"), (saving, "save_checkpoint"), (shared, "open_images")):
    slow(module, name)
from tests.support.runs import run_training
from tests.support.small import config
run_training(config(max_steps=2), sys.argv[1], Path(sys.argv[2]), sys.argv[1])  # with kNN
print("passed")
"""


DIFFERENT = """
from pathlib import Path
from tests.support.runs import run_training
from tests.support.small import config
try:
    run_training(config(max_steps=1), sys.argv[1 + int(os.environ["RANK"])], Path(sys.argv[3]))
except ValueError as error:
    print(error)
"""


@contextmanager
def pair(tmp_path: Path, script: str, *arguments: object) -> Iterator[list[Fork]]:
    """Two processes of one job, without a launcher that would end the one with the other."""
    shared = {"WORLD_SIZE": "2", "BYOL_MEETING": f"file://{tmp_path}/meeting"}
    shared |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    processes = []
    for rank in ("0", "1"):
        with mock.patch.dict(os.environ, {**shared, "RANK": rank, "LOCAL_RANK": rank}):
            processes.append(Fork(list(map(str, arguments)), tmp_path / rank, script=QUICK + script))
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)


def test_long_work_of_the_first_process_is_waited_for(tmp_path: Path) -> None:
    with pair(tmp_path, WAITING) as processes:
        for process in processes:
            assert process.wait() == 0, process.said
            assert process.said.endswith("passed\n")


def test_a_process_that_dies_meanwhile_is_not(tmp_path: Path) -> None:
    with pair(tmp_path, LOST) as (first, other):
        first.wait_for(lambda: "at work\n" in first.said)
        first.send_signal(signal.SIGKILL)
        assert other.wait() == 0, other.said
        assert other.said.splitlines()[-1] == "another process of this job is gone; continue with --resume"


def test_a_run_whose_first_process_is_slow_at_all_that_it_does_alone(tmp_path: Path) -> None:
    with pair(tmp_path, TRAINING, folder(tmp_path / "images"), tmp_path / "run") as processes:
        for process in processes:
            assert process.wait() == 0, process.said
            assert process.said.endswith("passed\n")
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_processes_that_list_different_images_do_not_begin(tmp_path: Path) -> None:
    """Else each would shuffle a list of its own: some images twice in a batch, others never."""
    images = [folder(tmp_path / str(count), per_class=count) for count in (4, 5)]
    with pair(tmp_path, DIFFERENT, *images, tmp_path / "run") as processes:
        for process in processes:
            assert process.wait() == 0, process.said
            assert "differ in their number of training images: [8, 10]; give them one shared disk" in process.said
    assert not (tmp_path / "run").exists()

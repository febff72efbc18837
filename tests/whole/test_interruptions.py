"""Killed again and again, also while writing, and with no room on the disk: the weights end the same, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from byol.training.checkpoint import read_checkpoint
from tests.support.small import REPOSITORY, folder

# One process imports torch and then forks what is killed: twenty runs take seconds, not minutes. No life goes further
# than a few steps, so that the run cannot end before its last kill, on however quick a machine.
KILLS = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from byol.training.checkpoint import read_checkpoint
from byol.training.run_folder import RunFolder
from tests.support.runs import run_training
from tests.support.small import config

images, out, kills, steps_a_life = Path(sys.argv[1]), Path(sys.argv[2]), 20, 6
settings = config(max_steps=20 * steps_a_life + 20, checkpoint_every=1, keep_every=10)
log = RunFolder.log

def log_and_await_the_kill(run, record):
    global steps_a_life
    log(run, record)
    steps_a_life -= 1
    if not steps_a_life:
        signal.pause()

def start(bytes_a_file=None, killed=True, out=out):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if killed:
                RunFolder.log = log_and_await_the_kill
            if bytes_a_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))
            run_training(settings, images, out, resume=True)
            code = 0
        except OSError as error:
            print("refused:", error)
            code = 7
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def step():
    return read_checkpoint(last).step if last.exists() else 0  # whole, whenever it was killed

def changed():
    return last.stat().st_mtime_ns if last.exists() else 0

random.seed(5)
last = out / "last.safetensors"
while kills:
    before, deadline = changed(), time.monotonic() + 30
    child = start()
    while kills % 2 and changed() == before and time.monotonic() < deadline:
        time.sleep(0.01)  # every second life makes progress, the others may end before their first step
    time.sleep(random.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL, "the run ended before it was killed"
    kills -= 1
    print("killed after step", step(), *(path.name for path in out.glob(".*.tmp")))
    if kills == 10:
        reached = step()
        assert reached > 0
        assert finish(start(bytes_a_file=100_000)) == 7
        assert step() == reached
assert finish(start(killed=False)) == 0
assert finish(start(killed=False, out=Path(sys.argv[3]))) == 0
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = folder(tmp_path_factory.mktemp("images"))
    return made


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_twenty_kills_end_in_the_weights_of_an_uninterrupted_run(images: Path, tmp_path: Path) -> None:
    said = run(KILLS, images, tmp_path / "killed", tmp_path / "whole")
    for name in ("last.safetensors", "step-00000000.safetensors", "step-00000020.safetensors"):
        killed, whole = (read_checkpoint(tmp_path / run / name) for run in ("killed", "whole"))
        assert killed.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(value, whole.tensors[key]) for key, value in killed.tensors.items())
        assert (killed.step, killed.config, killed.data) == (whole.step, whole.config, whole.data)
    assert not list((tmp_path / "killed").glob(".*"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 141))
    assert said.count("killed after") == 20
    assert "refused:" in said  # the full disk

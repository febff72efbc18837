"""Two gloo processes on the CPU against one process with the same global batch, and what happens when one dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from byol.children import RANKS
from byol.images.open import open_source
from byol.training.data.augment import draw
from byol.training.data.batches import share
from byol.training.data.decoded import load_canvases
from byol.training.data.view_config import ViewConfig
from byol.training.device import resolve_sync_norm
from byol.training.parallel.processes import World, launched_as
from byol.training.trainer import Trainer
from tests.support.command_line import byol
from tests.support.forks import Fork
from tests.support.small import REPOSITORY, config, folder, traps

SETTINGS = {
    "arch": "timm:test_resnet", "image-size": 16, "batch-size": 16, "epochs": 20, "optimizer": "sgd", "lr": 1e-5,
    "device": "cpu", "precision": "fp32",
}  # fmt: skip
MORE = (
    "canvas_size=16", "projector_hidden=32", "projector_out=16", "predictor_hidden=32", "log_every=1",
    "warmup_epochs=2", "knn_every=10", "checkpoint_every=1",
)  # fmt: skip


def words_of(images: Path, out: Path, *words: str) -> list[str]:
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    settings = [word for setting in MORE for word in ("--set", setting)]
    return ["train", str(images), "--out", str(out), "--no-export-check", *options, *settings, *words]


def command(images: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "byol", *words_of(images, out, *words)]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **changes}


def train(images: Path, out: Path, *words: str) -> str:
    done = subprocess.run(command(images, out, *words), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


def train_alone(images: Path, out: Path, *words: str) -> None:
    """In one process."""
    process = Fork(words_of(images, out, *words), out.parent / "said")
    assert process.wait() == 0, process.said


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def difference(a: Path, b: Path) -> float:
    """The largest difference of a parameter; the running statistics, which are large, must agree relatively.

    The rate is small because this network multiplies rounding: another number of threads alone changes its gradients
    by 0.5 %. The test in float64 has a usual rate.
    """
    one, two = (load_file(run / "last.safetensors") for run in (a, b))
    assert one.keys() == two.keys()
    buffers = [name for name in one if "running" in name]
    for name in buffers:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)
    parameters = [name for name in one if name.endswith(("weight", "bias")) and not name.startswith("optimizer")]
    return max(float((one[name] - two[name]).abs().max()) for name in parameters)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = folder(tmp_path_factory.mktemp("images"))
    return made


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    train_alone(images, run, "--val-data", str(images))
    return run


def test_two_processes_reproduce_one_with_the_same_global_batch(images: Path, alone: Path, tmp_path: Path) -> None:
    said = train(images, tmp_path / "run", "--val-data", str(images), "--nproc", "2")
    assert "2 processes, batch-norm over all" in said
    assert said.count("Done.") == 1
    assert "Warning" not in said
    assert difference(alone, tmp_path / "run") < 1e-5
    one, two = records(alone), records(tmp_path / "run")
    assert len(one) == len(two) == 21  # the first before training
    for a, b in zip(one, two, strict=True):
        assert (a.get("lr"), a.get("tau"), a["step"], a.get("knn_top1")) == (
            *(b.get("lr"), b.get("tau"), b["step"], b.get("knn_top1")),
        )
    for a, b in zip(one[1:], two[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # of float32, after up to 20 steps
        for name in ("std_ratio", "rankme", "cosine"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)
    assert sum("knn_top1" in record for record in one) == 3


def test_processes_share_a_list_on_standard_input_and_nothing_of_the_folder_they_start_in(
    images: Path, tmp_path: Path
) -> None:
    """And `WORLD_SIZE=1`, which some clusters set for a job of one process, keeps nobody from starting two."""
    listed = "".join(f"{path}\n" for path in sorted(images.rglob("*.png")))
    done = subprocess.run(
        command(Path("-"), tmp_path / "run", "--nproc", "2", "--max-steps", "1"),
        cwd=traps(tmp_path / "here"),
        env=environment(WORLD_SIZE="1", RANK="0"),
        input=listed,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "on 20 images, 1 steps of 16, cpu, fp32, 2 processes" in done.stderr
    assert [record["step"] for record in records(tmp_path / "run")] == [1]


@pytest.mark.parametrize(
    ("variables", "words", "message"),
    [
        ({"WORLD_SIZE": "4", "RANK": "1"}, ("--nproc", "2"), "4 processes (WORLD_SIZE); leave out --nproc 2"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, (), "MASTER_PORT are not both set; set them to where"),
        ({"WORLD_SIZE": "4"}, (), "WORLD_SIZE is 4, but RANK is not set"),
        ({"WORLD_SIZE": "four"}, (), "environment variable WORLD_SIZE is 'four'"),
        ({"WORLD_SIZE": "4", "RANK": "4"}, (), "environment variable RANK is '4'; set a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "::", "MASTER_PORT": "x"}, (), "cannot connect at :::x"),
    ],
)
def test_a_launcher_s_environment_is_taken_at_its_word(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: tuple[str, ...],
    message: str,
) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = byol("train", images, "--out", tmp_path / "run", *words)
    assert done.code in (1, 2)
    assert message in done.err


def test_processes_are_numbered_as_slurm_and_mpi_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_as() == (0, 1)  # in a batch script, outside of srun, too
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched_as() == (3, 8)
    monkeypatch.setenv("RANK", "5")
    assert launched_as() == (5, 8)


def test_several_processes_of_a_launcher_cannot_read_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = byol("train", "-", "--out", tmp_path / "run")
    assert (done.code, "several processes cannot read one list" in done.err) == (2, True)


def test_a_run_resumes_with_another_number_of_processes(images: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped = subprocess.Popen(command(images, run, "--nproc", "2", "--accumulate", "1"), env=environment())
    wait_for(run / "last.safetensors", stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 1
    done = records(run)[-1]["step"]
    assert 1 <= done < 20
    train_alone(images, run, "--resume")
    assert difference(alone, run) < 1e-5


def test_a_killed_process_ends_the_job_and_leaves_a_checkpoint(images: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = subprocess.Popen(command(images, run, "--nproc", "2"), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(run / "last.safetensors", job)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    workers = [int(child) for child in children if b"train" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "Traceback" not in said
    assert said.count("Error:") == said.count("another process of this job is gone") == 1
    train(images, run, "--resume", "--nproc", "2")
    assert difference(alone, run) < 1e-5


def test_a_job_says_once_why_it_fails(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    done = subprocess.run(
        command(lost, tmp_path / "run", "--nproc", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: {lost} does not exist; .*\n", done.stderr)


def wait_for(path: Path, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_a_batch_that_cannot_be_divided_is_refused(images: Path) -> None:
    decoded = load_canvases(open_source(images), 16)
    for accumulate, size in ((1, 3), (2, 4)):
        with pytest.raises(ValueError, match="cannot be split"):
            Trainer(config(batch_size=8, accumulate=accumulate), decoded, World(0, size, 0))


def test_processes_share_a_batch_and_its_random_numbers() -> None:
    rows = torch.arange(24)
    parts = [share(rows, 2, rank, 3) for rank in range(3)]
    assert parts[0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert sorted(torch.cat(parts).tolist()) == rows.tolist()
    whole = draw(ViewConfig(), torch.ones(12), torch.Generator().manual_seed(5))
    views = [draw(ViewConfig(), torch.ones(4), torch.Generator().manual_seed(5), rank, 3) for rank in range(3)]
    for name, value in vars(whole).items():
        assert torch.equal(value, torch.cat([getattr(view, name) for view in views])), name


def test_norms_are_synchronised_where_a_process_sees_few_images() -> None:
    assert resolve_sync_norm("auto", 64, 2)
    assert not resolve_sync_norm("auto", 128, 2)
    assert not resolve_sync_norm("auto", 64, 1)
    assert resolve_sync_norm("on", 4096, 2)
    assert not resolve_sync_norm("off", 2, 2)


# What two processes compute together, in one job: each of them says what it has passed.
TOGETHER = """
import copy, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from byol.images.open import open_source
from byol.training.data.decoded import load_canvases
from byol.training.parallel.processes import World, joined
from byol.training.parallel.sync_norm import synchronise_norms
from byol.training.trainer import Trainer
from functools import partial
from byol.training import trainer as trainer_module
from tests.support.small import config
from tests.training.parallel.test_processes import network

def norms(world, compiled):
    torch.manual_seed(0)
    reference, net = network(), network()
    net.load_state_dict(reference.state_dict())
    x, t = torch.randn(12, 3, 8, 8) * 3 + 5, torch.randn(12, 4)
    wanted = reference(x)
    (wanted - t).square().mean().backward()
    synchronise_norms(net, world.rank, world.size, world.group)
    run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    found = run(x.chunk(2)[world.rank])
    (found - t.chunk(2)[world.rank]).square().mean().backward()
    torch.testing.assert_close(found, wanted.chunk(2)[world.rank], atol=2e-6, rtol=1e-5)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(world.mean(p.grad), q.grad, atol=2e-6, rtol=1e-4)
    assert list(net.state_dict()) == list(reference.state_dict())
    for p, q in zip(net.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(net.eval()(x), reference.eval()(x))

class Wide(Trainer):
    def _view(self, *arguments):
        torch.set_default_dtype(torch.float32)  # rendered as ever, and float64 from the normalisation on
        view = super()._view(*arguments)
        torch.set_default_dtype(torch.float64)
        return view

def weights(world, sync_norm="auto", steps=20, **more):
    settings = config(batch_size=16, epochs=20, warmup_epochs=2, lr=0.5, accumulate=2, sync_norm=sync_norm, **more)
    trainer, after = Wide(settings, images, world), {}
    for step in range(steps):
        trainer.step(step)
        after[step + 1] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return after

def compiled(world, expected):
    trainer_module.compiler = lambda on_trial: partial(torch.compile, dynamic=False, backend="aot_eager")
    found = weights(world, compile="all", steps=4)
    torch.testing.assert_close(found[4], expected[4], atol=1e-8, rtol=0)

def steps(world):
    torch.set_default_dtype(torch.float64)
    found = weights(world)
    each_its_own = weights(world, sync_norm="off", steps=4)
    alone = weights(World()) if world.first else copy.deepcopy(found)
    of_kinds = {"steps": 8, "local_views": 2, "cutout_views": 1}
    kinds = weights(world, **of_kinds)
    kinds_alone = weights(World(), **of_kinds) if world.first else copy.deepcopy(kinds)
    dist.broadcast(kinds_alone[8], 0)
    torch.testing.assert_close(kinds[8], kinds_alone[8], atol=1e-5, rtol=0)
    compiled(world, found)
    for step in (4, 20):
        dist.broadcast(alone[step], 0)
    torch.testing.assert_close(found[20], alone[20], atol=1e-5, rtol=0)
    assert (each_its_own[4] - alone[4]).abs().max() > 1e-3

images, passed = load_canvases(open_source(sys.argv[1]), 16), Path(sys.argv[2])
del os.environ["LOCAL_RANK"]  # which not every launcher sets
with joined() as world:
    assert world.local_rank == world.rank
    for name in ("eager", "compiled", "steps"):
        steps(world) if name == "steps" else norms(world, name == "compiled")
        (passed / f"{name}-{world.rank}").touch()
"""


def network() -> nn.Module:
    convolution = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolution, nn.Linear(180, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


@pytest.fixture(scope="module")
def together(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """What both processes have passed of TOGETHER, and what they said."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "script.py").write_text(TOGETHER)
    (folder / "passed").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, str(folder / "script.py"), str(images), str(folder / "passed")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400)
    return {path.name for path in (folder / "passed").iterdir()}, done.stderr[-3000:]


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_synchronised_norms_equal_one_norm_over_all_images(together: tuple[set[str], str], mode: str) -> None:
    """Against torch's own batch-norm in one process: outputs, gradients, running statistics; also as one graph."""
    passed, said = together
    assert {f"{mode}-0", f"{mode}-1"} <= passed, said


def test_twenty_steps_at_a_usual_rate_in_float64(together: tuple[set[str], str]) -> None:
    passed, said = together
    assert {"steps-0", "steps-1"} <= passed, said

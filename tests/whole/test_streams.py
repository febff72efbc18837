"""Signals, closed streams and readers that go away end no work half-way: real processes, real pipes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from byol.serve.features.read import read_features
from byol.training.checkpoint import read_checkpoint
from tests.support.forks import Fork
from tests.support.small import REPOSITORY, config, folder
from tests.support.tiny import write_images, write_tiny_bundle

BYOL = [sys.executable, "-m", "byol"]
CPU = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a busy machine's cores are not waited for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write_tiny_bundle(root / "bundle")
    write_images(root / "train", {"cat": 6, "dog": 6})
    write_images(root / "test", {"cat": 3, "dog": 3}, seed=1)
    folder(root / "images")
    return root


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", script, "bash", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def byol(*words: object) -> str:
    return " ".join(f"'{word}'" for word in (*BYOL, *words))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------- training


def train(images: Path, out: Path) -> list[str]:
    words = ["train", str(images), "--out", str(out), "--preset", "demo", "--batch-size", "8", "--epochs", "1000"]
    words += ["--arch", "timm:test_resnet", "--device", "cpu", "--precision", "fp32", "--image-size", "16"]
    words.append("--no-export-check")
    settings = ("log_every=1", "projector_hidden=32", "projector_out=16", "predictor_hidden=32")
    return [*words, *(word for setting in settings for word in ("--set", setting))]


@pytest.mark.parametrize("hang_ups", [1, 2])
def test_a_hang_up_saves_the_step(place: Path, tmp_path: Path, hang_ups: int) -> None:
    out = tmp_path / "run"
    process = Fork(train(place / "images", out), tmp_path / "said")
    process.wait_for((out / "metrics.jsonl").exists)
    for _ in range(hang_ups):  # from the terminal, and from the shell
        process.send_signal(signal.SIGHUP)
    assert process.wait() == 1
    assert "stopped by SIGHUP after step" in process.said
    assert read_checkpoint(out / "last.safetensors").step >= 1
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def under_nohup_with_a_lost_reader() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 2)


def test_under_nohup_a_hang_up_and_a_lost_reader_change_nothing(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = Fork(train(place / "images", out), tmp_path / "said", under_nohup_with_a_lost_reader)
    metrics = out / "metrics.jsonl"
    process.wait_for(metrics.exists)
    process.send_signal(signal.SIGHUP)
    lines = metrics.read_bytes().count(b"\n")
    process.wait_for(lambda: metrics.read_bytes().count(b"\n") > lines + 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert process.said == ""
    assert read_checkpoint(out / "last.safetensors").step > 2


def test_training_that_nobody_reads_any_more_saves_and_ends(place: Path, tmp_path: Path) -> None:
    done = shell(f"{byol(*train(place / 'images', tmp_path / 'run'))} 2>&1 | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.splitlines()[-1] == "1"
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").step >= 1


class StoppedInside:
    """To be called in a process, which then gets SIGTERM when it calls the function of this name."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self) -> None:
        module, name = self.name.rsplit(".", 1)
        setattr(importlib.import_module(module), name, terminated)


def terminated(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class StoppedDecoding(StoppedInside):
    """As soon as the first image would be decoded into the cache."""

    def __call__(self) -> None:
        from byol.training.data import decoded

        decoded.SMALL = 0
        super().__call__()


def test_a_signal_before_the_first_step_leaves_nothing_half_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    stopped = StoppedDecoding("byol.training.data.decoded._decode_into")
    process = Fork(train(place / "images", tmp_path / "run"), tmp_path / "said", stopped)
    assert (process.wait(), process.said) == (1, "Error: stopped by SIGTERM\n")
    assert os.listdir(tmp_path / "home" / "decoded") == []


DATA = {"name": "photos", "images": 80, "digest": "0" * 16}


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("byol.export.exporter.prove", ["export", "run", "--out", "bundle"]),
        (
            "byol.finetuning.tuner.scores",
            ["finetune", "run", "train", "--epochs", "1", "--epochs", "2", "--lr", "0.01", "--out", "new", *CPU],
        ),
        ("byol.serve.report.page.render", ["report", "run", "--out", "new.html"]),
    ],
    ids=["export", "finetune", "report"],
)
def test_a_signal_in_the_middle_leaves_what_was_there(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, words: list[str]
) -> None:
    work = tmp_path / "work"
    for name in ("run", "bundle", "train"):
        shutil.copytree(quick / name, work / name)
    (work / "run" / "metrics.jsonl").write_text('{"step": 20, "epoch": 2.0, "loss": 1.0}\n')
    facts = {"config": config(stem="imagenet", seed=7).to_dict(), "data": DATA}
    (work / "run" / "config.json").write_text(json.dumps(facts))
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    monkeypatch.chdir(work)
    process = Fork(words, tmp_path / "said", StoppedInside(inside))
    assert process.wait() == 1
    assert process.said.splitlines()[-1].startswith("Error: stopped by SIGTERM")
    after = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after.keys() - before.keys() if path.name.startswith(".") or words[0] != "finetune"]


# ------------------------------------------------------------------------------------------- extraction and more


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_extraction_by_processes_with_a_line_and_no_worker(
    place: Path, tmp_path: Path, number: signal.Signals
) -> None:
    images = write_images(tmp_path / "many", {"cat": 30})
    listed = sorted(images.rglob("*.png"))
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in listed * 400))
    words = ["extract", place / "bundle", tmp_path / "list.txt", "--out", f"{tmp_path}/out/", "--processes", "2"]
    words += ["--part-images", "20", "--batch-size", "4", *CPU]
    process = subprocess.Popen(
        [*BYOL, *map(str, words)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(list((tmp_path / "out").glob("data/part-*.parquet"))) > 1, process)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    kept = "finished parts are kept, run the same command again to continue"
    assert (process.returncode, text.splitlines()[-1]) == (1, f"Error: stopped by {number.name}; {kept}")
    assert "Traceback" not in text
    wait_until_gone(process.pid)


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process of the command still runs")


def test_results_that_nobody_reads_end_the_command_quietly(place: Path, tmp_path: Path) -> None:
    sets = ("--train", place / "train", "--test", place / "test", *CPU)
    for words in (("knn", place / "bundle", *sets), ("linear", place / "bundle", *sets, "--json")):
        done = shell(f"{byol(*words)} | head -0; echo ${{PIPESTATUS[0]}}")
        assert done.stdout == "1\n"
        assert not [line for line in done.stderr.splitlines() if "warning: k is" not in line], done.stderr


def test_the_picture_is_drawn_also_when_nobody_reads_the_lines(place: Path, tmp_path: Path) -> None:
    words = ("neighbors", place / "bundle", "--bank", place / "train", "--query", place / "test", *CPU)
    shell(f"{byol(*words, '--grid', tmp_path / 'g.png')} | head -0")
    assert (tmp_path / "g.png").exists()


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "2>/dev/full", "2>&1 | head -0"])
def test_an_output_holds_nothing_but_itself_whatever_the_streams(place: Path, tmp_path: Path, closed: str) -> None:
    broken = write_images(tmp_path / "broken", {"cat": 3})
    (broken / "cat" / "bad.png").write_bytes(b"no image")  # which is told on stderr
    out = tmp_path / "f.parquet"
    done = shell(f"{byol('extract', place / 'bundle', broken, '--out', out, '--device', 'auto')} {closed}")
    assert "Traceback" not in done.stderr
    assert len(read_features(out)) == 3
    assert sorted(os.listdir(tmp_path)) == ["broken", "f.parquet", "f.parquet.errors.parquet"]


def test_files_of_a_command_never_become_its_standard_streams(tmp_path: Path) -> None:
    script = (
        "import os\nfrom byol.console import prepare\nprepare()\n"
        f"file = open({str(tmp_path / 'f')!r}, 'w')\nassert file.fileno() > 2\n"
        "os.write(1, b'a library prints')\nos.write(2, b'and another')\nprint('x', flush=True)\n"
        "import sys\nprint('y', file=sys.stderr, flush=True)\nassert sys.stdin.read() == ''\n"
    )
    done = shell('$1 -c "$2" 0<&- 1>&- 2>&-', sys.executable, script)
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == ""


def test_notes_without_a_standard_error_are_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from byol.console import note, progress

    monkeypatch.setattr(sys, "stderr", None)
    note("nobody hears this")
    with progress("work", 3) as advance:
        advance(3)
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    os.close(read)
    note("nobody hears this")
    with contextlib.suppress(BrokenPipeError):  # what is still in its buffer
        stream.close()
    note("nobody hears this: the stream is closed")

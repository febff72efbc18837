"""Every long command, killed again and again: does it end with what an undisturbed one gives, and leave nothing behind?

    python -m benchmarks.robustness.kills IMAGES --out FILE.json [--kills 12]

IMAGES is a folder with a sub-folder for each class. Training (one process and two), fine-tuning, export, and extraction
(two processes, and Ray where it is installed) each run undisturbed first. Then the same command is sent SIGKILL at
random moments, every second time with all of its processes, and given again until it ends. FILE says what was seen:
which files are not byte-identical to the undisturbed ones, whether a bundle that stood there was whole after each kill
(`byol info --verify`), and which temporary files are left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks.rows import ChildFailed, Row, Rows, byol
from benchmarks.rows import start as start_module

SMALL = ["--arch", "timm:test_resnet", "--image-size", "32", "--batch-size", "16", "--max-steps", "150"]
SET = "--set"
SMALL += [SET, "checkpoint_every=5", SET, "canvas_size=32"]
SMALL += [SET, "projector_hidden=64", SET, "projector_out=32", SET, "predictor_hidden=64"]
VARYING = {"metrics.jsonl", "config.json", "_manifest.json"}  # speeds, and settings of the command itself


@dataclass(frozen=True)
class Job:
    name: str
    words: list[str | Path]
    out: Path
    goes_on: bool = True
    """Whether a command given again goes on; else it begins anew, and what stood at `out` stays until it is done."""


def jobs(images: Path, run: Path, bundle: Path, work: Path) -> list[Job]:
    """All commands; `run` and `bundle` are finished ones."""
    training: list[str | Path] = ["train", images, *SMALL, "--resume"]
    rates = ["--lr", "0.05", "--lr", "0.1", "--epochs", "2", "--batch-size", "64"]
    tuning: list[str | Path] = ["finetune", run, images, *rates, "--resume"]
    extraction: list[str | Path] = ["extract", bundle, images, "--part-images", "100"]
    return [
        Job("train", training, work / "train"),
        Job("train-2", [*training, "--nproc", "2"], work / "train-2"),
        Job("finetune", tuning, work / "finetune"),
        Job("export", ["export", run], work / "export", goes_on=False),
        Job("extract-2", [*extraction, "--processes", "2"], work / "extract-2"),
        Job("extract-ray", [*extraction, "--engine", "ray"], work / "extract-ray"),
    ]


def start(words: list[str | Path], out: Path) -> subprocess.Popen[str]:
    """The command, first of a process group of its own."""
    device = () if words[0] == "export" else ("--device", "cpu")
    call = ("byol", *words, "--out", f"{out}/", *device)
    return start_module(*call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"byol ended with {process.returncode}: {errors}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder whose bytes say something of the work done."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in VARYING]
    return {path.relative_to(folder).as_posix(): in_order(path) for path in files}


def in_order(path: Path) -> bytes:
    """A file's bytes without times and its own place; the metadata of safetensors, written in any order, sorted."""
    content = path.read_bytes()
    if path.name == "result.json":
        values = {name: value for name, value in json.loads(content).items() if name not in ("seconds", "out")}
        return json.dumps(values).encode()
    if path.suffix != ".safetensors":
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


def different(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The files that are not there, or not the same, in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def is_whole(bundle: Path) -> bool:
    try:
        byol("info", bundle, "--verify")
    except ChildFailed:
        return False
    return True


def kill_at_random(job: Job, kills: int, seconds: float) -> Row:
    """Kill the job so many times and let it end; it takes `seconds` when nobody does."""
    moments, whole, began = list[float](), 0, 4.0
    longest = min(seconds, began + 3 * seconds / kills) if job.goes_on else seconds
    for number in range(kills):
        process = start(job.words, job.out)
        moment = random.uniform(0, longest)
        time.sleep(moment)
        if process.poll() is not None:
            finish(process)
            if job.goes_on:
                break  # it was complete before the kills were used up
            continue
        (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        moments.append(round(moment, 1))
        whole += not job.goes_on and (not job.out.exists() or is_whole(job.out))
    finish(start(job.words, job.out))
    facts: Row = {"kills": len(moments), "seconds_to_each_kill": moments}
    return facts if job.goes_on else facts | {"absent_or_whole_after_each_kill": whole == len(moments)}


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".lock")))


def prepared(first: Job, bundle: Path) -> Row:
    """What the other jobs start from."""
    finish(start(first.words, first.out))
    finish(start(["export", first.out], bundle))
    return {}


def compared(whole: Job, killed: Job, kills: int) -> Row:
    """What the undisturbed job and the killed one left."""
    began = time.perf_counter()
    finish(start(whole.words, whole.out))
    seconds = time.perf_counter() - began
    seen = {"undisturbed_seconds": round(seconds, 1), **kill_at_random(killed, kills, seconds)}
    seen["different"] = different(contents(whole.out), contents(killed.out))
    return {**seen, "left_behind": left_behind(killed.out.parent)}


@click.command()
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--kills", default=12, show_default=True)
@click.option("--only", multiple=True, help="Names of jobs; all without it.")
@click.option("--seed", default=0, show_default=True)
def main(images: Path, out: Path, kills: int, only: tuple[str, ...], seed: int) -> None:
    random.seed(seed)
    rows = Rows(out, "benchmarks.robustness.kills")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        first, bundle = jobs(images, work, work, work / "first")[0], work / "bundle"
        rows.find("a run and its bundle", partial(prepared, first, bundle))
        pairs = zip(*(jobs(images, first.out, bundle, work / name) for name in ("whole", "killed")), strict=True)
        for whole, killed in pairs:
            if not only or whole.name in only:
                rows.find(whole.name, partial(compared, whole, killed, kills))


if __name__ == "__main__":
    main()

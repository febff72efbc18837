"""The three calls: their steps in order, those of a group side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.scale import DRY, FULL, Scale

Group = list["Step"]


@dataclass(frozen=True)
class Step:
    """A command with a time limit of its own, in seconds."""

    name: str
    limit: int
    words: list[str]

    @property
    def shows_json(self) -> bool:
        """Whether its last line is its result."""
        return "--json" in self.words


@dataclass(frozen=True)
class Trial:
    """Where results and everything else go, and what call three trains on."""

    out: Path
    work: Path
    dry: bool
    train: str
    test: str
    epochs: int
    compile: str

    @property
    def scale(self) -> Scale:
        return DRY if self.dry else FULL

    def script(self, name: str, limit: int, module: str, *words: object) -> Step:
        """A script of this folder, which writes NAME.json among the results."""
        call = [f"benchmarks.gpu.{module}", *words, "--out", self.out / f"{name}.json"]
        return module_step(name, limit, *call, *["--dry"] * self.dry)


def module_step(name: str, limit: int, *words: object) -> Step:
    return Step(name, limit, [sys.executable, "-m", *map(str, words)])


def one(trial: Trial) -> list[Group]:
    """All that needs no images. What is not timed comes first, side by side."""
    work, encoders = ("--work", trial.work), range(len(trial.scale.encoders))
    tests = ("pytest", "-m", "cuda", "tests/test_cuda.py", "-p", "no:cacheprovider", "-v", "--tb=short")
    compiled = ("--only", "compile all, 512", "--only", "compile all, 256", "--only", "compile none, 512")
    profiled = ("--profile", "--only", "compile none, 512", "--only", "compile all, 512")
    return [
        [
            Step("machine", 20, ["nvidia-smi"]),
            module_step("doctor", 60, "byol", "doctor", "--json"),
            trial.script("raw", 60, "raw"),
            module_step("pytest", 150, *tests, "--basetemp", trial.work / "pytest"),
            *(trial.script(f"parity-{i}", 150, "parity", *work, "--encoder", i) for i in encoders),
            trial.script("warm-training", 150, "training", *compiled),
            *(trial.script(f"warm-inference-{i}", 150, "inference", *work, "--encoder", i, "--warm") for i in encoders),
        ],
        [trial.script("training", 150, "training")],
        [trial.script("profile", 60, "training", *profiled)],
        [trial.script("inference-first", 110, "inference", *work, "--encoder", 0)],
        [trial.script("probes", 45, "probes")],
        [trial.script("peers", 60, "peers", *work)],
    ]


def two(trial: Trial) -> list[Group]:
    """The last encoder; the first call has left its bundle."""
    last = len(trial.scale.encoders) - 1
    return [[trial.script("inference-last", 110, "inference", "--work", trial.work, "--encoder", last)]]


def three(trial: Trial) -> list[Group]:
    """CIFAR-10: train, export, evaluate through ONNX Runtime; nothing is chosen on the test images."""
    run, bundle, device = trial.work / "run", trial.work / "bundle", ("--device", trial.scale.device)
    changes = {"start_size": 0, "checkpoint_every": 1_000_000, "log_every": 200, "compile": trial.compile}
    changes |= {"knn_every": 20, **trial.scale.settings}
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    data = ["--preset", "cifar10-fast", "--val-data", trial.test, "--epochs", trial.epochs]
    sets = ("--train", trial.train, "--test", trial.test, *device, "--json")
    steps = [
        module_step(
            "train", 300, "byol", "train", trial.train, "--out", run, *data, *settings, *device, "--no-export-check"
        ),
        module_step("export", 60, "byol", "export", run, "--out", bundle, "--precision", "fp16"),
        module_step("knn-20", 60, "byol", "knn", bundle, *sets, "--k", 20, "--temperature", 0.07),
        module_step("knn-200", 60, "byol", "knn", bundle, *sets, "--k", 200, "--temperature", 0.1),
        module_step("linear", 60, "byol", "linear", bundle, *sets),
        module_step("final", 20, "benchmarks.gpu.final", run, bundle, "--out", trial.out / "final.json"),
    ]
    return [[step] for step in steps]


CALLS = {"one": one, "two": two, "three": three}


def tiny_images(folder: Path) -> tuple[str, str]:
    """Two labelled sets of noise, for a dry run: where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 256), ("test", 32)):
        images = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.array(["cat", "dog"] * (count // 2)))
    return str(folder / "train.npz"), str(folder / "test.npz")

"""The files of a run and how they are read, whether training resumes it or a report shows it. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.files.regular import read_regular
from byol.limits import limit
from byol.strict_json import read_object
from byol.text import printable, reason_of

CONFIG, METRICS, LAST, VIEWS = "config.json", "metrics.jsonl", "last.safetensors", "views.png"
MOST_CONFIG = 16 << 20  # bytes: far more than any run writes
SKIPPED, MOST_SKIPPED = "skipped.jsonl", 200  # the images left out, if there are more than config.json holds
RESULT = "result.json"  # of a fine-tuning
TRAIN, FINETUNE = "train", "finetune"  # the commands that write one: `task` in config.json and in checkpoints
INPUTS = "inputs"  # in config.json: where the images are
NETWORKS = "init_networks"  # in config.json: a digest of the networks it began with, null for the encoder alone
VAL_DATA = "val_data"  # in config.json: what kNN was measured on

KNN_K, KNN_TEMPERATURE = 20, 0.07  # of kNN accuracy by default: the field's usual numbers

# Below the first and the third of these training is collapsing; a healthy std_ratio is between the second and 1.
COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO, COLLAPSED_RANK = 0.1, 0.5, 1.5

KNN = ("knn_top1", "knn_bank", "knn_queries", "knn_classes")  # in a line of metrics: accuracy, and what it rests on

LARGEST_NUMBER = 1e15  # of a number in a run's files: beyond it drawing overflows, and nothing counts so far

OWN_VIEWS = "the views of a training run, written by byol, not an image"


def standard_error(accuracy: float, count: int) -> float:
    """The standard error of an accuracy (0 to 1) measured on `count` images: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / count)


def is_run(content: bytes) -> bool:
    """Whether this is the content of a run's `config.json`, which says which byol wrote it."""
    try:
        versions = read_object(content).get("versions")
    except ValueError:
        return False
    return isinstance(versions, dict) and "byol" in versions


def is_run_folder(folder: str | bytes) -> bool:
    """Whether a local folder holds a run."""
    try:
        return is_run(read_regular(os.path.join(os.fsdecode(folder), CONFIG), MOST_CONFIG, follow=False))
    except OSError:
        return False


def settings_digest(settings: dict[str, Any]) -> str:
    """The hexadecimal SHA-256 by which a manifest names the settings of a run."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_facts(folder: Path) -> dict[str, Any]:
    """What `config.json` holds. Raises `ValueError` when it cannot be read, or a part of it is not an object."""
    path = folder / CONFIG
    try:
        facts = read_object(read_regular(path, MOST_CONFIG, follow=False))
        for part in ("config", "data"):
            if not isinstance(facts.get(part, {}), dict):
                raise ValueError(f"{part} is {facts[part]!r:.40}; expected an object")
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(path)} cannot be read: {reason_of(error)}") from error
    return facts


@dataclass(frozen=True)
class Metrics:
    """The lines of `metrics.jsonl`: `records`, and how many lines are `damaged`, that is, not the task's.

    `cut_off`: the last line is half written, as by a killed or a running process; it does not count as damaged.
    """

    records: list[dict[str, Any]]
    damaged: int
    cut_off: bool

    @property
    def ignored(self) -> str:
        """A sentence on the damaged lines, empty when there are none."""
        lines = "1 damaged line" if self.damaged == 1 else f"{self.damaged:,} damaged lines"
        return f"ignored {lines} of {METRICS}" if self.damaged else ""


def read_metrics(folder: Path, task: str = TRAIN) -> Metrics:
    """Read `metrics.jsonl`; empty where there is none. Raises `OSError`: not a regular file, too large."""
    wanted = {TRAIN: is_step, FINETUNE: is_fit}[task]
    lines = read_lines(folder / METRICS).splitlines(keepends=True)
    found = [_object(line) for line in lines]
    records = [record for record in found if record is not None and wanted(record)]
    cut_off = bool(lines) and found[-1] is None and not lines[-1].endswith(b"\n")
    return Metrics(records, len(lines) - len(records) - cut_off, cut_off)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return read_object(line)
    except ValueError:
        return None


def is_step(record: dict[str, Any]) -> bool:
    """Whether this is a line of a training: numbers only, `step` and `epoch` among them."""
    return {"step", "epoch"} <= record.keys() and all(map(_is_number, record.values()))


def is_fit(record: dict[str, Any]) -> bool:
    """Whether this is a line of a fine-tuning, with numbers where they belong."""
    numbers = [record.get(name) for name in ("draw", "lr", "epochs", "images", "seconds", "scored")]
    numbers += [record.get(name) for name in ("top1", "top5", "mean_per_class")] if record.get("scored") else []
    return record.get("part") in ("trial", "final") and "loss" in record and all(map(_is_number, numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def read_lines(path: Path) -> bytes:
    """The content of `metrics.jsonl` or `skipped.jsonl`; empty where there is no such file. Raises `OSError`."""
    try:
        return read_regular(path, limit("BYOL_METRICS_MB") * 10**6, follow=False)
    except FileNotFoundError:
        return b""

"""The files of a run: their names, how they are read, and thresholds of its metrics. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from byol.files.atomic import read_regular
from byol.limits import limit
from byol.strict_json import read_object

CONFIG, METRICS, LAST, VIEWS = "config.json", "metrics.jsonl", "last.safetensors", "views.png"
MOST_CONFIG = 16 << 20  # bytes: far more than any run writes
SKIPPED, MOST_SKIPPED = "skipped.jsonl", 200  # the images left out, if there are more than config.json holds
RESULT = "result.json"  # of a fine-tuning
TRAIN, FINETUNE = "train", "finetune"  # the commands that write one: `task` in config.json and in checkpoints
VAL_DATA = "val_data"  # in config.json: what kNN was measured on

KNN_K, KNN_TEMPERATURE = 20, 0.07  # defaults for kNN accuracy, usual in the field

# Below the first and the third of these training is collapsing; a healthy std_ratio is between the second and 1.
COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO, COLLAPSED_RANK = 0.1, 0.5, 1.5

OWN_VIEWS = "a picture of training views that byol wrote, not an image of the data"


def is_run(content: bytes) -> bool:
    """Whether this is the `config.json` of a run: it names the byol version that wrote it."""
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
    """The digest of a run's settings in a manifest: SHA-256, hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_metrics(path: Path) -> bytes:
    """The content of `metrics.jsonl` or `skipped.jsonl`, empty if there is no such file. Raises `OSError`."""
    try:
        return read_regular(path, limit("BYOL_METRICS_MB") * 10**6, follow=False)
    except FileNotFoundError:
        return b""

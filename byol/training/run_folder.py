"""The run folder: `config.json`, `metrics.jsonl`, `last.safetensors`, `views.png`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision

from byol import __version__
from byol.encoders import TIMM
from byol.files.atomic import atomic_file, contents, made_folder
from byol.files.locks import only_writer_in
from byol.files.names import leftovers_in
from byol.outputs import require_output_folder
from byol.run import (
    CONFIG,
    INPUTS,
    LAST,
    METRICS,
    MOST_SKIPPED,
    RESULT,
    SKIPPED,
    TRAIN,
    VIEWS,
    Metrics,
    read_facts,
    read_lines,
    read_metrics,
)
from byol.strict_json import read_object
from byol.text import printable, reason_of
from byol.training.begun import Begun
from byol.training.checkpoint import Checkpoint, read_checkpoint
from byol.training.config import TrainConfig

FILES = (CONFIG, LAST, METRICS, RESULT, SKIPPED, VIEWS, "step-*.safetensors")


class RunFolder:
    """One run's files, under the names of `byol.run`."""

    def __init__(self, path: Path):
        self.path = path
        self.last = path / LAST
        self.views = path / VIEWS
        self._config = path / CONFIG
        self._metrics = path / METRICS

    def numbered(self, step: int) -> Path:
        """Where a checkpoint that is kept goes."""
        return self.path / f"step-{step:08d}.safetensors"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the run. A folder made for it is removed if the run fails before writing.

        Raises `BlockingIOError` while another process works in it, and `ValueError` where no folder can be made.
        """
        require_output_folder(self.path)
        with made_folder(self.path), only_writer_in(self.path.resolve()):
            yield

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._config.exists()

    def require_new(self) -> None:
        """Raises `ValueError` when the folder holds other files."""
        if self.path.exists() and (not self.path.is_dir() or any(_visible(self.path))):
            remedy = "add --resume to continue its run, or " if self.exists() else ""
            raise ValueError(f"{printable(self.path)} is not empty; {remedy}choose another --out")

    def create(self, config: TrainConfig, facts: dict[str, Any], listed: Sequence[dict[str, Any]] = ()) -> None:
        """Start a run: the folder and `config.json`. Beyond `MOST_SKIPPED`, the images left out get their own file.

        `listed`: these, as `Intake.recorded` has them. Raises `ValueError` when the folder holds other files.
        """
        self.require_new()
        facts = {**facts, "skipped": [*listed][:MOST_SKIPPED], "skipped_in_all": len(listed)}
        if len(listed) > MOST_SKIPPED:
            self.path.resolve().mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path / SKIPPED) as temporary:
                temporary.write_text("".join(json.dumps(item) + "\n" for item in listed))
        self._begin({"config": config.to_dict(), **facts}, config.arch)

    def start(self, content: dict[str, Any], arch: str) -> None:
        """Start a run with this content of `config.json`; versions and commit are added."""
        self.require_new()
        self._begin(content, arch)

    def _begin(self, content: dict[str, Any], arch: str) -> None:
        self.path.resolve().mkdir(parents=True, exist_ok=True)  # a link may point to a folder that does not exist yet
        self._write({**content, "versions": versions(arch), "git_commit": _git_commit()})

    def remember(self, name: str, value: dict[str, Any]) -> None:
        """Add to a training run's `config.json` what was not known when it began."""
        content = self.content(TRAIN)
        if content.get(name) != value:
            self._write({**content, name: value})

    def _write(self, content: dict[str, Any]) -> None:
        with atomic_file(self._config) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def content(self, task: str) -> dict[str, Any]:
        """What `config.json` holds. Raises `ValueError` when it cannot be read, or belongs to another task."""
        content = read_facts(self.path)
        found = content.get("task", TRAIN)
        if found != task:
            raise ValueError(f"{printable(self.path)} was written by `byol {found}`; choose another --out")
        return content

    def inputs(self) -> dict[str, Any]:
        """Where the run's images are; empty in runs of earlier versions."""
        found = self.content(TRAIN).get(INPUTS)
        return found if isinstance(found, dict) else {}

    def untrained(self) -> float | None:
        """kNN accuracy before the first step, where it was measured."""
        first = next((record for record in self.metrics() if record["step"] == 0), {})
        return first.get("knn_top1")

    def config(self) -> TrainConfig:
        """The configuration the run was started with. Raises `ValueError` when it cannot be read."""
        content = self.content(TRAIN)
        try:
            return TrainConfig.from_dict(content.get("config"))
        except ValueError as error:
            raise ValueError(f"{printable(self._config)} cannot be read: {error}") from error

    def begun(self, task: str = TRAIN) -> Begun:
        """How the run began. Raises `ValueError` when that cannot be read."""
        content = self.content(task)
        try:
            return Begun.of({**content, **self._skipped(content)})
        except ValueError as error:
            raise ValueError(f"{printable(self._config)} cannot be read: {error}") from error

    def _skipped(self, content: dict[str, Any]) -> dict[str, Any]:
        """All skipped images if `config.json` holds only the first; earlier versions kept all of them in it."""
        count, listed = content.get("skipped_in_all"), content.get("skipped")
        if type(count) is not int or not isinstance(listed, list) or count == len(listed):
            return {}
        try:
            found = [read_object(line) for line in read_lines(self.path / SKIPPED).splitlines()]
        except OSError as error:
            raise ValueError(f"{SKIPPED} beside it: {reason_of(error)} (BYOL_METRICS_MB)") from error
        if len(found) != count:
            raise ValueError(f"{SKIPPED} beside it lists {len(found):,} of {count:,} skipped images")
        return {"skipped": found}

    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, None when the run was stopped before its first."""
        return read_checkpoint(self.path) if os.path.lexists(self.last) else None

    def remove_leftovers(self) -> None:
        """Remove half-written files and locks of killed processes, safetensors' own (`.tmpXXXXXX`) among them."""
        for path in (*leftovers_in(self.path, FILES), *self.path.glob(".tmp" + "[0-9A-Za-z]" * 6)):
            if path.is_file() or path.is_symlink():
                path.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self, task: str = TRAIN) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`. Raises `OSError` when it is not a regular file, or too large."""
        return read_metrics(self.path, task).records

    def drop_metrics_after(self, step: int) -> Metrics:
        """Remove the lines past a step, which a resumed run does again, and damaged ones; what was there before."""
        found = read_metrics(self.path)
        self._keep([record for record in found.records if record["step"] <= step])
        return found

    def mend_metrics(self, task: str) -> Metrics:
        """Remove half-written and damaged lines, so that the next one starts a line; what was there before."""
        found = read_metrics(self.path, task)
        self._keep(found.records)
        return found

    def _keep(self, records: list[dict[str, Any]]) -> None:
        if self._metrics.exists():
            with atomic_file(self._metrics) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in records))


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without the temporary files of a killed process."""
    return [folder / name for name in contents(folder) if not name.startswith(".")]


def versions(arch: str) -> dict[str, str]:
    """The versions of the packages that compute a run of an architecture."""
    found = {
        "byol": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }
    if arch.startswith(TIMM):
        import timm

        found["timm"] = timm.__version__
    return found


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, None when it is installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

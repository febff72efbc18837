"""The run folders and bundles of a report, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from byol.bundle.folder import Bundle
from byol.bundle.manifest import MANIFEST
from byol.run import (
    CONFIG,
    FINETUNE,
    LARGEST_NUMBER,
    METRICS,
    VIEWS,
    Metrics,
    read_facts,
    read_metrics,
    settings_digest,
)
from byol.text import printable, quoted, reason_of, told_apart

Record = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A run folder as `byol train` writes it."""

    folder: Path
    facts: dict[str, Any]
    metrics: Metrics

    @property
    def records(self) -> list[Record]:
        """The lines of `metrics.jsonl`, one at least."""
        return self.metrics.records

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        config: dict[str, Any] = self.facts["config"]
        return config

    @property
    def planned(self) -> int | None:
        """The optimizer steps that the settings ask for, None if unknown."""
        config, images = self.config, self.facts.get("data", {}).get("images")
        if config.get("max_steps"):
            return int(config["max_steps"])
        if images is None or not {"epochs", "batch_size"} <= config.keys():
            return None
        return int(config["epochs"] * (images // config["batch_size"]))

    @property
    def unfinished(self) -> bool:
        """Whether the run was stopped early or is still running."""
        return self.planned is not None and self.records[-1]["step"] < self.planned

    @property
    def last_knn(self) -> Record | None:
        """The newest line with a kNN accuracy: not every line has one."""
        return next((record for record in reversed(self.records) if "knn_top1" in record), None)

    @property
    def views(self) -> Path | None:
        """The picture of the first batch's views, if there is one."""
        path = self.folder / VIEWS
        return path if path.is_file() and not path.is_symlink() else None

    def trained(self, bundle: Bundle) -> bool:
        """Whether the bundle holds the newest encoder that this run can show: settings, data and images agree.

        Of a finished run that is its last step; of one that was stopped or goes on any step but 0, as checkpoints are
        written between two lines of metrics, and before those that follow. A fine-tuned bundle never does.
        """
        training, data = bundle.manifest.training, self.facts.get("data", {})
        if training is None or bundle.manifest.finetuning:
            return False
        mine = (settings_digest(self.config), data.get("name"), data.get("images"))
        if mine != (training.config_sha256, training.data, training.images):
            return False
        return training.steps == self.records[-1]["step"] or (self.unfinished and training.steps > 0)


@dataclass(frozen=True)
class Entry:
    """One encoder of a report: a run, a bundle, or a run with its bundle."""

    name: str
    run: Run | None = None
    bundle: Bundle | None = None

    @property
    def bundle_step(self) -> str:
        """At which step of how many a run's bundle was exported, in words; empty for the run's last line."""
        training = self.bundle.manifest.training if self.run and self.bundle else None
        if self.run is None or training is None or training.steps == self.run.records[-1]["step"]:
            return ""
        return f"step {training.steps:,} of {self.run.planned:,}"


def open_entries(paths: Sequence[Path]) -> list[Entry]:
    """Runs and bundles in the order given; the bundle that a run trained, if several the newest, is joined to it.

    Raises `ValueError` for a path that is neither or is given twice, and for unreadable files.
    """
    folders = [path.resolve() for path in paths]
    for folder, path in zip(folders, paths, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{printable(path)} is given twice")
    names = dict(zip(folders, _names(folders), strict=True))
    entries = [_open(path, names[folder]) for path, folder in zip(paths, folders, strict=True)]
    for run in [entry for entry in entries if entry.run]:
        exported = max((entry for entry in entries if _exported(run, entry)), key=_steps, default=None)
        if exported:
            entries[entries.index(run)] = replace(run, bundle=exported.bundle)
            entries.remove(exported)
    return entries


def _exported(run: Entry, other: Entry) -> bool:
    return bool(run.run and other.bundle and other.run is None and run.run.trained(other.bundle))


def _steps(entry: Entry) -> int:
    training = entry.bundle.manifest.training if entry.bundle else None
    return training.steps if training else 0


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as needed to tell them apart; what reads alike is numbered."""
    most = max(len(folder.parts) for folder in folders)
    apart = (n for n in range(1, most + 1) if len({folder.parts[-n:] for folder in folders}) == len(set(folders)))
    count = next(apart)
    return told_apart("/".join(map(printable, folder.parts[-count:])) for folder in folders)


def _open(path: Path, name: str) -> Entry:
    if (path / MANIFEST).is_file():
        return Entry(name, bundle=Bundle.open(path))
    if _is_run(path):
        return Entry(name, run=read_run(path))
    inside = [
        printable(folder)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and (_is_run(folder) or (folder / MANIFEST).is_file())
    ]
    hint = f"; give what it contains: {', '.join(inside)}" if inside else ""
    raise ValueError(f"{printable(path)} is neither a run ({CONFIG}) nor a bundle ({MANIFEST}){hint}")


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def read_run(path: Path) -> Run:
    """Read settings and metrics of a run folder. Raises `ValueError`: damaged files, no metrics yet."""
    name, facts = printable(path / CONFIG), read_facts(path)
    if facts.get("task") == FINETUNE:
        raise ValueError(
            f"{printable(path)} was written by `byol finetune`; export it and give the bundle: "
            f"byol export {quoted(path)} --out BUNDLE"
        )
    if "config" not in facts:
        raise ValueError(f"{name} holds no `config`; expected what `byol train` writes")
    _require_kinds(facts, name)
    metrics = _read_metrics(path)
    if not metrics.records:
        reason = "all of its lines are damaged" if metrics.damaged else "it is missing or empty"
        raise ValueError(
            f"{printable(path / METRICS)} holds no metrics: {reason}; a run logs its first line after an epoch at the "
            "latest"
        )
    return Run(path, facts, metrics)


def _require_kinds(facts: dict[str, Any], file: str) -> None:
    """Raise `ValueError` unless what a page shows of a run has the types that `byol train` writes."""
    if not isinstance(facts.get("versions", {}), dict):
        raise ValueError(f"{file}: versions is {facts['versions']!r:.40}; expected an object")
    data = facts.get("data", {})
    if data and not {"name", "images", "digest"} <= data.keys():
        raise ValueError(f"{file}: data lacks one of name, images and digest")
    _require_count(data, "images", 1, file)
    for name, least in {"epochs": 1, "batch_size": 1, "max_steps": 0}.items():
        _require_count(facts["config"], name, least, file)


def _require_count(values: dict[str, Any], name: str, least: int, file: str) -> None:
    value = values.get(name, least)
    if type(value) is not int or not least <= value < LARGEST_NUMBER:
        raise ValueError(f"{file}: {name} is {value!r:.40}; expected a whole number, {least} or more")


def _read_metrics(path: Path) -> Metrics:
    try:
        return read_metrics(path)
    except OSError as error:
        raise ValueError(f"{printable(path / METRICS)} cannot be read: {reason_of(error)}") from error

"""What a report is about: run folders and bundles, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from byol.bundle.folder import Bundle
from byol.bundle.manifest import MANIFEST
from byol.files.atomic import read_regular
from byol.run import CONFIG, FINETUNE, METRICS, MOST_CONFIG, VIEWS, read_metrics, settings_digest
from byol.strict_json import read_object
from byol.text import on_one_line, printable, reason_of

Record = dict[str, float]
LARGEST = 1e15  # of a number in a run's files: beyond it drawing overflows, and nothing counts so far


@dataclass(frozen=True)
class Run:
    """A run folder as `byol train` writes it. `cut_off`: the last line of the metrics was half written."""

    folder: Path
    facts: dict[str, Any]
    records: list[Record]
    cut_off: bool

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        config: dict[str, Any] = self.facts["config"]
        return config

    @property
    def planned(self) -> int | None:
        """The optimizer steps that the settings ask for, None where they cannot be told."""
        config, images = self.config, self.facts.get("data", {}).get("images")
        if config.get("max_steps"):
            return int(config["max_steps"])
        if images is None or not {"epochs", "batch_size"} <= config.keys():
            return None
        return int(config["epochs"] * (images // config["batch_size"]))

    @property
    def unfinished(self) -> bool:
        """Whether the run was stopped early, or still goes on."""
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
        """Whether the bundle holds what this run ended with: settings, data, number of images and of steps agree.

        A fine-tuned bundle holds something else.
        """
        training, data = bundle.manifest.training, self.facts.get("data", {})
        if training is None or bundle.manifest.finetuning:
            return False
        mine = (settings_digest(self.config), data.get("name"), data.get("images"), self.records[-1]["step"])
        return mine == (training.config_sha256, training.data, training.images, training.steps)


@dataclass(frozen=True)
class Entry:
    """One encoder of a report: a run, a bundle, or a run with its bundle."""

    name: str
    run: Run | None = None
    bundle: Bundle | None = None


def open_entries(paths: Sequence[Path]) -> list[Entry]:
    """Runs and bundles in the order given; a bundle of a run's last step is joined to it.

    Raises `ValueError` for a path that is neither, or is given twice, and for what cannot be read.
    """
    folders = [path.resolve() for path in paths]
    for folder, path in zip(folders, paths, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{printable(path)} is given twice")
    names = dict(zip(folders, _names(folders), strict=True))
    entries = [_open(path, names[folder]) for path, folder in zip(paths, folders, strict=True)]
    for run in [entry for entry in entries if entry.run]:
        exported = next((entry for entry in entries if _exported(run, entry)), None)
        if exported:
            entries[entries.index(run)] = replace(run, bundle=exported.bundle)
            entries.remove(exported)
    return entries


def _exported(run: Entry, other: Entry) -> bool:
    return bool(run.run and other.bundle and other.run is None and run.run.trained(other.bundle))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    most = max(len(folder.parts) for folder in folders)
    for count in range(1, most + 1):
        names = ["/".join(printable(part) for part in folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names


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
    hint = f"; it contains {', '.join(inside)}: give those" if inside else ""
    raise ValueError(f"{printable(path)} is neither a run ({CONFIG}) nor a bundle ({MANIFEST}){hint}")


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def read_run(path: Path) -> Run:
    """Read settings and metrics of a run folder. Raises `ValueError`: damaged files, no metrics yet."""
    name = printable(path / CONFIG)
    try:
        facts = read_object(read_regular(path / CONFIG, MOST_CONFIG, follow=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read: {reason_of(error)}") from error
    if facts.get("task") == FINETUNE:
        raise ValueError(
            f"{printable(path)} was written by `byol finetune`; export it and give the bundle: "
            f"byol export {printable(path)} --out BUNDLE"
        )
    if not isinstance(facts.get("config"), dict):
        raise ValueError(f"{name} holds no `config`; expected what `byol train` writes")
    _require_kinds(facts, name)
    records, cut_off = _read_metrics(path / METRICS)
    if not records:
        raise ValueError(
            f"{printable(path)} has no metrics yet: {METRICS} is missing or empty; "
            "a run logs its first line after an epoch at the latest"
        )
    return Run(path, facts, records, cut_off)


def _require_kinds(facts: dict[str, Any], file: str) -> None:
    """Raise `ValueError` unless what a page shows of a run is of the kind that `byol train` writes."""
    for part in ("data", "versions"):
        if not isinstance(facts.get(part, {}), dict):
            raise ValueError(f"{file}: {part} is {facts[part]!r:.40}; expected an object")
    data = facts.get("data", {})
    if data and not {"name", "images", "digest"} <= data.keys():
        raise ValueError(f"{file}: data lacks one of name, images and digest")
    _require_count(data, "images", 1, file)
    for name, least in {"epochs": 1, "batch_size": 1, "max_steps": 0}.items():
        _require_count(facts["config"], name, least, file)


def _require_count(values: dict[str, Any], name: str, least: int, file: str) -> None:
    value = values.get(name, least)
    if type(value) is not int or not least <= value < LARGEST:
        raise ValueError(f"{file}: {name} is {value!r:.40}; expected a whole number, {least} or more")


def _read_metrics(path: Path) -> tuple[list[Record], bool]:
    """The lines, and whether the last one was cut off: a run that goes on, or was killed, may leave it half written."""
    try:
        lines = read_metrics(path).splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {reason_of(error)}") from error
    cut_off = bool(lines) and not lines[-1].endswith(b"\n")
    whole = lines[:-1] if cut_off else lines
    return [_record(line, f"{printable(path)}, line {i}") for i, line in enumerate(whole, 1)], cut_off


def _record(line: bytes, place: str) -> Record:
    try:
        record = read_object(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if not {"step", "epoch"} <= record.keys():
        raise ValueError(f"{place}: expected an object with `step` and `epoch`")
    wrong = [key for key, value in record.items() if type(value) not in (int, float) or not abs(value) < LARGEST]
    if wrong:
        raise ValueError(f"{place}: {on_one_line(wrong[0])} is not a number, or too large for one")
    return record

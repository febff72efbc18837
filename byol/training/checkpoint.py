"""Checkpoints: one safetensors file, written atomically, loaded strictly.

Tensors: the model's own names (`online.encoder.*`, `online.projector.*`, `predictor.*`, `target.*`) and
`optimizer.*`. Metadata (strings): format version, step, epoch, configuration, data. No random state is stored:
all random numbers of a run are functions of its seed and step (see docs/recipe.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from byol.files.atomic import atomic_file
from byol.files.regular import open_regular
from byol.run import LAST, TRAIN
from byol.strict_json import read_object
from byol.text import printable, reason_of
from byol.training.config import TrainConfig

FORMAT = "1"
ENCODER = "online.encoder."
OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    `step` and `epoch` count finished optimizer steps and passes over the data; `data` says what was trained on:
    `name`, `images` and `digest` (of the list of images).
    """

    config: TrainConfig
    step: int
    epoch: int
    data: dict[str, Any]
    tensors: dict[str, Tensor]

    def encoder(self) -> dict[str, Tensor]:
        """The online encoder's tensors under the backbone's own names."""
        return _strip(self.tensors, ENCODER)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors."""
        return _strip(self.tensors, OPTIMIZER)

    def model(self) -> dict[str, Tensor]:
        """All but the optimizer's tensors."""
        return {name: value for name, value in self.tensors.items() if not name.startswith(OPTIMIZER)}


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: temporary name, sync, rename. Raises `OSError`, for instance when the disk is full."""
    metadata = {
        "step": str(checkpoint.step),
        "epoch": str(checkpoint.epoch),
        "config": json.dumps(checkpoint.config.to_dict(), sort_keys=True),
        "data": json.dumps(checkpoint.data, sort_keys=True),
    }
    write_tensors(path, checkpoint.tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors, metadata and the format version, whole or not at all. Raises `OSError`."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(plain, temporary, {"format": FORMAT, **metadata})
        except SafetensorError as error:
            raise OSError(f"cannot write {printable(path)}: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises `ValueError` when it is missing, damaged, of another format version or task."""
    path = checkpoint_file(path)
    tensors, metadata = read_tensors(path, TRAIN)
    with damaged_metadata(path):
        config = TrainConfig.from_dict(read_object(metadata["config"]))
        data = _data(read_object(metadata["data"]))
        return Checkpoint(config, _count(metadata, "step"), _count(metadata, "epoch"), data, tensors)


@contextmanager
def damaged_metadata(path: Path) -> Iterator[None]:
    """Turn errors inside into a `ValueError` that says the file's metadata is damaged."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{printable(path)} has damaged metadata: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{printable(path)} has damaged metadata: {error}") from error


def _count(metadata: dict[str, str], name: str) -> int:
    text = metadata[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError(f"{name} is {text!r:.40}; expected a whole number, 0 or more")
    return int(text)


def _data(facts: dict[str, Any]) -> dict[str, Any]:
    """What was trained on. Raises `ValueError` or `KeyError` unless it is a name, images and a digest."""
    for name, kind in {"name": str, "images": int, "digest": str}.items():
        if type(facts[name]) is not kind or (kind is int and not 0 < facts[name] < 1 << 60):
            expected = "text" if kind is str else "a whole number, 1 or more"
            raise ValueError(f"data.{name} is {facts[name]!r:.40}; expected {expected}")
    return facts


def read_tensors(path: Path, task: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that the command `task` wrote. Raises `ValueError` (see `read_checkpoint`)."""
    with _opened(path) as file:
        metadata = _metadata(path, file)
        if _task(metadata) != task:
            raise ValueError(
                f"{printable(path)} was written by `byol {_task(metadata)}`; give one written by `byol {task}`"
            )
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def task_of(path: Path) -> str:
    """The command that wrote a checkpoint: train or finetune. Raises `ValueError` (see `read_checkpoint`)."""
    with _opened(path) as file:
        return _task(_metadata(path, file))


def checkpoint_file(path: Path) -> Path:
    """The checkpoint at a path: the file itself, or the newest in a run folder, where links are not followed.

    Raises `ValueError`.
    """
    file = path / LAST if path.is_dir() else path
    try:
        open_regular(file, follow=file is path).close()  # a pipe would be waited for
    except FileNotFoundError:
        raise ValueError(f"{printable(file)} does not exist; a run writes it with its first checkpoint") from None
    except OSError as error:
        raise ValueError(f"{printable(file)}: {reason_of(error)}") from error
    return file


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    path = checkpoint_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{printable(path)} is not a readable safetensors file: {reason_of(error)}") from error


def _metadata(path: Path, file: Any) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise ValueError(f"{printable(path)} is not a byol checkpoint of format {FORMAT} (its format: {found})")
    return metadata


def _task(metadata: dict[str, str]) -> str:
    return metadata.get("task", TRAIN)  # `byol train` is older than the entry and does not write it


def finite(tensors: dict[str, Tensor]) -> bool:
    """Whether every floating-point tensor holds only finite numbers."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())

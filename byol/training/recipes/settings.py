"""What is asked of a training, and the settings that follow from it for a new run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from byol.console import note
from byol.images.labels import holds_splits
from byol.images.location import Location, is_url, location_of
from byol.images.named import is_named
from byol.images.source import ImageSource
from byol.strict_json import require_legal
from byol.text import printable, url_without_secrets
from byol.training.config import TrainConfig
from byol.training.device import resolve_device
from byol.training.recipes.choose import choose
from byol.training.recipes.initial import Initial
from byol.training.recipes.survey import survey


@dataclass(frozen=True)
class Job:
    """What is asked of a training besides its settings.

    `data`: the images, None for those of the run to be resumed; `init`: the run, checkpoint or bundle whose weights it
    starts from; `seconds`: the time after which it should end; `export_check`: refuse an encoder that cannot be
    exported before a new run begins; `device`: for which a recipe is chosen; `named`: the settings that `--set` names,
    which a plan for `seconds` keeps; `start`: where relative paths of `data`, a list that was remembered, start.
    """

    data: Location | None
    out: Path
    val_data: Location | None = None
    resume: bool = False
    tensorboard: bool = False
    export_check: bool = False
    init: Path | None = None
    seconds: float | None = None
    device: str = "auto"
    named: frozenset[str] = frozenset()
    start: str | None = None

    @property
    def images(self) -> Location:
        """Where the images are. Raises `ValueError` when nobody has said."""
        if self.data is None:
            raise ValueError("no images: give DATA, a folder of them, an .npz file or shards")
        return self.data

    def inputs(self) -> dict[str, Any]:
        """What a run remembers of it, so that it resumes without being told again."""
        places = {"data": self.data, "val_data": self.val_data, "init": self.init}
        found = {name: text for name, place in places.items() if place is not None and (text := _text(place))}
        if "data" in found and found["data"].lower().endswith(".txt"):
            found["start"] = self.start or os.getcwd()
        return {**found, "tensorboard": self.tensorboard}

    def continued(self, stored: Mapping[str, Any]) -> Job:
        """With what a run remembers where nothing was given. Raises `ValueError` when it does not know its images."""
        places = {name: stored.get(name) for name in ("data", "val_data", "init")}
        known = {name: location_of(text) for name, text in places.items() if isinstance(text, str)}
        data = self.data or known.get("data")
        if data is None:
            raise ValueError(f"{printable(self.out)} does not say where its images are; give DATA")
        init = self.init or (Path(known["init"]) if "init" in known else None)
        tensorboard = self.tensorboard or stored.get("tensorboard") is True
        start = stored.get("start") if self.data is None else None  # of one that is given: the current folder
        return replace(
            self,
            data=data,
            val_data=self.val_data or known.get("val_data"),
            init=init,
            tensorboard=tensorboard,
            start=start if isinstance(start, str) else None,
        )


def job_of(images: object, out: object, val_data: object, resume: bool, init: object, seconds: object) -> Job:
    """What Python code asks for, whatever it passes. Raises `ValueError` for what is no place and no time."""
    require_legal(out is not None, "out", out, "the folder of the run")
    begun_from = _place("init", init)
    return Job(
        _place("images", images),
        Path(_place("out", out) or ""),
        _place("val_data", val_data),
        resume,
        init=None if begun_from is None else Path(begun_from),
        seconds=_time(seconds),
    )


def _place(name: str, given: object) -> Location | None:
    """A path or URL as a location; None for none, and for an empty text."""
    if given is None:
        return None
    if not isinstance(given, str | bytes | os.PathLike):
        raise ValueError(f"{name} is {given!r:.100}; expected a path or a URL")
    text = str(given) if is_url(given) else os.fsdecode(given)  # of some URLs, `fspath` is the path alone
    return location_of(text) if text else None


def _time(given: object) -> float | None:
    """Seconds, of any type that Python takes for a number, as the float that `config.json` can hold."""
    if given is None:
        return None
    try:
        seconds = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    require_legal(0 < seconds < math.inf, "seconds", given, "a number above 0, such as 7200 for two hours")
    return seconds


def _text(place: Location) -> str | None:
    """A location that holds in any folder; None for standard input and for a URL that holds a secret."""
    text = str(place)
    if text == "-" or (is_url(place) and url_without_secrets(text) != text):
        return None
    if is_url(place) or (is_named(text) and not os.path.exists(text)):
        return text
    return os.path.abspath(text)


def warn_of_splits(source: ImageSource) -> None:
    """Say that test images would be trained on, where the parent of a data set's folders was given."""
    if holds_splits(source.ids, source.classes):
        note(f"warning: training on {' and '.join(source.classes)}; to keep test images apart, name one folder")


def settings_for(
    job: Job,
    source: ImageSource,
    preset: TrainConfig | None,
    change: Callable[[TrainConfig], TrainConfig],
    initial: Initial | None,
) -> TrainConfig:
    """The settings of a new run: the preset's or the recipe for these images, the encoder of `initial`, then `change`.

    Says what was chosen and why. Raises `ValueError`.
    """
    if preset is not None:
        return change(initial.applied_to(preset) if initial else preset)
    device = resolve_device(job.device)
    memory = math.inf if device.type == "cpu" else float(torch.cuda.get_device_properties(device).total_memory)
    recipe = choose(survey(source), device.type, memory)
    config = change(initial.applied_to(recipe.config) if initial else recipe.config)
    note(f"recipe: {'; '.join(recipe.reasons)} (choose another with --preset)")
    return config

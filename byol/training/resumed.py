"""What a resumed run must find again: its settings, its images, its validation images, the weights it starts from."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from byol.console import note
from byol.files.regular import SourceUnavailable
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.run import NETWORKS, TRAIN, VAL_DATA
from byol.text import printable
from byol.training.begun import described, difference, identity
from byol.training.checkpoint import Checkpoint
from byol.training.config import TrainConfig
from byol.training.parallel.processes import World
from byol.training.recipes.initial import Initial, read_initial
from byol.training.recipes.settings import Job
from byol.training.run_folder import RunFolder

PLANNED = frozenset({"max_steps", "knn_every", "warmup_epochs"})  # settings that a plan for a time decides
OF_WEIGHTS = frozenset({"init", "arch", "stem", "image_size", "mean", "std"})  # those that come with `--init`


def plan_of(run: RunFolder) -> dict[str, Any]:
    """How a run was planned to end in time; empty for one that was not."""
    plan = run.content(TRAIN).get("plan")
    return plan if isinstance(plan, dict) else {}


def require_same_time(job: Job, run: RunFolder) -> None:
    """Raise `ValueError` when a resumed run is given another time than it was planned for."""
    if job.seconds and job.seconds != plan_of(run).get("seconds"):
        raise ValueError("a resumed run keeps its length; leave out --time, or start a new run from it with --init")


def settings_again(run: RunFolder, given: TrainConfig | None, init: Path | None = None) -> TrainConfig:
    """The settings of a resumed run: its own, on the device of those given. Raises `ValueError` for others.

    `init`: the weights given, which must be those that the run began with.
    """
    stored = run.config()
    require_began_with(run, stored, init)
    if given is None:
        return stored
    decided = (PLANNED if plan_of(run) else frozenset()) | (OF_WEIGHTS if stored.init else frozenset())
    return kept(stored, {field.name: getattr(given, field.name) for field in fields(given)}, decided)


def require_began_with(run: RunFolder, stored: TrainConfig, init: Path | None) -> None:
    """Raise `ValueError` for weights that a run did not begin with: a command that is repeated names those it did.

    Nothing of them is loaded again; without a checkpoint, `initial_again` decides.
    """
    has_own = os.path.lexists(run.last)
    if init is None or (stored.init and not has_own):
        return
    try:
        if stored.init and _digest(read_initial(init).name) == _digest(stored.init):
            return
    except ValueError:  # none at all
        pass
    raise ValueError(
        f"{'a resumed run continues with its own weights: ' if has_own else ''}{printable(run.path)} began with "
        f"{stored.init or 'random weights'}; leave out --init, or choose another --out"
    )


def kept(stored: TrainConfig, given: Mapping[str, Any], decided: Collection[str] = ()) -> TrainConfig:
    """A run's stored settings, on the device given. Raises `ValueError` when other settings are given.

    `decided`: those that the run found out when it began, whatever was given; the side of its canvas is another.
    """
    differing = [name for name, value in given.items() if name not in decided and value != getattr(stored, name)]
    differing = [name for name in differing if name != "device" and (name, given[name]) != ("canvas_size", 0)]
    if differing:
        raise ValueError(
            f"a resumed run keeps its settings, but these differ: {', '.join(sorted(differing))}; leave the options "
            "out. To train on with others, start a new run from its weights: another --out with --init RUN"
        )
    return stored.replace(device=given.get("device", stored.device))


def reopened(job: Job, given: Job) -> ImageSource:
    """The images of a resumed run. Raises `ValueError`, which says whose they are when nobody gave them."""
    try:
        return open_source(job.images, os.fsencode(job.start) if job.start else None)
    except SourceUnavailable:
        raise
    except ValueError as error:
        if given.data is not None:
            raise
        raise ValueError(f"{error}; the run began with these images: give DATA if they have moved") from error


def identified(job: Job, source: ImageSource) -> dict[str, Any]:
    """`identity` of the images. Raises `SourceUnavailable`, which says where a list's paths start."""
    try:
        return identity(job.images, source)
    except SourceUnavailable as error:
        raise SourceUnavailable(f"{error}{_relative_to(source)}") from error


def _relative_to(source: ImageSource) -> str:
    """What to do where a list's images may have moved; empty where they are not named by relative paths."""
    if source.start is None:
        return ""
    return (
        f"; relative paths of {source.name} were looked for in {printable(source.start)}: if the images have moved, "
        "give DATA, the list, in the folder where its paths start now"
    )


def validation_of(job: Job, given: Job) -> ImageSource | None:
    """The validation images. A resumed run that only remembers them goes on without, if they are gone."""
    if job.val_data is None:
        return None
    try:
        return open_source(job.val_data)
    except SourceUnavailable:
        raise
    except ValueError:
        if given.val_data is not None:
            raise
        return None


def initial_again(job: Job, run: RunFolder, config: TrainConfig) -> Initial:
    """The weights that a run without a checkpoint was to start from, whatever their file is called now.

    Raises `ValueError` when they are gone or others.
    """
    wanted = (
        f"{printable(job.out)} was to start from the weights {config.init} and has no checkpoint yet; "
        "give --init with the same ones"
    )
    try:
        found = read_initial(job.init) if job.init else None
    except ValueError as error:
        raise ValueError(f"{error}; {wanted}") from error
    if found is None or _digest(found.name) != _digest(config.init):
        raise ValueError(wanted)
    content = run.content(TRAIN)
    again = found.again(content[NETWORKS]) if NETWORKS in content else found  # earlier versions did not say
    if again is None:
        raise ValueError(f"{wanted}: the run or checkpoint itself, since a bundle of it lacks projector and predictor")
    return again


def _digest(init: str) -> str:
    """Of the weights that a run started from, see `Initial.name`."""
    return init.rpartition(" ")[2]


def require_same_validation(run: RunFolder, found: dict[str, Any] | None, world: World) -> None:
    """Raise `ValueError` when a run's kNN was measured on other images; warn when there are none now."""
    stored = run.content(TRAIN).get(VAL_DATA)
    if not isinstance(stored, dict):
        return
    if found is None:
        if world.first:
            note(f"warning: no kNN from here on; to continue it, give --val-data ({described(stored)})")
    elif changed := difference(stored, found):
        raise ValueError(f"{printable(run.path)} measures kNN on {changed}; give the validation images it began with")


def require_same_images(
    run: RunFolder, checkpoint: Checkpoint | None, facts: dict[str, Any], source: ImageSource
) -> None:
    """Raise `ValueError` when a run began with other images, before anything is changed."""
    stored = checkpoint.data if checkpoint else run.content(TRAIN).get("data", facts)
    if found := difference(stored, facts):
        raise ValueError(
            f"{printable(run.path)} was trained on {found}; give the images it began with, or start a new run "
            f"with another --out{_relative_to(source)}"
        )

"""What a resumed run must find again: its images, its validation images, its length, the weights it starts from."""

from __future__ import annotations

from typing import Any

from byol.console import note
from byol.files.atomic import SourceUnavailable
from byol.images.location import Location
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.run import TRAIN, VAL_DATA
from byol.text import printable
from byol.training.begun import described, difference
from byol.training.checkpoint import Checkpoint
from byol.training.config import TrainConfig
from byol.training.parallel.processes import World
from byol.training.recipes.initial import Initial, read_initial
from byol.training.recipes.settings import Job
from byol.training.run_folder import RunFolder


def require_same_time(job: Job, run: RunFolder) -> None:
    """Raise `ValueError` when a resumed run is given another time than it was planned for."""
    plan = run.content(TRAIN).get("plan")
    if job.seconds and job.seconds != (plan.get("seconds") if isinstance(plan, dict) else None):
        raise ValueError("a resumed run keeps its length; leave out --time, or start a new run from it with --init")


def reopened(images: Location, given: Location | None) -> ImageSource:
    """The images of a resumed run. Raises `ValueError`, which says whose they are when nobody gave them."""
    try:
        return open_source(images)
    except SourceUnavailable:
        raise
    except ValueError as error:
        if given is not None:
            raise
        raise ValueError(f"{error}; the run began with these images: give DATA if they have moved") from error


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


def initial_again(job: Job, config: TrainConfig) -> Initial:
    """The weights that a run without a checkpoint was to start from. Raises `ValueError` when they are others now."""
    found = read_initial(job.init) if job.init else None
    if found is None or found.name != config.init:
        raise ValueError(
            f"{printable(job.out)} was to start from the weights {config.init} and has no checkpoint yet; "
            "give --init with the same ones"
        )
    return found


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


def require_same_images(run: RunFolder, checkpoint: Checkpoint | None, facts: dict[str, Any]) -> None:
    """Raise `ValueError` when a run began with other images, before anything is changed."""
    stored = checkpoint.data if checkpoint else run.content(TRAIN).get("data", facts)
    if found := difference(stored, facts):
        raise ValueError(
            f"{printable(run.path)} was trained on {found}; give the images it began with, or start a new run "
            "with another --out"
        )

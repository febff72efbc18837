"""How a run began, kept in its `config.json` beside the settings so that it resumes to the same bytes.

That is its images (`data`, `skipped`), how it reads them (`feed`), and what the machine decided (`computed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from byol.images.location import Location, last_part
from byol.images.source import ImageSource
from byol.machine import usable_cores
from byol.training.config import TrainConfig
from byol.training.data.decoded import source_digest
from byol.training.data.intake import Intake

STREAMED, DECODED = "streamed", "decoded"
DECISIVE = ("torch", "torchvision", "timm", "pillow")  # packages whose versions decide bytes


def identity(location: Location, source: ImageSource) -> dict[str, Any]:
    """What a run records of its images besides their number: name, digests of the listing and of the content."""
    facts = {"name": last_part(location), "digest": source_digest(source)}
    return {**facts, "content": source.content()} if source.content else facts


def difference(stored: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How the images differ from those the run began with; None when they do not. Earlier versions recorded less.

    Where a digest of their content tells, the folder they lie in may have got another name.
    """
    renamed = {"name"} if "content" in stored and "content" in now else set()
    known = {name: value for name, value in now.items() if name in stored}
    changed = {name for name in {**stored, **known} if stored.get(name) != known.get(name)} - renamed
    if not changed:
        return None
    if changed & {"name", "images", "digest"}:
        return f"{described(stored)}, but the images now are {described(now)}"
    return f"{described(stored)}, and some of them have changed since, under the same names"


def described(facts: dict[str, Any]) -> str:
    """A set of images in a few words."""
    return f"{facts.get('images')} images of {facts.get('name')} (digest {facts.get('digest')})"


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Restore torch's number of threads afterwards: a resumed run may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Begun:
    """How a run began to read and compute; None for what an earlier version did not record."""

    intake: Intake | None = None
    computed: Computed | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def changes(self, computed: Computed, versions: dict[str, str]) -> str:
        """A sentence on what has changed; empty when nothing has."""
        then, now = asdict(self.computed) if self.computed else {}, {**asdict(computed), **versions}
        then |= {name: version for name, version in self.versions.items() if name in DECISIVE}
        changed = [f"{name} {now.get(name)} (was {was})" for name, was in then.items() if now.get(name) != was]
        if not changed:
            return ""
        return f"the result will not be bit for bit that of an uninterrupted run; changed: {', '.join(changed)}"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Begun:
        """Read from the content of `config.json`. Raises `ValueError` for what no run writes."""
        versions = content.get("versions")
        known = versions if isinstance(versions, dict) else {}
        return cls(_intake(content), Computed.stored(content), known)


def contents(intake: Intake, computed: Computed) -> dict[str, Any]:
    """What `Begun.of` reads back. `RunFolder.create` records which images were skipped."""
    return {"feed": STREAMED if intake.streamed else DECODED, "computed": asdict(computed)}


def _intake(content: dict[str, Any]) -> Intake | None:
    feed, skipped = content.get("feed"), content.get("skipped")
    if feed is None:
        return None
    if feed not in (STREAMED, DECODED) or not isinstance(skipped, list):
        raise ValueError(f"feed is {feed!r:.40}; expected {STREAMED} or {DECODED}, with `skipped` beside it")
    if not all(isinstance(item, dict) and isinstance(item.get("path"), str) for item in skipped):
        raise ValueError("skipped is not a list of paths and reasons")
    if not all("row" in item for item in skipped):  # of an earlier version
        return Intake(feed == STREAMED, left_out_ids=frozenset(item["path"] for item in skipped))
    rows = [item["row"] for item in skipped if item["row"] is not None]
    if not all(type(row) is int for row in rows):
        raise ValueError("skipped is not a list of paths, reasons and rows")
    return Intake(feed == STREAMED, frozenset(rows))


@dataclass(frozen=True)
class Computed:
    """What decides the last bits of a run besides settings and versions, found out when it begins.

    `device`: cpu or cuda; `processor`: its model or instruction set; `precision`, `compile`: as `auto` was decided;
    `threads`: torch's in each of the `processes` on a CPU, 0 on a GPU.
    """

    device: str
    processor: str
    precision: str
    compile: str
    processes: int
    threads: int

    @classmethod
    def here(cls, device: torch.device, precision: str, compiled: str, processes: int) -> Computed:
        """On this machine."""
        if device.type == "cuda":
            return cls("cuda", torch.cuda.get_device_name(device), precision, compiled, processes, 0)
        processor = torch.backends.cpu.get_cpu_capability()
        return cls(device.type, processor, precision, compiled, processes, torch.get_num_threads())

    @classmethod
    def stored(cls, content: dict[str, Any]) -> Computed | None:
        """Read from the content of `config.json`; None in a run of an earlier version. Raises `ValueError`."""
        values = content.get("computed")
        if values is None:
            return None
        kinds = {one.name: int if one.name in ("processes", "threads") else str for one in fields(cls)}
        if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"computed is {values!r:.80}; expected an object of {', '.join(kinds)}")
        return cls(**values)

    def settings(self, config: TrainConfig, device: str) -> TrainConfig:
        """The settings with `auto` decided as when the run began, whatever this machine would choose."""
        eager = device == self.device and self.compile == "none"
        return config.replace(precision=self.precision, **({"compile": "none"} if eager else {}))

    def take_threads(self, device: str, processes: int) -> None:
        """Give torch as many threads as when the run began, where possible: the order of sums depends on it."""
        if device == self.device == "cpu" and processes == self.processes and 0 < self.threads <= usable_cores():
            torch.set_num_threads(self.threads)

"""Named data sets: `byol fetch` downloads them once; then they are `.npz` files, read without torch.

`cifar10`, `cifar100` and `stl10`, with an optional split after a colon; the default is the split for training.
"""

from __future__ import annotations

from pathlib import Path

from byol.images.cache import home

SPLITS = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("unlabeled", "train", "test"),
}


def is_named(location: str) -> bool:
    """Whether this is `NAME` or `NAME:SPLIT` of a data set known here."""
    return location.partition(":")[0] in SPLITS


def named_file(location: str) -> Path:
    """The `.npz` file of a fetched data set. Raises `ValueError` for an unknown split, and when it is not fetched."""
    name, _, split = location.partition(":")
    split = split or SPLITS[name][0]
    if split not in SPLITS[name]:
        raise ValueError(f"{location}: {name} has no split {split!r}; it has {', '.join(SPLITS[name])}")
    path = split_file(name, split)
    if not path.is_file():
        raise ValueError(
            f"{name} is not on this machine yet; run `byol fetch {name}` (for a folder of that name, write ./{name})"
        )
    return path


def split_file(name: str, split: str) -> Path:
    """Where a split of a data set lies once it is fetched."""
    return home() / "datasets" / f"{name}-{split}.npz"

"""`byol fetch`: named data sets, downloaded once by torchvision."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from byol.console import show_line
from byol.files.atomic import atomic_file
from byol.images.cache import home
from byol.images.named import SPLITS, split_file
from byol.outputs import Kind, require_output
from byol.text import missing


@click.command()
@click.argument("name", type=click.Choice(list(SPLITS)))
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of files already unpacked."
)
def fetch(name: str, root: Path | None) -> None:
    """Download a named data set through torchvision, for `byol train cifar10` and `--test cifar10:test`.

    With --root nothing is downloaded: the folder holds the files as torchvision unpacks them (cifar-10-batches-py).
    """
    for path in fetch_named(name, root):
        show_line(str(path))


def fetch_named(name: str, root: Path | None = None) -> list[Path]:
    """Write every split of a data set as `.npz`; the files written.

    torchvision downloads and verifies it, or reads the files under `root` in its own layout. Raises `ValueError`
    without torchvision, when the download fails, when `root` lacks the files, and when another file is in the way.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ValueError(missing("torchvision", "train", "byol fetch")) from error
    folder = root or home() / "downloads"
    for split in SPLITS[name]:
        require_output(split_file(name, split), DATA_SET)
    written = []
    for split in SPLITS[name]:
        try:
            images, labels = _READERS[name](datasets, folder, split, root is None)
        except (OSError, RuntimeError) as error:
            where = f"{root} does not hold it" if root else "it cannot be downloaded"
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{name}: {where} ({reason}); check the network, or unpack its archive in torchvision's layout and "
                f"run `byol fetch {name} --root FOLDER`"
            ) from error
        path = split_file(name, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"images": images} if labels is None else {"images": images, "labels": labels}
        with atomic_file(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **arrays)
        written.append(path)
    return written


def _holds_images(path: Path) -> bool:
    """Whether this is an `.npz` of images and labels, and of nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) - {"labels.npy"} == {"images.npy"}
    except (OSError, zipfile.BadZipFile):
        return False


DATA_SET = Kind("a data set", _holds_images)


def _cifar(kind: str) -> Callable[[Any, Path, str, bool], tuple[np.ndarray, np.ndarray | None]]:
    def read(datasets: Any, root: Path, split: str, download: bool) -> tuple[np.ndarray, np.ndarray | None]:
        data = getattr(datasets, kind)(str(root), train=split == "train", download=download)
        return data.data, np.array(data.classes)[data.targets]  # (N, 32, 32, 3)

    return read


def _stl10(datasets: Any, root: Path, split: str, download: bool) -> tuple[np.ndarray, np.ndarray | None]:
    data = datasets.STL10(str(root), split=split, download=download)
    images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))  # (N, 96, 96, 3)
    return images, None if split == "unlabeled" else np.array(data.classes)[data.labels]


_READERS: dict[str, Callable[[Any, Path, str, bool], tuple[np.ndarray, np.ndarray | None]]] = {
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "stl10": _stl10,
}

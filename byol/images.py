"""What an image source is: scan, label, decode, resize. Torch-free; training and serving share it.

A source is a folder of images, one image file, or an `.npz` file (`images` uint8 (N, H, W, 3), optional
`labels` (N,)). Images are decoded on demand; one that cannot be read raises `UnreadableImage` and nothing else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import (  # noqa: F401 - the plugins register the decoders that FORMATS names
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# Only these decoders run, whatever a file is called: Pillow's list also holds formats that start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

T = TypeVar("T")


class UnreadableImage(ValueError):
    """One image cannot be used. The message is a reason without the path: the caller knows which image it was."""


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSource:
    """Images in a fixed order, decoded on demand.

    `ids`     one per image: the path relative to the root with `/` (bytes that are not UTF-8 as `\\xNN`), or the
              row number of an `.npz`
    `labels`  one per image: the class, or None for an image outside any class folder
    `skipped` what the listing itself had to leave out
    `open`    decodes image i to RGB, upright (EXIF applied); raises `UnreadableImage`
    """

    name: str
    ids: Sequence[str]
    labels: Sequence[str | None]
    skipped: Sequence[Skipped]
    open: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted({label for label in self.labels if label is not None})

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """The same source reduced to some of its images, in the given order."""
        return ImageSource(
            self.name,
            [self.ids[i] for i in indices],
            [self.labels[i] for i in indices],
            self.skipped,
            lambda i: self.open(indices[i]),
        )


def open_source(location: str | Path) -> ImageSource:
    """Open a folder, an image file or an `.npz` as a source.

    Raises `ValueError` when there is nothing there, no image in it, or the file is none of these.
    """
    path = Path(location)
    if path.is_dir():
        source = _folder_source(path)
    elif not path.exists():
        raise ValueError(f"{printable(path)} does not exist; expected a folder of images or an .npz file")
    elif path.suffix.lower() == ".npz":
        source = _npz_source(path)
    elif path.suffix.lower() in SUFFIXES:
        source = ImageSource(printable(path), [printable(path.name)], [None], [], lambda _: read_image(path))
    else:
        raise ValueError(f"{printable(path)} is neither a folder of images, nor an .npz file, nor an image")
    if len(source) == 0:
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in source.skipped[:5])
        raise ValueError(
            f"{source.name} holds no images (looked for {', '.join(sorted(SUFFIXES))} at every depth){reasons}"
        )
    return source


def require_labels(source: ImageSource, least_classes: int = 2) -> list[str]:
    """The label of every image.

    Raises `ValueError` when one has none, or when there are fewer than `least_classes` (1 for a test set).
    """
    labels = [label for label in source.labels if label is not None]
    if len(labels) < len(source):
        bare = [i for i, label in zip(source.ids, source.labels, strict=True) if label is None]
        raise ValueError(
            f"{source.name}: {len(bare)} of {len(source)} images have no label (first: {bare[0]}); "
            "put each image into a sub-folder named after its class, or give an .npz with `labels`"
        )
    if len(source.classes) < least_classes:
        raise ValueError(
            f"{source.name} holds one class only ({source.classes[0]}), so there is nothing to tell apart; "
            "point to the folder whose sub-folders are the classes"
        )
    return labels


def printable(path: str | os.PathLike[str]) -> str:
    r"""The path as text that any file or terminal takes: bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------------------------------------- folders


def _folder_source(root: Path) -> ImageSource:
    skipped: list[Skipped] = []
    paths = sorted(_scan(root, "", set(), skipped), key=os.fsencode)
    return ImageSource(
        name=printable(root),
        ids=[printable(path) for path in paths],
        labels=[printable(path.split("/", 1)[0]) if "/" in path else None for path in paths],
        skipped=sorted(skipped, key=lambda item: item.path),
        open=lambda i: read_image(root / paths[i]),
    )


def _scan(root: Path, folder: str, seen: set[tuple[int, int]], skipped: list[Skipped]) -> Iterator[str]:
    """Yield the images below `root/folder` as relative paths; a folder reached twice through links counts once."""
    try:
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            skipped.append(Skipped(printable(folder), "symbolic link to a folder that is already listed"))
            return
        seen.add((status.st_dev, status.st_ino))
        # Real folders before links to them, so that a link never takes the place of what it points to.
        entries = sorted(os.scandir(root / folder), key=lambda entry: (entry.is_symlink(), os.fsencode(entry.name)))
    except OSError as error:
        skipped.append(Skipped(printable(folder or root), _reason(error)))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if _is_folder(entry):
            yield from _scan(root, path, seen, skipped)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


# ------------------------------------------------------------------------------------------------------- .npz


def _npz_source(path: Path) -> ImageSource:
    name = printable(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive.get("images")
            labels = archive.get("labels")
            keys = ", ".join(archive.files)
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        raise ValueError(f"{name} cannot be read as an .npz file: {_reason(error)}") from error
    if images is None:
        raise ValueError(f"{name} has no array `images` (it has: {keys or 'nothing'})")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{name}: `images` must be uint8 (N, H, W, 3), found {images.dtype} {images.shape}")
    if 0 in images.shape[1:3]:
        raise ValueError(f"{name}: `images` has no pixels, its shape is {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{name}: `labels` must have shape ({len(images)},), found {labels.shape}")
    return ImageSource(
        name=name,
        ids=[str(i) for i in range(len(images))],
        labels=[None] * len(images) if labels is None else [str(label) for label in labels],
        skipped=[],
        open=lambda i: Image.fromarray(images[i]),
    )


# ------------------------------------------------------------------------------------------- decode and resize


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode one file to an upright RGB image (8 bits a channel).

    EXIF orientation is applied; alpha is dropped; 16-bit grey is scaled to 8 bits. Raises `UnreadableImage`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return to_rgb(image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds, SyntaxError and struct.error among them
        raise UnreadableImage(_reason(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright RGB, 8 bits a channel. Raises `UnreadableImage` for floating-point pixels."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range; convert them to 8 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip, not scale
        grey = np.asarray(image).astype(np.float64) / 257.0
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or a format that is not supported"
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the encoder's input: the shorter side to `resize`, then the central `crop` square.

    Done in one step: the central square of the source, of side `crop * min(W, H) / resize`, is resampled to
    `crop` x `crop` (bicubic with antialiasing, as Pillow's `Image.resize` with `box` does).
    """

    resize: int
    crop: int

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"preprocessing needs 1 <= crop <= resize, found crop {self.crop}, resize {self.resize}")

    @classmethod
    def for_size(cls, size: int) -> Preprocess:
        """The usual evaluation crop: 224 from 256 (the paper's 7/8); small images (up to 64 px) whole."""
        return cls(resize=size if size <= 64 else round(size * 8 / 7), crop=size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 (crop, crop, 3)."""
        width, height = image.size
        side = self.crop * min(width, height) / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        size = (self.crop, self.crop)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


def decode(
    source: ImageSource, transform: Callable[[Image.Image], T], threads: int = 0
) -> Iterator[tuple[int, T | UnreadableImage]]:
    """Yield (index, transform(image)) in order, or (index, the error) where an image cannot be read.

    Decodes in `threads` threads (0: one per usable core), at most a few chunks ahead of the consumer.
    """
    threads = threads or usable_cores()
    chunk = 32 if len(source) >= 32 * threads else 1

    def work(indices: Sequence[int]) -> list[tuple[int, T | UnreadableImage]]:
        return [(i, _attempt(source, transform, i)) for i in indices]

    chunks = (range(start, min(start + chunk, len(source))) for start in range(0, len(source), chunk))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from _in_order(pool, work, chunks, ahead=2 * threads)


def _attempt(source: ImageSource, transform: Callable[[Image.Image], T], index: int) -> T | UnreadableImage:
    try:
        return transform(source.open(index))
    except UnreadableImage as error:
        return error


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Sequence[int]], list[T]],
    chunks: Iterable[Sequence[int]],
    ahead: int,
) -> Iterator[T]:
    chunks = iter(chunks)
    pending: deque[Future[list[T]]] = deque(pool.submit(work, chunk) for chunk in islice(chunks, ahead))
    try:
        while pending:
            results = pending.popleft().result()
            pending.extend(pool.submit(work, chunk) for chunk in islice(chunks, 1))
            yield from results
    finally:
        for future in pending:
            future.cancel()


def usable_cores() -> int:
    """The cores this process may run on (its affinity mask where the system has one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Images that a caller passes (paths, Pillow images, arrays) as one source."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from byol.files.regular import SourceUnavailable
from byol.images.columns import Labels
from byol.images.open import open_source
from byol.images.picture.extent import forget_extent
from byol.images.picture.read import read_image, to_rgb
from byol.images.source import ImageSource
from byol.images.surroundings import Anchors, UnreadableImage
from byol.strict_json import require_legal
from byol.text import printable

ImageItem = str | os.PathLike[str] | Image.Image | np.ndarray

_lazy_images = threading.Lock()  # one Pillow image must not be loaded by two threads at once


def open_images(source: ImageSource | str | os.PathLike[str] | Sequence[ImageItem]) -> ImageSource:
    """A source from a source, a location or a list of items."""
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, str | os.PathLike):
        return open_source(os.fspath(source))
    return items_source(source)


def items_source(items: Sequence[ImageItem] | np.ndarray) -> ImageSource:
    """A source of numbered items. Raises `ValueError` for a single item outside a list."""
    if isinstance(items, str | os.PathLike | Image.Image):
        raise ValueError(f"expected a list of images, found one {type(items).__name__}; put it in a list")
    legal = "a list of paths, Pillow images or uint8 arrays (H, W, 3)"
    require_legal(isinstance(items, Iterable), "images", items, legal)
    items = list(items)
    names = [_item_name(i, item) for i, item in enumerate(items)]
    anchors = Anchors()

    def opened(i: int, least_side: int = 0) -> Image.Image:
        return _open_item(items[i], anchors, least_side)

    return ImageSource("images", names, Labels.none(len(items)), [], opened)


def _item_name(index: int, item: ImageItem) -> str:
    return printable(item) if isinstance(item, str | os.PathLike) else f"image {index}"


def _open_item(item: ImageItem, anchors: Anchors, least_side: int) -> Image.Image:
    if isinstance(item, str | os.PathLike):
        image = read_image(item, anchors, least_side)
        anchors.note_parents(os.fsencode(item))
        return image
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise UnreadableImage(f"expected a uint8 array (H, W, 3), found {item.dtype} {item.shape}")
        return Image.fromarray(item)
    if not isinstance(item, Image.Image):
        raise UnreadableImage(f"expected a path, a Pillow image or a uint8 array, found {type(item).__name__}")
    try:
        with _lazy_images:
            item.load()
        return forget_extent(to_rgb(item))
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise SourceUnavailable("no memory is left to decode an image") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UnreadableImage(str(error) or type(error).__name__) from error

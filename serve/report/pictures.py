"""Pictures inside a page: small, few, and as data URIs, so that the page is self-contained."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from byol.images.picture.read import read_image

SIDES = (64, 48, 32)  # of a thumbnail in pixels: the largest whose pictures fit the budget
THUMBNAIL_BYTES = 1_500_000  # of all of them; a data URI takes a third more
LOSSLESS_SIDE = 16  # pictures this small are kept pixel by pixel
VIEWS_WIDTH, VIEWS_HEIGHT = 1024, 640
QUALITY = 80


def thumbnails(images: Iterable[Image.Image]) -> list[str]:
    """Images as data URIs, each within 64 x 64 pixels, or within fewer where 64 would take too many bytes."""
    small = []
    for image in images:  # large ones are let go one by one
        image.thumbnail((SIDES[0], SIDES[0]), Image.Resampling.BICUBIC)
        small.append(image)
    for side in SIDES:
        encoded = [_webp(image, side) for image in small]
        if sum(map(len, encoded)) <= THUMBNAIL_BYTES:
            break
    return [_data_uri(content) for content in encoded]


def views_picture(path: Path) -> str:
    """The grid of views of a run as a data URI of at most 1024 x 640 pixels. Raises `ValueError`."""
    try:
        image = read_image(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    image.thumbnail((VIEWS_WIDTH, VIEWS_HEIGHT), Image.Resampling.BICUBIC)
    return _data_uri(_webp(image, VIEWS_WIDTH))


def _webp(image: Image.Image, side: int) -> bytes:
    shown = image.copy()
    shown.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    shown.save(stream, "WEBP", quality=QUALITY, lossless=max(shown.size) <= LOSSLESS_SIDE, method=4)
    return stream.getvalue()


def _data_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"

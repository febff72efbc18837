"""Pictures inside a page: small, few, and as data URIs, so that the page is self-contained."""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Iterable
from pathlib import Path

from PIL import Image

from byol.images.picture.read import read_image

# Sides of tiles and of a map's pictures in pixels: the first pair that fits the budget.
SIDES = ((96, 80), (96, 64), (80, 48), (64, 48), (48, 32), (32, 32))
THUMBNAIL_BYTES = 1_600_000  # of all of them; a data URI takes a third more
LOSSLESS_SIDE = 16  # pictures this small are kept pixel by pixel
VIEWS_WIDTH, VIEWS_HEIGHT = 1280, 640
QUALITY = 80


def thumbnails(images: Iterable[Image.Image], tiles: Container[int] = ()) -> list[str]:
    """The middle squares of images as data URIs: of 96 pixels at most for the places `tiles`, else of 80.

    All are smaller where these would take too many bytes.
    """
    small = []
    for image in images:  # large ones are let go one by one
        square = middle_square(image)
        square.thumbnail((SIDES[0][0], SIDES[0][0]), Image.Resampling.BICUBIC)
        small.append(square)
    for tile, other in SIDES:
        encoded = [_webp(image, tile if place in tiles else other) for place, image in enumerate(small)]
        if sum(map(len, encoded)) <= THUMBNAIL_BYTES:
            break
    return [_data_uri(content) for content in encoded]


def middle_square(image: Image.Image) -> Image.Image:
    """What an encoder's central crop is taken from."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def views_picture(path: Path) -> str:
    """The grid of views of a run as a data URI of at most 1280 x 640 pixels. Raises `ValueError`."""
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

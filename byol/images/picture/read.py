"""Encoded pictures to upright RGB images, whatever a stranger wrote into them. Torch-free.

An image that cannot be read raises `UnreadableImage`; what fails around it (a disk, memory) raises `SourceUnavailable`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable
from typing import IO, Any, cast

import numpy as np
from PIL import (  # noqa: F401 - the plugins register the decoders that FORMATS names
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from byol.files.regular import SourceUnavailable
from byol.images.picture.bare import bare
from byol.images.picture.budget import PIXELS
from byol.images.picture.extent import Extent, note_extent, turned_info
from byol.images.picture.headers import (
    ORIENTATION,
    orientation,
    require_decodable,
    require_few_scans,
    require_modest,
    require_size,
    size_before_opening,
)
from byol.images.picture.pages import holds_several, mark_several
from byol.images.surroundings import Anchors, UnreadableImage, read_encoded
from byol.limits import LIMITS, BadLimit, limit
from byol.text import reason_of

# Only these decoders run, whatever a file is called: Pillow's list also holds formats that start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# EXIF orientations.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A decoder's memory in units of the picture: WebP has two canvases and a frame, a JPEG in several scans coefficients.
WEBP_PICTURES, SCANS_PICTURES = 4, 3

BITS_PER_SAMPLE = 258  # a tag of TIFF
STRIP = 1 << 20  # pixels that are scaled at a time


def read_image(
    path: str | bytes | os.PathLike[str] | IO[bytes], anchors: Anchors | None = None, least_side: int = 0
) -> Image.Image:
    """Decode one file to an upright RGB image (8 bits a channel).

    EXIF orientation is applied; alpha is dropped; 16-bit grey is scaled to 8 bits. `anchors` tell whether a missing
    file is itself at fault. `least_side`: a JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as its shorter side
    keeps so many pixels; 0: whole. Raises `UnreadableImage`, and `SourceUnavailable`.
    """
    if isinstance(path, str | bytes | os.PathLike):
        return decode_image(read_encoded(path, anchors or Anchors()), least_side)
    return decode_image(path.read(), least_side)


def decode_image(content: bytes, least_side: int = 0, admit: Callable[[int, int], None] | None = None) -> Image.Image:
    """The same for an encoded picture in memory: any failure but a lack of memory is the picture's own.

    `admit(width, height)` is called before the pixels are decoded; it may raise `UnreadableImage`.
    """
    try:
        with PIXELS:
            return _decoded(content, least_side, admit)
    except (UnreadableImage, SourceUnavailable, BadLimit):
        raise
    except MemoryError as error:
        raise SourceUnavailable(
            "not enough memory to decode a picture; use fewer --decode-threads or processes, or lower "
            "BYOL_DECODE_PIXELS, and run the same command again"
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds, SyntaxError and struct.error among them
        raise UnreadableImage(reason_of(error)) from error


@functools.cache
def _quiet_decoders() -> None:
    """Silence Pillow and libtiff: their warnings name no image, and none is about the pixels.

    With the first picture, not at import. For the whole process, as `catch_warnings` is not safe in threads; appended,
    so that a program's own filters and log handlers come first.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # a Pillow with libtiff linked in, or without it
        libtiff = ctypes.CDLL(_imaging.__file__)  # finds libtiff among its dependencies
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def _decoded(content: bytes, least_side: int, admit: Callable[[int, int], None] | None) -> Image.Image:
    _quiet_decoders()
    kind = _format_of(content)
    found = bare(kind, content)
    require_modest(kind, found.content)
    most = limit("BYOL_MAX_PIXELS")
    if most > LIMITS["BYOL_MAX_PIXELS"].default:
        _raise_pillows_limit(most)
    taken = _take_early(kind, found.content, most)
    with Image.open(io.BytesIO(found.content), formats=(kind,)) as image:
        if admit:
            admit(*image.size)
        _take(image, found.content, taken, most, least_side)
        image.load()
        turn = orientation(found.exif, found.xmp)
        rgb = _as_rgb(image, turn, sixteen=_is_sixteen(image), in_place=True)
    if holds_several(kind, content):
        mark_several(rgb)
    return rgb


def _format_of(content: bytes) -> str:
    """The format by signature: only its decoder runs, so only its header needs to be checked."""
    for name in FORMATS:
        accepts = Image.OPEN[name][1]
        if accepts and accepts(content[:16]) is True:
            return name
    raise UnreadableImage("not an image, or a format that is not supported")


def _take_early(kind: str, content: bytes, most: int) -> int:
    """Wait for the pixels that opening alone takes; returns their number."""
    early = size_before_opening(kind, content)
    if early is None:
        return 0
    require_size(*early, most)
    pixels = early[0] * early[1] * (WEBP_PICTURES if kind == "WEBP" else 1)
    if pixels:
        PIXELS.take(pixels)
    return pixels


def _take(image: Any, content: bytes, taken: int, most: int, least_side: int) -> None:
    """Wait for the pixels of an opened image beyond those already `taken`, at the scale at which it will be decoded.

    Raises `UnreadableImage` for too many.
    """
    width, height = image.size
    require_size(width, height, most)
    require_decodable(content, {tile[0] for tile in image.tile}, width, height, most)
    covered = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in image.tile)
    if covered > 4 * width * height:  # a plane each for four channels
        raise UnreadableImage("its strips or tiles cover the picture many times over")
    pixels = width * height
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        one_scan = _has_one_scan(image, content)
        if least_side:
            _reduce(image, least_side)
        if one_scan:
            pixels = image.width * image.height
        else:  # all coefficients are held, whatever the scale
            require_few_scans(content, width, height, most)
            pixels *= SCANS_PICTURES
    if pixels > taken:
        PIXELS.take(pixels - taken)


def _reduce(image: JpegImagePlugin.JpegImageFile, least_side: int) -> None:
    """Have libjpeg decode at the smallest of its scales with such a shorter side."""
    drafted = image.draft(None, (least_side, least_side))
    if drafted and drafted[1][2:] != image.size:
        note_extent(image, Extent(*drafted[1]))


def _has_one_scan(image: JpegImagePlugin.JpegImageFile, content: bytes) -> bool:
    """Whether the decoder stops after the first scan: that holds all components, and none is refined later."""
    length = 6 + 2 * image.layers
    header = b"\xff\xda" + length.to_bytes(2, "big") + bytes([image.layers])
    end = image.fp.tell() if image.fp else 0  # where Pillow stopped reading: after the header of the first scan
    return content.startswith(header, max(0, end - length - 2)) and "progressive" not in image.info


def _raise_pillows_limit(most: int) -> None:
    """Raise Pillow's own limit where the user allows more pixels."""
    if Image.MAX_IMAGE_PIXELS and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-most // 2)


def _is_sixteen(image: Any) -> bool:
    """Whether an image's file says that its integers have 16 bits; Pillow opens some of them as mode "I", of 32."""
    has_them = image.format in ("PNG", "PPM")
    return has_them or (image.format == "TIFF" and image.tag_v2.get(BITS_PER_SAMPLE) != (32,))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright RGB, 8 bits a channel.

    Raises `UnreadableImage` for pixels without a defined range: floating-point, or integers beyond 16 bits.
    """
    _quiet_decoders()
    try:
        turn = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken tags say nothing about the pixels
        turn = 1
    return _as_rgb(image, turn, sixteen=_is_sixteen(image))


def _as_rgb(image: Image.Image, turn: int, sixteen: bool, in_place: bool = False) -> Image.Image:
    """The same, turned by EXIF's `turn`; `sixteen`: 32-bit integers hold 16-bit values, however dark they are.

    `in_place` closes the image it was given, which saves a copy.
    """
    if turn in TURNS:
        upright = image.transpose(TURNS[turn])
        upright.info = turned_info(image, turn)
        if in_place:
            image.close()
        image = upright
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range; convert them to 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bits(image, sixteen or image.mode != "I", in_place)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, sixteen: bool, in_place: bool) -> Image.Image:
    """Deeper grey as 8 bits (Pillow's conversion clips), in strips, to keep copies small."""
    low, high = (0, 65_535) if image.mode != "I" else cast(tuple[int, int], image.getextrema())
    if low < 0 or high > 65_535:
        raise UnreadableImage("32-bit pixels outside 0 to 65535 have no defined range; convert them to 8 bits")
    unit = 257 if sixteen or high > 255 else 1
    grey = Image.new("L", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        scaled = (strip.astype(np.uint32) + unit // 2) // unit  # v / 257, rounded
        grey.paste(Image.fromarray(scaled.astype(np.uint8)), (0, top))
    if in_place:
        image.close()
    return grey

"""Encoded pictures to upright RGB images, whatever a stranger wrote into them. Torch-free.

An image that cannot be read raises `UnreadableImage`; what fails around it (a disk, memory) raises `SourceUnavailable`.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import IO, Any

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
)

from byol.budget import PIXELS
from byol.headers import (
    ORIENTATION,
    orientation,
    require_decodable,
    require_few_scans,
    require_modest,
    require_size,
    size_before_opening,
)
from byol.limits import LIMITS, BadLimit, limit
from byol.surroundings import Anchors, SourceUnavailable, UnreadableImage, read_encoded
from byol.text import reason_of

# Only these decoders run, whatever a file is called: Pillow's list also holds formats that start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What EXIF's numbers 2 to 8 ask for.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What a decoder holds beside the picture, in pictures: WebP's two canvases and a frame, the coefficients of a JPEG in
# several scans.
WEBP_PICTURES, SCANS_PICTURES = 4, 3

# Its warning does not say which image is large. Set once, as `catch_warnings` is not safe in threads; appended, so that
# a program's own filter counts.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

STRIP = 1 << 20  # pixels that are scaled at a time


def read_image(path: str | bytes | os.PathLike[str] | IO[bytes], anchors: Anchors | None = None) -> Image.Image:
    """Decode one file to an upright RGB image (8 bits a channel).

    EXIF orientation is applied; alpha is dropped; 16-bit grey is scaled to 8 bits. `anchors` tell whether a file that
    is not there is at fault itself. Raises `UnreadableImage`, and `SourceUnavailable`.
    """
    if isinstance(path, str | bytes | os.PathLike):
        return decode_image(read_encoded(path, anchors or Anchors()))
    return decode_image(path.read())


def decode_image(content: bytes) -> Image.Image:
    """The same for an encoded picture in memory: whatever is raised but for want of memory is the picture's own."""
    try:
        with PIXELS:
            return _decoded(content)
    except (UnreadableImage, SourceUnavailable, BadLimit):
        raise
    except MemoryError as error:
        raise SourceUnavailable(
            "no memory is left to decode a picture; take fewer --decode-threads or processes, or lower "
            "BYOL_DECODE_PIXELS, and give the same command again"
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds, SyntaxError and struct.error among them
        raise UnreadableImage(reason_of(error)) from error


def _decoded(content: bytes) -> Image.Image:
    kind = _format_of(content)
    require_modest(kind, content)
    most = limit("BYOL_MAX_PIXELS")
    if most > LIMITS["BYOL_MAX_PIXELS"].default:
        _raise_pillows_limit(most)
    taken = _take_early(kind, content, most)
    with Image.open(io.BytesIO(content), formats=(kind,)) as image:
        _take(image, content, taken, most)
        image.load()
        turn = 1 if kind == "TIFF" else orientation(_exif(image.info), _xmp(image.info))  # Pillow has turned a TIFF
        return _as_rgb(image, turn, in_place=True)


def _format_of(content: bytes) -> str:
    """The one format whose decoder may have a file, so that it is the one whose header was checked."""
    for name in FORMATS:
        accepts = Image.OPEN[name][1]
        if accepts and accepts(content[:16]) is True:
            return name
    raise UnreadableImage("not an image, or a format that is not supported")


def _take_early(kind: str, content: bytes, most: int) -> int:
    """Wait for the pixels that opening alone takes; how many."""
    early = size_before_opening(kind, content)
    if early is None:
        return 0
    require_size(*early, most)
    pixels = early[0] * early[1] * (WEBP_PICTURES if kind == "WEBP" else 1)
    if pixels:
        PIXELS.take(pixels)
    return pixels


def _take(image: Any, content: bytes, taken: int, most: int) -> None:
    """Wait for the pixels of an opened image beyond those that are `taken`. Raises `UnreadableImage` for too many."""
    width, height = image.size
    require_size(width, height, most)
    require_decodable(content, {tile[0] for tile in image.tile}, width, height, most)
    covered = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in image.tile)
    if covered > 4 * width * height:  # a plane each for four channels
        raise UnreadableImage("its strips or tiles cover the picture again and again")
    pixels = width * height
    if isinstance(image, JpegImagePlugin.JpegImageFile) and not _has_one_scan(image, content):
        require_few_scans(content, width, height, most)
        pixels *= SCANS_PICTURES
    if pixels > taken:
        PIXELS.take(pixels - taken)


def _has_one_scan(image: JpegImagePlugin.JpegImageFile, content: bytes) -> bool:
    """Whether the decoder stops behind the first scan: it holds all components, and nothing is refined later."""
    length = 6 + 2 * image.layers
    header = b"\xff\xda" + length.to_bytes(2, "big") + bytes([image.layers])
    end = image.fp.tell() if image.fp else 0  # where Pillow stopped to read: behind the header of the first scan
    return content.startswith(header, max(0, end - length - 2)) and "progressive" not in image.info


def _raise_pillows_limit(most: int) -> None:
    """Where the user allows more pixels than Pillow does: it would refuse them itself."""
    if Image.MAX_IMAGE_PIXELS and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-most // 2)


def _exif(info: dict[Any, Any]) -> bytes:
    """The EXIF block of an opened image; empty where there is none that can be read."""
    if isinstance(exif := info.get("exif"), bytes):
        return exif
    profile = info.get("Raw profile type exif", "")  # how PNG files had it before
    text = profile.decode("latin-1") if isinstance(profile, bytes) else str(profile)
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def _xmp(info: dict[Any, Any]) -> bytes:
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp", b""))
    return xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright RGB, 8 bits a channel.

    Raises `UnreadableImage` for pixels without a defined range: floating-point, or integers that 16 bits do not hold.
    """
    try:
        turn = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of tags that say nothing about the pixels
        turn = 1
    return _as_rgb(image, turn)


def _as_rgb(image: Image.Image, turn: int, in_place: bool = False) -> Image.Image:
    """The same, turned as EXIF's `turn` says; `in_place` uses the image up, which saves a copy."""
    if turn in TURNS:
        turned = image.transpose(TURNS[turn])
        turned.info = image.info
        if in_place:
            image.close()
        image = turned
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range; convert them to 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow opens some 16-bit files as "I", 32-bit integers
        image = _eight_bits(image, in_place)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, in_place: bool) -> Image.Image:
    """16-bit grey scaled to 8 bits (Pillow's own conversion clips), in strips: a copy of a large image is large."""
    grey = Image.new("L", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if strip.dtype.itemsize > 2 and (strip.min() < 0 or strip.max() > 65_535):
            raise UnreadableImage("32-bit pixels outside 0 to 65535 have no defined range; convert them to 8 bits")
        scaled = (strip.astype(np.uint32) + 128) // 257  # v / 257, rounded
        grey.paste(Image.fromarray(scaled.astype(np.uint8)), (0, top))
    if in_place:
        image.close()
    return grey

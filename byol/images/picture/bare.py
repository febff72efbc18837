"""Strips a picture's file to its pixels; no decoder sees anything else. Torch-free.

Photographs carry resolutions, profiles, texts, thumbnails and further pictures. Pillow reads all of that when it opens
a file, and a fault in it, or its size, would cost the picture. Here only the orientation is read of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from byol.images.picture.headers import (
    NOT_THERE,
    SCAN,
    gif_blocks,
    gif_screen_end,
    only_with,
    segment_length,
    segments,
    tags,
)
from byol.images.surroundings import UnreadableImage

T = TypeVar("T")

MOST_SEGMENTS = 1_000_000  # each takes a microsecond, and some more in a decoder
MOST_TEXT = 4 << 20  # bytes of a text in which the orientation is looked for

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
XMP_TEXT, EXIF_TEXT = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"  # names of texts in a PNG
APP0, APP1, APP14, APP15, COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
# libjpeg tells the colours by two of them, if they are at least so long.
OF_THE_PIXELS = {APP0: (b"JFIF\0", 16), APP14: (b"Adobe", 14)}

# Of a TIFF: sizes, bits, compression, colours, where strips and tiles lie, and what the compressions need.
TIFF_TAGS = frozenset(
    (*range(256, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326))
    + (332, 334, 338, 339, 347, *range(512, 522), *range(529, 533), 32996, 32997, 48129, 50674)
)
XMP_TAG = 700

GIF_CONTROL = 0xF9  # the label of what says which colour is transparent

WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_FLAGS = 0x12  # of the first chunk: transparency and frames, without a profile, EXIF and XMP


@dataclass(frozen=True)
class Bare:
    """The file with its pixels only, and its EXIF block and XMP, unchanged."""

    content: bytes
    exif: bytes = b""
    xmp: bytes = b""


def bare(kind: str, content: bytes) -> Bare:
    """An encoded picture of Pillow's format `kind`, bare; a damaged one stays as it is, for the decoder to judge.

    Raises `UnreadableImage` for one in more than `MOST_SEGMENTS` pieces.
    """
    return _BARED[kind](content) if kind in _BARED else Bare(content)


# ------------------------------------------------------------------------------------------------------- JPEG


def _bare_jpeg(content: bytes) -> Bare:
    kept, exif, xmp = bytearray(content[:2]), bytearray(), b""
    for marker, place in _counted(segments(content)):
        if marker == SCAN:
            return Bare(b"".join([kept, b"\xff\xda", memoryview(content)[place:]]), bytes(exif), xmp)
        data = content[place : place + segment_length(content, place, marker)]
        if marker == APP1 and data.startswith(EXIF, 2) and len(exif) < MOST_TEXT:
            exif += data[2 + len(EXIF) if exif else 2 :]  # one block may lie in several segments
        elif marker == APP1 and data.startswith(XMP, 2):
            xmp = data[2 + len(XMP) :]
        if _is_of_the_pixels(marker, data):
            kept += bytes([0xFF, marker]) + data
    return Bare(content)


def _is_of_the_pixels(marker: int, data: bytes) -> bool:
    if not APP0 <= marker <= APP15 and marker != COMMENT:
        return True
    start, least = OF_THE_PIXELS.get(marker, (b"", 1 << 16))
    return data.startswith(start, 2) and len(data) >= least


# -------------------------------------------------------------------------------------------------------- PNG


def _bare_png(content: bytes) -> Bare:
    """Its critical chunks only: the result has no transparency anyway."""
    kept, start, found = bytearray(), 0, dict[bytes, tuple[bytes, bytes]]()
    for name, place, end in _counted(png_chunks(content)):
        if name[0] & 32:  # written small: ancillary
            kept += memoryview(content)[start:place]
            start = end
            found |= _turning(name, content, place + 8, end - 4)
    exif, text, xmp = (_text(*found.get(title, (b"", b""))) for title in (b"eXIf", EXIF_TEXT, XMP_TEXT))
    whole = b"".join([kept, memoryview(content)[start:]]) if start else content
    return Bare(whole, exif or _unhexed(text), xmp)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, place, end) of the chunks, up to the last one or to damage."""
    place = 8
    while (name := content[place + 4 : place + 8]).isalpha() and len(name) == 4 and name != b"IEND":
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        yield name, place, end
        place = end


def _turning(name: bytes, content: bytes, start: int, end: int) -> dict[bytes, tuple[bytes, bytes]]:
    """Key, name and content of a chunk that may hold the orientation; texts without their title."""
    if name == b"eXIf":
        return {name: (name, content[start:end])}
    for title in (EXIF_TEXT, XMP_TEXT) if name in (b"tEXt", b"zTXt", b"iTXt") else ():
        if content.startswith(title, start, end):
            return {title: (name, content[start + len(title) : end])}
    return {}


def _text(name: bytes, data: bytes) -> bytes:
    """A chunk's content after its title, unpacked; empty if that fails."""
    packed = name == b"zTXt" or (name == b"iTXt" and data[:1] == b"\1")
    if name == b"iTXt":
        data = data[2:].split(b"\0", 2)[-1]  # behind the language and the title's translation
    elif name == b"zTXt":
        data = data[1:]
    try:
        return zlib.decompressobj().decompress(data, MOST_TEXT) if packed else data[:MOST_TEXT]
    except zlib.error:
        return b""


def _unhexed(text: bytes) -> bytes:
    """An EXIF block as older programs wrote it: three header lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


# ------------------------------------------------------------------------------------------------------- TIFF


def _bare_tiff(content: bytes) -> Bare:
    try:
        xmp = next((tag for tag in tags(content) if tag.number == XMP_TAG), None)
        only = only_with(content, TIFF_TAGS)
    except NOT_THERE:
        return Bare(content, content)
    return Bare(only, content, content[xmp.offset : xmp.offset + min(xmp.values, MOST_TEXT)] if xmp else b"")


# ------------------------------------------------------------------------------------------------------- WebP


def _bare_webp(content: bytes) -> Bare:
    kept, found = bytearray(b"WEBP"), dict[bytes, bytes]()
    end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    for name, place, size in _counted(webp_chunks(content, end)):
        if name in WEBP_CHUNKS:
            kept += content[place : place + 8 + size + size % 2]
        elif name in (b"EXIF", b"XMP "):
            found[name] = content[place + 8 : place + 8 + size]
    if kept.startswith(b"VP8X", 4) and len(kept) > 12:
        kept[12] &= WEBP_FLAGS
    whole = b"".join([b"RIFF", len(kept).to_bytes(4, "little"), kept])
    return Bare(whole, found.get(b"EXIF", b""), found.get(b"XMP ", b""))


def webp_chunks(content: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, place, size of its content) of each chunk."""
    place = 12
    while place + 8 <= end:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        yield content[place : place + 4], place, size
        place += 8 + size + size % 2


# -------------------------------------------------------------------------------------------------------- GIF


def _bare_gif(content: bytes) -> Bare:
    """Without comments and application blocks before its first frame; later ones are never read."""
    start, end = gif_screen_end(content), 0
    kept = bytearray(content[:start])
    for label, place, end in _counted(gif_blocks(content, start)):
        if label == GIF_CONTROL:
            kept += content[place:end]
    return Bare(b"".join([kept, memoryview(content)[end:]]) if len(kept) < end else content)


# -----------------------------------------------------------------------------------------------------------


def _counted(found: Iterator[T]) -> Iterator[T]:
    for number, one in enumerate(found):
        if number == MOST_SEGMENTS:
            raise UnreadableImage(f"more than {MOST_SEGMENTS:,} segments")
        yield one


_BARED: dict[str, Callable[[bytes], Bare]] = {
    "GIF": _bare_gif,
    "JPEG": _bare_jpeg,
    "PNG": _bare_png,
    "TIFF": _bare_tiff,
    "WEBP": _bare_webp,
}

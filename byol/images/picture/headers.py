"""Checks an encoded picture's header before a decoder trusts it: sizes, scans, tags. Torch-free.

Some decoders spend memory or time on what a few bytes claim. Refusals raise `UnreadableImage`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from struct import error as StructError
from struct import pack, unpack_from
from typing import NamedTuple

from byol.images.surroundings import UnreadableImage
from byol.limits import limit

Size = tuple[int, int]  # width, height

SCAN_AREA = 16  # pictures of the largest size that a JPEG's scans may fill together; an honest one has about ten scans
MOST_VALUES = 1 << 18  # of one TIFF tag that holds numbers: the offsets of 262,144 strips
MOST_TAGS = 65_535  # of a TIFF; a BigTIFF may claim more
SMALL = 1 << 20  # bytes: in fewer, comments, however short, take no time
MOST_COMMENTS = 1000  # of a PPM in text; Pillow copies a block for each
TEXT_SHARE = 8  # formats that Pillow decodes in Python, pixel by pixel, get an eighth of the largest size

_COMMENT = re.compile(rb"#[^\r\n]*")
_START_OF_SCAN = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff([^\x00\xff])")  # the last of the bytes that may fill: `\xff+` is slow where none is behind
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in a scan: no stuffed byte, no restart
SCAN = 0xDA
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = frozenset(_TYPE_BYTES) - {1, 2, 6, 7}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
ORIENTATION = 274
NOT_THERE = (StructError, OverflowError)  # raised by reading outside the bytes
_EXIF = re.compile(rb"(?:Exif\0\0){1,2}")  # some programs write it twice
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:="|>)([0-9])""")


def require_size(width: int, height: int, most: int) -> None:
    """Raise `UnreadableImage` for more than `most` pixels."""
    if width * height > most:
        raise UnreadableImage(
            f"{width} x {height} pixels are more than {most:,}, as in a decompression bomb; if you trust it, raise "
            "BYOL_MAX_PIXELS"
        )


def size_before_opening(kind: str, content: bytes) -> Size | None:
    """The pixels whose memory the format's decoder takes as soon as it is opened; None where it takes none."""
    try:
        return _EARLY[kind](content) if kind in _EARLY else None
    except (StructError, IndexError) as error:
        raise UnreadableImage("the image file is truncated") from error


def _webp_size(content: bytes) -> Size:
    chunk = content[12:16]
    if chunk == b"VP8X":
        low_w, high_w, low_h, high_h = unpack_from("<HBHB", content, 24)
        return low_w + (high_w << 16) + 1, low_h + (high_h << 16) + 1
    if chunk == b"VP8L":
        (bits,) = unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _gif_size(content: bytes) -> Size:
    """The screen, or what its first frame reaches beyond it."""
    width, height = unpack_from("<HH", content, 6)
    place = start = gif_screen_end(content)
    for _, _, end in gif_blocks(content, start):
        place = end
    if content[place] != 0x2C:
        return width, height
    left, top, across, down = unpack_from("<HHHH", content, place + 1)
    return max(width, left + across), max(height, top + down)


def gif_screen_end(content: bytes) -> int:
    """Where a GIF's screen descriptor and colours end and its content begins."""
    flags = content[10] if len(content) > 10 else 0
    return 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)


def gif_blocks(content: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """Yield (label, place, end) of the pieces of the extensions that start at `place`, without a gap.

    A piece is the label, or a block with its length before it: an empty one is an extension's last.
    """
    while content[place : place + 1] == b"\x21" and place + 2 < len(content):
        label, length = content[place + 1], 1
        yield label, place, place + 2
        place += 2
        while length and place < len(content):
            length = content[place]
            yield label, place, place + 1 + length
            place += 1 + length


def _tile_size(content: bytes) -> Size:
    """The tile that a TIFF's decoder takes memory for, which may be larger than the picture."""
    sizes = {tag.number: tag.value for tag in tags(content) if tag.kind in _NUMBERS and tag.values == 1}
    return sizes.get(_TILE_WIDTH, 0), sizes.get(_TILE_LENGTH, 0)


_EARLY: dict[str, Callable[[bytes], Size]] = {"WEBP": _webp_size, "GIF": _gif_size, "TIFF": _tile_size}


# --------------------------------------------------------------------------------------- before it is opened


def require_modest(kind: str, content: bytes) -> None:
    """Raise `UnreadableImage` for a file that keeps the decoder busy before it comes to the pixels."""
    if kind == "TIFF":
        require_honest_tags(content)
    elif len(content) > SMALL and kind == "PPM" and len(_COMMENT.sub(b"", content[:SMALL]).split(None, 4)) < 4:
        raise UnreadableImage("its comments are too long")


# ------------------------------------------------------------------------------------------------------- JPEG


def require_few_scans(content: bytes, width: int, height: int, most_pixels: int) -> None:
    """Raise `UnreadableImage` for a JPEG of more scans than `BYOL_MAX_SCANS`, and for many of a large picture.

    Each costs a pass over all pixels, however empty it is.
    """
    most = min(limit("BYOL_MAX_SCANS"), SCAN_AREA * most_pixels // max(1, width * height))
    count = sum(1 for _ in _START_OF_SCAN.finditer(content))  # also those of a film behind the picture
    if count > most:
        count = sum(1 for _ in _scans(content))
    if count > most:
        raise UnreadableImage(f"{count} scans of {width} x {height} pixels are more than {most} (BYOL_MAX_SCANS)")


def _scans(content: bytes) -> Iterator[int]:
    return (place for marker, place in segments(content) if marker == SCAN)


def segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, place of its length) up to the end of the image, as a decoder meets them."""
    found = _MARKER.search(content, 2)
    while found and found[1] != b"\xd9":
        marker, place = found[1][0], found.end()
        yield marker, place
        place += segment_length(content, place, marker)
        found = (_NEXT_MARKER if marker == SCAN else _MARKER).search(content, place)


def segment_length(content: bytes, place: int, marker: int) -> int:
    """The bytes of a segment behind its marker; some markers stand alone."""
    alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
    return 0 if alone else int.from_bytes(content[place : place + 2], "big")


# ------------------------------------------------------------------------------------------------- TIFF, EXIF


class Tag(NamedTuple):
    """A tag of a TIFF: `value` is the first of its `values`, if these stand in the entry; else they lie at `offset`."""

    number: int
    kind: int
    values: int
    value: int
    offset: int
    entry: bytes


def orientation(exif: bytes, xmp: bytes) -> int:
    """How a picture must be turned (1, not at all, to 8), by that one tag of its EXIF block, else by its XMP.

    No other tag is read: an odd resolution, say, costs no photograph.
    """
    beginning = _EXIF.match(exif)
    try:
        for tag in tags(exif, beginning.end() if beginning else 0):
            if tag.number == ORIENTATION and tag.kind in _NUMBERS | {1, 6} and tag.values == 1:
                return tag.value
    except NOT_THERE:
        pass  # cut off within its tags
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def require_honest_tags(content: bytes) -> None:
    """Raise `UnreadableImage` where the tags of a TIFF claim more than there is: honest values do not overlap."""
    held = 0
    try:
        for tag in tags(content):
            held += tag.values * _TYPE_BYTES.get(tag.kind, 0)
            if held > len(content):
                raise UnreadableImage("its tags claim more bytes than the file has")
            if tag.kind in _NUMBERS and tag.values > MOST_VALUES:
                raise UnreadableImage(f"tag {tag.number} has {tag.values} values, more than {MOST_VALUES}")
    except NOT_THERE:
        return  # cut off within its tags, which takes no memory; the decoder judges it


def tags(content: bytes, start: int = 0) -> Iterator[Tag]:
    """Yield the tags of the first directory of a TIFF that begins at `start`.

    Raises `NOT_THERE` where it is cut off.
    """
    order, is_big, place, count = _directory(content, start)
    step, form = (20, "HHQ") if is_big else (12, "HHI")
    for here in range(place, place + min(count, MOST_TAGS) * step, step):
        number, kind, values = unpack_from(order + form, content, here)
        at = here + step - (8 if is_big else 4)
        (value,) = unpack_from(order + {1: "B", 3: "H", 6: "B", 8: "H"}.get(kind, "I"), content, at)
        (offset,) = unpack_from(order + ("Q" if is_big else "I"), content, at)
        yield Tag(number, kind, values, value, start + offset, content[here : here + step])


def only_with(content: bytes, wanted: Container[int]) -> bytes:
    """A TIFF whose first directory is its only one, and has only the wanted tags; all else stays in place.

    Of duplicate tags the last is kept: Pillow believes the last one, libtiff the first.

    Raises `NOT_THERE` where its directory is cut off.
    """
    order, is_big, place, _ = _directory(content, 0)
    kept = list({tag.number: tag.entry for tag in tags(content) if tag.number in wanted}.values())
    width = 8 if is_big else 2
    new = pack(order + ("Q" if is_big else "H"), len(kept)) + b"".join(kept) + bytes(8 if is_big else 4)
    view, start = memoryview(content), place - width
    return b"".join((view[:start], new, view[start + len(new) :]))


def _directory(content: bytes, start: int) -> tuple[str, bool, int, int]:
    """Of the first directory: the order of bytes, whether it is a BigTIFF's, where its entries begin, how many."""
    order = "<" if content[start : start + 2] == b"II" else ">"
    is_big = content[start + 2 : start + 4] in (b"+\0", b"\0+")
    (place,) = unpack_from(order + "Q", content, start + 8) if is_big else unpack_from(order + "I", content, start + 4)
    (count,) = unpack_from(order + ("Q" if is_big else "H"), content, start + place)
    return order, is_big, start + place + (8 if is_big else 2), count


# -------------------------------------------------------------------------------------- decoded by Python itself


def require_decodable(content: bytes, decoders: set[str], width: int, height: int, most: int) -> None:
    """Raise `UnreadableImage` for a picture that Pillow would decode in Python for minutes."""
    if decoders & {"ppm", "ppm_plain", "bmp_rle"}:
        require_size(width, height, most // TEXT_SHARE)
    if "ppm_plain" in decoders and content.count(b"#") > MOST_COMMENTS:
        raise UnreadableImage(f"more than {MOST_COMMENTS} comments")

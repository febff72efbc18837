"""What an encoded picture says of itself, read before a decoder believes it: sizes, scans, tags. Torch-free.

Some decoders take memory or time for what a few bytes claim. What is refused here raises `UnreadableImage`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from struct import error as StructError
from struct import unpack_from

from byol.limits import limit
from byol.surroundings import UnreadableImage

Size = tuple[int, int]  # width, height

SCAN_AREA = 16  # pictures of the largest size that a JPEG's scans may fill together; an honest one has about ten scans
MOST_VALUES = 1 << 18  # of one TIFF tag that holds numbers: the offsets of 262,144 strips
MOST_SEGMENTS = 10_000  # before the pixels of a JPEG, and beside those of a PNG; Pillow takes 5 microseconds for each
SMALL = 1 << 20  # bytes: in fewer, segments, however short, take no time
MOST_COMMENTS = 1000  # of a PPM in text; Pillow copies a block for each
TEXT_SHARE = 8  # formats that Pillow decodes in Python, pixel by pixel, get an eighth of the largest size

_COMMENT = re.compile(rb"#[^\r\n]*")
_START_OF_SCAN = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # in a scan: no stuffed byte, no restart
_SCAN = 0xDA
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = frozenset(_TYPE_BYTES) - {1, 2, 6, 7}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
ORIENTATION = 274
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:="|>)([0-9])""")


def require_size(width: int, height: int, most: int) -> None:
    """Raise `UnreadableImage` for more than `most` pixels."""
    if width * height > most:
        raise UnreadableImage(
            f"{width} x {height} pixels are more than {most:,}, as in a decompression bomb (BYOL_MAX_PIXELS says how "
            "many may be)"
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
    width, height, flags = unpack_from("<HHB", content, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while content[place] == 0x21:  # extensions: a label, then blocks with their length before them
        place += 2
        while content[place]:
            place += content[place] + 1
        place += 1
    if content[place] != 0x2C:
        return width, height
    left, top, across, down = unpack_from("<HHHH", content, place + 1)
    return max(width, left + across), max(height, top + down)


def _tile_size(content: bytes) -> Size:
    """The tile that a TIFF's decoder takes memory for, which may be larger than the picture."""
    tags = {tag: value for tag, kind, count, value in _tags(content, 0) if kind in _NUMBERS and count == 1}
    return tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)


_EARLY: dict[str, Callable[[bytes], Size]] = {"WEBP": _webp_size, "GIF": _gif_size, "TIFF": _tile_size}


# --------------------------------------------------------------------------------------- before it is opened


def require_modest(kind: str, content: bytes) -> None:
    """Raise `UnreadableImage` for a file that keeps the decoder busy before it comes to the pixels."""
    if kind == "TIFF":
        require_honest_tags(content)
    elif len(content) > SMALL and kind in _PARTS:
        if next(islice(_PARTS[kind](content), MOST_SEGMENTS, None), None) is not None:
            raise UnreadableImage(f"more than {MOST_SEGMENTS} segments beside its pixels")
    elif len(content) > SMALL and kind == "PPM" and len(_COMMENT.sub(b"", content[:SMALL]).split(None, 4)) < 4:
        raise UnreadableImage("its comments are longer than pictures have them")


def _before_scan(content: bytes) -> Iterator[int]:
    return takewhile(lambda marker: marker != _SCAN, (marker for marker, _ in _segments(content)))


def _chunks(content: bytes) -> Iterator[bytes]:
    """The names of a PNG's chunks but those of its pixels."""
    place = 8
    while len(name := content[place + 4 : place + 8]) == 4:
        if name != b"IDAT":
            yield name
        place += 12 + int.from_bytes(content[place : place + 4], "big")


_PARTS: dict[str, Callable[[bytes], Iterator[object]]] = {"JPEG": _before_scan, "PNG": _chunks}


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
    return (place for marker, place in _segments(content) if marker == _SCAN)


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, place of its length) up to the end of the image, as a decoder meets them."""
    found = _MARKER.search(content, 2)
    while found and found[1] != b"\xd9":
        marker, place = found[1][0], found.end()
        yield marker, place
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        place += 0 if alone else int.from_bytes(content[place : place + 2], "big")
        found = (_NEXT_MARKER if marker == _SCAN else _MARKER).search(content, place)


# ------------------------------------------------------------------------------------------------- TIFF, EXIF


def orientation(exif: bytes, xmp: bytes) -> int:
    """How a picture must be turned (1, not at all, to 8), by that one tag of its EXIF block, else by its XMP.

    No other tag is looked at: a photograph is not left out for what an odd camera wrote about its resolution.
    """
    try:
        for tag, kind, count, value in _tags(exif, 6 if exif.startswith(b"Exif\0\0") else 0):
            if tag == ORIENTATION and kind in _NUMBERS | {1, 6} and count == 1:
                return value
    except StructError:
        pass  # it ends within its tags
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def require_honest_tags(content: bytes) -> None:
    """Raise `UnreadableImage` where the tags of a TIFF claim more than there is: honest values do not overlap."""
    held = 0
    try:
        for tag, kind, count, _ in _tags(content, 0):
            held += count * _TYPE_BYTES.get(kind, 0)
            if held > len(content):
                raise UnreadableImage("its tags claim more bytes than the file has")
            if kind in _NUMBERS and count > MOST_VALUES:
                raise UnreadableImage(f"tag {tag} has {count} values, more than {MOST_VALUES}")
    except StructError:
        return  # ends within its tags, which takes no memory; the decoder says what it makes of that


def _tags(content: bytes, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tag, type, count, first value where it stands in the entry) of the first directory."""
    order = "<" if content[start : start + 2] == b"II" else ">"
    if content[start + 2 : start + 4] in (b"+\0", b"\0+"):  # BigTIFF
        (place,) = unpack_from(order + "Q", content, start + 8)
        (entries,), place, step, entry = unpack_from(order + "Q", content, start + place), place + 8, 20, "HHQ"
    else:
        (place,) = unpack_from(order + "I", content, start + 4)
        (entries,), place, step, entry = unpack_from(order + "H", content, start + place), place + 2, 12, "HHI"
    for number in range(entries):
        here = start + place + number * step
        tag, kind, count = unpack_from(order + entry, content, here)
        form = order + {1: "B", 3: "H", 6: "B", 8: "H"}.get(kind, "I")
        yield tag, kind, count, unpack_from(form, content, here + step - (8 if step == 20 else 4))[0]


# -------------------------------------------------------------------------------------- decoded by Python itself


def require_decodable(content: bytes, decoders: set[str], width: int, height: int, most: int) -> None:
    """Raise `UnreadableImage` for a picture that Pillow would decode in Python for minutes."""
    if decoders & {"ppm", "ppm_plain", "bmp_rle"}:
        require_size(width, height, most // TEXT_SHARE)
    if "ppm_plain" in decoders and content.count(b"#") > MOST_COMMENTS:
        raise UnreadableImage(f"more than {MOST_COMMENTS} comments")

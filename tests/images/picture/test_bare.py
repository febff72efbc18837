"""What stands beside the pixels costs no picture: odd tags, huge texts, damaged blocks, further pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageOps

from byol.images.picture import bare as module
from byol.images.picture.bare import bare
from byol.images.picture.headers import tags
from byol.images.picture.read import read_image
from byol.images.surroundings import UnreadableImage
from tests.support.inputs.odd_images import chunk, encoded, exif_block, picture

PLAIN = Image.fromarray(picture(30, 20))
TURN = 6


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(read_image(io.BytesIO(content)))


def turned(image: Image.Image, orientation: int = TURN) -> np.ndarray:
    """As Pillow turns it, by an EXIF block that holds nothing else."""
    exif = Image.Exif()
    exif[0x112] = orientation
    with Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))) as opened:
        return np.asarray(ImageOps.exif_transpose(opened))


def rich_exif() -> bytes:
    exif = Image.Exif()
    exif[0x112], exif[0x11A], exif[0x128], exif[0x131], exif[0x132] = TURN, 72.0, 2, "byol", "2026:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif.tobytes()


# ------------------------------------------------------------------------------------------------------- JPEG


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def mutants(content: bytes, count: int, first: int = 0) -> Iterator[bytes]:
    """Copies, each with up to four other bytes behind the first ones."""
    random = np.random.default_rng(0)
    for _ in range(count):
        damaged = bytearray(content)
        for place in random.integers(first, len(content), random.integers(1, 5)):
            damaged[place] = random.integers(256)
        yield bytes(damaged)


BESIDE = [
    jpeg_segment(0xE1, rich_exif()),
    jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
    jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(100)),
    jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHI4sHHII", 0xB000, 7, 4, b"0100", 0xB001, 4, 1, 2)),
    jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)),
    jpeg_segment(0xEE, b"Adobe\0"),  # too short to say anything of the colours
    jpeg_segment(0xE0, b"JFIF\0"),
    jpeg_segment(0xFE, b"a comment"),
]


@pytest.mark.parametrize("number", range(len(BESIDE)))
def test_no_segment_beside_the_pixels_costs_a_photograph(number: int) -> None:
    jpeg, segment = encoded(PLAIN, "JPEG", quality=95), BESIDE[number]
    expected, upright = decoded(jpeg), {turn: turned(Image.fromarray(decoded(jpeg)), turn) for turn in range(1, 9)}
    for damaged in mutants(segment, 100, first=4):
        found = decoded(jpeg[:2] + damaged + jpeg[2:])
        assert any(np.array_equal(found, image) for image in (expected, *upright.values()))


def test_of_a_photograph_with_further_pictures_the_first_is_read() -> None:
    several = encoded(PLAIN, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95)
    assert b"MPF\0" in several
    np.testing.assert_array_equal(decoded(several), decoded(encoded(PLAIN, "JPEG", quality=95)))
    assert b"MPF\0" not in bare("JPEG", several).content.split(b"\xff\xda", 1)[0]


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_what_tells_the_colours_of_a_jpeg_stays(mode: str) -> None:
    image = PLAIN.convert(mode)
    for options in ({}, {"keep_rgb": True}, {"progressive": True}):
        content = encoded(image, "JPEG", quality=95, **options)
        with Image.open(io.BytesIO(content)) as opened:
            np.testing.assert_array_equal(decoded(content), np.asarray(opened.convert("RGB")))


def test_an_exif_block_in_two_segments_and_with_two_beginnings() -> None:
    jpeg, block = encoded(PLAIN, "JPEG", quality=95), exif_block((0x10F, 2, 4, 0x616263), (0x112, 3, 1, TURN))
    upright = turned(Image.fromarray(decoded(jpeg)))
    parts = jpeg_segment(0xE1, block[:20]) + jpeg_segment(0xE1, b"Exif\0\0" + block[20:])
    np.testing.assert_array_equal(decoded(jpeg[:2] + parts + jpeg[2:]), upright)
    np.testing.assert_array_equal(decoded(jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + block) + jpeg[2:]), upright)


# -------------------------------------------------------------------------------------------------------- PNG


def png(*before: bytes, behind: bytes = b"") -> bytes:
    content = encoded(PLAIN, "PNG")
    return content[:33] + b"".join(before) + content[33:-12] + behind + content[-12:]


LARGE = bytes(3 << 20)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
HEX = f"\nexif\n{len(rich_exif()):8}\n{rich_exif().hex()}\n"
READ = {
    "packed text": png(chunk(b"zTXt", b"a\0\0" + zlib.compress(LARGE))),
    "packed international text": png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(LARGE))),
    "texts": png(chunk(b"tEXt", b"a\0" + LARGE), behind=chunk(b"tEXt", b"b\0" + LARGE)),
    "a profile": png(chunk(b"iCCP", b"a\0\0" + zlib.compress(LARGE))),
    "a profile that is none": png(chunk(b"iCCP", b"a\0\0nothing")),
    "a text with another check sum": png(chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
    "a text that is cut off": png(behind=chunk(b"tEXt", b"a\0" + LARGE))[:-100_000],
    "an animation of no frames": png(chunk(b"acTL", bytes(8))),
    "a short animation": png(chunk(b"acTL", bytes(3))),
    "colours that are short": png(chunk(b"gAMA", b"\0"), chunk(b"cHRM", b"\0"), chunk(b"sRGB")),
    "a size that is short": png(chunk(b"pHYs", b"\0")),
    "transparency": png(chunk(b"tRNS", bytes(6))),
}
TURNED = {
    "EXIF": png(chunk(b"eXIf", rich_exif()[6:])),
    "EXIF behind the pixels": png(behind=chunk(b"eXIf", rich_exif()[6:])),
    "EXIF as digits": png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX.encode()))),
    "EXIF as plain digits": png(chunk(b"tEXt", b"Raw profile type exif\0" + HEX.encode())),
    "XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "packed XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(XMP))),
}


@pytest.mark.parametrize("name", READ)
def test_no_chunk_beside_the_pixels_costs_a_png(name: str) -> None:
    np.testing.assert_array_equal(decoded(READ[name]), np.asarray(PLAIN))


@pytest.mark.parametrize("name", TURNED)
def test_a_png_is_turned_as_pillow_turns_it(name: str) -> None:
    with Image.open(io.BytesIO(TURNED[name])) as opened:
        opened.load()  # what stands behind the pixels
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert expected.shape == (30, 20, 3)
    np.testing.assert_array_equal(decoded(TURNED[name]), expected)


def test_of_an_animated_png_the_first_frame_is_read() -> None:
    for default in (False, True):
        frames = [PLAIN.rotate(90), PLAIN.rotate(180)]
        content = encoded(PLAIN, "PNG", save_all=True, append_images=frames, default_image=default)
        np.testing.assert_array_equal(decoded(content), np.asarray(PLAIN))


def test_a_png_with_nothing_beside_its_pixels_is_not_copied() -> None:
    content = encoded(PLAIN, "PNG")
    assert bare("PNG", content).content is content


def test_more_segments_than_any_picture_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SEGMENTS", 100)
    jpeg = encoded(PLAIN, "JPEG")
    for empty, make in ((chunk(b"abCd"), png), (b"\xff\xe5\0\2", lambda many: jpeg[:2] + many + jpeg[2:])):
        assert decoded(make(empty * 80)).shape == (20, 30, 3)
        with pytest.raises(UnreadableImage, match="more than 100 segments"):
            decoded(make(empty * 101))


# ------------------------------------------------------------------------------------------------------- TIFF


def tiff(order: str, *tags: tuple[int, int, int, bytes], big: bool = False) -> bytes:
    """A picture of 30 x 20 with further tags (number, type, count, the four bytes of its value or place)."""
    pixels = PLAIN.tobytes()
    entry, head, wide = ("HHQ", 16, 8) if big else ("HHI", 8, 4)

    def number(value: int) -> bytes:
        return struct.pack(order + ("Q" if big else "I"), value)

    def short(value: int) -> bytes:
        return struct.pack(order + "H", value) + bytes(wide - 2)

    own = [(256, 3, 1, short(30)), (257, 3, 1, short(20)), (258, 3, 1, short(8)), (259, 3, 1, short(1))]
    own += [(262, 3, 1, short(2)), (273, 4, 1, short(0)), (277, 3, 1, short(3)), (278, 3, 1, short(20))]
    entries = sorted({tag[0]: tag for tag in (*own, (279, 4, 1, number(len(pixels))), *tags)}.values())
    place = head + (8 if big else 2) + len(entries) * (20 if big else 12) + wide
    entries = [tag if tag[0] != 273 else (273, 16 if big else 4, 1, number(place)) for tag in entries]
    packed = b"".join(struct.pack(order + entry, *tag[:3]) + tag[3].ljust(wide, b"\0") for tag in entries)
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    start += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    return start + struct.pack(order + ("Q" if big else "H"), len(entries)) + packed + number(10**6) + pixels


ODD = [
    (0x11A, 2, 4, b"abc\0"),  # a resolution as text, which Pillow multiplies where the unit is a centimetre
    (0x11A, 5, 1, b"\xff\xff\xff\x7f"),  # outside of the file
    (0x128, 1, 1, b"\2\0\0\0"),
    (0x128, 4, 1, b"\2\0\1\0"),
    (0x131, 11, 1, b"\0\0\xc0\x7f"),
    (0x2BC, 4, 3, b"\x08\0\0\0"),
    (0x8769, 2, 4, b"abc\0"),
    (0x8769, 4, 1, b"\xff\xff\xff\xff"),
    (0x8773, 7, 0x7FFFFFFF, b"\0\0\0\0"),
    (0xC4A5, 7, 0xFFFFFFFF, b"\x08\0\0\0"),
]


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])  # Pillow reads no other BigTIFF
@pytest.mark.parametrize("odd", ODD)
def test_no_tag_beside_the_pixels_costs_a_tiff(odd: tuple[int, int, int, bytes], order: str, big: bool) -> None:
    """The directory also says that another one follows, which is outside of the file."""
    for turn in (1, TURN):
        content = tiff(order, odd, (0x112, 3, 1, struct.pack(order + "H", turn)), (0x128, 3, 1, b"\3\0"), big=big)
        np.testing.assert_array_equal(decoded(content), turned(PLAIN, turn))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LAB", "I;16", "YCbCr"])
def test_a_tiff_is_read_as_pillow_reads_it(mode: str, compression: str | None) -> None:
    if compression == "jpeg" and mode not in ("RGB", "L", "CMYK", "YCbCr"):
        pytest.skip("not a JPEG's colours")
    image = PLAIN.convert("L").convert("I;16") if mode == "I;16" else PLAIN.convert(mode)
    exif = Image.Exif()
    exif[0x112] = TURN
    content = encoded(image, "TIFF", compression=compression, exif=exif, description="a" * 1000, dpi=(300, 300))
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()
        expected = np.asarray(opened.convert("RGB"))
    found = decoded(content)
    assert found.shape == expected.shape == (30, 20, 3)
    if mode == "I;16":
        assert found.max() == 1  # values up to 255 of 65,535
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_tiff_is_turned_by_its_xmp_where_no_tag_says_it() -> None:
    content = encoded(PLAIN, "TIFF", tiffinfo={700: XMP})
    np.testing.assert_array_equal(decoded(content), turned(PLAIN))


def test_of_a_tag_that_stands_twice_every_reader_sees_the_same() -> None:
    """libtiff would take memory for a tile of 1.6 gigapixels, where Pillow sees one of 256."""
    sides = [(322, 40_000), (323, 40_000), (322, 16), (323, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, side) for tag, side in sides)
    content = b"II*\0\x08\0\0\0\4\0" + entries + bytes(100)
    assert [(tag.number, tag.value) for tag in tags(bare("TIFF", content).content)] == [(322, 16), (323, 16)]


# ------------------------------------------------------------------------------------------------------- WebP


@pytest.mark.parametrize("lossless", [True, False])
def test_no_chunk_beside_the_pixels_costs_a_webp(lossless: bool) -> None:
    options = {"lossless": lossless, "quality": 90}
    image = PLAIN.convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 0))  # which a decoder clears
    plain = encoded(image, "WEBP", **options)
    content = encoded(image, "WEBP", exif=rich_exif(), xmp=XMP, icc_profile=bytes(200), **options)
    expected = {turn: turned(Image.fromarray(decoded(plain)), turn) for turn in range(1, 9)}
    np.testing.assert_array_equal(decoded(content), expected[TURN])
    with Image.open(io.BytesIO(plain)) as opened:
        np.testing.assert_array_equal(decoded(plain), np.asarray(opened.convert("RGB")))
    place = content.index(b"EXIF")
    for damaged in mutants(content[place + 4 :], 200):
        found = decoded(content[: place + 4] + damaged)
        assert any(np.array_equal(found, image) for image in expected.values())
    assert decoded(content[:place] + b"abcd" + struct.pack("<I", 1 << 31)).shape == (20, 30, 3)
    with pytest.raises(UnreadableImage):
        decoded(plain[: len(plain) // 2])


def test_of_an_animated_webp_the_first_frame_is_read() -> None:
    frames = [PLAIN.rotate(90), PLAIN.rotate(180)]
    content = encoded(PLAIN, "WEBP", save_all=True, append_images=frames, lossless=True, exif=rich_exif())
    np.testing.assert_array_equal(decoded(content), turned(PLAIN))


# -------------------------------------------------------------------------------------------------------- GIF


def test_no_block_before_the_first_frame_costs_a_gif() -> None:
    palette = PLAIN.quantize(16)
    frames = [palette, palette.rotate(90)]
    content = encoded(palette, "GIF", save_all=True, append_images=frames[1:], transparency=3, comment=b"a" * 5000)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGBA").convert("RGB"))
    place = content.index(b"\x21\xfe")
    for odd in (b"", b"\x21\xff\0", b"\x21\xff\x0bNETSCAPE2.0\1\1\0", b"\x21\x01\1a\0", b"\x21\xfe\0"):
        np.testing.assert_array_equal(decoded(content[:place] + odd + content[place:]), expected)
    assert b"aaa" not in bare("GIF", content).content

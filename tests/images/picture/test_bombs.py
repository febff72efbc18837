"""Pictures that claim much and hold little: refused before memory or time is taken for what they claim."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.files.regular import SourceUnavailable
from byol.images.columns import Labels
from byol.images.decode import decode
from byol.images.picture import read as decoding
from byol.images.picture.budget import PIXELS, PixelBudget
from byol.images.picture.headers import gif_screen_end
from byol.images.picture.read import read_image
from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage
from tests.support.inputs.odd_images import bomb, chunk, encoded, picture
from tests.support.small import REPOSITORY

EMPTY_SCAN = bytes.fromhex("ffda000c03010002100310000001")
SMALL = (1, 1, 8, 0, 0, 0, 0)  # of a PNG's header: 1 x 1, 8 bits grey


def webp(kind: bytes, header: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(header)) + header
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def progressive(side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)


def with_scans(jpeg: bytes, count: int) -> bytes:
    return jpeg[:-2] + EMPTY_SCAN * count + jpeg[-2:]


def tiff(tags: dict[int, tuple[int, int, int]], rest: bytes = b"") -> bytes:
    """Tags as number to (type, count, value)."""
    grey = {258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    entries = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted((grey | tags).items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + b"\0\0\0\0" + rest


def sized(width: int, height: int) -> dict[int, tuple[int, int, int]]:
    return {256: (3, 1, width), 257: (3, 1, height)}


def overlapping_tags() -> bytes:
    tags = dict.fromkeys((273, 279, 320, 324, 325), (4, 200_000, 8))
    return tiff(sized(10, 10) | tags, b"\0" * 900_000)


def png(*between: bytes, header: tuple[int, ...] = SMALL) -> bytes:
    first, last = chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(between) + chunk(b"IDAT", zlib.compress(b"\0\0")) + last


def run_length_bmp(width: int, height: int) -> bytes:
    data, start = b"\x01\0\0\0" * height, 54 + 1024  # a pixel, and the end of the line
    sizes = struct.pack("<IHHI", start + len(data), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + sizes + info + b"\0" * 1024 + data


def gif(frame: tuple[int, int]) -> bytes:
    """A screen of 1 x 1 pixels whose first frame is larger, and cleared before the next one."""
    control = b"\x21\xf9\x04\x08\0\0\0\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
        + control
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x08\0;"
    )


def commented(blocks: bytes) -> bytes:
    """A GIF with a comment of these blocks before its frame."""
    content = encoded(Image.new("L", (1, 1)), "GIF")
    place = gif_screen_end(content)
    return content[:place] + b"\x21\xfe" + blocks + b"\0" + content[place:]


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Name to content and a word of the reason; "read" where nothing of it reaches a decoder."""
    lossless = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + b"\0" * 8
    return {
        "a.webp": (webp(b"VP8L", lossless), "decompression bomb"),
        "b.webp": (webp(b"VP8X", b"\0" * 4 + b"\xff\x7f\0" * 2), "decompression bomb"),
        "c.webp": (webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)), "decompression bomb"),
        "short.webp": (webp(b"VP8X", b""), "truncated"),
        "bomb.png": (bomb(), "decompression bomb"),
        "scans.jpg": (with_scans(progressive(2000), 4000), "4010 scans"),
        "tags.tif": (overlapping_tags(), "claim more bytes"),
        "values.tif": (tiff(sized(99, 99) | {273: (4, 1 << 20, 200)}, b"\0" * (4 << 20)), "1048576 values"),
        "tile.tif": (
            tiff(sized(16, 16) | {322: (4, 1, 40_000), 323: (4, 1, 40_000), 324: (4, 1, 8), 325: (4, 1, 9)}),
            "decompression bomb",
        ),
        "strips.tif": (
            tiff(sized(8000, 8000) | {258: (3, 1, 1), 273: (4, 9000, 300), 278: (3, 1, 7999)}, b"\x10\0\0\0" * 10_000),
            "many times over",
        ),
        "frame.gif": (gif((60_000, 60_000)), "decompression bomb"),
        "chunks.png": (png(chunk(b"abCd") * 1_100_000), "more than 1,000,000 segments"),
        "segments.jpg": (progressive(8)[:2] + b"\xff\xe5\0\2" * 1_100_000 + progressive(8)[2:], "more than 1,000,000"),
        "pixels.png": (png(chunk(b"IDAT") * 1_100_000), "more than 1,000,000"),
        "blocks.gif": (commented(b"\x01a" * 1_100_000), "more than 1,000,000"),
        "comment.gif": (commented((b"\xff" + b"a" * 255) * 100_000), "read"),
        "fill.jpg": (progressive(8)[:2] + b"\xff" * 1_000_000 + b"\0" + progressive(8)[2:], "read"),
        "exif.jpg": (progressive(8)[:2] + b"\xff\xe1\0\x0cExif\0\0abcd" * 900_000 + progressive(8)[2:], "read"),
        "xmp.tif": (b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 700, 1, 1 << 31, 0) * 65_535, "not an image"),
        "text.png": (png(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (1 << 25))) * 200), "read"),  # 6 GB unpacked
        "profile.png": (png(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * (1 << 27)) * 32)), "read"),
        "lines.bmp": (run_length_bmp(13_000, 13_000), "decompression bomb"),
        "comments.ppm": (b"P3\n4000 4000 255\n" + b"#\n" * 300_000, "comments"),
        "header.ppm": (b"P6\n#" + b"a" * 2_000_000 + b"\n1 1 255\n\0\0\0", "comments"),
        "python.ppm": (b"P6\n9000 9000 254\n" + b"\0" * 1000, "decompression bomb"),
    }


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Why each is refused, found by a process that may take 3 GB and a minute for all of them."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (content, _) in bombs().items():
        (folder / name).write_bytes(content)
    program = (
        "import json, resource, sys\nfrom pathlib import Path\nfrom byol.images import UnreadableImage, read_image\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); reasons = {}\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: read_image(path); reasons[path.name] = 'read'\n"
        "    except UnreadableImage as error: reasons[path.name] = str(error)\n"
        "print(json.dumps(reasons))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    reasons: dict[str, str] = json.loads(done.stdout)
    return reasons


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_with_its_reason(refused: dict[str, str], name: str) -> None:
    assert bombs()[name][1] in refused[name]


def test_what_webp_claims_is_known_before_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    content = bombs()["a.webp"][0]
    assert len(content) <= 34
    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(UnreadableImage, match="16384 x 16384"):
        read_image(io.BytesIO(content))


# ------------------------------------------------------------------------------------------------- honest ones


def honest() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(64, 48))
    film = b"".join(bytes([n % 251, 0xFF, 0xDA]) for n in range(3000))  # a camera's film behind its picture
    tiles = io.BytesIO()
    rgb.save(tiles, "TIFF", compression="tiff_adobe_deflate")
    return {
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True, quality=95),
        "film.jpg": encoded(rgb, "JPEG", progressive=True, quality=95) + film,
        "film-baseline.jpg": encoded(rgb, "JPEG", quality=95) + film,
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG", quality=95),
        "plain.tif": encoded(rgb, "TIFF"),
        "deflate.tif": tiles.getvalue(),
        "animated.webp": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)], lossless=True),
        "lossy.webp": encoded(rgb, "WEBP", quality=95),
        "alpha.webp": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "frames.gif": encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        "comment.ppm": b"P6\n# made by hand\n64 48\n255\n" + rgb.tobytes(),
        "text.png": png(chunk(b"tEXt", b"Title\0a picture")),
    }


@pytest.mark.parametrize("name", honest())
def test_honest_pictures_are_read_as_pillow_reads_them(name: str) -> None:
    content = honest()[name]
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(content))), expected)


def test_scans_are_counted_for_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = progressive(64)  # ten scans
    assert read_image(io.BytesIO(with_scans(jpeg, 190))).size == (64, 64)
    with pytest.raises(UnreadableImage, match="201 scans of 64 x 64 pixels are more than 200"):
        read_image(io.BytesIO(with_scans(jpeg, 191)))
    monkeypatch.setenv("BYOL_MAX_SCANS", "300")
    assert read_image(io.BytesIO(with_scans(jpeg, 191))).size == (64, 64)
    monkeypatch.setenv("BYOL_MAX_PIXELS", "8192")  # 64 x 64 is half of it: of the largest size, 16 scans are read
    with pytest.raises(UnreadableImage, match="more than 32"):
        read_image(io.BytesIO(with_scans(jpeg, 23)))


def test_the_limit_of_a_picture_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (20, 20)), "PNG")
    monkeypatch.setenv("BYOL_MAX_PIXELS", "399")
    with pytest.raises(UnreadableImage, match="20 x 20 pixels are more than 399"):
        read_image(io.BytesIO(content))
    monkeypatch.setenv("BYOL_MAX_PIXELS", "400")
    assert read_image(io.BytesIO(content)).size == (20, 20)


def test_more_than_pillow_s_limit_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("BYOL_MAX_PIXELS", "200000000")
    assert read_image(io.BytesIO(encoded(Image.new("RGB", (20, 20)), "PNG"))).size == (20, 20)


# ------------------------------------------------------------------------------------------------- the budget


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_budget_is_shared_in_the_order_of_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_DECODE_PIXELS", "100")
    budget, order, leave = PixelBudget(), list[str](), {name: threading.Event() for name in ("large", "small")}

    def take(name: str, pixels: int) -> None:
        with budget:
            budget.take(pixels)
            order.append(name)
            leave[name].wait(10)

    with budget:
        budget.take(60)
        threads = [in_thread(lambda: take("large", 500))]  # larger than the budget: it waits until it is alone
        while not budget._line:
            pass
        threads.append(in_thread(lambda: take("small", 10)))  # there is room, and one before it
        while len(budget._line) < 2:
            pass
        assert order == []
    while not order:
        pass
    assert order == ["large"]
    leave["large"].set()
    leave["small"].set()
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]
    assert budget._taken == 0


def test_pictures_give_back_what_they_took_however_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one picture, two are never decoded or transformed at once; bad ones keep nothing."""
    good = encoded(Image.fromarray(picture(64, 64)), "PNG")
    half = good[: len(good) // 2]
    monkeypatch.setenv("BYOL_DECODE_PIXELS", str(64 * 64))
    budget = PixelBudget()
    monkeypatch.setattr(decoding, "PIXELS", budget)
    monkeypatch.setattr("byol.images.decode.PIXELS", budget)
    most = 0

    def transform(image: Image.Image) -> int:
        nonlocal most
        most = max(most, budget._taken)
        return image.width

    files = [half if i % 3 == 0 else good for i in range(60)]
    names = [str(i) for i in range(len(files))]
    source = ImageSource("a", names, Labels.none(60), [], lambda i, least_side=0: read_image(io.BytesIO(files[i])))
    results = [result for _, result in decode(source, transform, threads=8)]
    assert [isinstance(result, UnreadableImage) for result in results] == [i % 3 == 0 for i in range(60)]
    assert most == 64 * 64
    assert budget._taken == 0


def test_want_of_memory_keeps_nothing_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PixelBudget()
    monkeypatch.setattr(decoding, "PIXELS", budget)

    def transposed(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_as_rgb", transposed)
    with pytest.raises(SourceUnavailable, match="not enough memory"):
        read_image(io.BytesIO(encoded(Image.new("RGB", (9, 9)), "PNG")))
    assert budget._taken == 0


def test_a_thread_that_holds_some_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BYOL_DECODE_PIXELS", "100")
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    with PIXELS:
        assert [read_image(tmp_path / "a.png").size for _ in range(2)] == [(10, 10)] * 2

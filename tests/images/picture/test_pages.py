"""Which files hold several pictures, against the number of frames that Pillow finds, and who is told."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from byol.images.picture.pages import MOST_BLOCKS, Several, holds_several, is_first_of_several
from byol.images.picture.read import read_image
from tests.support.inputs.odd_images import encoded, picture

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("GIF", {}),
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"big_tiff": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
]
SMALLER = struct.pack("<HHII", 254, 4, 1, 0), struct.pack("<HHII", 254, 4, 1, 1)  # NewSubfileType


def several(kind: str, count: int, mode: str = "RGB", **options: Any) -> bytes:
    frames = [Image.fromarray(picture(seed=seed)).convert(mode) for seed in range(count)]
    more = {"save_all": True, "append_images": frames[1:]} if count > 1 else {}
    return encoded(frames[0], kind, **more, **options)


def is_marked(content: bytes) -> bool:
    return is_first_of_several(read_image(io.BytesIO(content)))


@pytest.mark.parametrize(("kind", "options"), FORMATS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_as_pillow_finds(kind: str, options: dict[str, Any], count: int) -> None:
    content = several(kind, count, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == count
    assert holds_several(kind, content) == (count > 1)
    assert is_marked(content) == (count > 1)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PPM"])
def test_other_formats_hold_one(kind: str) -> None:
    assert not is_marked(several(kind, 1))


def test_what_a_camera_appends_to_a_jpeg_is_no_stack() -> None:
    content = several("MPO", 3)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert not is_marked(content)


def test_16_bit_stacks_and_turned_ones_are_known() -> None:
    """Their pixels are converted, or turned, to another image."""
    deep = [Image.fromarray(picture(seed=seed)[..., 0].astype(np.uint16) * 257) for seed in range(2)]
    assert is_marked(encoded(deep[0], "TIFF", save_all=True, append_images=deep[1:]))
    turned = several("TIFF", 2, tiffinfo={274: 6})
    assert read_image(io.BytesIO(turned)).size == (20, 24)
    assert is_marked(turned)


def test_smaller_versions_in_a_tiff_are_no_further_pictures() -> None:
    pages = several("TIFF", 2, tiffinfo={254: 0})
    assert pages.count(SMALLER[0]) == 2
    assert holds_several("TIFF", pages)
    first, second, third = pages.split(SMALLER[0])
    assert not holds_several("TIFF", SMALLER[0].join([first, second]) + SMALLER[1] + third)
    assert holds_several("TIFF", SMALLER[1].join([first, second]) + SMALLER[0] + third)  # a preview comes first


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_cut_off_anywhere_is_no_fault(kind: str, options: dict[str, Any]) -> None:
    content = several(kind, 2, **options)
    assert not any(holds_several(kind, content[:size]) for size in range(16))
    for size in range(0, len(content), 3):
        holds_several(kind, content[:size])


@pytest.mark.parametrize(
    "make",
    [
        lambda gif: gif[:13] + b"\x21\xfe" + b"\1x" * 2 * MOST_BLOCKS,
        lambda gif: gif[: gif.index(b"\x2c")] + gif[gif.index(b"\x2c") :][:11] + b"\1x" * 2 * MOST_BLOCKS,
    ],
)
def test_a_gif_of_tiny_blocks_is_given_up(make: Callable[[bytes], bytes]) -> None:
    gif = several("GIF", 1)
    assert not holds_several("GIF", make(gif))


def test_a_tiff_whose_directories_lead_in_a_circle_ends() -> None:
    content = bytearray(several("TIFF", 1, tiffinfo={254: 0}))
    (place,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, place)
    content = content.replace(*SMALLER)
    struct.pack_into("<I", content, place + 2 + 12 * count, place)
    assert not holds_several("TIFF", bytes(content))


def test_a_stranger_s_text_is_no_mark() -> None:
    text = PngInfo()
    text.add_text("byol several", "True")
    assert not is_marked(encoded(Image.fromarray(picture()), "PNG", pnginfo=text))


def test_counts_add_up_and_name_the_first() -> None:
    ids = [f"{number}.tif" for number in range(9)]
    found = Several.of(ids, [1, 2]) + Several() + Several.of(ids, [4, 5, 6, 7])
    assert found == Several(6, ("1.tif", "2.tif", "4.tif"))
    assert Several.read(found.values()) == found
    assert Several.read(None) == Several()


@pytest.mark.parametrize("values", [3, "ab", [1], ["1", []], [1, "a"], [0, ["a"]], [1, [2]], {"count": 1}])
def test_what_it_did_not_write_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="a number and some names"):
        Several.read(values)

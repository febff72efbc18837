"""Large JPEGs are decoded at a reduced scale where that is enough; nothing else is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from byol.images.decode import Preprocess, decode
from byol.images.open import open_source
from byol.images.picture.budget import PixelBudget
from byol.images.picture.extent import extent
from byol.images.picture.read import read_image
from byol.images.surroundings import UnreadableImage
from byol.serve.items import items_source
from tests.support.inputs.odd_images import encoded, picture


def photograph(width: int = 640, height: int = 480) -> Image.Image:
    return Image.fromarray(picture(width, height))


def read(content: bytes, least_side: int = 0) -> Image.Image:
    return read_image(io.BytesIO(content), least_side=least_side)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((640, 480), 0, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 120, (160, 120)),
        ((640, 480), 60, (80, 60)),
        ((640, 480), 1, (80, 60)),  # libjpeg's smallest scale
        ((480, 640), 120, (120, 160)),
        ((643, 483), 120, (161, 121)),  # rounded up
        ((640, 480), 1000, (640, 480)),
        ((20, 7), 7, (20, 7)),
    ],
)
def test_the_smallest_scale_that_keeps_enough(size: tuple[int, int], least: int, expected: tuple[int, int]) -> None:
    assert read(encoded(photograph(*size), "JPEG"), least).size == expected


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_reduced_as_by_libjpeg(mode: str, options: dict[str, Any]) -> None:
    content = encoded(photograph().convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (120, 120))
        expected = np.asarray(image.convert("RGB"))
    assert expected.shape == (120, 160, 3)
    np.testing.assert_array_equal(read(content, 120), expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_other_formats_are_decoded_whole(format: str) -> None:
    content = encoded(photograph(), format)
    np.testing.assert_array_equal(read(content, 60), read(content))


def test_a_jpeg_that_is_not_large_keeps_its_pixels() -> None:
    content = encoded(photograph(), "JPEG")
    np.testing.assert_array_equal(read(content, 300), read(content))


def test_a_reduced_photograph_is_upright() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    found = read(encoded(photograph(), "JPEG", exif=exif.tobytes()), 120)
    plain = read(encoded(photograph(), "JPEG"), 120)
    assert found.size == (120, 160)
    np.testing.assert_array_equal(found, plain.transpose(Image.Transpose.ROTATE_270))


EDGES = {
    1: (0, 0, 160.25, 120.75),
    2: (0.75, 0, 161, 120.75),
    3: (0.75, 0.25, 161, 121),
    4: (0, 0.25, 160.25, 121),
    5: (0, 0, 120.75, 160.25),
    6: (0.25, 0, 121, 160.25),
    7: (0.25, 0.75, 121, 161),
    8: (0, 0.75, 120.75, 161),
}


@pytest.mark.parametrize("turn", EDGES)
def test_the_part_of_a_pixel_at_its_edge_turns_along(turn: int) -> None:
    """641 x 483 pixels at a quarter are 160.25 x 120.75: rounded to 161 x 121, the rest of which is no picture."""
    exif = Image.Exif()
    exif[0x112] = turn
    content = encoded(photograph(641, 483), "JPEG", exif=exif.tobytes())
    found, whole = read(content, 120), read(content)
    assert found.size == ((161, 121) if turn < 5 else (121, 161))
    assert extent(found) == EDGES[turn]
    assert extent(whole) == (0, 0, *whole.size)
    small, expected = (image.resize((32, 32), Image.Resampling.BICUBIC, extent(image)) for image in (found, whole))
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).mean() < 1


def test_what_is_made_of_a_reduced_photograph_has_no_edges_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(photograph(641, 483), "JPEG"))
    reduced = read_image(tmp_path / "photo.jpg", least_side=120)
    assert extent(reduced) == (0, 0, 160.25, 120.75)
    assert extent(reduced.resize((80, 60))) == (0, 0, 80, 60)
    assert extent(items_source([reduced]).open(0)) == (0, 0, 161, 121)
    assert extent(reduced) == (0, 0, 160.25, 120.75)  # the caller's stays as it was


def test_a_file_cannot_claim_edges() -> None:
    info = PngInfo()
    info.add_text("byol extent", "1")
    assert extent(read(encoded(photograph(), "PNG", pnginfo=info))) == (0, 0, 640, 480)


def test_a_damaged_photograph_is_not_readable_at_any_scale() -> None:
    content = encoded(photograph(), "JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        read(content[: len(content) // 2], 60)


@pytest.mark.parametrize(("options", "expected"), [({}, 160 * 120), ({"progressive": True}, 3 * 640 * 480)])
def test_memory_is_counted_at_the_scale_of_decoding(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    """All coefficients of a JPEG in several scans are held, whatever the scale."""
    taken: list[int] = []
    monkeypatch.setattr(PixelBudget, "take", lambda _, pixels: taken.append(pixels))
    read(encoded(photograph(), "JPEG", **options), 120)
    assert taken == [expected]


def test_the_pixels_an_encoder_sees_hardly_change() -> None:
    content, whole = encoded(photograph(2000, 1500), "JPEG", quality=90), Preprocess(128, 112)
    reduced = Preprocess.for_size(112)
    assert read(content, reduced.least_side).size == (500, 375)
    found, expected = reduced(read(content, reduced.least_side)), whole(read(content))
    assert np.abs(found.astype(int) - expected).mean() < 1


def test_how_much_a_preprocessing_needs() -> None:
    assert Preprocess(256, 224).least_side == 0  # as bundles of earlier versions have it
    assert Preprocess(256, 224, 2.25).least_side == 576
    assert Preprocess(183, 160, 2.25).least_side == 412  # rounded up
    assert Preprocess.for_size(224).least_side == 576
    with pytest.raises(ValueError, match="jpeg_margin must be at least 1"):
        Preprocess(256, 224, 0)


# ---------------------------------------------------------------------------------------------- sources pass it on


def as_folder(content: bytes, folder: Path) -> str:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "photo.jpg").write_bytes(content)
    return str(folder / "a")


def as_file(content: bytes, folder: Path) -> str:
    (folder / "photo.jpg").write_bytes(content)
    return str(folder / "photo.jpg")


def as_list(content: bytes, folder: Path) -> str:
    as_file(content, folder)
    (folder / "photos.txt").write_text(f"{folder / 'photo.jpg'}\n")
    return str(folder / "photos.txt")


def as_tar(content: bytes, folder: Path) -> str:
    with tarfile.open(folder / "photos.tar", "w") as archive:
        member = tarfile.TarInfo("photo.jpg")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return str(folder / "photos.tar")


def as_parquet(content: bytes, folder: Path) -> str:
    column = pa.array([{"bytes": content, "path": "photo.jpg"}])
    pq.write_table(pa.table({"image": column}), folder / "photos.parquet")
    return str(folder / "photos.parquet")


@pytest.mark.parametrize("place", [as_folder, as_file, as_list, as_tar, as_parquet])
def test_every_source_decodes_at_the_scale_asked_for(place: Any, tmp_path: Path) -> None:
    source = open_source(place(encoded(photograph(), "JPEG"), tmp_path))
    assert source.open(0).size == (640, 480)
    assert source.open(0, 120).size == (160, 120)
    assert source.subset([0]).open(0, 120).size == (160, 120)
    assert list(decode(source, lambda image: image.size, least_side=60)) == [(0, (80, 60))]


def test_paths_handed_to_an_encoder_too_but_no_opened_image(tmp_path: Path) -> None:
    path = as_file(encoded(photograph(), "JPEG"), tmp_path)
    assert items_source([path]).open(0, 120).size == (160, 120)
    with Image.open(path) as image:
        assert items_source([image]).open(0, 120).size == (640, 480)
        assert image.size == (640, 480)  # the caller's

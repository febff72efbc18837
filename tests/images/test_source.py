"""byol/images/source.py against bad input and against definitions: what a source lists, what a decoded picture is."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from byol import machine
from byol.files import readers
from byol.images import walk
from byol.images.columns import Labels
from byol.images.decode import Preprocess, decode
from byol.images.labels import require_labels
from byol.images.open import open_sections, open_source
from byol.images.picture import read as decoding
from byol.images.picture.read import read_image, to_rgb
from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage
from byol.images.walk import NOT_READ
from byol.text import printable
from tests.support.inputs.odd_images import (
    bad_images,
    encoded,
    exif_block,
    odd_images,
    picture,
    write_files,
    write_unreadable,
)
from tests.support.small import REPOSITORY
from tests.support.tiny import write_images

JPEG_LEVELS = 12  # what JPEG at quality 95 may change in a smooth picture


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return write_files(tmp_path / "odd", odd_images())


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# ---------------------------------------------------------------------------------------------- odd, but readable


def test_png_named_jpg_is_read_by_its_content(odd: Path) -> None:
    np.testing.assert_array_equal(pixels(odd / "png-named.jpg"), picture())


def test_cmyk_becomes_the_same_colours(odd: Path) -> None:
    assert np.abs(pixels(odd / "cmyk.jpg") - picture()).max() <= JPEG_LEVELS


def test_grey_becomes_three_equal_channels(odd: Path) -> None:
    found = pixels(odd / "grey.jpg")
    luma = picture().astype(float) @ [0.299, 0.587, 0.114]  # ITU-R 601, what Pillow's "L" is
    assert (found == found[:, :, :1]).all()
    assert np.abs(found[:, :, 0] - luma).max() <= JPEG_LEVELS


def test_exif_orientation_turns_the_picture(odd: Path) -> None:
    found = pixels(odd / "exif.jpg")
    upright = np.rot90(picture(), -1)  # orientation 6: 90 degrees clockwise
    assert found.shape == upright.shape == (24, 20, 3)
    assert np.abs(found - upright).max() <= JPEG_LEVELS


def test_sixteen_bits_are_scaled_not_clipped(odd: Path) -> None:
    found = pixels(odd / "sixteen.png")
    np.testing.assert_array_equal(found[:, :, 1], picture()[:, :, 0])


def every_level() -> np.ndarray:
    return np.arange(65_536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("strip", [1, 1000, decoding.STRIP])
@pytest.mark.parametrize("kind", ["png", "big-endian", "int32", "pgm"])
def test_sixteen_bits_are_divided_by_257_and_rounded(
    kind: str, strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = every_level()
    expected = np.clip(np.rint(level.astype(np.float64) / 257.0), 0, 255).astype(np.uint8)
    monkeypatch.setattr(decoding, "STRIP", strip)
    if kind == "pgm":  # opened as 32-bit integers
        (tmp_path / "a").write_bytes(b"P5 256 256 65535\n" + level.astype(">u2").tobytes())
    else:
        image = Image.fromarray(level.astype({"png": "<u2", "big-endian": ">u2", "int32": "<i4"}[kind]))
        image.save(tmp_path / "a", "PNG" if kind == "png" else "TIFF")
    np.testing.assert_array_equal(pixels(tmp_path / "a"), np.repeat(expected[:, :, None], 3, axis=2))


def test_sixteen_bits_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(every_level()[:, :100]).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(every_level()[:, :100]).save(tmp_path / "b.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.rot90(pixels(tmp_path / "b.png"), -1))


@pytest.mark.parametrize("value", [-1, 65_536])
def test_integers_beyond_sixteen_bits_are_refused(value: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="outside 0 to 65535"):
        read_image(tmp_path / "a.tif")


def held(values: np.ndarray, kind: str) -> Image.Image:
    """Grey as a Pillow image in memory, of 32-bit integers, or as one that a file of such integers gives."""
    image = Image.fromarray(values.astype(np.int32))
    return to_rgb(image) if kind == "memory" else read_image(io.BytesIO(encoded(image, "TIFF")))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_integers_of_32_bits_hold_8_where_none_is_above_255(kind: str) -> None:
    grey = np.arange(256).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(held(grey, kind))[..., 0], grey)
    np.testing.assert_array_equal(np.asarray(held(grey * 257, kind))[..., 0], grey)
    assert np.asarray(held(grey + 1, kind)).max() == 1  # 256 needs 16 bits
    assert np.asarray(held(np.zeros((2, 2)), kind)).max() == 0


def test_what_is_said_to_have_16_bits_has_them_however_dark(tmp_path: Path) -> None:
    dark = np.full((4, 4), 200)
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535\n" + dark.astype(">u2").tobytes())
    Image.fromarray(dark.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(dark.astype(np.uint16)).save(tmp_path / "a.tif")
    for name in ("a.pgm", "a.png", "a.tif"):
        assert pixels(tmp_path / name).max() == 1
        with Image.open(tmp_path / name) as image:
            image.load()
            assert np.asarray(to_rgb(image)).max() == 1
    assert np.asarray(to_rgb(Image.fromarray(dark.astype(np.uint16)))).max() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", ["large.jpg", "sixteen.png"])
def test_a_large_image_is_held_once(name: str, tmp_path: Path) -> None:
    """RGB takes 4 bytes a pixel; 16-bit grey before that 2 and 1 of 8-bit grey, which is held beside RGB: 5."""
    side = 4000
    grey = np.zeros((side, side), np.uint16 if name == "sixteen.png" else np.uint8)
    image = Image.fromarray(grey)
    (image if name == "sixteen.png" else image.convert("RGB")).save(tmp_path / name)
    program = (
        "import sys\nfrom byol.images import read_image\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "read_image(sys.argv[2]); before = peak(); image = read_image(sys.argv[1]); print((peak() - before) * 1024)"
    )
    write_files(tmp_path, {"one.png": odd_images()["one.png"]})
    found = int(run_python(program, str(tmp_path / name), str(tmp_path / "one.png")).stdout)
    assert found < 6 * side * side


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_pillow_warns_of_nothing_as_it_does_not_say_of_which_image(tmp_path: Path) -> None:
    """Of a large image, of odd tags, of an image in memory; nor does its log, nor a decoder in C."""
    image = Image.fromarray(picture(12, 12))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.jpg", exif=exif_block((0x11A, 5, 1, 10**6), (0x8769, 4, 1, 10**6)))
    packed = encoded(image, "TIFF", compression="tiff_lzw")
    (tmp_path / "c.tif").write_bytes(packed[:12] + b"\xff" * 60 + packed[72:])
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    for name, odd in (("d", struct.pack("<HHIH", 277, 4, 2, 3)), ("e", struct.pack("<HHIH", 277, 3, 1, 99))):
        (tmp_path / f"{name}.tif").write_bytes(packed.replace(samples, odd))
    program = """
import sys
from pathlib import Path
from PIL import Image
from byol.images.picture.read import read_image, to_rgb
from byol.images.surroundings import UnreadableImage
Image.MAX_IMAGE_PIXELS = 100
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(read_image(path).size)
    except UnreadableImage:
        print("unreadable")
    try:
        print(to_rgb(Image.open(path)).size)
    except Exception:
        print("unreadable")
"""
    done = run_python(program, str(tmp_path))
    assert done.stdout.splitlines()[:4] == ["(12, 12)"] * 4
    assert len(done.stdout.splitlines()) == 10
    assert done.stderr == ""


def test_transparency_is_dropped_not_blended(odd: Path) -> None:
    np.testing.assert_array_equal(pixels(odd / "rgba.png"), picture())
    opaque = np.asarray(Image.fromarray(picture()).quantize(16).convert("RGB"))
    np.testing.assert_array_equal(pixels(odd / "palette.png"), opaque)


@pytest.mark.parametrize("name", sorted(odd_images()))
@pytest.mark.parametrize("transform", [Preprocess(32, 32), Preprocess(18, 16)])
def test_every_odd_image_can_be_preprocessed(odd: Path, name: str, transform: Preprocess) -> None:
    result = transform(read_image(odd / name))
    assert result.shape == (transform.crop, transform.crop, 3)
    assert result.dtype == np.uint8


def test_one_pixel_becomes_a_flat_picture(odd: Path) -> None:
    result = Preprocess(32, 32)(read_image(odd / "one.png"))
    np.testing.assert_array_equal(result, np.broadcast_to(np.array([200, 100, 50]), (32, 32, 3)))


# -------------------------------------------------------------------------------------------------- not readable


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bomb.png", "decompression bomb"),
        ("empty.jpg", "not an image"),
        ("float.tif", "no defined range"),
        ("half.png", "truncated"),
        ("postscript.jpg", "not an image"),
        ("text.png", "not an image"),
        ("truncated.jpg", "truncated"),
    ],
)
def test_bad_image_is_one_kind_of_error_with_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    write_files(tmp_path, bad_images())
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_every_prefix_of_an_image_is_read_or_refused(tmp_path: Path) -> None:
    for name, content in (("a.jpg", odd_images()["exif.jpg"]), ("a.png", odd_images()["rgba.png"])):
        refused = 0
        for length in range(0, len(content), 7):
            (tmp_path / name).write_bytes(content[:length])
            try:
                read_image(tmp_path / name)
            except UnreadableImage:
                refused += 1
        assert refused > 20


def test_files_the_system_refuses_are_unreadable_images(tmp_path: Path) -> None:
    made = write_unreadable(tmp_path)
    assert made
    for name, word in made.items():
        with pytest.raises(UnreadableImage, match=word):
            read_image(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- sources


def test_folder_is_listed_sorted_with_class_labels(tmp_path: Path) -> None:
    write_images(tmp_path, {"dog": 2, "cat": 1, "cat/kitten": 1})
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(odd_images()["one.png"])
    source = open_source(tmp_path)
    assert list(source.ids) == ["cat/000.png", "cat/kitten/000.png", "dog/000.png", "dog/001.png"]
    assert list(source.labels) == ["cat", "cat", "dog", "dog"]
    assert source.classes == ["cat", "dog"]
    assert not source.skipped


def test_names_that_are_not_utf8_are_listed_and_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/caf\xe9.png", "wb") as stream:
            stream.write(odd_images()["one.png"])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = open_source(tmp_path)
    assert list(source.ids) == ["caf\\xe9.png"]
    assert source.open(0).size == (1, 1)
    assert printable(os.fsdecode(folder + b"/caf\xe9")).endswith("caf\\xe9")


def test_symlink_loop_ends_and_is_reported(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 2})
    (tmp_path / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "cat", target_is_directory=True)
    source = open_source(tmp_path)
    assert list(source.ids) == ["cat/000.png", "cat/001.png"]
    assert [item.path for item in source.skipped] == ["again", "cat/up"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2, "c": 1})
    for pipe in ("b.jpg", "a/0000.png"):
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "d.jpg").symlink_to("b.jpg")
    source = open_source(tmp_path)
    assert list(source.ids) == ["a/000.png", "a/001.png", "c/000.png"]
    assert [(item.path, item.reason) for item in source.skipped] == [
        (path, "not a regular file") for path in ("a/0000.png", "b.jpg", "d.jpg")
    ]
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "b.jpg")


def test_formats_that_are_not_read_are_left_out_with_a_reason(tmp_path: Path) -> None:
    one = odd_images()["one.png"]
    names = ["a.jfif", "b.JPE", "c.HEIC", "d.svg", "e.avif", "f", ".g.heic", "h.txt"]
    write_files(tmp_path / "x", dict.fromkeys(names, one))
    source = open_source(tmp_path)
    assert list(source.ids) == ["x/a.jfif", "x/b.JPE"]
    assert [item.path for item in source.skipped] == ["x/c.HEIC", "x/d.svg", "x/e.avif"]
    assert all("PNG or JPEG" in item.reason for item in source.skipped)
    for file in ("a.jfif", "b.JPE"):
        (tmp_path / "x" / file).unlink()
    with pytest.raises(ValueError, match=r"(?s)holds no images.*x/c\.HEIC: .*PNG or JPEG"):
        open_source(tmp_path)


def test_the_page_names_every_suffix() -> None:
    page = (REPOSITORY / "docs" / "data.md").read_text()
    assert all(f"`{suffix}`" in page for suffix in [*walk.SUFFIXES, *map(os.fsdecode, NOT_READ)])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sections_name_what_is_left_out_in_its_place(size: int, tmp_path: Path) -> None:
    one = odd_images()["one.png"]
    write_files(tmp_path, dict.fromkeys(["a.png", "b.svg", "c.png", "d.heic", "e.png", "f.heic"], one))
    sections = list(open_sections(tmp_path, size))
    left_out = [item.path for section in sections for item in section.source.skipped]
    assert left_out == ["b.svg", "d.heic", "f.heic"]
    behind = [
        item.path for section in open_sections(tmp_path, size, sections[0].end) for item in section.source.skipped
    ]
    assert [item.path for item in sections[0].source.skipped] + behind == left_out


def test_empty_folder_is_refused_naming_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"holds no images .*\.jpg"):
        open_source(tmp_path)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_source(tmp_path / "nothing")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"is not an image, an \.npz file"):
        open_source(tmp_path / "a.csv")


def test_single_image_is_a_source_without_label(tmp_path: Path) -> None:
    write_files(tmp_path, {"one.png": odd_images()["one.png"]})
    source = open_source(tmp_path / "one.png")
    assert (list(source.ids), list(source.labels)) == (["one.png"], [None])


def test_npz_source(tmp_path: Path) -> None:
    images = np.stack([picture(seed=s) for s in range(3)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([3, 1, 3]))
    source = open_source(tmp_path / "a.npz")
    assert (list(source.ids), list(source.labels)) == (["0", "1", "2"], ["3", "1", "3"])
    np.testing.assert_array_equal(np.asarray(source.open(2)), images[2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 4, 4, 3), np.uint8)}, "no array `images`"),
        ({"images": np.zeros((1, 4, 4, 3), np.float32)}, "must be uint8"),
        ({"images": np.zeros((1, 3, 4, 4), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((1, 0, 4, 3), np.uint8)}, "no pixels"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(3)}, "`labels` must have shape"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_npz_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.npz")


def test_half_written_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 4, 4, 3), np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "a.npz").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cannot be read as an \.npz"):
            open_source(tmp_path / "a.npz")


def test_labels_are_required_only_where_asked(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", {"": 2})
    with pytest.raises(ValueError, match=r"2 of 2 images have no label \(first: 000\.png\)"):
        require_labels(open_source(tmp_path / "flat"))
    one = open_source(write_images(tmp_path / "one", {"cat": 2}))
    with pytest.raises(ValueError, match=r"only one class \(cat\)"):
        require_labels(one)
    assert require_labels(one, least_classes=1) == ["cat", "cat"]


# ------------------------------------------------------------------------------------------- preprocess, decode


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (20, 20), (301, 77), (9, 200)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (36, 32), (16, 16)])
def test_preprocess_equals_resize_then_centre_crop(width: int, height: int, resize: int, crop: int) -> None:
    """The definition done in two steps and float64: a weight for every source pixel, Keys' bicubic with a = -0.5.

    Two grey levels: Pillow rounds its weights to 22 bits and the picture between the two directions to 8.
    """
    source = picture(width, height).astype(np.float64)
    scale = min(width, height) / resize
    rows = bicubic_weights(height, crop, scale)
    columns = bicubic_weights(width, crop, scale)
    expected = np.clip(np.einsum("yh,hwc,xw->yxc", rows, source, columns), 0, 255)
    found = Preprocess(resize, crop)(Image.fromarray(picture(width, height)))
    assert np.abs(found - expected).max() <= 2


def bicubic_weights(length: int, crop: int, scale: float) -> np.ndarray:
    """(crop, length): antialiased bicubic resampling of the central `crop * scale` source pixels."""

    def kernel(t: np.ndarray) -> np.ndarray:
        t = np.abs(t)
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        return np.where(t < 1, near, np.where(t < 2, far, 0))

    start = (length - crop * scale) / 2
    centres = start + (np.arange(crop) + 0.5) * scale
    weights = kernel((np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1))
    normalised: np.ndarray = weights / weights.sum(1, keepdims=True)
    return normalised


def test_preprocess_leaves_an_image_of_the_right_size_alone() -> None:
    image = picture(32, 32)
    np.testing.assert_array_equal(Preprocess.for_size(32)(Image.fromarray(image)), image)
    assert Preprocess.for_size(224) == Preprocess(256, 224, 2.25)


@pytest.mark.parametrize(("resize", "crop"), [(31, 32), (0, 0), (4, 0)])
def test_impossible_preprocessing_is_refused(resize: int, crop: int) -> None:
    with pytest.raises(ValueError, match="1 <= crop <= resize"):
        Preprocess(resize, crop)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 31, 400])
def test_decode_keeps_order_and_places_errors(threads: int, count: int) -> None:
    def open_image(i: int, least_side: int = 0) -> Image.Image:
        if i % 7 == 3:
            raise UnreadableImage(f"bad {i}")
        return Image.new("RGB", (2, 2), (i % 256, i // 256, 0))

    source = ImageSource("test", [str(i) for i in range(count)], Labels.none(count), [], open_image)
    results = list(decode(source, lambda image: image.getpixel((0, 0)), threads))
    assert [i for i, _ in results] == list(range(count))
    for i, result in results:
        if i % 7 == 3:
            assert str(result) == f"bad {i}"
        else:
            assert result == (i % 256, i // 256, 0)


def test_decode_holds_few_images_ahead_of_its_consumer() -> None:
    opened: list[int] = []

    def open_image(i: int, least_side: int = 0) -> Image.Image:
        opened.append(i)
        return Image.new("RGB", (1, 1))

    count = 5000
    source = ImageSource("test", [str(i) for i in range(count)], Labels.none(count), [], open_image)
    results = decode(source, lambda image: image.size, threads=2)
    next(results)
    del results  # the consumer goes away: what is queued is cancelled
    assert len(opened) <= 2 * 2 * 32 + 2 * 32  # two chunks of 32 a thread, and those in work


def test_decode_ends_while_a_source_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, ended = threading.Event(), list[int]()

    def open_image(i: int, least_side: int = 0) -> Image.Image:
        if i:
            silent.wait(60)
            ended.append(i)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(readers, "GRACE", 0.05)
    source = ImageSource("test", ["0", "1"], Labels.none(2), [], open_image)
    results = decode(source, lambda image: image.size, threads=2)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert ended == []
    silent.set()


@pytest.mark.skipif(sys.platform == "win32", reason="no such names on Windows")
def test_names_with_spaces_newlines_and_other_scripts(tmp_path: Path) -> None:
    names = ["a b.png", "a\nb.png", "\u732b.png"]
    write_files(tmp_path, {name: encoded(Image.new("RGB", (2, 2)), "PNG") for name in names})
    assert sorted(open_source(tmp_path).ids) == sorted(names)


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 1), ("", 64)])
def test_a_container_s_quota_limits_the_cores(
    text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    machine._quota.cache_clear()
    assert machine.usable_cores() == cores
    machine._quota.cache_clear()


# Tags that people's photographs have: a resolution unit as a byte, beyond its type, as text, far outside the block.
ODD_TAGS = [(0x128, 1, 1, 2), (0x128, 4, 1, 65_538), (0x11A, 2, 4, 0x646261), (0x11A, 5, 1, 10**9), (0x9286, 11, 7, 3)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("odd", [*ODD_TAGS, (0xC4A5, 7, 1 << 31, 8)])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_turned_by_one_tag_whatever_stands_beside_it(
    turn: int, odd: tuple[int, int, int, int], order: str
) -> None:
    plain = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
    wanted = Image.Exif()
    wanted[0x112] = turn
    tags = sorted([(0x112, 3, 1, turn), odd])
    for form in ("JPEG", "PNG", "WEBP"):
        files = [io.BytesIO() for _ in range(2)]
        options = {"lossless": True} if form == "WEBP" else {}
        plain.save(files[0], form, exif=wanted, **options)
        plain.save(files[1], form, exif=exif_block(*tags, order=order), **options)
        with Image.open(files[0]) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(files[1].getvalue()))), expected)


def test_a_photograph_whose_exif_is_cut_off_is_read_as_it_lies() -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG", exif=exif_block((0x112, 3, 1, 6))[:20])
    assert read_image(io.BytesIO(file.getvalue())).size == (30, 20)

"""Shards, patterns, named data sets, and listings without a Python object for each image."""

from __future__ import annotations

import io
import sys
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from byol.commands.fetch import fetch_named
from byol.images.columns import Computed, Labels, Names
from byol.images.decode import decode
from byol.images.location import names_below
from byol.images.open import open_sections, open_source
from byol.images.surroundings import UnreadableImage
from tests.support.inputs.odd_images import odd_images, picture
from tests.support.inputs.shards import PIXELS, image_structs, png, write_table, write_tar

# ----------------------------------------------------------------------------------------------------- columns


def test_labels_are_the_same_however_they_are_made() -> None:
    labels = Labels.of(["dog", None, "cat", "dog"])
    assert list(labels) == ["dog", None, "cat", "dog"]
    assert labels.classes == ["cat", "dog"]
    assert labels.missing.tolist() == [1]
    assert list(labels.take([2, 1])) == ["cat", None]
    assert labels.take([2]).classes == ["cat"]
    assert labels[1:3] == [None, "cat"]
    assert list(Labels(np.array([1, 0, 2, -1]), ["b", "a", "b"])) == ["a", "b", "b", None]
    assert list(Labels.all("cat", 2)) == ["cat", "cat"]
    assert list(Labels.none(2)) == [None, None]


def test_computed_items_and_names_behave_like_lists() -> None:
    squares = Computed(4, lambda i: i * i)
    assert (list(squares), squares[-1], squares[1:3], len(squares)) == ([0, 1, 4, 9], 9, [1, 4], 4)
    with pytest.raises(IndexError):
        squares[4]
    names = Names(pa.array([b"a", b"caf\xe9"], pa.large_binary()))
    assert (list(names), names[1:]) == (["a", "caf\\xe9"], ["caf\\xe9"])
    assert len(Names.of([])) == 0


def test_a_long_listing_holds_no_object_per_image(tmp_path: Path) -> None:
    count = 20_000
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(count // 2):
            (tmp_path / name / f"{i:06d}.jpg").touch()
    open_source(tmp_path / "a")  # what is imported on first use is not part of the listing
    tracemalloc.start()
    source = open_source(tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count
    assert held < 20 * count  # a str alone takes 57 bytes; Arrow's arrays are not traced
    assert peak < 200 * count
    assert (source.ids[0], source.ids[-1]) == ("a/000000.jpg", "b/009999.jpg")
    assert list(source.ids) == sorted(source.ids)
    assert source.labels.classes == ["a", "b"]


# -------------------------------------------------------------------------------------------------- WebDataset


def test_tar_shards_are_read_at_random_with_their_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", {"000.png": png(0), "000.cls": b"cat\n", "001.cls": b"dog", "001.png": png(1)})
    write_tar(tmp_path / "s-1.tar", {"000.jpg": odd_images()["grey.jpg"], "000.json": b"{}", "001.mask.png": png(9)})
    source = open_source(tmp_path)
    assert list(source.ids) == ["s-0.tar/000.png", "s-0.tar/001.png", "s-1.tar/000.jpg"]
    assert list(source.labels) == ["cat", "dog", None]
    np.testing.assert_array_equal(PIXELS(source.open(1)), picture(seed=1))
    np.testing.assert_array_equal(PIXELS(source.open(0)), picture(seed=0))
    assert source.open(2).mode == "RGB"
    assert list(open_source(tmp_path / "s-0.tar").ids) == ["000.png", "001.png"]
    assert len(open_source(str(tmp_path / "s-*.tar"))) == 3
    assert len(open_source(str(tmp_path / "s-{0..1}.tar"))) == 3
    assert len(open_source(str(tmp_path / "s-{0..0}.tar"))) == 2


def test_damaged_tar_shards_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(4)}).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.tar").write_bytes(b"no archive at all" * 100)
    (tmp_path / "d.tar").write_bytes(b"")
    write_tar(tmp_path / "e.tar", {"0.png": png(0)}, "w:gz")
    write_tar(tmp_path / "f.tar", {"0.png": b"not an image", "1.png": png(1)})
    source = open_source(tmp_path)
    skipped = {item.path: item.reason for item in source.skipped}
    assert {"b.tar", "c.tar", "d.tar", "e.tar"} == set(skipped)
    assert skipped["e.tar"] == "compressed by gzip; unpack it"
    results = {source.ids[i]: result for i, result in decode(source, PIXELS)}
    assert [name for name in results if name.startswith("a.tar")] == [f"a.tar/{i}.png" for i in range(4)]
    assert isinstance(results["f.tar/0.png"], UnreadableImage)
    np.testing.assert_array_equal(results["f.tar/1.png"], picture(seed=1))


# ------------------------------------------------------------------------------------------------- lists of paths


def test_a_list_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.png").write_bytes(png(0))
    (tmp_path / "c.png").write_bytes(png(1))
    lines = b"c.png\r\n\na b.png\n" + bytes(tmp_path / "missing.png")
    (tmp_path / "paths.txt").write_bytes(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    for location in ("paths.txt", "-"):
        source = open_source(location)
        assert list(source.ids) == ["c.png", "a b.png", str(tmp_path / "missing.png")]
        assert list(source.labels) == [None] * 3
        np.testing.assert_array_equal(PIXELS(source.open(1)), picture(seed=0))
        with pytest.raises(UnreadableImage, match="No such file"):
            source.open(2)


def test_relative_lines_of_a_list_start_at_the_folder_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(png(seed))
    (tmp_path / "relative.txt").write_text("0.png\n")
    (tmp_path / "full.txt").write_text(f"{tmp_path}/a/0.png\ns3://bucket/1.png\n")
    monkeypatch.chdir(tmp_path / "a")
    source = open_source(tmp_path / "relative.txt")
    stamps = [next(open_sections(tmp_path / name, 1)).stamp for name in ("relative.txt", "full.txt")]
    monkeypatch.chdir(tmp_path / "b")
    np.testing.assert_array_equal(PIXELS(source.open(0)), picture(seed=0))
    again = [next(open_sections(tmp_path / name, 1)).stamp for name in ("relative.txt", "full.txt")]
    assert stamps[0] != again[0]  # an extraction that was begun in the other folder is refused
    assert stamps[1] == again[1]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa.png\r\nb.png\r\n", b"\n  \na.png\n\t\r\nb.png", b"a.png\nb.png"])
def test_lists_as_editors_save_them(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert list(open_source(tmp_path / "list.txt").ids) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png\n".encode("utf-16"), "save it as UTF-8"),
        ("a.png\n".encode("utf-16-le"), "save it as UTF-8"),
        (b"a.png\0b.png\0", "one path or URL a line"),
        (b"", "empty list; write one path or URL a line"),
        (b"\xef\xbb\xbf \r\n\n", "empty list; write one path or URL a line"),
    ],
)
def test_lists_that_are_none_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.txt .*{message}"):
        open_source(tmp_path / "list.txt")


# ----------------------------------------------------------------------------------------------------- Parquet


def test_parquet_with_hugging_face_images(tmp_path: Path) -> None:
    labels = pa.array([0, 1, 1, -1, None, 0], pa.int64())
    write_table(tmp_path / "train-0.parquet", {"image": image_structs(6), "label": labels}, ["cat", "dog"])
    write_table(tmp_path / "train-1.parquet", {"image": image_structs(3, start=6), "label": labels[:3]}, ["cat", "dog"])
    source = open_source(tmp_path)
    assert list(source.ids) == [f"train-0.parquet/{i}" for i in range(6)] + [f"train-1.parquet/{i}" for i in range(3)]
    assert list(source.labels) == ["cat", "dog", "dog", None, None, "cat", "cat", "dog", "dog"]
    assert source.blocks is not None
    assert source.blocks.tolist() == [0, 4, 6]
    for i in (8, 0, 5, 6):
        np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i))
    assert [i for i, _ in decode(source, PIXELS, threads=3)] == list(range(9))


def test_parquet_with_bare_bytes_text_labels_and_missing_rows(tmp_path: Path) -> None:
    images = pa.array([png(0), None, b"junk"], pa.binary())
    path = write_table(tmp_path / "a.parquet", {"picture": images, "label": pa.array(["b", "a", "b"])})
    source = open_source(path)
    assert list(source.labels) == ["b", "a", "b"]
    np.testing.assert_array_equal(PIXELS(source.open(0)), picture(seed=0))
    for row, reason in ((1, "no image bytes"), (2, "not an image")):
        with pytest.raises(UnreadableImage, match=reason):
            source.open(row)


def test_parquet_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"text": pa.array(["x"]), "label": pa.array([1])})
    with pytest.raises(ValueError, match=r"no image column.*text \(string\), label \(int64\)"):
        open_source(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        open_source(tmp_path / "b.parquet")


def test_shards_of_the_same_name_in_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, part in enumerate(("train", "val")):
        for kind in ("tars", "tables"):
            (tmp_path / kind / part).mkdir(parents=True)
        write_tar(tmp_path / "tars" / part / "0.tar", {"a.png": png(seed)})
        write_table(tmp_path / "tables" / part / "0.parquet", {"image": image_structs(1)})
    (tmp_path / "tars" / "val" / "1.tar").write_bytes(b"no archive")
    tars, tables = open_source(tmp_path / "tars"), open_source(tmp_path / "tables")
    assert list(tars.ids) == ["train/0.tar/a.png", "val/0.tar/a.png"]
    assert [item.path for item in tars.skipped] == ["val/1.tar"]
    assert list(tables.ids) == ["train/0.parquet/0", "val/0.parquet/0"]
    monkeypatch.chdir(tmp_path / "tars" / "val")
    for pattern in (str(tmp_path / "tars" / "*" / "0.tar"), "../*/0.tar"):
        assert list(open_source(pattern).ids) == list(tars.ids)
    assert list(open_source(tmp_path / "tars" / "train").ids) == ["a.png"]
    assert list(open_source(tmp_path / "tables" / "train" / "0.parquet").ids) == ["0.parquet/0"]
    assert list(open_source("?.tar").ids) == ["0.tar/a.png"]


def test_names_below_a_folder() -> None:
    assert names_below([Path("x/a/0.tar"), Path("x/1.tar")]) == ["a/0.tar", "1.tar"]
    assert names_below([Path("x/a/0.tar")], Path("x")) == ["a/0.tar"]
    assert names_below([Path("0.tar"), Path("1.tar")]) == names_below([Path("0.tar"), Path("1.tar")], Path("."))
    urls: list[Any] = [PurePosixPath("s3://bucket/x/0.tar"), PurePosixPath("s3://bucket/y/0.tar")]
    assert names_below(urls) == ["x/0.tar", "y/0.tar"]


def test_shards_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    write_table(tmp_path / "a.parquet", {"image": image_structs(1)})
    with pytest.raises(ValueError, match="shards of one kind"):
        open_source(tmp_path)


def test_images_in_a_folder_come_before_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar", {"0.png": png(0)})
    (tmp_path / "1.png").write_bytes(png(1))
    assert list(open_source(tmp_path).ids) == ["1.png"]


# ------------------------------------------------------------------------------------------------ named data sets


def test_named_data_sets_are_read_once_they_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("torchvision").datasets
    with pytest.raises(ValueError, match="byol fetch cifar10"):
        open_source("cifar10")
    with pytest.raises(ValueError, match="no split 'val'"):
        open_source("cifar10:val")

    class Small:
        classes = ("plane", "car")

        def __init__(self, root: str, train: bool, download: bool):
            assert not download
            self.data = np.stack([picture(32, 32, seed=s) for s in range(4 if train else 2)])
            self.targets = [0, 1] * (len(self.data) // 2)

    monkeypatch.setattr(datasets, "CIFAR10", Small)
    assert [path.name for path in fetch_named("cifar10", tmp_path)] == ["cifar10-train.npz", "cifar10-test.npz"]
    train, test = open_source("cifar10"), open_source("cifar10:test")
    assert (len(train), len(test)) == (4, 2)
    assert list(test.labels) == ["plane", "car"]
    np.testing.assert_array_equal(PIXELS(train.open(3)), picture(32, 32, seed=3))


def test_a_failed_fetch_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"does not hold it .*byol fetch cifar100 --root"):
        fetch_named("cifar100", tmp_path)
    assert not (tmp_path / "home" / "datasets").exists()

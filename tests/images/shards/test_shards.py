"""Shards of strangers, and shards that go away: damaged tar files, what is left out is named, nothing is misread."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.files.regular import SourceUnavailable, open_regular
from byol.images.decode import decode
from byol.images.labels import require_labels
from byol.images.open import open_source
from byol.images.surroundings import UnreadableImage
from tests.support.inputs.odd_images import picture
from tests.support.inputs.shards import PIXELS, image_structs, png, write_table, write_tar

BLOCK = 512


def header(name: str = "b.png", size: int = 0, kind: bytes = tarfile.REGTYPE, holes: int = 0, **more: Any) -> bytes:
    """One header block; a size that octal digits cannot hold is written in base 256, as GNU does."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = _size(size)
    block[482] = holes  # whether more blocks list holes
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _size(size: int) -> bytes:
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    return (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(**records: str) -> bytes:
    content = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text) + next(n for n in range(1, 30) if len(str(len(text) + n)) == n)
        content += str(length).encode() + text
    return header("pax", len(content), tarfile.XHDTYPE) + padded(content)


WHOLE = header("a.png", len(png(0))) + padded(png(0))

DAMAGED = {
    "a size of 10^12": (header(size=10**12), "claims 1,000,000,000,000 bytes"),
    "a size of 2^63": (header(size=2**63), "claims 9,223,372,036,854,775,808 bytes"),
    "a size that goes back to itself": (header(size=-512), "claims -512 bytes"),
    "a size that goes back to the one before": (header(size=-1024), "claims -1,024 bytes"),
    "nested long names": (header("x", 0, tarfile.GNUTYPE_LONGNAME) * 20_000, "ends before the member"),
    "nested pax headers": (pax(path="c.png") * 20_000, "ends before the member"),
    "a long name of 10^12": (header("x", 10**12, tarfile.GNUTYPE_LONGNAME), "claims 1,000,000,000,000 bytes"),
    "a long name of 2 MB": (header("x", 1 << 21, tarfile.GNUTYPE_LONGNAME) + bytes(1 << 21), "none has more than"),
    "a negative long name": (header("x", -512, tarfile.GNUTYPE_LONGNAME), "claims -512 bytes"),
    "a pax size of no number": (pax(size="1e9") + header(), "a pax header claims a size of b'1e9'"),
    "a pax size of 10,000 digits": (pax(size="9" * 10_000) + header(), "a pax header claims a size of b'999"),
    "a negative pax size": (pax(size="-1") + header(), "a pax header claims a size of b'-1'"),
    "a pax header that is none": (header("x", 5, tarfile.XHDTYPE) + padded(b"99 a="), "pax header is damaged"),
    "a pax record that goes nowhere": (header("x", 7, tarfile.XHDTYPE) + padded(b"0 path=") + header(), "is damaged"),
    "a pax header cut off": (header("x", 600, tarfile.XHDTYPE) + bytes(512), "claims 600 bytes"),
    "holes without end": (header(kind=tarfile.GNUTYPE_SPARSE, holes=1) + b"\1" * 5 * BLOCK, "ends within a header"),
    "no header": (b"no archive at all" * 100, "no tar header at byte "),
    "half a header": (header()[:300], "ends within a header"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("joined", [WHOLE, WHOLE + bytes(10 * BLOCK)], ids=["within", "behind the end"])
def test_a_damaged_tar_is_left_out_from_there_on(tmp_path: Path, name: str, joined: bytes) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / "0.tar").write_bytes(joined + content)
    write_tar(tmp_path / "1.tar", {"b.png": png(1)})
    source = open_source(tmp_path)
    assert list(source.ids) == ["0.tar/a.png", "1.tar/b.png"]
    [left_out] = source.skipped
    assert left_out.path == "0.tar"
    assert reason in left_out.reason or any(part in left_out.reason for part in reason.split("|"))
    np.testing.assert_array_equal(PIXELS(source.open(0)), picture(seed=0))


def test_a_name_that_no_system_unpacks_is_left_out_with_its_length(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pax(path="a" * 100_000 + ".png") + WHOLE + WHOLE)
    source = open_source(tmp_path / "a.tar")
    assert list(source.ids) == ["a.png"]
    assert [(item.path, item.reason) for item in source.skipped] == [("a" * 200 + "...", "a name of 100,004 bytes")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_formats(tmp_path: Path, form: int) -> None:
    names = ["a.png", f"{'d' * 90}/{'e' * 90}.png", f"{'ö' * 40}.png"]
    if form != tarfile.USTAR_FORMAT:
        names.append("/".join(["long" * 20] * 5) + ".png")
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png(0))
            tar.addfile(member, io.BytesIO(png(0)))
    source = open_source(tmp_path / "a.tar")
    assert (list(source.ids), list(source.skipped)) == (names, [])
    np.testing.assert_array_equal(PIXELS(source.open(len(names) - 1)), picture(seed=0))


def test_a_size_beyond_octal_digits_in_a_pax_header(tmp_path: Path) -> None:
    content = png(0)
    (tmp_path / "a.tar").write_bytes(pax(size=str(len(content))) + header("a.png", 0) + padded(content) + WHOLE)
    source = open_source(tmp_path / "a.tar")
    assert len(source) == 2
    np.testing.assert_array_equal(PIXELS(source.open(0)), PIXELS(source.open(1)))


def test_two_archives_joined_are_both_read(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(number), f"{number}.cls": b"c%d" % number})
    joined = b"".join((tmp_path / f"{number}.tar").read_bytes() for number in range(2))
    (tmp_path / "joined.tar").write_bytes(joined)
    source = open_source(tmp_path / "joined.tar")
    assert (list(source.ids), list(source.labels), list(source.skipped)) == (["0.png", "1.png"], ["c0", "c1"], [])
    np.testing.assert_array_equal(PIXELS(source.open(1)), picture(seed=1))


@pytest.mark.parametrize("order", ["a.jpg a.png a.cls", "a.cls a.jpg a.png", "a.jpg a.cls a.png"])
def test_all_images_of_a_sample_have_its_class(tmp_path: Path, order: str) -> None:
    members = {"z.png": png(0), **{name: b"owl" if name == "a.cls" else png(1) for name in order.split()}}
    source = open_source(write_tar(tmp_path / "0.tar", {**members, "b.png": png(2)}))
    labels = dict(zip(source.ids, source.labels, strict=True))
    assert labels == {"z.png": None, "a.jpg": "owl", "a.png": "owl", "b.png": None}


def test_what_is_left_out_of_a_tar_is_named(tmp_path: Path) -> None:
    sparse = header("sparse.png", len(png(0)), tarfile.GNUTYPE_SPARSE) + padded(png(0))
    (tmp_path / "a.tar").write_bytes(
        WHOLE
        + header("x.png", len(png(1))) + padded(png(1)) + header("x.mask.png", len(png(2))) + padded(png(2))
        + header("img.v2.0001.png", len(png(3))) + padded(png(3))
        + header("link.png", kind=tarfile.SYMTYPE, linkname="a.png")
        + header("hard.png", kind=tarfile.LNKTYPE, linkname="a.png")
        + header("pipe.png", kind=tarfile.FIFOTYPE)
        + sparse
        + header("phone.HEIC", 3) + padded(b"abc")
        + header("._a.png", 3) + padded(b"abc") + header(".x/b.png", 3) + padded(b"abc")
        + header("./d/e.png", len(png(0))) + padded(png(0))
        + header("d.png/", kind=tarfile.DIRTYPE)
    )  # fmt: skip
    source = open_source(tmp_path / "a.tar")
    assert list(source.ids) == ["a.png", "x.png", "./d/e.png"]
    left_out = {item.path: item.reason for item in source.skipped}
    assert set(left_out) == {"img.v2.0001.png", "link.png", "hard.png", "pipe.png", "sparse.png", "phone.HEIC"}
    assert "no other dot" in left_out["img.v2.0001.png"]
    assert "a link; write the file itself" in left_out["link.png"] == left_out["hard.png"]
    assert "sparse" in left_out["sparse.png"]
    np.testing.assert_array_equal(PIXELS(source.open(2)), picture(seed=0))


def test_advice_for_compressed_shards_only(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    for mode in ("gz", "bz2", "xz"):
        write_tar(tmp_path / f"{mode}.tar", {"0.png": png(0)}, f"w:{mode}")
    with pytest.raises(ValueError, match=r"holds no images") as caught:
        open_source(tmp_path)
    assert str(caught.value).split("; ", 1)[1].replace("; unpack", ", unpack").split("; ") == [
        "a.tar: an empty file",
        "bz2.tar: compressed by bzip2, unpack it",
        "gz.tar: compressed by gzip, unpack it",
        "xz.tar: compressed by xz, unpack it",
    ]


# ------------------------------------------------------------------------------------------- folders of shards


def write_shard(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".tar":
        return write_tar(path, {"0.png": png(seed)})
    return write_table(path, {"image": image_structs(1, start=seed)})


@pytest.mark.parametrize(("suffix", "row"), [("tar", "0.png"), ("parquet", "0")])
def test_hidden_shards_folders_with_a_suffix_and_suffixes_of_any_case(suffix: str, row: str, tmp_path: Path) -> None:
    upper = suffix.upper()
    counts = [f"a.{upper}", f"data.{suffix}/part-0.{suffix}", f"sub/c.{suffix}"]
    for name in (*counts, f"._a.{suffix}", f".Trash-1000/files/b.{suffix}", f"sub/._c.{suffix}"):
        write_shard(tmp_path / name)
    (tmp_path / f"empty.{suffix}").mkdir()
    source = open_source(tmp_path)
    assert (list(source.ids), list(source.skipped)) == ([f"{name}/{row}" for name in counts], [])
    assert list(open_source(tmp_path / f"data.{suffix}").ids) == [f"part-0.{suffix}/{row}" if suffix != "tar" else row]
    assert list(open_source(f"{tmp_path}/*.{suffix}").ids) == list(open_source(tmp_path / f"data.{suffix}").ids)
    assert len(open_source(f"{tmp_path}/*.{upper}")) == 1


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_links_to_shards_and_to_folders_of_them_are_followed(suffix: str, tmp_path: Path) -> None:
    for seed in range(2):
        write_shard(tmp_path / "store" / f"{seed}.{suffix}", seed)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "data" / "sub" / "again").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "data" / f"one.{suffix}").symlink_to(tmp_path / "store" / f"0.{suffix}")
    source = open_source(tmp_path / "data")
    assert [name.rpartition("/")[0] for name in source.ids] == [
        f"linked/0.{suffix}", f"linked/1.{suffix}", f"one.{suffix}"
    ]  # fmt: skip
    assert [item.path for item in source.skipped] == ["sub/again"]
    np.testing.assert_array_equal(PIXELS(source.open(1)), picture(seed=1))


def test_tables_about_shards_beside_them_do_not_count(tmp_path: Path) -> None:
    """As img2dataset writes them: `00000.tar`, `00000.parquet`, `00000_stats.json`."""
    for number in range(2):
        write_shard(tmp_path / f"0000{number}.tar", number)
        write_table(tmp_path / f"0000{number}.parquet", {"url": pa.array(["http://a/b.png"]), "key": pa.array(["0"])})
        (tmp_path / f"0000{number}_stats.json").write_text("{}")
    write_table(tmp_path / "all.parquet", {"caption": pa.array(["a cat"])})
    (tmp_path / "damaged.parquet").write_bytes(b"")
    source = open_source(tmp_path)
    assert list(source.ids) == ["00000.tar/0.png", "00001.tar/0.png"]
    assert [(item.path, "an empty file" in item.reason) for item in source.skipped] == [("damaged.parquet", True)]
    assert list(open_source(f"{tmp_path}/0000*[.][tp]ar*").ids) == list(source.ids)
    write_shard(tmp_path / "images.parquet")
    with pytest.raises(ValueError, match=r"holds files of \.parquet, \.tar; give shards of one kind"):
        open_source(tmp_path)


def test_compressed_archives_are_listed_with_advice(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.gz", {"0.png": png(0)}, "w:gz")
    with pytest.raises(ValueError, match=r"holds no images.*; a\.tar\.gz: a compressed archive .* unpack it"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"a\.tar\.gz: a compressed archive has no random access; unpack it"):
        open_source(tmp_path / "a.tar.gz")
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "photos.ZIP").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"holds no images.*; photos\.ZIP: .*unpack it to a folder"):
        open_source(tmp_path / "zips")
    write_shard(tmp_path / "b.tar")
    source = open_source(tmp_path)
    assert (list(source.ids), [item.path for item in source.skipped]) == (["0.png"], ["a.tar.gz", "zips/photos.ZIP"])


def test_what_a_folder_of_shards_leaves_out_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar")
    (tmp_path / "phone.heic").write_bytes(b"")
    assert [item.path for item in open_source(tmp_path).skipped] == ["phone.heic"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_pipes_among_shards_are_named(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"0.{suffix}")
    with pytest.raises(ValueError, match=rf"holds no images.*; 0\.{suffix}: not a regular file"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        open_source(tmp_path / f"0.{suffix}")
    (tmp_path / f"dangling.{suffix}").symlink_to("nowhere")
    if suffix == "tar":
        write_tar(tmp_path / "1.tar", {"0.png": png(0)})
    else:
        write_table(tmp_path / "1.parquet", {"image": image_structs(1)})
    source = open_source(tmp_path)
    assert len(source) == 1
    assert [item.path for item in source.skipped] == [f"0.{suffix}", f"dangling.{suffix}"]


def test_damaged_parquet_shards_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    write_table(tmp_path / "b.parquet", {"image": image_structs(2), "label": pa.array(["x", "y"])})
    write_table(tmp_path / "d.parquet", {"image": image_structs(2, start=2), "label": pa.array(["y", None])})
    (tmp_path / "a.parquet").write_bytes(b"")
    write_table(tmp_path / "c.parquet", {"text": pa.array(["x"])})
    source = open_source(tmp_path)
    assert list(source.ids) == ["b.parquet/0", "b.parquet/1", "d.parquet/0", "d.parquet/1"]
    assert list(source.labels) == ["x", "y", "y", None]
    reasons = {item.path: item.reason for item in source.skipped}
    assert reasons["a.parquet"] == "cannot be read as a Parquet file: an empty file"
    assert "has no image column" in reasons["c.parquet"]
    np.testing.assert_array_equal(PIXELS(source.open(3)), picture(seed=3))


def test_dictionaries_with_unsigned_indices_are_labels(tmp_path: Path) -> None:
    labels = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint32()), pa.array(["cat", "dog"]))
    write_table(tmp_path / "a.parquet", {"image": image_structs(3), "label": labels})
    assert list(open_source(tmp_path / "a.parquet").labels) == ["dog", None, "cat"]
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"image": [png(0), png(1)], "label": ["b", "a"]})
    frame.with_columns(polars.col("label").cast(polars.Categorical)).write_parquet(tmp_path / "b.parquet")
    assert list(open_source(tmp_path / "b.parquet").labels) == ["b", "a"]


def test_structs_in_structs_hold_no_images(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": pa.array([{"bytes": {"bytes": png(0)}}])})
    with pytest.raises(ValueError, match="has no image column"):
        open_source(tmp_path / "a.parquet")


def test_two_columns_of_labels_are_none(tmp_path: Path) -> None:
    table = pa.table([image_structs(1), pa.array(["a"]), pa.array(["b"])], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert list(source.labels) == [None]
    with pytest.raises(ValueError, match="as `label` must be one column of text or numbers, found string, "):
        require_labels(source)


# ----------------------------------------------------------------------------------------- shards that go away


@pytest.fixture(params=["tar", "parquet"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"0.{request.param}"
    if request.param == "tar":
        return write_tar(path, {f"{i}.png": png(i) for i in range(4)})
    return write_table(path, {"image": image_structs(4)}, rows=2)


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GOES_AWAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, "No such file"),
    "truncated": (lambda path: os.truncate(path, 600), "replaced or changed since"),
    "replaced": (lambda path: path.replace(path.with_suffix(".old")) and path.write_bytes(b"x"), "replaced or changed"),
    "rewritten": (rewritten, "replaced or changed since it was listed"),
    "a folder": (made_a_folder, "not a regular file"),
}


@pytest.mark.parametrize("how", GOES_AWAY)
def test_a_shard_that_goes_away_stops_the_work(shard: Path, how: str) -> None:
    source = open_source(shard)
    change, reason = GOES_AWAY[how]
    change(shard)
    with pytest.raises(SourceUnavailable, match=rf"0\.\w+ cannot be read: .*{reason}.*run the same command again"):
        list(decode(source, PIXELS, threads=1))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_an_error_of_the_system_while_a_shard_is_read_stops_the_work(
    shard: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(shard)

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(number, os.strerror(number))

    def failing(path: Path) -> BinaryIO:
        open_regular(path).close()
        return io.BufferedReader(Failing(path))

    monkeypatch.setattr("byol.images.shards.listing.open_regular", failing)
    with pytest.raises(SourceUnavailable, match=os.strerror(number)):
        source.open(0)
    with pytest.raises(SourceUnavailable, match=os.strerror(number)):
        open_source(shard)


def test_damage_in_a_file_that_stays_is_of_its_images(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"image": image_structs(4)}, rows=2)
    raw = bytearray(path.read_bytes())
    raw[4:20] = b"\xff" * 16  # the header of the first page
    path.write_bytes(raw)
    results = [result for _, result in decode(open_source(path), PIXELS)]
    assert [isinstance(result, UnreadableImage) for result in results] == [True, True, False, False]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(OSError, match="not a regular file"):
        open_source(tmp_path / "list.txt")

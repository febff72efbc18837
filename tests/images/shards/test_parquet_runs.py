"""Images of Parquet row groups of any size: read a few pages at a time, whoever wrote them, and held within a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.files.thrift import Reader, Short, written
from byol.images.decode import decode
from byol.images.open import open_source
from byol.images.shards import parquet
from byol.images.shards.parquet_runs import Runs
from byol.images.surroundings import UnreadableImage
from tests.support.inputs.odd_images import picture
from tests.support.inputs.shards import PIXELS, png

COUNT = 40
MB = 1 << 20


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few images, as of photographs in larger ones."""
    monkeypatch.setattr(parquet, "LEAST", 4096)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each run that is read."""
    rows: list[int] = []

    def counted(runs: Runs, run: Any, stream: Any, read: Callable[..., Any] = Runs.read) -> Any:
        rows.append(run.rows)
        return read(runs, run, stream)

    monkeypatch.setattr(Runs, "read", counted)
    return rows


def pictures(count: int = COUNT) -> list[bytes]:
    return [png(i) for i in range(count)]


def plain() -> pa.Array:
    return pa.array(pictures(), pa.binary())


def structs() -> pa.Array:
    return pa.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(pictures())])


PAGES = {"write_batch_size": 1, "data_page_size": 1000}  # one image a page
WRITERS: dict[str, dict[str, Any]] = {
    "without a dictionary": {"use_dictionary": False},
    "a dictionary at first": {"dictionary_pagesize_limit": 8000},
    "a dictionary": {},
    "version 2": {"data_page_version": "2.0", "use_dictionary": False},
    "delta lengths": {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "delta values": {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
    "check sums": {"write_page_checksum": True},
    "page index": {"write_page_index": True, "use_content_defined_chunking": True},
    **{codec: {"compression": codec, "use_dictionary": False} for codec in ("none", "gzip", "zstd", "brotli", "lz4")},
}


@pytest.mark.parametrize("make", [plain, structs])
@pytest.mark.parametrize("name", WRITERS)
def test_row_groups_of_every_writer(name: str, make: Callable[[], pa.Array], tmp_path: Path, read: list[int]) -> None:
    options = dict(WRITERS[name])
    if "column_encoding" in options:
        options["column_encoding"] = {"image" if make is plain else "image.bytes": options["column_encoding"]}
    pq.write_table(pa.table({"image": make()}), tmp_path / "a.parquet", **{**PAGES, **options})
    source = open_source(tmp_path / "a.parquet")
    assert len(source) == COUNT
    for i in (COUNT - 1, 0, 17):
        np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i))
    if options.get("use_dictionary") is False and not name.startswith("page"):
        assert max(read) < 8  # of 40 rows
    results = [result for _, result in decode(source, PIXELS, threads=2)]
    assert not any(isinstance(result, UnreadableImage) for result in results)


@pytest.mark.parametrize("make", [plain, structs])
def test_a_page_of_many_values_that_may_repeat_the_one_before(make: Callable[[], pa.Array], tmp_path: Path) -> None:
    """As Java writes them: by the page's header alone, 2,000 values could take 2,000 times its bytes."""
    values = make().take(pa.array(np.arange(2000) % COUNT))
    options = {"column_encoding": {"image" if make is plain else "image.bytes": "DELTA_BYTE_ARRAY"}}
    pq.write_table(
        pa.table({"image": values}), tmp_path / "a.parquet", use_dictionary=False, data_page_size=64 * MB, **options
    )
    source = open_source(tmp_path / "a.parquet")
    for i in (1999, 0, 1017):
        np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i % COUNT))


@pytest.mark.parametrize("nullable", [(False, False), (False, True), (True, False), (True, True)])
def test_columns_that_may_be_null_or_not(nullable: tuple[bool, bool], tmp_path: Path) -> None:
    outer, inner = nullable
    field = pa.field("image", pa.struct([pa.field("bytes", pa.binary(), nullable=inner)]), nullable=outer)
    values: list[Any] = [{"bytes": content} for content in pictures(6)]
    values[2] = None if outer else values[2]
    values[4] = {"bytes": None} if inner else values[4]
    table = pa.table({"image": pa.array(values, field.type)}, pa.schema([field]))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5, **PAGES)
    source = open_source(tmp_path / "a.parquet")
    for i, value in enumerate(values):
        if value is None or value["bytes"] is None:
            with pytest.raises(UnreadableImage, match="no image bytes"):
                source.open(i)
        else:
            np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i))


@pytest.mark.parametrize("program", ["polars", "duckdb", "pandas"])
def test_row_groups_of_other_programs(program: str, tmp_path: Path) -> None:
    module, path = pytest.importorskip(program), tmp_path / "a.parquet"
    columns = {"image": pictures(), "label": [f"c{i % 3}" for i in range(COUNT)]}
    if program == "duckdb":
        module.from_arrow(pa.table(columns)).write_parquet(str(path), compression="zstd")
    elif program == "polars":
        module.DataFrame(columns).write_parquet(path, data_page_size=4096)
    else:
        module.DataFrame(columns).to_parquet(path)
    source = open_source(path)
    assert list(source.labels) == columns["label"]
    for i in (COUNT - 1, 0, 20):
        np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i))


def test_images_in_their_order_are_each_read_once(tmp_path: Path, read: list[int]) -> None:
    options = {"use_dictionary": False, "row_group_size": 30, **PAGES}
    pq.write_table(pa.table({"image": structs()}), tmp_path / "a.parquet", **options)
    list(decode(open_source(tmp_path / "a.parquet"), PIXELS, threads=3))
    assert sum(read) == COUNT


def test_a_row_group_above_the_limit_is_read_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    """As one of more than 2 GiB is with the limits that are set, which no array of a struct's bytes can hold."""
    noise = np.random.default_rng(0)
    column = pa.array([{"bytes": noise.bytes(MB // 2), "path": str(i)} for i in range(48)])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", use_dictionary=False, **PAGES)
    monkeypatch.setenv("BYOL_GROUPS_MB", "4")
    source = open_source(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    for row in (*range(48), *range(0, 48, 7)):
        with pytest.raises(UnreadableImage, match="not an image"):
            source.open(row)
    assert pa.total_allocated_bytes() - before < 8 * MB
    assert sum(read) == 48 + 7 * read[0]


def test_a_page_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pa.array([*pictures(2), np.random.default_rng(0).bytes(3 * MB)])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", use_dictionary=False, **PAGES)
    monkeypatch.setenv("BYOL_GROUPS_MB", "2")
    source = open_source(tmp_path / "a.parquet")
    np.testing.assert_array_equal(PIXELS(source.open(1)), picture(seed=1))
    with pytest.raises(UnreadableImage, match="a page has 3 MB of images, BYOL_GROUPS_MB is 2"):
        source.open(2)


def test_damage_within_a_row_group_is_of_the_images_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": plain()}), path, use_dictionary=False, compression="none", **PAGES)
    content = bytearray(path.read_bytes())
    place = content.index(png(20)) - 40
    content[place : place + 40] = bytes(40)  # the header of a page
    path.write_bytes(content)
    results = [result for _, result in decode(open_source(path), PIXELS)]
    bad = [i for i, result in enumerate(results) if isinstance(result, UnreadableImage)]
    assert bad[-1] == COUNT - 1
    assert 16 <= bad[0] <= 20  # with the rest of its run


def test_few_row_groups_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_WALKED", 2)
    pq.write_table(pa.table({"image": plain()}), tmp_path / "a.parquet", row_group_size=4)
    source = open_source(tmp_path / "a.parquet")
    for i in (0, 39, 20, 1, 38):
        np.testing.assert_array_equal(PIXELS(source.open(i)), picture(seed=i))


def test_written_structs_are_read_back() -> None:
    many = [{1: Short(i), 9: [b"a", b"bc"]} for i in range(20)]
    content = written({1: Short(2**31 - 1), 3: 2**63 - 1, 4: {2: 0}, 7: many, 9: b"abc"})
    reader = Reader(content, values=1000)
    numbers = [{1: i} for i in range(20)]
    assert reader.struct({1: None, 3: None, 4: {2: None}, 7: [{1: None}]}) == {
        **{1: 2**31 - 1, 3: 2**63 - 1, 4: {2: 0}},
        7: numbers,
    }
    assert reader.place == len(content)

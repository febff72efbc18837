"""Features files: what is written reads back, also by plain PyArrow and NumPy; anything else is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.images.source import Skipped
from byol.outputs import FEATURES
from byol.serve.features.read import is_features, read_features
from byol.serve.features.write import feature_file, write_errors
from tests.support.inputs.features import DIGEST, DIM, rows, write


@pytest.mark.parametrize("name", ["f.parquet", "f.npz", "f.csv"])
@pytest.mark.parametrize("labels", [["cat", None, "dog"], ["cat", "cat", "dog"], [None, None, None]])
def test_round_trip(tmp_path: Path, name: str, labels: list[str | None]) -> None:
    x = write(tmp_path / name, 3, 2, labels)
    read = read_features(tmp_path / name)
    assert read.ids == ["a/0.png", "a/1.png", "a/2.png"]
    assert read.labels == labels
    assert read.bundle == (None if name == "f.csv" else DIGEST)
    assert read.x.dtype == np.float32
    np.testing.assert_array_equal(read.x, x)
    assert is_features(tmp_path / name)


def test_parquet_has_the_documented_schema(tmp_path: Path) -> None:
    x = write(tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert [(f.name, str(f.type), f.nullable) for f in table.schema] == [
        ("id", "string", False),
        ("label", "string", True),
        ("features", f"fixed_size_list<element: float not null>[{DIM}]", False),
    ]
    assert table.schema.metadata[b"bundle_sha256"] == DIGEST.encode()
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), x)


def test_csv_is_plain_and_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    with feature_file(path, 2, DIGEST, "float16") as put:
        put(["=1+1.png", "b,\n.png"], ["@cat", None], np.array([[0.1, -3], [1e-7, 2]], np.float32))
    with open(path, newline="") as stream:
        header, *found = csv.reader(stream)
    assert header == ["id", "label", "f0", "f1"]
    assert [row[:2] for row in found] == [["'=1+1.png", "'@cat"], ["b,\\n.png", ""]]
    assert np.array([row[2:] for row in found], np.float32).tolist() == [[np.float16(0.1), -3], [np.float16(1e-7), 2]]
    assert FEATURES.holds(path)


def test_csv_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.CSV"
    path.write_bytes(b"\xef\xbb\xbfid,f0,f1\r\na,1,-2.5\r\nb,3e0,4\r\n")
    assert is_features(path)
    assert not FEATURES.holds(path)  # not as we write it: never overwritten
    read = read_features(path)
    assert (read.ids, read.labels, read.x.tolist()) == (["a", "b"], [None, None], [[1, -2.5], [3, 4]])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("id,label,f1\na,,1\n", "its columns must be id, label"),
        ("id,f0\na,x\n", "CSV conversion error to float"),
        ("id,f0\na,1,2\n", "Expected 2 columns, got 3"),
        ("id,f0\n,1\n", "a row has no id"),
        ("id,f0\na,\n", "1 rows have values that are not finite"),
        ("id,f0\n", "holds no features"),
    ],
)
def test_csv_that_is_no_features_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"f\.csv.*{why}"):
        read_features(tmp_path / "f.csv")


def test_npz_needs_no_pickle(tmp_path: Path) -> None:
    x = write(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert archive["ids"].dtype.kind == archive["labels"].dtype.kind == "U"
        np.testing.assert_array_equal(archive["features"], x)
        assert str(archive["bundle_sha256"]) == DIGEST


@pytest.mark.parametrize("name", ["f.parquet", "f.npz", "f.csv"])
def test_same_rows_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_parquet_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.features.write.ROWS_PER_GROUP", 4)
    x = write(tmp_path / "f.parquet", count=11, batch=3)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [6, 5]
    np.testing.assert_array_equal(read_features(tmp_path / "f.parquet").x, x)


@pytest.mark.parametrize("name", ["f.parquet", "f.npz", "f.csv"])
def test_failure_leaves_the_old_file_alone(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def fail() -> None:
        with feature_file(tmp_path / name, DIM, DIGEST) as put:
            put(["a"], [None], rows(1))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folder_of_parts_reads_in_order(tmp_path: Path) -> None:
    first = write(tmp_path / "part-00000.parquet", 3)
    second = write(tmp_path / "part-00001.parquet", 2)
    write_errors(tmp_path / "errors.parquet", [], [Skipped("bad.png", "empty")])
    assert is_features(tmp_path)
    read = read_features(tmp_path)
    np.testing.assert_array_equal(read.x, np.concatenate([first, second]))
    assert read.ids == ["a/0.png", "a/1.png", "a/2.png", "a/0.png", "a/1.png"]


def test_parts_of_different_bundles_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "part-00000.parquet")
    with feature_file(tmp_path / "part-00001.parquet", DIM, "cd" * 32) as put:
        put(["a"], [None], rows(1))
    with pytest.raises(ValueError, match="parts come from different bundles"):
        read_features(tmp_path)


def test_parts_of_different_width_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "part-00000.parquet")
    with feature_file(tmp_path / "part-00001.parquet", DIM + 1, DIGEST) as put:
        put(["a"], [None], np.zeros((1, DIM + 1), np.float32))
    with pytest.raises(ValueError, match=f"part-00001.parquet: rows have {DIM + 1} features, earlier rows {DIM}"):
        read_features(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.parquet"
    try:
        x = write(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    np.testing.assert_array_equal(read_features(path).x, x)


def test_errors_file_and_its_removal(tmp_path: Path) -> None:
    path = tmp_path / "errors.parquet"
    write_errors(path, [Skipped("folder", "loop")], [Skipped("a.png", "empty")])
    assert pq.read_table(path).to_pylist() == [
        {"path": "folder", "stage": "list", "reason": "loop"},
        {"path": "a.png", "stage": "decode", "reason": "empty"},
    ]
    write_errors(path, [], [])
    assert not path.exists()


# ------------------------------------------------------------------------------------------------ strict reading


def table(**columns: pa.Array) -> pa.Table:
    base = {
        "id": pa.array(["a", "b"]),
        "label": pa.array(["x", None]),
        "features": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32())),
    }
    return pa.table({name: column for name, column in (base | columns).items() if column is not None})


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 2), pa.list_(pa.float16())]
)
def test_lists_that_other_programs_write_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    values = [[np.float16(1), np.float16(2)], [np.float16(3), np.float16(4)]]
    label = pa.array(["x", None], pa.large_string())
    pq.write_table(table(features=pa.array(values, kind), label=label), tmp_path / "f.parquet")
    read = read_features(tmp_path / "f.parquet")
    np.testing.assert_array_equal(read.x, [[1, 2], [3, 4]])
    assert (read.bundle, read.labels) == (None, ["x", None])


@pytest.mark.parametrize(
    ("columns", "ids", "labels"),
    [
        ({"id": pa.array([7, 10**18])}, ["7", str(10**18)], ["x", None]),
        ({"id": pa.array([0, 7], pa.uint8()).dictionary_encode()}, ["0", "7"], ["x", None]),
        ({"id": None}, ["0", "1"], ["x", None]),
        ({"id": pa.array(["a", "a longer name than twelve"], pa.string_view())}, None, ["x", None]),
        ({"label": None}, ["a", "b"], [None, None]),
        ({"label": pa.array([1, None])}, ["a", "b"], ["1", None]),
        ({"label": pa.array([True, False])}, ["a", "b"], ["True", "False"]),
        ({"label": pa.array(["x", "a longer name than twelve"], pa.string_view())}, ["a", "b"], None),
        ({"label": pa.array([b"x", None], pa.binary_view())}, ["a", "b"], ["x", None]),
    ],
)
def test_ids_and_labels_that_other_programs_write(
    tmp_path: Path, columns: dict[str, pa.Array], ids: list[str] | None, labels: list[str | None] | None
) -> None:
    try:
        pq.write_table(table(**columns), tmp_path / "f.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("this PyArrow writes no views")
    assert is_features(tmp_path / "f.parquet")
    read = read_features(tmp_path / "f.parquet")
    assert read.ids == (ids or columns["id"].to_pylist())
    assert read.labels == (labels or columns["label"].to_pylist())
    np.testing.assert_array_equal(read.x, [[1, 2], [3, 4]])


def test_folders_that_other_programs_write(tmp_path: Path) -> None:
    """Hive's layout, as pandas, polars, Spark and DuckDB write it: the label is a folder's name."""
    pytest.importorskip("pandas")
    frame = table(label=pa.array(["cat", None])).to_pandas()
    frame.loc[2] = ["c", "great dog", [5.0, 6.0]]
    frame.to_parquet(tmp_path / "pandas", partition_cols=["label"])
    (tmp_path / "pandas" / "_SUCCESS").touch()
    (tmp_path / "pandas" / "label=cat" / "._0.parquet").write_bytes(b"")
    assert is_features(tmp_path / "pandas")
    read = read_features(tmp_path / "pandas")
    assert dict(zip(read.ids, read.labels, strict=True)) == {"a": "cat", "b": None, "c": "great dog"}
    (tmp_path / "flat").mkdir()
    for name in ("b.parquet", "A.PARQUET"):
        write(tmp_path / "flat" / name, 2)
    assert is_features(tmp_path / "flat")
    assert len(read_features(tmp_path / "flat")) == 4
    (tmp_path / "pandas" / "label=cat" / "broken.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"label=cat/broken\.parquet cannot be read as a features file: an empty file"):
        read_features(tmp_path / "pandas")


def test_a_folder_of_images_with_a_table_about_them_is_no_folder_of_features(tmp_path: Path) -> None:
    write(tmp_path / "features.parquet")
    assert is_features(tmp_path)
    (tmp_path / "a.png").touch()
    assert not is_features(tmp_path)
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "other" / "0.parquet")
    assert not is_features(tmp_path / "other")


def test_a_partition_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet")
    (tmp_path / "a=b").symlink_to(tmp_path, target_is_directory=True)
    assert not is_features(tmp_path)
    with pytest.raises(ValueError, match="symbolic links"):
        read_features(tmp_path)


FLOATS = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"features": None}, "needs one column `features`"),
        ({"id": pa.array([1.5, 2])}, "column `id` must hold text or whole numbers"),
        ({"id": pa.array(["a", None])}, "row 1 has no id"),
        ({"id": pa.array([1, None])}, "row 1 has no id"),
        ({"features": pa.array([1.0, 2.0])}, "column `features` must hold lists of floats"),
        ({"features": pa.array([[1], [2]], pa.list_(pa.int64()))}, "column `features` must hold lists of floats"),
        ({"features": pa.array([[1.0], [2.0, 3.0]], FLOATS)}, "different numbers of features"),
        ({"features": pa.array([[1.0], None], FLOATS)}, "has nulls"),
        ({"features": pa.array([[1.0], [None]], FLOATS)}, "has nulls"),
        ({"features": pa.array([[], []], FLOATS)}, "features are empty"),
        ({"features": pa.array([[1.0], [np.nan]], FLOATS)}, r"1 rows have values that are not finite \(first: b\)"),
        ({"features": pa.array([[np.inf], [1.0]], FLOATS)}, r"not finite \(first: a\)"),
    ],
)
def test_wrong_parquet_is_refused(tmp_path: Path, columns: dict[str, pa.Array], message: str) -> None:
    pq.write_table(table(**columns), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        read_features(tmp_path / "f.parquet")
    assert "f.parquet" in str(caught.value)


def test_rows_of_two_lengths_in_different_row_groups_are_refused(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "f.parquet", table().schema) as writer:
        writer.write_table(table(), row_group_size=2)
        writer.write_table(table(features=pa.array([[1.0]] * 2, FLOATS)), row_group_size=2)
    with pytest.raises(ValueError, match=r"rows have 1 features, earlier rows 2|different numbers of features"):
        read_features(tmp_path / "f.parquet")


def test_no_rows_are_refused(tmp_path: Path) -> None:
    pq.write_table(table().slice(0, 0), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="holds no features"):
        read_features(tmp_path / "f.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no part-\*\.parquet"):
        read_features(tmp_path / "empty")


@pytest.mark.parametrize("name", ["f.parquet", "f.npz"])
def test_cut_off_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be read as a features file"):
            read_features(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.array(["a"])}, "`features` must be floating point"),
        ({"features": np.zeros((2, 2), np.int64)}, "found int64"),
        ({"features": np.zeros(4)}, r"found float64 \(4,\)"),
        ({"features": np.zeros((2, 2)), "ids": np.array(["a"])}, r"`ids` must have shape \(2,\)"),
        ({"features": np.zeros((2, 2)), "labels": np.array("a")}, r"`labels` must have shape \(2,\)"),
        ({"features": np.full((2, 2), np.nan)}, "2 rows have values that are not finite"),
        ({"features": np.zeros((0, 2))}, "holds no features"),
        ({"features": np.zeros((2, 2)), "labels": np.array([{}, {}], dtype=object)}, "cannot be read"),
    ],
)
def test_wrong_npz_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path / "f.npz")


def test_object_labels_are_told_what_to_be(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.zeros((1, 2)), labels=np.array(["a"], dtype=object))
    with pytest.raises(ValueError, match="`labels` holds Python objects; save text or numbers"):
        read_features(tmp_path / "f.npz")


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_refused_without_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.array([[1.0, 1e300]]))
    with pytest.raises(ValueError, match="1 rows have values that are not finite"):
        read_features(tmp_path / "f.npz")


def test_categories_of_pandas_are_labels(tmp_path: Path) -> None:
    pq.write_table(table(label=pa.array(["dog", "cat"]).dictionary_encode()), tmp_path / "f.parquet")
    assert read_features(tmp_path / "f.parquet").labels == ["dog", "cat"]


@pytest.mark.parametrize("path", [None, 5, ["features.parquet"]])
def test_what_is_no_path_is_named(path: Any) -> None:
    with pytest.raises(ValueError, match=r"path is .*; expected the path of a features file or folder"):
        read_features(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert is_features(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"f\.parquet does not exist$"):
        read_features(tmp_path / "f.parquet")


def test_what_counts_as_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 2, 2, 3), np.uint8))
    np.savez(tmp_path / "both.npz", images=np.zeros((1, 2, 2, 3), np.uint8), features=np.zeros((1, 2)))
    (tmp_path / "broken.npz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert not is_features(tmp_path / "images.npz")
    assert not is_features(tmp_path / "broken.npz")
    assert not is_features(tmp_path / "folder")
    with pytest.raises(ValueError, match="holds both `images` and `features`"):
        is_features(tmp_path / "both.npz")

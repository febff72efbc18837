"""What is a label, and what is none: the same in arrays, Parquet, tar files, features files and classifiers."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.bundle.schema import is_text
from byol.images.columns import Labels
from byol.images.labels import (
    codes_of_column,
    label_in,
    label_of,
    label_of_folders,
    require_classes,
    require_known,
    require_labels,
    require_nameable,
)
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.serve import KNNClassifier, LinearProbe
from byol.serve.evaluate.sets import open_labelled
from byol.serve.features.read import read_features
from byol.serve.features.write import _npz_writer
from tests.support.inputs.shards import image_structs, png, write_table, write_tar
from tests.support.tiny import write_images

NAN = [float("nan"), np.float32("nan"), np.datetime64("NaT"), pandas.NaT]
NONE: list[Any] = [None, "", b"", *NAN, -1, -1.0, np.int8(-1)]
NAMED: list[tuple[Any, str]] = [
    ("cat", "cat"),
    (b"cat", "cat"),
    (np.bytes_(b"caf\xc3\xa9"), "café"),
    (b"caf\xe9", "caf\\xe9"),
    (np.str_("nan"), "nan"),
    ("-1", "-1"),
    (0, "0"),
    (np.uint64(2**63), str(2**63)),
    (1.0, "1"),
    (-0.0, "0"),
    (np.float32(0.1), "0.1"),
    (1.5, "1.5"),
    (True, "True"),
    (np.bool_(False), "False"),
    (Decimal("3.00"), "3"),
    (float("inf"), "inf"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
]


@pytest.mark.parametrize("value", NONE)
def test_no_label(value: Any) -> None:
    assert label_of(value) is None


@pytest.mark.parametrize(("value", "label"), NAMED)
def test_a_label(value: Any, label: str) -> None:
    assert label_of(value) == label
    assert type(label_of(value)) is str


def test_texts_that_may_hold_numbers() -> None:
    assert [label_in(text) for text in ("7", "007", "1.0", "-1", "", "1.5", "cat", "7 cats")] == [
        *("7", "7", "1", None, None, "1.5", "cat", "7 cats")
    ]
    assert label_of_folders(["a", "label=great%20cat"]) == "great cat"
    assert label_of_folders(["label=__HIVE_DEFAULT_PARTITION__"]) is None
    assert label_of_folders(["label", "labels=a"]) is None


# ------------------------------------------------------------------------------ the same wherever they stand

ARRAYS = {
    "integers": (np.array([3, -1, 0]), ["3", None, "0"]),
    "floats": (np.array([1.0, np.nan, 0.5]), ["1", None, "0.5"]),
    "texts": (np.array(["cat", "", "dog"]), ["cat", None, "dog"]),
    "bytes": (np.array([b"cat", b"", b"dog"]), ["cat", None, "dog"]),
    "booleans": (np.array([True, False, True]), ["True", "False", "True"]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_labels_of_arrays_columns_and_features(name: str, tmp_path: Path) -> None:
    values, expected = ARRAYS[name]
    np.savez(tmp_path / "images.npz", images=np.zeros((3, 2, 2, 3), np.uint8), labels=values)
    np.savez(tmp_path / "features.npz", features=np.zeros((3, 2)), labels=values)
    write_table(tmp_path / "images.parquet", {"image": image_structs(3), "label": pa.array(values)}, rows=2)
    features = pa.array([[1.0]] * 3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"label": pa.array(values), "features": features}), tmp_path / "features.parquet")
    assert list(open_source(tmp_path / "images.npz").labels) == expected
    assert list(open_source(tmp_path / "images.parquet").labels) == expected
    assert read_features(tmp_path / "features.npz").labels == expected
    assert read_features(tmp_path / "features.parquet").labels == expected


COLUMNS = {
    "null": pa.nulls(3),
    "missing integers": pa.array([1, None, 0]),
    "large text": pa.array(["1", None, "0"], pa.large_string()),
    "views": pa.array(["1", None, "0"], pa.string_view()),
    "views of bytes": pa.array([b"1", None, b"0"], pa.binary_view()),
    "fixed bytes": pa.array([b"1", None, b"0"], pa.binary(1)),
    "half floats": pa.array(np.array([1, np.nan, 0], np.float16)),
    "decimals": pa.array([Decimal("1.0"), None, Decimal("0.0")]),
    "unsigned dictionary": pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint32()), pa.array(["0", "1"])),
    "dictionary that holds null": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array([1, None, 0])),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_all_types(name: str) -> None:
    numbers: dict[str, int] = {}
    codes = codes_of_column(COLUMNS[name], numbers)
    names = [*numbers, None]
    assert [names[code] for code in codes] == ([None] * 3 if name == "null" else ["1", None, "0"])


@pytest.mark.parametrize(
    ("kind", "number", "label"),
    [
        (pa.timestamp("us"), 10**12, "1970-01-12 13:46:40"),
        (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
        (pa.timestamp("us", tz="No/Zone"), 0, "1970-01-01 00:00:00+00:00"),
        (pa.timestamp("us"), 2**63 - 1, f"<value out of range: {2**63 - 1}>"),
        (pa.time64("ns"), 2, "00:00:00.000000002"),
        (pa.duration("s"), 2**62, f"{2**62} s"),
        (pa.date64(), 86_400_000, "1970-01-02"),
    ],
)
def test_times_that_python_does_not_have_are_labels(kind: pa.DataType, number: int, label: str) -> None:
    numbers: dict[str, int] = {}
    assert list(codes_of_column(pa.array([number, None], pa.int64()).view(kind), numbers)) == [0, -1]
    assert list(numbers) == [label]


def test_shards_with_and_without_missing_labels_have_the_same_classes(tmp_path: Path) -> None:
    """pandas writes integers as floats where one is missing."""
    for number, values in enumerate(([0, 1], [0, None], [1.0, np.nan])):
        frame = pandas.DataFrame({"image": [png(0), png(1)], "label": values})
        frame.to_parquet(tmp_path / f"{number}.parquet")
    source = open_source(tmp_path)
    assert source.classes == ["0", "1"]
    assert list(source.labels) == ["0", "1", "0", None, "1", None]


def test_names_of_hugging_face_are_those_of_floats_too(tmp_path: Path) -> None:
    labels = pa.array([1.0, None, -1.0, 0.0, 7.0])
    write_table(tmp_path / "a.parquet", {"image": image_structs(5), "label": labels}, ["cat", "dog"])
    assert list(open_source(tmp_path / "a.parquet").labels) == ["dog", None, None, "cat", "7"]


def test_a_label_that_is_no_class_takes_no_room_in_every_row(tmp_path: Path) -> None:
    labels = pa.array(["a" * 1_000_000, "b", "c"])
    write_table(tmp_path / "images.parquet", {"image": image_structs(3), "label": labels})
    pq.write_table(pa.table({"label": labels, "features": [[1.0, 2.0]] * 3}), tmp_path / "features.parquet")
    for name in ("images.parquet", "features.parquet"):
        with pytest.raises(ValueError, match=r"a label of 1,000,000 characters \(aaaaaaaaaaaaaaaaaaaa\.\.\.\)"):
            open_labelled(tmp_path / name, tmp_path / name)
    with pytest.raises(ValueError, match="y has a label of 1,000,000 characters"):
        KNNClassifier().fit(np.eye(3), labels.to_pylist())
    with (
        pytest.raises(ValueError, match=r"write \.parquet"),
        _npz_writer(tmp_path / "out.npz", 2, "", "float32") as write,
    ):
        write(["1"], ["a" * 10_000], np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("column", [pa.array([[1], [2]]), pa.array([{"a": 1}, {"a": 2}])])
def test_labels_of_lists_and_structs_are_none_and_what_needs_them_says_so(column: pa.Array, tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": image_structs(2), "label": column})
    source = open_source(tmp_path / "a.parquet")
    assert list(source.labels) == [None, None]
    assert not source.skipped
    with pytest.raises(ValueError, match=r"2 of 2 images have no label .*as `label` must be .* found (list|struct)<"):
        require_labels(source)
    features = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"label": column, "features": features}), tmp_path / "f.parquet")
    assert read_features(tmp_path / "f.parquet").labels == [None, None]
    with pytest.raises(ValueError, match=r"2 of 2 rows have no label .*as `label` must hold .* found (list|struct)<"):
        open_labelled(tmp_path / "f.parquet", tmp_path / "f.parquet")


def test_features_of_one_class_name_the_folder_to_extract(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.eye(2, dtype=np.float32), labels=["cat", "cat"])
    with pytest.raises(
        ValueError, match=r"only one class \(cat\), .* extract the parent folder, with one sub-folder per"
    ):
        open_labelled(tmp_path / "f.npz", None)


def test_class_files_of_a_tar_hold_numbers_or_text(tmp_path: Path) -> None:
    classes = {"a": b"3\n", "b": b"-1", "c": b"", "d": b"cat"}
    files = {f"{key}.cls": text for key, text in classes.items()} | {f"{key}.png": png(0) for key in classes}
    write_tar(tmp_path / "a.tar", dict(sorted(files.items())))
    assert list(open_source(tmp_path / "a.tar").labels) == ["3", None, None, "cat"]


def test_images_in_folders_of_a_partition_have_its_label(tmp_path: Path) -> None:
    for label in ("cat", "great%20dog", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"label={label}").mkdir()
        write_table(tmp_path / f"label={label}" / "0.parquet", {"image": image_structs(1)})
    source: ImageSource = open_source(tmp_path)
    assert list(source.labels) == [None, "cat", "great dog"]


# ------------------------------------------------------------------------------------------------ classifiers


@pytest.mark.parametrize("odd", ["a\tb", "a\n", "\x1b[1m", "\u202egpj", "a\u2028b", "\udce9"])
def test_a_class_that_no_manifest_can_name_is_refused(odd: str) -> None:
    require_nameable(classes_of("caf\u00e9", "\u200f\u05d0", "\U0001f431\u200d", "=1+1", "<b>", None))
    with pytest.raises(ValueError, match=r"photos: a bundle cannot name the class .*; rename it") as caught:
        require_nameable(classes_of("cat", None, odd))
    assert is_text(str(caught.value))


def classes_of(*labels: str | None) -> ImageSource:
    def no_image(index: int, least_side: int = 0, /) -> Any:
        raise AssertionError

    return ImageSource("photos", [str(place) for place in range(len(labels))], Labels.of(labels), [], no_image)


X = np.eye(4, 3)
MISSING = "which is not a label; drop such rows"


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", None, "b", "a"], rf"y\[1\] is None, {MISSING}"),
        ([0, 1, None, 1], rf"y\[2\] is None, {MISSING}"),
        ([0.0, 1.0, np.nan, 1.0], rf"y\[2\] is nan, {MISSING}"),
        (np.array([0.0, np.nan, 1.0, 1.0]), rf"y\[1\] is nan, {MISSING}"),
        (np.array(["a", np.nan, "b", "a"], object), rf"y\[1\] is nan, {MISSING}"),
        (pandas.Series(["a", pandas.NA, "b", "a"]), rf"y\[1\] is .*, {MISSING}"),
        (pandas.Series([1, pandas.NA, 2, 1], dtype="Int64"), rf"y\[1\] is <NA>, {MISSING}"),
        (["a", 1, "b", 2], r"y has labels of several kinds \(numbers, text\)"),
        ([b"a", "a", "b", "b"], r"several kinds \(bytes, text\)"),
        ([[1], [2, 3], [1], [1]], rf"y\[0\] is \[1\], {MISSING}"),
        ([[1, 2]] * 4, r"y must have shape \(4,\) as x has 4 rows, found \(4, 2\)"),
        (np.array([1, 2, 3, 4], "datetime64[s]"), r"y holds datetime64\[s\]; give text or numbers"),
        (np.array([1j, 2, 3, 4]), "y holds complex128; give text or numbers"),
        (None, "requires y to be passed"),
    ],
)
@pytest.mark.parametrize("make", [KNNClassifier, LinearProbe])
def test_missing_and_mixed_labels_are_refused(make: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(device="cpu").fit(X, y)


def test_missing_labels_of_a_test_set_are_refused() -> None:
    classifier = KNNClassifier(k=1, device="cpu").fit(X, ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match=rf"y\[3\] is None, {MISSING}"):
        classifier.score(X, np.array(["a", "b", "a", None], object))


@pytest.mark.parametrize(
    "y",
    [
        ["a", "b", "a"],
        (1, 2, 1),
        [1, 2.5, 1],
        [True, False, True],
        np.array(["a", "b", "a"], object),
        pandas.Series(["a", "b", "a"]),
        pandas.Series(["a", "b", "a"], dtype="category"),
        np.array([0.5, 1, 0.5], np.float32),
        [b"a", b"b", b"a"],
    ],
)
def test_labels_for_classifiers(y: Any) -> None:
    found = require_classes(y, 3)
    assert found.tolist() == list(y)


@pytest.mark.parametrize("make", [KNNClassifier, LinearProbe])
@pytest.mark.parametrize("x", [[[None, 1.0]] * 2, np.array([[{}, 1]] * 2, object), [["a", "b"]] * 2])
def test_features_that_are_no_numbers_are_refused(make: Any, x: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="x "):
        make(device="cpu").fit(x, ["a", "b"])


# ------------------------------------------------------------------------------------------------- wrong folders


def test_the_parent_of_train_and_test_has_no_classes(tmp_path: Path) -> None:
    for part in ("train", "Val"):
        write_images(tmp_path / "data" / part, {"cat": 1, "dog": 1})
    whole = open_source(tmp_path / "data")
    with pytest.raises(ValueError, match="Val and train are parts of a data set, not classes; name one of them"):
        require_labels(whole)
    assert len(require_labels(open_source(tmp_path / "data" / "train"))) == 2
    write_images(tmp_path / "vehicles", {"train": 1, "bus": 1})
    assert require_labels(open_source(tmp_path / "vehicles")) == ["bus", "train"]


def test_of_features_and_arrays_only_folders_are_splits(tmp_path: Path) -> None:
    labels, x = np.array(["test", "train"]), np.eye(2, dtype=np.float32)
    np.savez(tmp_path / "folders.npz", features=x, labels=labels, ids=np.array(["test/a.png", "train/b.png"]))
    with pytest.raises(ValueError, match="test and train are parts of a data set, not classes; extract each"):
        open_labelled(tmp_path / "folders.npz", None)
    np.savez(tmp_path / "own.npz", features=x, labels=labels)
    open_labelled(tmp_path / "own.npz", None)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=labels)
    assert require_labels(open_source(tmp_path / "images.npz")) == ["test", "train"]


def test_names_that_look_alike_are_said_to_differ(tmp_path: Path) -> None:
    for name, folder in (("composed", "Caf\u00e9"), ("decomposed", "Cafe\u0301")):
        write_images(tmp_path / name, {folder: 1, "bar": 1})
    train, test = open_source(tmp_path / "composed"), open_source(tmp_path / "decomposed")
    with pytest.raises(ValueError, match="some look alike, but are encoded differently"):
        require_known(train, test)
    other = open_source(write_images(tmp_path / "other", {"cat": 1, "dog": 1}))
    with pytest.raises(ValueError, match="lacks: cat, dog") as error:
        require_known(train, other)
    assert "some look alike" not in str(error.value)

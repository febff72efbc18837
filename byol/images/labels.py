"""What counts as a label: one rule for folders, shards, arrays, features and classifiers. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from byol.images.columns import Labels
from byol.images.source import ImageSource
from byol.text import is_plain, on_one_line

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # what Hive's writers call the folder of missing values
LONGEST = 1024  # characters of a class: NumPy gives each row of a column of text the room of the longest one
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_WHOLE = re.compile(r"(-?[0-9]{1,20})(\.0*)?")


def label_of(value: Any) -> str | None:
    """The class that a value stands for, or None.

    None, NaN, NaT, the empty text and the number -1 are no class. 1 and 1.0 are the same class (a missing value turns
    integers into floats); bytes are UTF-8.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, str):
        return str(value or "") or None
    if value != value or value == -1:  # only NaN and NaT differ from themselves
        return None
    is_whole = not isinstance(value, bool | np.bool_) and _is_finite(value) and value == int(value)
    return str(int(value)) if is_whole else str(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, int):  # of any length
        return True
    try:
        return math.isfinite(value)
    except TypeError:  # no number: a date
        return False


def label_in(text: str) -> str | None:
    """The class in a text that may hold a number: of a `.cls` file, or of a folder `label=1`."""
    found = _WHOLE.fullmatch(text)
    return label_of(int(found[1]) if found else text)


def label_of_folders(names: Iterable[str]) -> str | None:
    """The class that a folder `label=CLASS` gives to all in it, as Hive, Spark, pandas and polars write them."""
    values = [unquote(name.removeprefix("label=")) for name in names if name.startswith("label=")]
    return label_in(values[-1]) if values and values[-1] != NO_PARTITION else None


def codes_of_values(distinct: Iterable[Any], places: np.ndarray, numbers: dict[str, int]) -> np.ndarray:
    """The class numbers int32 (N,) of rows whose value stands at `places` (N,) of some values; -1 is none, in both.

    New classes are added to `numbers`.
    """
    labels = map(label_of, distinct)
    codes = [-1 if label is None else numbers.setdefault(label, len(numbers)) for label in labels]
    found: np.ndarray = np.array([*codes, -1], np.int32)[places]  # the last one is found by -1
    return found


def labels_of_array(values: np.ndarray) -> Labels:
    """The labels of an array (N,) of numbers or text."""
    distinct, places = np.unique(values, return_inverse=True)
    numbers: dict[str, int] = {}
    return Labels(codes_of_values(distinct, places, numbers), list(numbers))


# ------------------------------------------------------------------------------------------------ Arrow


def can_be_labels(kind: Any) -> bool:
    """Whether a column of an Arrow type holds labels: text, bytes, numbers, dates, or a dictionary of these."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))


def codes_of_column(column: Any, numbers: dict[str, int], names: Sequence[str] = ()) -> np.ndarray:
    """The class numbers int32 (N,) of an Arrow array, -1 for none; new classes are added to `numbers`.

    `names` are those that the column's own numbers stand for. Raises `ValueError` where it is damaged.
    """
    column = column if pa.types.is_dictionary(column.type) else _comparable(column).dictionary_encode()
    column.validate(full=True)  # or indices may lead out of the dictionary
    places = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return codes_of_values([_named(value, names) for value in _values(column.dictionary)], places, numbers)


def _comparable(column: Any) -> Any:
    """A column of a type that Arrow makes dictionaries of."""
    kind = column.type
    if kind in (pa.string_view(), pa.binary_view()):
        return pa.array(column.to_pylist(), pa.large_string() if kind == pa.string_view() else pa.large_binary())
    return column.cast(pa.float32()) if kind == pa.float16() else column


def _values(dictionary: Any) -> Iterable[Any]:
    """As Python has them; floats keep their width, in which 0.1 is 0.1.

    Times are text: Python has no nanoseconds, no year 10,000 and no time zone that the machine does not know.
    """
    kind = dictionary.type
    if pa.types.is_duration(kind):
        return [
            None if number is None else f"{number} {kind.unit}" for number in dictionary.cast(pa.int64()).to_pylist()
        ]
    if pa.types.is_temporal(kind):
        return [_time(text, bool(getattr(kind, "tz", None))) for text in _as_texts(dictionary)]
    return list(dictionary.to_numpy(zero_copy_only=False) if pa.types.is_floating(kind) else dictionary.to_pylist())


def _as_texts(times: Any) -> list[str | None]:
    universal = times.cast(pa.timestamp(times.type.unit)) if pa.types.is_timestamp(times.type) else times
    return list(universal.cast(pa.string()).to_pylist())


def _time(text: str | None, is_universal: bool) -> str | None:
    """As Python writes it: without a fraction that is zero."""
    plain = text and re.sub(r"\.0+$", "", text)
    return f"{plain}+00:00" if plain and is_universal else plain


def _named(value: Any, names: Sequence[str]) -> Any:
    if not names or isinstance(value, str | bytes | bool):
        return value
    number = label_of(value)
    return names[int(number)] if number and number.isdecimal() and int(number) < len(names) else value


# ------------------------------------------------------------------------------------------------ classifiers


def require_short(labels: Iterable[str], name: str) -> None:
    """Raise `ValueError` if a label is longer than `LONGEST`; the message calls their owner `name`."""
    longest = max(labels, key=len, default="")
    if len(longest) > LONGEST:
        raise ValueError(
            f"{name} has a label of {len(longest):,} characters ({longest[:20]}...); at most {LONGEST:,} are allowed"
        )


def require_nameable(train: Labelled) -> None:
    """Raise `ValueError` for a class that no manifest can name, as it would change how the line around it is shown."""
    for label in sorted({label for label in train.labels if label is not None}):
        if not all(map(is_plain, label)):
            raise ValueError(
                f"{train.name}: a bundle cannot name the class {on_one_line(label):.80}, which holds control "
                "characters, a line end or a change of the writing direction; rename it"
            )


def require_classes(y: ArrayLike, count: int) -> np.ndarray:
    """The labels (N,) for a classifier, as NumPy has them: text or numbers, one for each of `count` rows.

    Raises `ValueError` for another shape, for labels of several kinds, and where one is missing: None, NaN, NaT, NA.
    """
    labels: np.ndarray[Any, Any] = y if isinstance(y, np.ndarray) else np.array(y, dtype=object)
    if labels.shape != (count,):
        raise ValueError(f"y must have shape ({count},) as x has {count} rows, found {labels.shape}")
    if labels.dtype.kind in "biuSUT":
        return labels
    if labels.dtype.kind not in "fO":
        raise ValueError(f"y holds {labels.dtype}; give text or numbers")
    kinds = {_kind_of(label, row) for row, label in enumerate(labels.tolist())}
    if len(kinds) > 1:
        raise ValueError(f"y has labels of several kinds ({', '.join(sorted(kinds))}); give text or numbers only")
    if kinds == {"text"}:
        require_short(labels.tolist(), "y")
    return np.asarray(labels.tolist())


def _kind_of(label: Any, row: int) -> str:
    if isinstance(label, str | bytes):
        return "text" if isinstance(label, str) else "bytes"
    if isinstance(label, int | float | np.number | np.bool_) and label == label:  # NaN is not
        return "numbers"
    raise ValueError(f"y[{row}] is {label!r:.40}, which is not a label; drop such rows, and give text or numbers")


class Labelled(Protocol):
    """Something with a name, and one label or None for each of its images."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def labels(self) -> Sequence[str | None]:
        """The classes."""


def require_labels(source: ImageSource, least_classes: int = 2) -> list[str]:
    """The label of every image.

    Raises `ValueError` when one has none, or when there are fewer than `least_classes` (1 for a test set).
    """
    missing = source.labels.missing
    if len(missing):
        raise ValueError(
            f"{source.name}: {len(missing)} of {len(source)} images have no label (first: {source.ids[missing[0]]})"
            f"{source.labels.why and f', as {source.labels.why}'}; put each image into a sub-folder named after its "
            "class, or move it away, or give an .npz with `labels`"
        )
    if len(source.classes) < least_classes:
        raise ValueError(
            f"{source.name} has only one class ({source.classes[0]}), but two or more are needed; pass the parent "
            "folder, with one sub-folder per class"
        )
    if holds_splits(source.ids, source.classes):
        raise ValueError(
            f"{source.name}: its folders {' and '.join(source.classes)} are parts of a data set, not classes; name one "
            f"of them, as in {source.name}/{source.classes[0]}"
        )
    require_short(source.classes, source.name)
    return [label for label in source.labels if label is not None]


def holds_splits(ids: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether images lie in several folders, all named as parts of a data set are: the parent folder was given.

    Labels that are no folders, as in an `.npz`, may be called so.
    """
    are_splits = len(classes) > 1 and {name.lower() for name in classes} <= SPLIT_FOLDERS
    return are_splits and ids[0].partition("/")[0] in classes


def require_known(train: Labelled, test: Labelled) -> None:
    """Raise `ValueError` when a test set has classes that training lacks."""
    known = {label for label in train.labels if label is not None}
    unknown = sorted({label for label in test.labels if label is not None} - known)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        alike = {normalize("NFC", label) for label in unknown} & {normalize("NFC", label) for label in known}
        hint = "; some look alike, but are encoded differently (macOS): rename the folders of one set" if alike else ""
        raise ValueError(
            f"{test.name} has classes that {train.name} lacks: {', '.join(unknown[:5])}{more} "
            f"(training classes: {', '.join(sorted(known)[:5])}{', ...' if len(known) > 5 else ''}){hint}"
        )

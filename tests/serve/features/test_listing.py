"""Folders of features: read by number, and only when they hold what their manifest lists."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from byol.images.shards.schema import DIGEST_KEY
from byol.serve.features.listing import MANIFEST, part_files
from byol.serve.features.parts import NOTES, PartsFolder, read_part
from byol.serve.features.read import is_features, read_features
from byol.serve.features.write import feature_file
from tests.support.inputs.features import DIGEST, write


def write_parts(folder: Path, counts: dict[int, int], **manifest: object) -> Path:
    """Parts by number with so many rows each, and the manifest that lists them."""
    folder.mkdir()
    for number, count in counts.items():
        write(folder / f"part-{number:05d}.parquet", count)
    parts = [{"file": f"part-{number:05d}.parquet", "rows": count} for number, count in counts.items()]
    values = {DIGEST_KEY: DIGEST, "stamp": None, "complete": True, "parts": parts} | manifest
    (folder / MANIFEST).write_text(json.dumps(values))
    return folder


def test_parts_come_by_their_number(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "f", {2: 1, 99_999: 2, 100_000: 3})
    assert read_features(folder).ids == [f"a/{i}.png" for i in (0, *range(2), *range(3))]
    assert [file.name for file in part_files(folder)] == [
        "part-00002.parquet",
        "part-99999.parquet",
        "part-100000.parquet",
    ]


def test_parts_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "f", {0: 2, 1: 3}, format=2)
    (folder / "data").mkdir()
    for file in folder.glob("part-*"):
        file.rename(folder / "data" / file.name)
    assert is_features(folder)
    assert read_features(folder).ids == read_features(folder / "data").ids == [f"a/{i}.png" for i in (0, 1, 0, 1, 2)]
    (folder / "data" / "part-00001.parquet").unlink()
    for path in (folder, folder / "data"):
        with pytest.raises(ValueError, match=r"part-00001\.parquet is missing"):
            read_features(path)


def test_an_extraction_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "f", {0: 3, 1: 3}, complete=False)
    with pytest.raises(ValueError, match="has not finished; run its extract command again"):
        read_features(folder)
    begun = write_parts(tmp_path / "begun", {}, complete=False)
    assert is_features(begun)
    with pytest.raises(ValueError, match="has not finished"):
        read_features(begun)
    (begun / MANIFEST).write_text("[1, 2]")
    assert not is_features(begun)  # another program's: a folder of images


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "part-00001.parquet").unlink(), r"part-00001\.parquet is missing; run its extract"),
        (lambda folder: write(folder / "part-00001.parquet", 2), r"part-00001\.parquet has 2 rows, not 3; remove"),
        (lambda folder: write(folder / "part-00002.parquet", 2), r"does not list part-00002\.parquet; remove"),
        (lambda folder: os.truncate(folder / "part-00001.parquet", 99), r"part-00001\.parquet cannot be read as a"),
    ],
)
def test_parts_that_are_not_those_of_the_manifest_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = write_parts(tmp_path / "f", {0: 3, 1: 3})
    assert len(read_features(folder)) == 6
    spoil(folder)
    assert is_features(folder)
    with pytest.raises(ValueError, match=message):
        read_features(folder)


DEEP = "[" * 100_000
NONE = '"listed": [], "decoded": []'
LISTED = '"complete": true, "stamp": null'


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "\xff", DEEP, '{"a": ' * 100_000),
        *('{"complete": 1}', '{"complete": 1, "stamp": null}', '{"complete": true}', '{"complete": false, "stamp": 5}'),
        *(f'{{{LISTED}, "parts": {parts}}}' for parts in ("5", "null", "{}", '"ab"', "[5]", "[null]", "[[]]", "[{}]")),
        *(
            f'{{{LISTED}, "parts": [{{"file": {file}, "rows": {rows}}}]}}'
            for file, rows in (("5", "1"), ('"a"', '"1"'))
        ),
        *(f'{{{LISTED}, "parts": [{{"file": "a", "rows": {rows}}}]}}' for rows in ("true", "1.5", "NaN", "9" * 5000)),
        *(f'{{{LISTED}, "parts": [], "a": NaN}}', f'{{{LISTED}, "parts": [], "complete": true}}'),
    ],
)
def test_manifests_of_strangers_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    folder = write_parts(tmp_path / "f", {0: 3})
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"_manifest\.json cannot be read \(.*\); use an empty folder$") as caught:
        read_features(folder)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match=r"cannot be read"):
        PartsFolder(folder, {}).manifest()


@pytest.mark.parametrize(
    "notes",
    [
        *("", "[]", "5", "{}", DEEP, '{"end": "row:3", "end": "row:3", "listed": [], "decoded": []}'),
        *(
            f'{{"end": {end}, "listed": [], "decoded": []}}'
            for end in ("5", "null", '""', '"row:x"', '"path:0"', '"row:-1"')
        ),
        *(
            f'{{"end": "row:3", "listed": {pairs}, "decoded": []}}'
            for pairs in ("5", "null", '["ab"]', "[[1, 2]]", '[["a"]]')
        ),
    ],
)
def test_parts_of_strangers_are_refused_in_one_line(tmp_path: Path, notes: str) -> None:
    file = tmp_path / "part-00000.parquet"
    with feature_file(file, 2, DIGEST, notes={NOTES: notes}) as put:
        put(["a"], ["b"], np.zeros((1, 2), np.float32))
    with pytest.raises(
        ValueError,
        match=r"part-00000\.parquet is not a usable part \(.*\); remove it and run its extract",
    ):
        read_part(file, DIGEST)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write(tmp_path / "part-00000.parquet")
    content = write(tmp_path / "part-00001.parquet")
    raw = bytearray((tmp_path / "part-00001.parquet").read_bytes())
    place = bytes(raw).index(content[0].tobytes())
    raw[place - 40 : place - 4] = b"\xff" * 36  # the header of a page
    (tmp_path / "part-00001.parquet").write_bytes(raw)
    with pytest.raises(ValueError, match=r"part-00001\.parquet cannot be read as a features file"):
        read_features(tmp_path)

"""`byol extract --thumbnails`: what the encoder sees of each image, beside its features."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol.images.decode import Preprocess
from byol.images.open import open_source
from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.folders import contents
from tests.support.tiny import write_images, write_tiny_bundle

SIZE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/ and images/, one of which cannot be read."""
    root = tmp_path_factory.mktemp("thumbnails")
    write_tiny_bundle(root / "bundle", SIZE)
    write_images(root / "images", {"cat": 5, "dog": 6})
    (root / "images" / "cat" / "001.png").write_bytes(b"broken")
    return root


def extract(place: Path, out: str | Path, *more: object) -> None:
    words = ("--device", "cpu", "--part-images", 4, "--batch-size", 3, *more)
    done = byol("extract", place / "bundle", place / "images", "--out", out, *words)
    assert done.code == 0, done.err


@pytest.mark.parametrize("processes", [1, 2])
def test_each_row_has_the_picture_of_its_image(place: Path, tmp_path: Path, processes: int) -> None:
    extract(place, f"{tmp_path}/f/", "--thumbnails", 16, "--processes", processes)
    table = pq.read_table(tmp_path / "f" / "data")
    assert table.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    source = open_source(place / "images")
    row_of = {name: row for row, name in enumerate(source.ids)}
    rows = table.select(["id", "image"]).to_pylist()
    assert [row["id"] for row in rows] == [name for name in source.ids if name != "cat/001.png"]
    for row in rows:
        assert row["image"]["path"] == row["id"]
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert (picture.format, picture.size) == ("WEBP", (16, 16))
            found = np.asarray(picture.convert("RGB"), int)
        seen = Image.fromarray(Preprocess.for_size(SIZE)(source.open(row_of[row["id"]])))
        assert np.abs(found - np.asarray(seen.resize((16, 16), Image.Resampling.BICUBIC), int)).mean() < 12
    extract(place, tmp_path / "plain.parquet")
    np.testing.assert_allclose(read_features(tmp_path / "f").x, read_features(tmp_path / "plain.parquet").x, rtol=1e-5)


def test_a_file_with_pictures_is_features_and_is_written_again(place: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for _ in range(2):
        extract(place, tmp_path / "f.parquet", "--thumbnails", 64)
    assert list(pandas.read_parquet(tmp_path / "f.parquet").columns) == ["id", "label", "features", "image"]
    assert len(read_features(tmp_path / "f.parquet")) == 10
    first = pq.read_table(tmp_path / "f.parquet")["image"][0].as_py()["bytes"]
    assert Image.open(io.BytesIO(first)).size == (SIZE, SIZE)  # never enlarged


def test_viewers_of_hugging_face_see_images(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    extract(place, f"{tmp_path}/f/", "--thumbnails", 16)
    table = datasets.load_dataset(str(tmp_path / "f" / "data"), split="train")
    assert isinstance(table.features["image"], datasets.Image)
    assert table[0]["image"].size == (16, 16)


def test_parts_with_and_without_pictures_are_not_mixed(place: Path, tmp_path: Path) -> None:
    for first, second, said in ((["--thumbnails", 16], [], "16, now none"), ([], ["--thumbnails", 16], "none, now 16")):
        out = tmp_path / str(len(first))
        extract(place, f"{out}/", *first)
        before = contents(out)
        done = byol("extract", place / "bundle", place / "images", "--out", f"{out}/", "--part-images", 4, *second)
        assert (done.code, f"thumbnails {said}" in done.err) == (1, True), done.err
        assert contents(out) == before
        extract(place, f"{out}/", *first)
    assert "thumbnails" not in json.loads((tmp_path / "0" / "_manifest.json").read_text())


@pytest.mark.parametrize("words", [("f.npz",), ("f.csv",), ("f/", "--engine", "ray")])
def test_where_there_is_no_place_for_pictures(place: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    out, *more = words
    done = byol("extract", place / "bundle", place / "images", "--out", f"{tmp_path}/{out}", "--thumbnails", 16, *more)
    assert (done.code, "--thumbnails needs --engine local" in done.err) == (2, True)

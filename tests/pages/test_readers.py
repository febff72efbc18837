"""What `byol extract` writes, read by other libraries with the recipes of docs/extraction.md."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.documents import code
from tests.support.inputs.odd_images import encoded, picture
from tests.support.tiny import write_images, write_tiny_bundle

PARTS = "features/data"
DTYPES = ("float32", "float16")

Read = Callable[[Any], tuple[list[str], list[str | None]]]
IDS_AND_LABELS: dict[str, Read] = {
    "pandas": lambda table: (list(table["id"]), [None if pandas.isna(label) else label for label in table["label"]]),
    "polars": lambda table: (table["id"].to_list(), table["label"].to_list()),
    "duckdb": lambda table: (table["id"].tolist(), table["label"].tolist()),
    "pyarrow": lambda table: (table["id"].to_pylist(), table["label"].to_pylist()),
    "datasets": lambda table: (list(table["id"]), list(table["label"])),
    "daft": lambda table: (table["id"].to_pylist(), table["label"].to_pylist()),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hugging Face's library asks no server and keeps its copies here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each dtype a folder with features/ (in parts), features.parquet and features.npz of the same 13 images."""
    from PIL import Image

    root = tmp_path_factory.mktemp("readers")
    bundle = write_tiny_bundle(root / "bundle")
    images = write_images(root / "images", {"cat": 5, "zebra ß": 4})
    for number in range(4):  # outside any class
        (images / f"m{number}.png").write_bytes(encoded(Image.fromarray(picture(seed=number)), "PNG"))
    (images / "cat" / "002x.png").write_bytes(b"broken")
    for dtype in DTYPES:
        (root / dtype).mkdir()
        for out in ("features/", "features.parquet", "features.npz", "features.csv"):
            words = ("--out", f"{root / dtype}/{out}", "--dtype", dtype, "--part-images", 4, "--batch-size", 3)
            done = byol("extract", bundle, images, *words, "--device", "cpu", "--json")
            assert (done.code, json.loads(done.out)["images"]) == (0, 13), done.err
        assert (root / dtype / "features" / "_errors" / "errors.parquet").exists()
        assert len(list((root / dtype / PARTS).iterdir())) == 4
    return root


def recipe(reader: str, csv: bool = False) -> str:
    blocks = (block for block in code("extraction.md", "Reading") if ("read_csv" in block) == csv)
    (block,) = (block for block in blocks if block.startswith(f"import {reader}"))
    pytest.importorskip(reader)  # daft and lancedb are large, and no part of the development environment
    return block


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("files", [PARTS, "features.parquet"])
@pytest.mark.parametrize("reader", IDS_AND_LABELS)
def test_parquet(place: Path, monkeypatch: pytest.MonkeyPatch, reader: str, files: str, dtype: str) -> None:
    monkeypatch.chdir(place / dtype)
    ours = read_features(Path(files).parent if files == PARTS else files)
    read: dict[str, Any] = {}
    block = recipe(reader)
    exec(block if files == PARTS else block.replace(f"{PARTS}/*.parquet", files).replace(PARTS, files), read)
    ids, labels = IDS_AND_LABELS[reader](read["table"])
    assert (ids, labels) == (ours.ids, ours.labels)
    assert set(labels) == {"cat", "zebra ß", None}
    assert read["x"].dtype == ("float32" if reader in ("duckdb", "datasets") else dtype)
    assert read["x"].shape == ours.x.shape
    np.testing.assert_array_equal(read["x"].astype(np.float32), ours.x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_npz(place: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.chdir(place / dtype)
    parts, read = read_features("features"), dict[str, Any]()
    exec(recipe("numpy"), read)
    assert read["table"]["ids"].tolist() == parts.ids
    assert read["table"]["labels"].tolist() == [label or "" for label in parts.labels]
    assert read["x"].dtype == dtype
    np.testing.assert_allclose(read["x"].astype(np.float32), parts.x, rtol=2e-3 if dtype == "float16" else 1e-5)
    np.testing.assert_array_equal(read["x"].astype(np.float32), read_features("features.npz").x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_csv(place: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.chdir(place / dtype)
    parts, read = read_features("features"), dict[str, Any]()
    exec(recipe("pandas", csv=True), read)
    assert IDS_AND_LABELS["pandas"](read["table"]) == (parts.ids, parts.labels)
    np.testing.assert_array_equal(read["x"], read_features("features.csv").x)
    np.testing.assert_allclose(read["x"], parts.x, rtol=2e-3 if dtype == "float16" else 1e-5)


def test_lancedb(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "float32")
    read: dict[str, Any] = {}
    exec(recipe("lancedb"), read)
    ours = read_features("features")
    assert read["table"].to_arrow()["id"].to_pylist() == ours.ids
    assert read["nearest"][0]["id"] == ours.ids[0]


def of_polars(path: str) -> list[str]:
    import polars

    return list(polars.scan_parquet(path).collect()["id"])


def of_pyarrow(path: str) -> list[str]:
    import pyarrow.dataset

    return list(pyarrow.dataset.dataset(path).to_table()["id"].to_pylist())


def of_datasets(path: str) -> list[str]:
    datasets = pytest.importorskip("datasets")
    return list(datasets.load_dataset(path, split="train")["id"])


@pytest.mark.parametrize("read", [of_polars, of_pyarrow, of_datasets])
def test_the_folder_of_parts_by_other_doors(place: Path, read: Callable[[str], list[str]]) -> None:
    assert read(str(place / "float32" / PARTS)) == read_features(place / "float32" / "features").ids
    assert read_features(place / "float32" / PARTS).ids == read_features(place / "float32" / "features").ids


def test_the_whole_folder_is_not_mistaken_for_its_list_of_errors(place: Path) -> None:
    folder = place / "float32" / "features"
    assert list(pandas.read_parquet(folder)["id"]) == read_features(folder).ids
    assert list(folder.glob("*.parquet")) == []

"""Where the images of features are: of archives joined by `cat`, several images share an id."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.images.columns import Labels
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.serve import Encoder
from byol.serve.commands.neighbors import pictures
from byol.serve.extract.engine import collect
from byol.serve.features.places import places_of
from byol.serve.features.read import Features
from byol.serve.features.write import feature_file
from tests.support.command_line import byol
from tests.support.inputs.shards import write_tar
from tests.support.tiny import write_tiny_bundle

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def png(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def test_every_row_has_its_own_picture_whatever_its_id(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(RED), "1.png": b"no image"})
    write_tar(tmp_path / "b.tar", {"0.png": png(BLUE), "1.png": png(GREEN)})
    (tmp_path / "both.tar").write_bytes(b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "ab"))
    source = open_source(tmp_path / "both.tar")
    assert list(source.ids) == ["0.png", "1.png"] * 2
    features, *_ = collect(Encoder(write_tiny_bundle(tmp_path / "bundle"), "cpu"), source, lambda count: None)
    picture = pictures(source, places_of(features, source))
    assert [picture(row).getpixel((4, 4)) for row in range(3)] == [RED, BLUE, GREEN]


def test_a_row_of_features_is_not_the_unreadable_image_of_its_id(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": b"no image"})
    write_tar(tmp_path / "b.tar", {"0.png": png(BLUE)})
    (tmp_path / "both.tar").write_bytes(b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "ab"))
    source = open_source(tmp_path / "both.tar")
    assert pictures(source, places_of(of_ids("0.png"), source))(0).getpixel((4, 4)) == BLUE


def of_ids(*ids: str) -> Features:
    return Features("f.parquet", list(ids), [None] * len(ids), np.eye(len(ids), dtype=np.float32), None)


def test_rows_that_were_read_find_the_images_of_their_id_in_order() -> None:
    ids = ["a", "b", "a", "c", "a"]
    source = ImageSource("photos", ids, Labels.none(5), [], lambda *_: Image.new("RGB", (1, 1)))
    assert places_of(of_ids(*ids), source).tolist() == [0, 1, 2, 3, 4]
    assert places_of(of_ids("c", "a", "b", "a"), source).tolist() == [3, 0, 1, 2]
    assert places_of(of_ids("b", "b"), source).tolist() == [1, 1]
    own = np.array([4, 2])
    assert places_of(replace(of_ids("a", "a"), places=own), source) is own
    with pytest.raises(ValueError, match=r"1 images of f\.parquet are not in photos \(first: d\); name the images"):
        places_of(of_ids("a", "d"), source)


def test_no_query_is_its_own_neighbour_where_ids_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["a", "b", "a", "c"]
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for name, rows in (("bank", [0, 1, 2, 3]), ("one", [0, 2])):
        with feature_file(tmp_path / f"{name}.parquet", 3, "d" * 64) as write:
            write([ids[row] for row in rows], [None] * len(rows), x[rows])
    bank = ("--bank", tmp_path / "bank.parquet", "--exclude-self", "--device", "cpu", "--json")
    done = byol("neighbors", *bank, "--query", tmp_path / "bank.parquet", "--k", 9)
    found = [(row["id"], [near["id"] for near in row["neighbours"]]) for row in map(json.loads, done.out.splitlines())]
    assert [name for name, _ in found] == ids
    assert all(len(near) == 2 and name not in near for name, near in found)  # two are called `a`
    done = byol("neighbors", "--bank", tmp_path / "one.parquet", *bank[2:], "--query", tmp_path / "bank.parquet")
    assert (done.code, "leaves nothing of --bank" in done.err) == (2, True)
    monkeypatch.setattr("byol.serve.commands.neighbors.MOST_SHARED", 1)
    done = byol("neighbors", *bank, "--query", tmp_path / "one.parquet")
    assert (done.code, "2 of --bank are called a; give each an id of its own" in done.err) == (2, True)

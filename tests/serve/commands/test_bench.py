"""`byol bench`: every stage is measured and the figures fit together. How fast it is, is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byol.serve.commands.bench import BATCHES, SIZE, generated_pictures
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle


@pytest.mark.parametrize("given", [True, False])
def test_every_stage_is_measured(tmp_path: Path, given: bool) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    images = ("--images", write_images(tmp_path / "images", {"cat": 3})) if given else ()
    done = byol("bench", bundle, *images, "--seconds", 0.05, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert (values["device"], values["variant"], values["image_size"]) == ("cpu", "fp32", 16)
    rows = values["rows"]
    assert [row["batch"] for row in rows if row["stage"] == "session"] == list(BATCHES)
    assert {row["stage"] for row in rows} == {
        "decode, one thread", "preprocess, one thread", "session", "one image to features", "end to end, all threads"
    }  # fmt: skip
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] > 0


def test_people_get_a_table(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    done = byol("bench", bundle, "--seconds", 0.05, "--device", "cpu")
    assert done.out.splitlines()[0].split() == ["batch", "images/s", "p50", "ms", "p99", "ms"]
    assert len(done.out.splitlines()) == 1 + 2 + len(BATCHES) + 2


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    write_images(tmp_path / "images", {"cat": 3})
    broken = sorted((tmp_path / "images").rglob("*.png"))[1]
    broken.write_bytes(b"broken")
    done = byol("bench", bundle, "--images", tmp_path / "images", "--seconds", 0.05, "--device", "cpu")
    assert (done.code, f"cat/{broken.name} cannot be read" in done.err) == (1, True), done.err


def test_generated_pictures_are_jpegs_of_the_usual_size() -> None:
    source = generated_pictures()
    assert {source.open(i).size for i in range(len(source))} == {SIZE}
    assert len({source.open(i).tobytes() for i in range(len(source))}) == len(source)

"""What a walk leaves out without being asked: the folders of operating systems and network storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from byol.images.open import open_sections, open_source
from byol.images.source import Skipped
from byol.images.walk import NOT_YOURS, folded
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle

SYSTEMS = [
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "#recycle",
    "~snapshot",
    ".snapshot",
    "System Volume Information",
    "lost+found",
]


@pytest.mark.parametrize("name", [*SYSTEMS, "@eaDir", "@eadir", "#snapshot", "@Recycle"])
def test_folders_of_systems_hold_no_images(tmp_path: Path, name: str) -> None:
    images = write_images(tmp_path / "images", {"cat": 3, name: 2})
    write_images(images / "cat", {name: 2})
    source = open_source(images)
    assert list(source.ids) == ["cat/000.png", "cat/001.png", "cat/002.png"]
    hidden = name.startswith(".")
    first = min(name, f"cat/{name}")
    assert source.skipped == ([] if hidden else [Skipped(first, f"{NOT_YOURS}, like 1 more")])


def test_shards_in_them_are_none_either(tmp_path: Path) -> None:
    for name in ("a.tar", "#recycle/b.tar", "x/@eaDir/c.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="holds no images") as caught:
        open_source(tmp_path)
    assert "a.tar" in str(caught.value)
    assert "#recycle: a folder of the system's own" in str(caught.value)
    assert "b.tar" not in str(caught.value)


def test_thousands_of_them_are_one_line(tmp_path: Path) -> None:
    """In a run of several parts, too, and without hiding what else was left out."""
    images, many = tmp_path / "images", 40
    for number in range(many):
        write_images(images, {f"{number:03d}": 1})
        (images / f"{number:03d}" / "@eaDir").mkdir()
    (images / "039" / "z.heic").write_bytes(b"")
    sections = [section.source.skipped for section in open_sections(images, 10)]
    assert [len(skipped) for skipped in sections] == [1, 1, 1, 2]
    assert sections[0][0].path == "000/@eaDir"
    words = ("--out", f"{tmp_path}/features/", "--part-images", 10, "--device", "cpu")
    done = byol("extract", write_tiny_bundle(tmp_path / "bundle"), images, *words)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if "of the system's own" in line]
    assert lines == [f"  000/@eaDir: {NOT_YOURS}, like {many - 1} more"]
    assert "039/z.heic: this format is not supported" in done.err


def test_folding_changes_nothing_else() -> None:
    others = [Skipped("a.heic", "not supported"), Skipped("b", "a broken symbolic link")]
    one = Skipped("@eaDir", NOT_YOURS)
    assert folded(others) == others
    assert folded([one, *others]) == [one, *others]
    three = folded([others[0], *[Skipped(f"{n}/@eaDir", NOT_YOURS) for n in range(3)], others[1]])
    assert three == [others[0], Skipped("0/@eaDir", f"{NOT_YOURS}, like 2 more"), others[1]]
    assert folded([*three, one]) == [others[0], Skipped("0/@eaDir", f"{NOT_YOURS}, like 3 more"), others[1]]

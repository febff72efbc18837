"""Disk blocks are reserved before a file is mapped, whatever the file system can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from byol.files import space
from byol.files.space import reserve


@pytest.mark.parametrize("way", ["fallocate", "none", "refused"])
def test_reserved_files_have_their_blocks_and_their_content(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    if way == "none":
        monkeypatch.delattr(os, "posix_fallocate")
    elif way == "refused":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(space, "CHUNK", 1000)
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (300, 300))
    reserve(tmp_path / "a.npy")
    assert os.stat(tmp_path / "a.npy").st_blocks * 512 >= 90_000
    array[:] = 7
    array.flush()
    assert (np.load(tmp_path / "a.npy") == 7).all()


def test_a_full_disk_is_told_when_blocks_are_asked_for(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("fallocate", "written"):
        if way == "written":
            monkeypatch.delattr(os, "posix_fallocate")
        with open(disk / "sparse", "wb") as stream:
            stream.truncate(1 << 24)
        with pytest.raises(OSError, match="No space left"):
            reserve(disk / "sparse")
        (disk / "sparse").unlink()

"""Files of strangers that are small and claim or become large: memory stays within what the limits say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.images.open import open_source
from byol.images.surroundings import UnreadableImage
from tests.support.inputs import bombs
from tests.support.inputs.bombs import outcomes

MOST_MB = (
    300  # 64 MB may always be unpacked, and are held twice while they are; the rest is what is imported on the way
)

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")

RATIO = "may become .*; if you trust the file, set BYOL_MAX_RATIO"


@needs_proc
def test_parquet_bombs_among_images(tmp_path: Path) -> None:
    metadata = {"huggingface": "[" * (1 << 20)}
    named = pa.table({"image": pa.array([b"x"]), "label": pa.array([1])}).replace_schema_metadata(metadata)
    pq.write_table(named, tmp_path / "named.parquet")
    large = bombs.unpacking(tmp_path / "unpacking.parquet", "image")
    made: list[tuple[Path, str]] = [
        (bombs.references(tmp_path / "references.parquet", "image"), "unreadable: not an image"),
        (bombs.references(tmp_path / "references-label.parquet", "label"), "unreadable: not an image"),
        (large, f"refused: .*{RATIO}"),
        (bombs.unpacking(tmp_path / "unpacking-label.parquet", "label"), f"refused: .*{RATIO}"),
        (bombs.lying(tmp_path / "lying.parquet", large), f"unreadable: .*{RATIO}"),
        (bombs.prefixes(tmp_path / "prefixes.parquet", "image"), f"unreadable: .*{RATIO}"),
        (bombs.prefixes(tmp_path / "prefixes-label.parquet", "label"), f"refused: .*{RATIO}"),
        (bombs.claimed_rows(tmp_path / "rows.parquet", 10**12), "refused: .*claims 1,000,000,000,000 rows"),
        (
            bombs.claimed_rows(tmp_path / "fewer-rows.parquet", -1),
            "refused: .*or has a negative one",
        ),
        (
            bombs.claimed_rows(tmp_path / "no-rows.parquet", 10),
            "unreadable: row group 0 has 0 images for 10|unreadable: ",
        ),
        (bombs.deep_schema(tmp_path / "deep.parquet", 9000), "refused: .*more than 64 deep"),
        (bombs.deep_schema(tmp_path / "deeper.parquet", 200_000), "refused: .*cannot be read as a Parquet"),
        (bombs.claimed_columns(tmp_path / "columns.parquet", 900_000), "refused: .*cannot be read as a Parquet"),
        (bombs.claimed_rows(tmp_path / "histogram.parquet", 10, b"\x7c\x39\x46" + bytes(5)), "unreadable: "),
        (tmp_path / "named.parquet", "unreadable: not an image"),
    ]
    require_bounded("images", made)


def require_bounded(kind: str, made: list[tuple[Path, str]]) -> None:

    for (path, expected), (said, peak) in zip(made, outcomes(kind, [path for path, _ in made]), strict=True):
        assert re.match(expected, said), (path.name, said)
        assert peak < MOST_MB, (path.name, peak)


@needs_proc
def test_parquet_bombs_among_features(tmp_path: Path) -> None:
    made = [
        (bombs.references(tmp_path / "ids.parquet", "id"), "refused: .*rows need more memory"),
        (bombs.long_rows(tmp_path / "long.parquet"), f"refused: .*{RATIO}"),
        (bombs.claimed_rows(tmp_path / "rows.parquet", 10**12), "refused: .*claims 1,000,000,000,000 rows"),
        (bombs.deep_schema(tmp_path / "deep.parquet", 9000), "refused: "),
    ]
    require_bounded("features", made)


@needs_proc
@pytest.mark.parametrize("kind", ["images", "features", "checkpoint"])
def test_npz_bombs(tmp_path: Path, kind: str) -> None:
    name = "features" if kind == "features" else "images"
    zeros = (bombs.npy((256 * bombs.MB,), "'|u1'"), bytes(256 * bombs.MB))
    made = [
        (bombs.archive(tmp_path / "zeros.npz", {f"{name}.npy": b"".join(zeros)}), "refused: .*unpack to 268,435"),
        (bombs.overlapping(tmp_path / "overlapping.npz", name + "{}.npy"), "refused: .*overlaps another"),
        *(
            (bombs.archive(tmp_path / f"{number}.npz", {f"{name}.npy": content}), f"refused: .*{reason}")
            for number, (content, reason) in enumerate(
                [
                    (bombs.npy((10**12,), "'<f4'"), "cannot have 0 bytes"),
                    (bombs.npy((10**12,), "'<U0'"), "is of type <U0"),
                    (bombs.npy((-1,), "'<f4'", b"1234"), "cannot have 4 bytes"),
                    (bombs.npy((1,), "'|O'", b"12345678"), "Python objects"),
                    (bombs.npy((1,), "'>U1'", b"\x7f\xff\xff\xff"), "invalid characters"),
                    (bombs.npy((1,), "'<U1'", b"\x00\xd8\x00\x00"), "invalid characters"),
                    (bombs.npy((1,), "[('a', '<f4')]", b"1234"), "save text or numbers"),
                    (bombs.npy("(" * 5000, "'<f4'"), ""),
                    (bombs.npy((1,), "'<f4'", b"1234", more=" " * 20_000), "max_header_size|Header info"),
                ]
            )
        ),
    ]
    require_bounded(kind, made)


def test_row_groups_are_held_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    images = pa.array([noise.bytes(bombs.MB) for _ in range(24)])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=1)
    monkeypatch.setenv("BYOL_GROUPS_MB", "4")
    source = open_source(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    for row in range(24):
        with pytest.raises(UnreadableImage, match="not an image"):
            source.open(row)
    assert pa.total_allocated_bytes() - before < 12 * bombs.MB  # growing, PyArrow takes up to twice what it needs


MORE = r"holds more than tensors \({}\)"


@needs_proc
def test_checkpoint_bombs(tmp_path: Path) -> None:
    pickles = [
        (b"})" + b"q\0h\0\x86" * 40 + b"K\1s", MORE.format("a key that is neither text nor a number")),
        (b"])" + b"q\0h\0\x86" * 40 + b"a", "0$"),  # as a value they are never walked
        (b")" + b"\x85" * 1_000_000, "0$"),
        (b"}" + b"q\0" + bombs.text("model") + b"h\0s", "0$"),  # a container that holds itself
        (b"c__builtin__\nbytearray\n" + bombs.integer(10**12) + b"\x85R", MORE.format(".*bytearray")),
        (b"ctorch\nFloatTensor\n" + bombs.integer(10**12) + b"\x85R", MORE.format(".*FloatTensor")),
        (b"ctorch.storage\nUntypedStorage\n" + bombs.integer(10**12) + b"\x85R", MORE.format(".*UntypedStorage")),
        (b"X\xff\xff\xff\xff", "is damaged"),
        (b"B\xff\xff\xff\xff", "is damaged"),
        (b"\x8b\xff\xff\xff\x7f", "is damaged"),
        (b"c_codecs\nencode\n" + bombs.text("a") + bombs.text("bz2") + b"\x86R", MORE.format("text in 'bz2'")),
        (b"tttt", "is damaged"),
        (b"RRRR", "is damaged"),
        (b"h\7", "is damaged"),
        (bombs.tensor(10**12, [1], [1]), "does not hold the 4,000,000,000,000 bytes of storage 0"),
        (bombs.tensor(3, [1], [1]), "does not hold the 12 bytes of storage 0"),
        (bombs.tensor(2, [10**12], [1]), "reaches beyond its storage"),
        (bombs.tensor(2, [2], [10**12]), "reaches beyond its storage"),
        (bombs.tensor(2, [1], [1], offset=10**12), "reaches beyond its storage"),
        (bombs.tensor(2, [1], [1], offset=-1), "shape is not made of numbers"),
        (bombs.tensor(2, [-1], [1]), "shape is not made of numbers"),
        (bombs.tensor(2, [10**6, 10**6], [0, 0]), "more elements than a file of this size can hold"),
        (bombs.tensor(2, [2], [1]), "1$"),
    ]
    storages = {"0": bytes(8)}
    made = []
    for number, (content, expected) in enumerate(pickles):
        path = bombs.checkpoint(tmp_path / f"{number}.pth", content, storages)
        made.append((path, expected if expected.endswith("$") else f"refused.*{expected}"))
    zeros = {"a/data.pkl": bombs.START + b"}.", "a/data/0": bytes(256 * bombs.MB)}
    made += [
        (bombs.archive(tmp_path / "zeros.pth", zeros), "refused: .*unpack to 268,"),
        (bombs.overlapping(tmp_path / "overlapping.pth", "a/data/{}"), "refused: .*overlaps another"),
        (bombs.legacy(tmp_path / "legacy.pth", bombs.tensor(10**12, [1], [1])), "refused: .*does not hold the 4,000"),
        (bombs.legacy(tmp_path / "none.pth", b"}"), "0$"),
        (bombs.legacy(tmp_path / "key.pth", b"})K\1s"), f"refused: .*{MORE.format('a key .*')}"),
    ]
    require_bounded("checkpoint", made)

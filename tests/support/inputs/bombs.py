"""Files that strangers could send: small, but large once they are read; and what reading one takes, in a child."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

READ = {
    "images": "from byol.images.open import open_source; read = lambda path: images(open_source(path))",
    "features": "from byol.serve.features.read import read_features as read",
    "checkpoint": "from pathlib import Path; from byol.export.foreign.files import read_models; "
    "read = lambda path: len(read_models(Path(path)))",
}
CHILD = """
import json, resource, sys
from byol.images.surroundings import UnreadableImage

def images(source):
    for i in {0, len(source) - 1}:
        try:
            source.open(i)
        except UnreadableImage as error:
            return f"unreadable: {error}"
    return f"read {len(source)}"

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

READING
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from now
    before = peak()
    try:
        said = str(read(path))
    except (ValueError, OSError) as error:
        said = f"refused: {error}"
    print(json.dumps([said, peak() - before]), flush=True)
"""


def outcomes(kind: str, paths: Sequence[Path]) -> list[tuple[str, float]]:
    """What reading each file says, and the MB that it took at its highest. A crash is an error."""
    command = [sys.executable, "-c", CHILD.replace("READING", READ[kind]), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return [(said, mb) for said, mb in map(json.loads, done.stdout.splitlines())]


# ----------------------------------------------------------------------------------------------------- Parquet

MB = 1 << 20


def table(path: Path, columns: dict[str, pa.Array], **options: object) -> Path:
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table(columns), path, store_schema=False, row_group_size=rows, compression="zstd", **options)
    return path


def references(path: Path, column: str, rows: int = 20_000) -> Path:
    """One value of a MB, and a great many rows that refer to it: 20 GB in 500 bytes."""
    large = bytes(MB) if column == "image" else "x" * MB
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([large]))
    return table(path, {**plain(rows, column), column: one})


def unpacking(path: Path, column: str) -> Path:
    """Values that compress to nearly nothing: 256 MB in 9 KB."""
    large = pa.array([bytes(16 * MB)] * 16)
    large = large if column == "image" else large.cast(pa.string())
    return table(path, {**plain(16, column), column: large}, use_dictionary=False, data_page_size=512 * MB)


def prefixes(path: Path, column: str, rows: int = 500) -> Path:
    """Values that are each the one before: 500 MB in 2 KB, without a dictionary."""
    large = pa.array([bytes(MB) if column == "image" else "x" * MB] * rows)
    options = {"use_dictionary": False, "column_encoding": {column: "DELTA_BYTE_ARRAY"}}
    return table(path, {**plain(rows, column), column: large}, **options)


def long_rows(path: Path, values: int = 30_000_000) -> Path:
    """Features of one row: as many numbers as a few bytes can repeat."""
    features = pa.ListArray.from_arrays([0, values], pa.array(np.zeros(values, np.float32)))
    return table(path, {"id": pa.array(["a"]), "label": pa.array(["x"]), "features": features})


def plain(rows: int, column: str) -> dict[str, pa.Array]:
    """The other columns of a listing, or of features."""
    if column == "id":
        return {"label": pa.array(["x"] * rows), "features": pa.array([[1.0]] * rows)}
    return {name: pa.array([value] * rows) for name, value in (("image", b"x"), ("label", "x")) if name != column}


def lying(path: Path, source: Path) -> Path:
    """The same file, whose footer says that its large column is small."""
    content = source.read_bytes()
    group = pq.read_metadata(source).row_group(0)
    large = max(group.column(i).total_uncompressed_size for i in range(group.num_columns))
    true = signed(large)
    small = bytes([*([0x80 | 8] + [0x80] * (len(true) - 2)), 0])  # 4, in as many bytes
    assert true in content[-2000:]
    path.write_bytes(content[:-2000] + content[-2000:].replace(true, small))
    return path


def footer(path: Path, schema: bytes, rows: int = 0, groups: bytes = b"\x0c", more: bytes = b"") -> Path:
    """A file of nothing but a footer: list of schema elements, rows, list of row groups, further fields."""
    content = b"\x15" + signed(2) + b"\x19" + schema + b"\x16" + signed(rows) + b"\x19" + groups + more + b"\0"
    path.write_bytes(b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1")
    return path


IMAGES = b"\x2c" + b"\x48\6schema\x15\2\0" + b"\x15\x0c\x25\2\x18\5image\0"  # a root, and one optional column of bytes


def claimed_rows(path: Path, rows: int, more: bytes = b"") -> Path:
    """A row group of so many rows, and no bytes; `more` fields of its column."""
    facts = b"\x15\x0c\x19\x15\0\x19\x18\5image\x15\0\x16" + signed(rows) + b"\x16\0\x16\0\x26\x08" + more + b"\0"
    group = b"\x19\x1c\x26\x08\x1c" + facts + b"\0\x16\0\x16" + signed(rows) + b"\0"
    return footer(path, IMAGES, rows, b"\x1c" + group)


def deep_schema(path: Path, depth: int) -> Path:
    groups = b"\x35\2\x18\1g\x15\2\0" * depth
    return footer(path, b"\xfc" + unsigned(depth + 2) + b"\x48\6schema\x15\2\0" + groups + b"\x15\x0c\x25\2\x18\1x\0")


def claimed_columns(path: Path, count: int) -> Path:
    """A row group that says it has so many columns, and ends."""
    return footer(path, IMAGES, 0, b"\x1c\x19\xfc" + unsigned(count) + bytes(100))


def unsigned(value: int) -> bytes:
    """A number as Thrift's compact protocol has it."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + unsigned(rest) if rest else bytes([low])


def signed(value: int) -> bytes:
    return unsigned(value << 1 if value >= 0 else (-value << 1) - 1)


# -------------------------------------------------------------------------------------------------------- .npz


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def npy(shape: object, dtype: str, content: bytes = b"", more: str = "") -> bytes:
    """An `.npy` file that says anything."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, {more}}}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content


def overlapping(path: Path, name: str, count: int = 100) -> Path:
    """One entry of a zip file under many names: each is unpacked on its own."""
    archive(path, {name.format(0): npy((MB,), "'|u1'", bytes(MB))})
    with zipfile.ZipFile(path, "a") as file:
        [first] = file.infolist()
        for number in range(1, count):
            again = copy.copy(first)
            again.filename = name.format(number)
            file.filelist.append(again)
        file._didModify = True  # type: ignore[attr-defined]  # so that its directory is written
    return path


# -------------------------------------------------------------------------------------------------- checkpoints

START = b"\x80\2"  # protocol 2, as torch writes it
EMPTY = b"ccollections\nOrderedDict\n)R"


def checkpoint(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch saves it, with any pickle in it."""
    entries = {"data.pkl": START + pickled + b".", "version": b"3\n", "byteorder": b"little"}
    entries |= {f"data/{key}": content for key, content in (storages or {}).items()}
    return archive(path, {f"a/{name}": content for name, content in entries.items()}, zipfile.ZIP_STORED)


def legacy(path: Path, pickled: bytes) -> Path:
    """The same as torch before 1.6 did, without storages."""
    start = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + START + b"M\xe9\3." + START + b"}."
    path.write_bytes(start + START + pickled + b"." + START + b"].")
    return path


def tensor(elements: int, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> bytes:
    """The opcodes of a dictionary with one tensor `a` of storage `0`."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(elements) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (shape, strides))
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + sizes + b"\x89" + EMPTY + b"tR"
    return b"}" + text("a") + made + b"s"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

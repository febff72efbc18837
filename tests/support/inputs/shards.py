"""Small shards: pictures in `.tar` and Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.inputs.odd_images import encoded, picture

PIXELS = np.asarray


def png(seed: int) -> bytes:
    return encoded(Image.fromarray(picture(seed=seed)), "PNG")


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_table(path: Path, columns: dict[str, pa.Array], names: list[str] | None = None, rows: int = 4) -> Path:
    table = pa.table(columns)
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def image_structs(count: int, start: int = 0) -> pa.Array:
    return pa.array([{"bytes": png(start + i), "path": f"{i}.png"} for i in range(count)])

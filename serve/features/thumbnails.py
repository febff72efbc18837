"""Pictures beside features, as viewers of Parquet show them: Hugging Face's `Image`, struct<bytes, path>.

Legend: S the encoder's image size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

QUALITY = 80
FIELD = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
METADATA = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}


def thumbnail(pixels: np.ndarray, side: int) -> bytes:
    """What an encoder sees of an image, uint8 (S, S, 3), as WebP of at most `side` x `side` pixels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=2)
    return stream.getvalue()


def column(ids: Sequence[str], pictures: Sequence[bytes]) -> pa.Array:
    """The column `image` of some rows; without pictures, nulls."""
    contents = pa.array(pictures, pa.binary()) if pictures else pa.nulls(len(ids), pa.binary())
    parts = [contents, pa.array(ids, pa.string())]
    return pa.StructArray.from_arrays(parts, fields=list(FIELD.type))

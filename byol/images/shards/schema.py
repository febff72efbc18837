"""What the schema of a Parquet file says: which column holds images, and whether byol wrote it. Torch-free."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from byol.text import on_one_line

MOST_LISTED = 20  # columns that a message names

DIGEST_KEY = "bundle_sha256"  # in the metadata of results: what computed them

# The columns of features, of lists of errors, of classes and of duplicates: no images, and more of them with every
# command. Features may have pictures beside them, of what they were computed from.
RESULTS = {
    ("id", "label", "features"),
    ("path", "stage", "reason"),
    ("id", "label", "predicted", "probability", "probabilities"),
    ("id_a", "id_b", "cosine", "against"),
}
PICTURED = ("id", "label", "features", "image")


class Unusable(ValueError):
    """A file without readable images. The message is a reason without the file's name."""


def is_result(schema: Any) -> bool:
    """Whether byol wrote a table of this schema."""
    if tuple(schema.names) == PICTURED:
        return DIGEST_KEY.encode() in (schema.metadata or {})
    return tuple(schema.names) in RESULTS and image_column(schema) is None


def image_column(schema: Any) -> str | None:
    """The name of a schema's image column, None when there is none or no telling which."""
    able = [field.name for field in schema if _is_binary(field.type) or _has_bytes(field.type)]
    named = [name for name in able if name in ("image", "img")]
    return (named or able)[0] if len(named) == 1 or len(able) == 1 else None


def _has_bytes(kind: Any) -> bool:
    """Whether this is a struct with one field `bytes`, and it is binary."""
    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return place >= 0 and _is_binary(kind.field(place).type)


def _is_binary(kind: Any) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def image_path(schema: Any) -> str:
    """The path of the column of encoded images."""
    column = image_column(schema)
    if column is None:
        found = ", ".join(f"{field.name:.80} ({field.type!s:.80})" for field in list(schema)[:MOST_LISTED])
        more = f" and {len(schema) - MOST_LISTED} more" if len(schema) > MOST_LISTED else ""
        raise Unusable(
            "has no image column: it needs one called `image` of encoded images, binary or a struct with "
            f"a field `bytes`; it has {on_one_line(found)}{more}"
        )
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column

"""Classify images with a bundle's `classifier.onnx`, into a table.

Shapes: N images, B batch, C classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from byol.files.atomic import atomic_file, made_folder
from byol.files.places import behind_links
from byol.images.picture.pages import Several
from byol.images.source import ImageSource, Skipped
from byol.serve.encoder import ImageClassifier
from byol.serve.extract.engine import Advance, Extraction, Options, checked_batches, errors_of, require_images
from byol.serve.features.spreadsheet import cells, is_csv
from byol.serve.features.write import write_errors
from byol.serve.pipeline import Batch

Texts = Callable[[Iterable["str | None"]], pa.Array]


def classify(
    classifier: ImageClassifier, source: ImageSource, out: Path, options: Options, advance: Advance
) -> Extraction:
    """Write one row per readable image to `out`: Parquet (with all probabilities) or CSV.

    Columns `id`, `label` (the source's own, or null), `predicted`, `probability`; Parquet keeps names as they are, CSV
    makes them safe for spreadsheets (`byol.text.cell`). Skipped images are listed in `OUT.errors.parquet` beside it.
    Raises `ValueError`, leaving existing files as they were, when more are skipped than `options` allow or no image can
    be read.
    """
    start = time.perf_counter()
    images, several = 0, Several()
    skipped: list[Skipped] = []
    as_csv = is_csv(out)
    schema = _schema(classifier.classes, with_all=not as_csv)
    with made_folder(behind_links(out).parent), atomic_file(out) as temporary, open(temporary, "wb") as stream:
        with (pyarrow.csv.CSVWriter if as_csv else pq.ParquetWriter)(stream, schema) as writer:
            for _, batch in checked_batches(classifier, [source], options, advance):
                table = _table(source, batch, classifier.classes, cells if as_csv else _texts)
                writer.write_table(table.select(schema.names).cast(schema))
                images += len(batch.indices)
                skipped += batch.skipped
                several += Several.of(source.ids, batch.several)
        require_images(images, source, skipped)
        write_errors(errors_of(out), source.skipped, skipped)
    seconds = time.perf_counter() - start
    return Extraction(images, images, [*source.skipped, *skipped], seconds, several=several)


def _schema(classes: tuple[str, ...], with_all: bool) -> pa.Schema:
    texts = [pa.field(name, pa.string()) for name in ("id", "label", "predicted")]
    fields = [*texts, pa.field("probability", pa.float32())]
    if with_all:
        fields.append(pa.field("probabilities", pa.list_(pa.float32(), len(classes))))
    return pa.schema(fields, metadata={"classes": json.dumps(classes, ensure_ascii=False)})


def _texts(texts: Iterable[str | None]) -> pa.Array:
    """Texts as they are."""
    return pa.array(texts, pa.string())


def _table(source: ImageSource, batch: Batch, classes: tuple[str, ...], texts: Texts) -> pa.Table:
    best = batch.outputs.argmax(1)  # (B,)
    values = pa.array(np.ascontiguousarray(batch.outputs).reshape(-1))
    columns = {
        "id": texts([source.ids[i] for i in batch.indices]),
        "label": texts([source.labels[i] for i in batch.indices]),
        "predicted": texts([classes[i] for i in best]),
        "probability": pa.array(batch.outputs[np.arange(len(best)), best], pa.float32()),
        "probabilities": pa.FixedSizeListArray.from_arrays(values, len(classes)),
    }
    return pa.table(columns)

"""What a server serves: an encoder, perhaps a classifier, perhaps an index of neighbours."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from byol.machine import usable_cores
from byol.serve.encoder import Encoder, ImageClassifier
from byol.serve.evaluate.knn import Neighbours, unit_rows
from byol.serve.features.read import Features, read_features
from byol.serve.server.bounds import Bounds
from byol.serve.server.engine import Engine
from byol.serve.server.kserve import Model
from byol.serve.server.measures import Measures

ENCODER, CLASSIFIER = "encoder", "classifier"  # as in a repository of Triton's that `byol export --triton` writes
NEIGHBOURS = 8


class Service:
    """Opened once, before the first request. Attributes: `encoder` and `classifier` (`Engine`s; the latter or None).

    `models` describes them to clients. Raises `BundleError`, `DeviceError`, `ValueError`.
    """

    def __init__(
        self, bundle: Path, device: str, batch_size: int | None = None, variant: str = "fp32", index: Path | None = None
    ) -> None:
        self.bounds = Bounds()
        self.measures = Measures(lambda: self.bounds.waiting, lambda: self.bounds.held)
        self.opened = encoder = Encoder(bundle, device, batch_size, variant)
        head = encoder.manifest.classifier
        classifier = None if head is None else ImageClassifier(bundle, device, batch_size)
        self.index = None if index is None else Index(read_features(index), encoder)
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        shared = self._pool, self.bounds, self.measures
        self.encoder = Engine(ENCODER, encoder, *shared)
        self.classifier = None if classifier is None else Engine(CLASSIFIER, classifier, *shared)
        self.classes = [] if head is None else list(head.classes)
        size = encoder.image_size
        self.models = {ENCODER: Model(ENCODER, encoder.manifest.onnx.output, size, encoder.dim)}
        if classifier is not None:
            self.models[CLASSIFIER] = Model(CLASSIFIER, "probabilities", size, classifier.dim)

    def engine(self, name: str) -> Engine:
        """The engine of a model of `models`."""
        engine = self.encoder if name == ENCODER else self.classifier
        assert engine is not None
        return engine

    def close(self) -> None:
        """Stop the threads, after what they are doing."""
        self._pool.shutdown(cancel_futures=True)
        parts: list[Engine | Index | None] = [self.encoder, self.classifier, self.index]
        for part in parts:
            if part is not None:
                part.close()


class Index:
    """The images of a features file, nearest first. Raises `ValueError` for those of another encoder."""

    def __init__(self, bank: Features, encoder: Encoder) -> None:
        if bank.x.shape[1] != encoder.dim or (bank.bundle and bank.bundle != encoder.digest):
            raise ValueError(
                f"{bank.name} was not extracted with this bundle and variant; extract it again: "
                "byol extract BUNDLE IMAGES --out FEATURES"
            )
        self.name, self.is_named = bank.name, bank.bundle is not None  # whether it says which encoder computed it
        self._ids, self._labels = bank.ids, bank.labels
        self._search = Neighbours(unit_rows(bank.x), min(NEIGHBOURS, len(bank)), encoder.device, is_unit=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")  # one at a time: many do not add up

    async def nearest(self, features: np.ndarray) -> np.ndarray:
        """Cosine similarities and rows of the neighbours of features (N, D): float64 (N, 2, K), the nearest first."""
        return np.stack(await asyncio.get_running_loop().run_in_executor(self._thread, self._search, features), axis=1)

    def described(self, found: np.ndarray) -> list[dict[str, Any]]:
        """What `nearest` found, for an answer: id, label and similarity."""
        return [{"neighbors": [self._image(*one) for one in zip(*both, strict=True)]} for both in found.tolist()]

    def _image(self, similarity: float, row: float) -> dict[str, Any]:
        place = int(row)
        return {"id": self._ids[place], "label": self._labels[place], "similarity": round(similarity, 6)}

    def close(self) -> None:
        """Finish the search at hand."""
        self._thread.shutdown(cancel_futures=True)

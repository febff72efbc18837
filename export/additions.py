"""What a bundle can hold beside its fp32 encoder: fewer bits, pictures of any size, their accuracy.

Shapes: N images, S the encoder's image size, D features.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from PIL import Image

from byol.bundle.folder import Bundle, golden_names
from byol.bundle.manifest import ANY_SIZE, CLASSIFIER, ENCODER, VARIANTS, Parity
from byol.bundle.measured import Evaluation
from byol.bundle.model import Model, check_graph
from byol.console import note_skipped, progress
from byol.export.any_size import any_size_graph
from byol.export.parity import sample_images
from byol.export.precision import fp16_graph, int8_graph
from byol.images.decode import Preprocess, decode
from byol.images.location import Location, same_place
from byol.images.open import open_source
from byol.images.picture.budget import PIXELS
from byol.images.source import ImageSource, Skipped
from byol.images.surroundings import UnreadableImage
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.evaluate.baselines import Compared
from byol.serve.evaluate.knn import KNNClassifier
from byol.serve.evaluate.sets import Evaluation as Measured
from byol.serve.evaluate.sets import load_evaluation, load_opened, open_labelled
from byol.serve.features.read import is_features
from byol.serve.fuse import Layer, fuse
from byol.serve.parity import pass_gate, run_graph
from byol.text import printable

GOLDEN_IMAGES = 5
CALIBRATION_IMAGES = 320  # every fifth is held out, for the gate
LEAST_CALIBRATION_IMAGES = 20
CALIBRATION = f"{LEAST_CALIBRATION_IMAGES} to {CALIBRATION_IMAGES}"  # for people; of more, so many are taken
PICTURES = 16  # of the calibration images, those whose originals go through the graph for any size

# Heights and widths, in parts of S, of what the graph for any size must reproduce: larger, smaller, narrow, tiny.
SHAPES = ((1.5, 2.0), (3.0, 2.2), (0.5, 0.7), (1.0, 1.0), (6.0, 1.1), (0.9, 7.0), (4.5, 6.0))


@dataclass(frozen=True)
class Additions:
    """What to add. `calibrate`: images for int8's ranges; `eval_train`, `eval_test`: labelled, both or none.

    `baselines`: measure raw pixels and the untrained encoder on them, too.
    """

    precisions: tuple[str, ...] = ()
    any_size: bool = False
    calibrate: Location | None = None
    eval_train: Location | None = None
    eval_test: Location | None = None
    baselines: bool = False

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name not in VARIANTS or name == "fp32":
                raise ValueError(f"precision is {name!r}; fp32 is always included; add fp16 or int8")
        if "int8" in self.precisions and self.calibrate is None:
            raise ValueError(f"int8 needs calibration images; add --calibrate IMAGES ({CALIBRATION} typical ones)")
        if self.calibrate is not None and "int8" not in self.precisions and not self.any_size:
            raise ValueError("--calibrate needs --precision int8 or --any-size; add one, or leave it out")
        if (self.eval_train is None) != (self.eval_test is None):
            raise ValueError("--eval-train and --eval-test go together; give both or neither")
        if self.baselines and self.eval_train is None:
            raise ValueError("--baselines needs images to measure on; add --eval-train and --eval-test")

    @property
    def names(self) -> tuple[str, ...]:
        """What is added, for people."""
        return (*self.precisions, *(("any size",) if self.any_size else ()))

    def require(self) -> None:
        """Raise `ValueError` or `OSError` for images that will not do; before work that would be lost."""
        if self.calibrate is not None:
            source = open_source(self.calibrate)
            _require_enough(source.name, len(source))
        if self.eval_train is not None and self.eval_test is not None:
            features = next(filter(is_features, (self.eval_train, self.eval_test)), None)
            if features is not None:
                raise ValueError(
                    f"{printable(features)} holds features; give --eval-train and --eval-test the images, which every "
                    "graph of the bundle encodes for itself"
                )
            open_labelled(self.eval_train, self.eval_test)
            if same_place(self.eval_train, self.eval_test):
                raise ValueError(
                    "--eval-train and --eval-test are the same images: each would be its own nearest neighbour"
                )


@dataclass(frozen=True)
class Derived:
    """A further graph of a bundle: its bytes, and what manifest and golden file say of it."""

    model: bytes
    precision: str
    parity: Parity
    golden: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Calibration:
    """Preprocessed images uint8 (N, S, S, 3) to calibrate on and held out, and some originals uint8 (H, W, 3)."""

    fit: np.ndarray
    held: np.ndarray
    pictures: list[np.ndarray] = field(default_factory=list)


def derive(encoder: ModelProto, preprocess: Preprocess, golden: np.ndarray, wanted: Additions) -> dict[str, Derived]:
    """The further graphs by file name, each through its gate; `golden` are the bundle's golden inputs (N, S, S, 3).

    Raises `ValueError` when one is beyond its gate, or the calibration images do not do.
    """
    calibration = _read_calibration(wanted.calibrate, preprocess, wanted.any_size) if wanted.calibrate else None
    model, name = encoder.SerializeToString(deterministic=True), encoder.graph.input[0].name
    derived = {}
    for precision in VARIANTS:
        if precision not in wanted.precisions:
            continue
        file = VARIANTS[precision]
        if precision == "int8" and calibration:
            images = calibration.held
            proto = int8_graph(encoder, calibration.fit)
        else:
            images = sample_images(32, preprocess.crop, seed=1)
            proto = fp16_graph(encoder)
        data, batches = proto.SerializeToString(deterministic=True), _batches(images)
        parity = pass_gate(file, data, name, batches, run_graph(model, name, batches), ENCODER)
        outputs = run_graph(data, name, [golden])
        derived[file] = Derived(data, precision, parity, {golden_names(file)[1]: outputs})
    if wanted.any_size:
        pictures = calibration.pictures if calibration else []
        derived[ANY_SIZE] = _any_size(encoder, model, preprocess, pictures)
    return derived


def classifier(
    encoder: Model, layer: Layer, classes: tuple[str, ...], images: np.ndarray, features: np.ndarray
) -> Derived:
    """The encoder with a trained linear layer; its reference are torch's features (N, D) of images (N, S, S, 3).

    Raises `ValueError` when it is beyond its gate.
    """
    proto = onnx.load_model_from_string(encoder.graph)
    name, logits = proto.graph.input[0].name, layer(features)  # (N, C)
    fused = fuse(proto, layer, classes)
    check_graph(fused, encoder.weights)
    model = Model(fused.SerializeToString(deterministic=True), encoder.weights)
    parity = pass_gate(CLASSIFIER, model, name, [images], logits, "torch")
    return Derived(model.graph, "fp32", parity, {golden_names(CLASSIFIER)[1]: logits[:GOLDEN_IMAGES].copy()})


def _any_size(encoder: ModelProto, model: bytes, preprocess: Preprocess, pictures: list[np.ndarray]) -> Derived:
    """Against Pillow's resizing in front of the fp32 encoder, over generated pictures and given ones."""
    name = encoder.graph.input[0].name
    generated = [_picture(number, preprocess.crop, *shape) for number, shape in enumerate(SHAPES)]
    batches = [picture[None] for picture in (*generated, *pictures)]
    resized = np.stack([preprocess(Image.fromarray(batch[0])) for batch in batches])
    expected = run_graph(model, name, [resized])
    data = any_size_graph(encoder, preprocess).SerializeToString(deterministic=True)
    parity = pass_gate(ANY_SIZE, data, name, batches, expected, f"Pillow and {ENCODER}")
    inputs, outputs = golden_names(ANY_SIZE)
    return Derived(data, "fp32", parity, {inputs: batches[0], outputs: expected[:1]})


def _picture(seed: int, size: int, height: float, width: float) -> np.ndarray:
    """A smooth random picture, uint8 (height * size, width * size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    shape = max(1, round(width * size)), max(1, round(height * size))
    return np.asarray(Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC))


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 32] for start in range(0, len(images), 32)]


def _read_calibration(location: Location, preprocess: Preprocess, whole: bool) -> _Calibration:
    """Images of a location, evenly spread; `whole`: with some originals, too."""
    source = open_source(location)
    count = min(len(source), CALIBRATION_IMAGES)
    chosen = source.subset(np.linspace(0, len(source) - 1, count, dtype=int).tolist())
    images, readable, skipped = list[np.ndarray](), list[int](), list(source.skipped)
    for index, result in decode(chosen, preprocess, least_side=preprocess.least_side):
        if isinstance(result, UnreadableImage):
            skipped.append(Skipped(chosen.ids[index], str(result)))
        else:
            images.append(result)
            readable.append(index)
    note_skipped(skipped, of="the calibration images")
    _require_enough(source.name, len(images))
    held = np.arange(len(images)) % 5 == 4
    stacked = np.stack(images)
    step = max(1, count // PICTURES)
    rows = [row for row in readable if row % step == 0][:PICTURES] if whole else []
    return _Calibration(stacked[~held], stacked[held], _originals(chosen, rows, preprocess.least_side))


def _originals(source: ImageSource, rows: list[int], least_side: int) -> list[np.ndarray]:
    """Some pictures as they are, uint8 (H, W, 3), decoded once more: few are wanted of many that are large."""
    pictures = list[np.ndarray]()
    for row in rows:
        with PIXELS, suppress(UnreadableImage):  # it was readable a moment ago; others will do
            pictures.append(np.asarray(source.open(row, least_side)))
    return pictures


def _require_enough(name: str, images: int) -> None:
    least = LEAST_CALIBRATION_IMAGES
    if images < least:
        raise ValueError(f"{name} has {images} readable images; calibration needs at least {least}")


def evaluate_variants(bundle: Path, train: Location, test: Location, untrained: Path | None = None) -> Evaluation:
    """kNN top-1 of every precision variant in a bundle, train as the bank; with an `untrained` bundle also of that and
    of raw pixels. Raises `ValueError` for unlabelled sets.
    """
    top1: dict[str, float] = {}
    baselines: dict[str, float] | None = None
    held = Bundle.open(bundle).manifest.files
    for variant, file in VARIANTS.items():
        if file not in held:
            continue
        if untrained and not top1:
            encoder = Compared(bundle, "auto", untrained)
            data = encoder.split(load_opened(bundle, open_labelled(train, test), "auto", progress, encoder=encoder))
            baselines = {name: _knn_top1(other) for name, other in data.baselines.items()}
        else:
            data = load_evaluation(bundle, train, test, "auto", progress, variant)
        if not top1:  # the same images every time
            for skipped, option in zip(data.skipped, ("--eval-train", "--eval-test"), strict=True):
                note_skipped(skipped, of=option)
        top1[file] = _knn_top1(data)
    sizes = len(data.train), len(data.test)
    return Evaluation(*data.own_names, *sizes, KNN_K, KNN_TEMPERATURE, top1, baselines)


def _knn_top1(data: Measured) -> float:
    classifier = KNNClassifier(KNN_K, KNN_TEMPERATURE).fit(data.train.x, data.y_train)
    return classifier.score(data.test.x, data.y_test)

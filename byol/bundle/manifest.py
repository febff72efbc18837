"""The bundle's manifest: the schema, its checks, reading and writing. Torch-free; export and serving share it.

Anything not fully understood is refused: unknown keys, another preprocessing, a newer schema.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from byol.bundle.measured import Evaluation, Head
from byol.bundle.schema import build, check, plain, read_object
from byol.files.atomic import atomic_file
from byol.images.decode import JPEG_MARGIN, Preprocess
from byol.limits import LARGEST_SIZE

SCHEMA_VERSION = 1
MANIFEST, CHECKSUM = "manifest.json", "checksum"
ENCODER, WEIGHTS, GOLDEN, CARD = "encoder.onnx", "encoder.safetensors", "golden.safetensors", "README.md"
ENCODER_WEIGHTS = "encoder.onnx.data"  # only where they are too large for the graph
VARIANTS = {"fp32": ENCODER, "fp16": "encoder.fp16.onnx", "int8": "encoder.int8.onnx"}
ANY_SIZE, CLASSIFIER = "encoder.any-size.onnx", "classifier.onnx"
GRAPHS = {**{name: precision for precision, name in VARIANTS.items()}, ANY_SIZE: "fp32", CLASSIFIER: "fp32"}
FILES = {*GRAPHS, ENCODER_WEIGHTS, WEIGHTS, GOLDEN, CARD}  # everything a bundle may hold besides its manifest
MAX_BYTES = 1 << 20  # a manifest has a few kilobytes; anything huge is not one


@dataclass(frozen=True)
class Architecture:
    """How to rebuild the encoder: `library`'s model `name`, with the first layers that `stem` names.

    `img_size` is timm's keyword argument for models built for one size; null for all others.
    """

    library: str
    name: str
    stem: str
    img_size: int | None = None


@dataclass(frozen=True)
class PreprocessSpec:
    """The preprocessing contract. Only one is defined: `byol.images.Preprocess`; `mean` and `std` lie in the graph.

    `jpeg_margin`: at which scale JPEGs are decoded; null: whole.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = "bicubic"
    antialias: bool = True
    exif_orientation: str = "applied"
    color: str = "RGB"
    layout: str = "NHWC"
    dtype: str = "uint8"
    jpeg_margin: float | None = None

    def __post_init__(self) -> None:
        free = ("resize", "crop", "mean", "std", "jpeg_margin")
        legal = {f.name: f.default for f in fields(self) if f.name not in free}
        for name, value in legal.items():
            found = getattr(self, name)
            check(found == value, f"preprocess.{name} is {found!r}; this byol knows only {value!r}")
        fits = 1 <= self.crop <= self.resize <= 2 * LARGEST_SIZE and self.crop <= LARGEST_SIZE
        sizes = f"{self.crop}, {self.resize}"
        check(fits, f"preprocess needs 1 <= crop <= resize, crop at most {LARGEST_SIZE}, found {sizes}")
        known = self.jpeg_margin in (None, JPEG_MARGIN)
        check(known, f"preprocess.jpeg_margin is {self.jpeg_margin}; this byol knows only {JPEG_MARGIN}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            check(len(numbers) == 3, f"preprocess.{name} must hold 3 numbers, found {len(numbers)}")
        check(min(self.std) > 0, f"preprocess.std must be positive, found {list(self.std)}")

    def transform(self) -> Preprocess:
        """The function that does what this says."""
        return Preprocess(self.resize, self.crop, self.jpeg_margin)


@dataclass(frozen=True)
class Graph:
    """The interface of every `.onnx` file: opset, IR version, the names of its input and its output."""

    opset: int
    ir_version: int
    input: str = "images"
    output: str = "features"


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime was from the reference at export (see `byol.bundle.parity.compare_features`), and where.

    `reference` is "torch", or the file whose outputs stood for what is right; `torch` is its version where it ran.
    """

    max_relative_error: float
    min_cosine: float
    images: int
    batch_sizes: tuple[int, ...]
    provider: str
    onnxruntime: str
    reference: str
    torch: str | None = None

    def __post_init__(self) -> None:
        error, cosine = self.max_relative_error, self.min_cosine
        check(error >= 0, f"max_relative_error must not be negative, found {error}")
        check(-1.001 <= cosine <= 1.001, f"min_cosine must lie in -1 to 1, found {cosine}")
        check(self.images >= 1, f"images must be positive, found {self.images}")


@dataclass(frozen=True)
class FileEntry:
    """One file: SHA-256 (hexadecimal) and size in bytes; for `.onnx` files also precision and parity."""

    sha256: str
    size: int
    precision: str | None = None
    parity: Parity | None = None

    def __post_init__(self) -> None:
        check(bool(re.fullmatch("[0-9a-f]{64}", self.sha256)), f"sha256 must be 64 hex digits, found {self.sha256!r}")
        check(self.size >= 0, f"size must not be negative, found {self.size}")
        check((self.precision is None) == (self.parity is None), "precision and parity belong together")
        known = self.precision is None or self.precision in VARIANTS
        check(known, f"precision is {self.precision!r}; this byol knows {', '.join(VARIANTS)}")


@dataclass(frozen=True)
class Training:
    """Where the weights come from: data name, number of images, optimizer steps, epochs, digest of the settings.

    `init`: name and digest of the weights that training started from; None for random ones.
    """

    data: str
    images: int
    steps: int
    epochs: float
    config_sha256: str
    init: str | None = None

    def __str__(self) -> str:
        started = f", started from {self.init}" if self.init else ""
        return f"{self.data}, {self.images:,} images, {self.epochs:g} epochs, {self.steps:,} steps{started}"


@dataclass(frozen=True)
class Origin:
    """Where weights come from that were not trained here: toolkit, name and SHA-256 of its checkpoint file."""

    toolkit: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Finetuning:
    """How labels trained the encoder: `images` labelled ones of `data`, peak rate `lr`, `epochs`.

    `from_scratch`: from random weights, not from those of `training` or `origin`.
    """

    data: str
    images: int
    lr: float
    epochs: int
    from_scratch: bool


@dataclass(frozen=True)
class Manifest:
    """The whole manifest, checked: an instance that exists is valid. Raises `BundleError` naming the field.

    `untrained_seed`: what all weights were drawn from, where nothing trained them.
    """

    architecture: Architecture
    feature_dim: int
    image_size: int
    preprocess: PreprocessSpec
    onnx: Graph
    files: dict[str, FileEntry]
    training: Training | None
    byol_version: str
    origin: Origin | None = None
    evaluation: Evaluation | None = None
    classifier: Head | None = None
    finetuning: Finetuning | None = None
    untrained_seed: int | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_version(self.schema_version)
        check(self.feature_dim >= 1, f"feature_dim must be at least 1, found {self.feature_dim}")
        crop = self.preprocess.crop
        check(self.image_size == crop, f"image_size is {self.image_size}, but preprocess.crop is {crop}")
        built = self.architecture.img_size
        check(built in (None, crop), f"architecture.img_size is {built}, but image_size is {self.image_size}")
        for name, entry in self.files.items():
            _check_name(name)
            wanted = name.endswith(".onnx")
            check(wanted == (entry.parity is not None), f"files[{name!r}]: .onnx files, and only they, carry parity")
            known = not wanted or GRAPHS.get(name) == entry.precision
            check(known, f"files[{name!r}]: no graph of this name with precision {entry.precision} is defined")
        for name in (ENCODER, WEIGHTS, GOLDEN):
            check(name in self.files, f"files lists no {name}")
        both = (CLASSIFIER in self.files) == (self.classifier is not None)
        check(both, f"{CLASSIFIER} and the manifest's classifier belong together")
        trained = self.training or self.origin or self.finetuning
        check(
            self.untrained_seed is None or not trained, "untrained_seed is given, but also how the weights were trained"
        )
        for name in self.evaluation.top1 if self.evaluation else ():
            check(name in self.graphs, f"evaluation.top1 names {name!r}, which is not a graph of this bundle")

    @property
    def graphs(self) -> list[str]:
        """The names of the `.onnx` files, sorted."""
        return sorted(name for name in self.files if name.endswith(".onnx"))

    def to_json(self) -> str:
        """The text of `manifest.json`: sorted keys, indent 2, the same manifest always the same text."""
        return _text({**plain(self), CHECKSUM: self.checksum})

    @property
    def checksum(self) -> str:
        """SHA-256 of the text without the checksum: damage to the manifest is found as in any file."""
        return hashlib.sha256(_text(plain(self)).encode()).hexdigest()

    def write(self, folder: str | Path) -> None:
        """Write `manifest.json` into the bundle folder, whole or not at all, after checking that it reads back."""
        text = self.to_json()
        check(self.from_json(text) == self, "the manifest does not read back as itself")
        with atomic_file(Path(folder) / MANIFEST) as path:
            path.write_bytes(text.encode())

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read and check. Raises `BundleError`."""
        data = read_object(text)
        check("schema_version" in data, "it has no schema_version, so it is not a byol bundle's manifest")
        _check_version(data["schema_version"])  # first: a newer schema may differ in anything else
        check(CHECKSUM in data, f"it has no {CHECKSUM}: written by an older byol; export the bundle again")
        checksum = data.pop(CHECKSUM)
        manifest: Manifest = build(cls, data)
        check(
            checksum == manifest.checksum,
            f"its {CHECKSUM} does not match its content: it is damaged or was edited; export the bundle again",
        )
        return manifest


def graph_interface(manifest: Manifest, name: str) -> list[tuple[str, str, list[int | str]]]:
    """Name, type and shape without the batch axis of a graph's input and outputs, as ONNX Runtime spells them."""
    size = manifest.image_size
    picture: list[int | str] = ["height", "width", 3] if name == ANY_SIZE else [size, size, 3]
    outputs = {manifest.onnx.output: manifest.feature_dim}
    if name == CLASSIFIER and manifest.classifier:
        outputs = dict.fromkeys(("logits", "probabilities"), len(manifest.classifier.classes))
    ends: list[tuple[str, str, list[int | str]]] = [(manifest.onnx.input, "tensor(uint8)", picture)]
    return ends + [(output, "tensor(float)", [dim]) for output, dim in outputs.items()]


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _check_version(version: object) -> None:
    check(type(version) is int and version >= 1, f"schema_version must be a positive integer, found {version!r}")
    check(
        version == SCHEMA_VERSION,
        f"schema_version is {version}, this byol reads {SCHEMA_VERSION}; upgrade byol",
    )


def _check_name(name: str) -> None:
    """Plain names only: no folder, no drive, nothing hidden, nothing that leaves the bundle."""
    legal = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and not name.endswith(".")
    check(bool(legal) and name != MANIFEST, f"files names {name!r}; only plain file names of the bundle are allowed")

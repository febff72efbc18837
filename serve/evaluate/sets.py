"""The two sets of an evaluation, train and test: features from files, or of images through an encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from byol.bundle.folder import Bundle
from byol.bundle.measured import Head
from byol.images.labels import holds_splits, require_known, require_labels, require_short
from byol.images.location import Location, last_part
from byol.images.open import open_source
from byol.images.picture.pages import Several
from byol.images.source import ImageSource, Skipped
from byol.serve.encoder import Encoder
from byol.serve.extract.engine import Advance, collect
from byol.serve.features.read import Features, is_features, read_features
from byol.text import on_one_line

if TYPE_CHECKING:
    from byol.serve.evaluate.linear import LinearProbe

Progress = Callable[[str, int], AbstractContextManager[Advance]]  # (title, images) -> advance(count)
Sets = tuple[ImageSource | Features, ImageSource | Features]  # train and test, or bank and queries


@dataclass(frozen=True)
class Evaluation:
    """Train and test features of one encoder; `encoder` is None when nothing had to be encoded.

    `skipped`: the images of train and of test that could not be read; `sources`: the images of each, None for features
    that were read. `baselines`: the same images as something else sees them (`byol.serve.evaluate.baselines`);
    `several`: the images of both that are the first of several pictures.
    """

    train: Features
    test: Features
    skipped: tuple[list[Skipped], list[Skipped]]
    encoder: Encoder | None
    sources: tuple[ImageSource | None, ...] = (None, None)
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    several: Several = field(default_factory=Several)

    def head(self, probe: LinearProbe, top1: float, baselines: dict[str, float] | None = None) -> Head:
        """What a manifest says of a probe fitted and scored on these sets; `baselines`: top-1 by name."""
        classes, (train, test) = tuple(map(str, probe.classes_)), self.own_names
        return Head(classes, probe.l2_, train, len(self.train), test, len(self.test), top1, baselines)

    @property
    def own_names(self) -> tuple[str, str]:
        """The last parts of the names of train and test: all that a bundle may say of where data lie."""
        return on_one_line(last_part(self.train.name)), on_one_line(last_part(self.test.name))

    @property
    def one_set(self) -> bool:
        """Whether train and test are the same images, each to be compared with all the others."""
        return self.test is self.train

    @property
    def bank(self) -> int:
        """How many training images each test image is compared with: of one set, all but itself."""
        return len(self.train) - self.one_set

    @property
    def labelled(self) -> bool:
        """Whether every image of both sets has a label, so that accuracies can be computed."""
        return all(label is not None for features in (self.train, self.test) for label in features.labels)

    @property
    def y_train(self) -> np.ndarray:
        """The training labels (N,)."""
        return np.array(self.train.labels, np.str_)

    @property
    def y_test(self) -> np.ndarray:
        """The test labels (N,)."""
        return np.array(self.test.labels, np.str_)


def needs_bundle(*locations: Location) -> Location | None:
    """The first location that holds images, not features; None when there is none."""
    return next((location for location in locations if not is_features(location)), None)


def nameless(sets: Sets) -> list[str]:
    """The names of features that do not say which encoder computed them: CSV never does, other tools do not."""
    return list(dict.fromkeys(opened.name for opened in sets if isinstance(opened, Features) and not opened.bundle))


def load_evaluation(
    bundle: Path | None, train: Location, test: Location, device: str, progress: Progress, variant: str = "fp32"
) -> Evaluation:
    """Read or compute both sets, checked before the first image is encoded.

    Raises `ValueError` for unlabelled images, a single training class, test classes that training lacks, and
    different encoders.
    """
    return load_opened(bundle, open_labelled(train, test), device, progress, variant)


def open_sets(bank: Location, query: Location | None) -> Sets:
    """The listings of a bank and of queries, which need no labels; without `query` the bank is both."""
    opened = _open(bank)
    return opened, opened if query is None else _open(query)


def load_sets(bundle: Path | None, sets: Sets, device: str, progress: Progress) -> Evaluation:
    """The features of what `open_sets` opened: `train` is the bank, `test` the queries. Raises `ValueError`."""
    return _load(bundle, sets, device, progress, "fp32")


def open_either(train: Location, test: Location | None) -> Sets:
    """`open_sets` where one of the two has no label at all, else `open_labelled`. Raises `ValueError`."""
    sets = open_sets(train, test)
    return _labelled(sets) if _have_labels(sets) else sets


def load_either(
    bundle: Path | None, sets: Sets, device: str, progress: Progress, encoder: Encoder | None = None
) -> Evaluation:
    """The features of what `open_either` opened, by the bundle's encoder, or this one of it. Raises `ValueError`."""
    load = load_opened if _have_labels(sets) else _load
    return load(bundle, sets, device, progress, "fp32", encoder)


def open_labelled(train: Location, test: Location | None) -> Sets:
    """The listings of a train and a test set, checked; nothing is encoded yet. Raises `ValueError`.

    Without `test` it is the train set itself, encoded once.
    """
    return _labelled(open_sets(train, test))


def _have_labels(sets: Sets) -> bool:
    return all(any(label is not None for label in opened.labels) for opened in sets)


def _labelled(sets: Sets) -> Sets:
    for opened, least_classes in zip(sets, (2, 1), strict=True):
        _require_labels(opened, least_classes)
    require_known(*sets)
    return sets


def load_opened(
    bundle: Path | None,
    sets: Sets,
    device: str,
    progress: Progress,
    variant: str = "fp32",
    encoder: Encoder | None = None,
) -> Evaluation:
    """The features of what `open_labelled` opened, by the bundle's encoder, or this one of it. Raises `ValueError`."""
    loaded = _load(bundle, sets, device, progress, variant, encoder)
    try:
        require_known(loaded.train, loaded.test)
    except ValueError as error:  # the listing had it: all images of a class are unreadable
        unread = [*loaded.skipped[0], *loaded.skipped[1]]
        raise ValueError(
            f"{error}; {len(unread)} images could not be read (first: {unread[0].path}: {unread[0].reason})"
        ) from error
    return loaded


def _load(
    bundle: Path | None, sets: Sets, device: str, progress: Progress, variant: str, encoder: Encoder | None = None
) -> Evaluation:
    digest = Bundle.open(bundle).digest if bundle else None
    for opened in sets:
        if isinstance(opened, Features):
            _require_same(digest, opened)
    encode = bundle is not None and any(isinstance(opened, ImageSource) for opened in sets)
    if encoder is None and bundle and encode:
        encoder = Encoder(bundle, device, variant=variant)
    train, bad_train, stacks = _features(sets[0], encoder, progress)
    test, bad_test, more = (train, [], Several()) if sets[1] is sets[0] else _features(sets[1], encoder, progress)
    _require_one_encoder(train, test)
    sources = tuple(opened if isinstance(opened, ImageSource) else None for opened in sets)
    return Evaluation(train, test, (bad_train, bad_test), encoder, sources, several=stacks + more)


def _open(location: Location) -> ImageSource | Features:
    return read_features(location) if is_features(location) else open_source(location)


def _require_labels(opened: ImageSource | Features, least_classes: int) -> None:
    if isinstance(opened, ImageSource):
        require_labels(opened, least_classes)
        return
    features = opened
    bare = [i for i, label in zip(features.ids, features.labels, strict=True) if label is None]
    if bare:
        raise ValueError(
            f"{features.name}: {len(bare)} of {len(features)} rows have no label (first: {bare[0]})"
            f"{features.why and f', as {features.why}'}; extract again from a folder with one sub-folder per class"
        )
    classes = sorted({label for label in features.labels if label is not None})
    if holds_splits(features.ids, classes):
        raise ValueError(
            f"{features.name}: {' and '.join(classes)} are parts of a data set, not classes; extract each of these "
            "folders by itself"
        )
    if len(classes) < least_classes:
        raise ValueError(
            f"{features.name} has only one class ({features.labels[0]}), but two or more are needed; extract the "
            "parent folder, with one sub-folder per class"
        )
    require_short((label for label in features.labels if label is not None), features.name)


def _features(
    opened: ImageSource | Features, encoder: Encoder | None, progress: Progress
) -> tuple[Features, list[Skipped], Several]:
    """The features, the images that could not be read, and those that are the first of several pictures."""
    if isinstance(opened, Features):
        return opened, [], Several()
    if encoder is None:
        raise ValueError(f"{opened.name} holds images; name the bundle that encodes them")
    with progress(f"encode {opened.name}", len(opened)) as advance:
        return collect(encoder, opened, advance)


def _require_same(digest: str | None, features: Features) -> None:
    if digest and features.bundle and features.bundle != digest:
        made_by, _, graph = features.bundle.partition("/")
        if made_by == digest:
            raise ValueError(
                f"{features.name} was extracted with {graph} of this bundle, whose features differ from those of its "
                "fp32 encoder; give the images, or to `knn`, `linear` and `neighbors` features of one variant without "
                "BUNDLE"
            )
        raise ValueError(
            f"{features.name} was extracted with another bundle (sha256 {features.bundle[:12]}, not "
            f"{digest[:12]}); extract it again"
        )


def _require_one_encoder(train: Features, test: Features) -> None:
    if train.x.shape[1] != test.x.shape[1]:
        raise ValueError(
            f"{train.name} has {train.x.shape[1]} features per row, {test.name} has {test.x.shape[1]}; "
            "extract both with the same bundle"
        )
    if train.bundle and test.bundle and train.bundle != test.bundle:
        raise ValueError(
            f"{train.name} and {test.name} were extracted with different bundles "
            f"(sha256 {train.bundle[:12]} and {test.bundle[:12]}); extract both with the same one"
        )

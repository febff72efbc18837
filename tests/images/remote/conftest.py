"""A web server with the images of `place`, and servers that are asked again at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from byol.images.remote import faults
from tests.support.web.file_server import Web


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.01,))


@pytest.fixture
def png(place: Path) -> bytes:
    return (place / "images" / "dog" / "000.png").read_bytes()


@pytest.fixture
def web(place: Path) -> Iterator[Web]:
    """The images under /images/."""
    images = sorted((place / "images").rglob("*.png"))
    with Web({f"/{image.relative_to(place).as_posix()}": image.read_bytes() for image in images}) as running:
        yield running

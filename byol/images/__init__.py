"""Images and their labels, from any location to RGB pixels. Torch-free; training and serving build on it."""

from typing import TYPE_CHECKING

from byol.doors import lazy

if TYPE_CHECKING:
    from byol.images.decode import Preprocess
    from byol.images.open import open_source
    from byol.images.picture.read import read_image
    from byol.images.surroundings import UnreadableImage

__all__ = ["Preprocess", "UnreadableImage", "open_source", "read_image"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Preprocess": "byol.images.decode",
        "UnreadableImage": "byol.images.surroundings",
        "open_source": "byol.images.open",
        "read_image": "byol.images.picture.read",
    },
)

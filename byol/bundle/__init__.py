"""The bundle: the folder that export writes and serving reads. Torch-free."""

from typing import TYPE_CHECKING

from byol.doors import lazy

if TYPE_CHECKING:
    from byol.bundle.folder import Bundle
    from byol.bundle.schema import BundleError

__all__ = ["Bundle", "BundleError"]

__getattr__, __dir__ = lazy(__name__, {"Bundle": "byol.bundle.folder", "BundleError": "byol.bundle.schema"})

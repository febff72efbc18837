"""How much a server takes upon itself: images in its queue, bytes in memory, pixels of a request."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from byol.images.surroundings import UnreadableImage
from byol.limits import limit
from byol.serve.server.refusals import Refused

LONGEST_WAIT = 60  # seconds that Retry-After asks for at most


class Bounds:
    """Counts what is accepted, in the event loop's thread. `draining`: nothing more is.

    The limits are read once, at the start, so that a wrong one ends the command rather than requests.
    """

    def __init__(self) -> None:
        self.request_bytes = limit("BYOL_SERVER_REQUEST_MB") << 20
        self.memory_bytes = limit("BYOL_SERVER_MEMORY_MB") << 20
        self.images, self.queue = limit("BYOL_SERVER_IMAGES"), limit("BYOL_SERVER_QUEUE")
        self.pixels, self.seconds = limit("BYOL_SERVER_PIXELS"), limit("BYOL_SERVER_SECONDS")
        self.waiting, self.held = 0, 0
        self.draining = False
        self.seconds_per_image = 0.0  # as lately measured

    def require_room(self, images: int = 1) -> None:
        """Raise a `Refused` with 429 where the queue is full. A request alone is never too large for the queue."""
        if self.waiting and self.waiting + images > self.queue:
            raise self._busy(f"{self.waiting} images are waiting, as many as this server takes; try again later")

    @contextmanager
    def places(self, images: int) -> Iterator[None]:
        """Places in the queue, until the block ends. Raises `Refused` for none, too many, or a full queue."""
        if images > self.images:
            raise Refused(413, f"{images} images are more than the {self.images} that one request may have")
        self.require_room(images)
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images

    def hold(self, count: int) -> None:
        """Take memory for bytes of a request. Raises a `Refused` with 429 where there is none left."""
        if self.held and self.held + count > self.memory_bytes:
            raise self._busy("the requests at hand take all the memory that this server gives them; try again later")
        self.held += count

    def _busy(self, message: str) -> Refused:
        wait = min(LONGEST_WAIT, max(1, math.ceil(self.waiting * self.seconds_per_image)))
        return Refused(429, message, code="rate_limit_exceeded", retry=wait)

    def computed(self, images: int, seconds: float) -> None:
        """Learn how long an image takes, for Retry-After."""
        self.seconds_per_image += 0.2 * (seconds / images - self.seconds_per_image)


class TooManyPixels(UnreadableImage):
    """The pictures of a request have more pixels together than one request may have."""


class Allowance:
    """The pixels that the pictures of one request may have together; any thread may take of them."""

    def __init__(self, pixels: int) -> None:
        self._most = self._left = pixels
        self._lock = threading.Lock()

    def take(self, width: int, height: int) -> None:
        """Called before a picture is decoded. Raises `TooManyPixels`."""
        with self._lock:
            self._left -= width * height
            if self._left < 0:
                raise TooManyPixels(f"the pictures have more than {self._most:,} pixels, the most of one request")

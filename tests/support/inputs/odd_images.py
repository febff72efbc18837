"""Image files as they come in the wild: odd ones that can be read, and bad ones that cannot."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int = 24, height: int = 20, seed: int = 0) -> np.ndarray:
    """A smooth colour picture, uint8 (height, width, 3): JPEG keeps it within a few grey levels."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(x / 7 + phase[c]) + np.cos(y / 5 + phase[c]) for c in range(3)]
    return np.stack([(127 + 60 * wave).astype(np.uint8) for wave in waves], axis=2)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def odd_images() -> dict[str, bytes]:
    """File name to content: unusual, but every one is a picture."""
    rgb = Image.fromarray(picture())
    palette = rgb.quantize(16)
    palette.info["transparency"] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to show
    sixteen = (picture()[:, :, 0].astype(np.uint16)) * 257
    return {
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG", quality=95),
        "exif.jpg": encoded(rgb, "JPEG", exif=exif, quality=95),
        "grey.jpg": encoded(rgb.convert("L"), "JPEG", quality=95),
        "one.png": encoded(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=0),
        "png-named.jpg": encoded(rgb, "PNG"),
        "rgba.png": encoded(rgb.convert("RGBA"), "PNG"),
        "sixteen.png": encoded(Image.fromarray(sixteen), "PNG"),
        "tall.png": encoded(Image.fromarray(picture(1, 700)), "PNG"),
        "wide.png": encoded(Image.fromarray(picture(700, 1)), "PNG"),
    }


def odd_photographs() -> dict[str, bytes]:
    """Photographs that are turned by EXIF which has other tags that Pillow cannot write again, or is no EXIF at all."""
    rgb, block = Image.fromarray(picture(60, 40)), b"Exif\0\0II*\0\x08\0\0\0\3\0"
    tags = struct.pack("<HHII", 0x112, 3, 1, 6), struct.pack("<HHII", 0x11A, 2, 4, 0x646261)
    texts = struct.pack("<HHII", 0x128, 1, 1, 2), struct.pack("<HHII", 0x128, 4, 1, 65_538)
    files = {f"odd-{n}.jpg": block + b"".join(tags) + text + bytes(4) for n, text in enumerate(texts)}
    files["no-exif.jpg"] = b"Exif\0\0no"
    return {name: encoded(rgb, "JPEG", exif=exif, quality=95) for name, exif in files.items()}


def stacks(folder: Path) -> Path:
    """Add three files of several pictures to the folders `cat` and `dog`."""
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    for name, kind in (("cat/a.gif", "GIF"), ("cat/b.tif", "TIFF"), ("dog/c.png", "PNG")):
        (folder / name).write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    return folder


def bad_images() -> dict[str, bytes]:
    """File name to content: none can be read."""
    rgb = Image.fromarray(picture(64, 64))
    jpeg, png = encoded(rgb, "JPEG", quality=95), encoded(rgb, "PNG")
    return {
        "bomb.png": bomb(),
        "empty.jpg": b"",
        "float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "half.png": png[: len(png) // 2],
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "text.png": b"<html>404 not found</html>",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
    }


def bomb(side: int = 30_000) -> bytes:
    """A PNG of 900 million pixels in a hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_unreadable(folder: Path) -> dict[str, str]:
    """Files that the system refuses: name to a word of the reason. Which are possible depends on the system."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}

    def attempt(name: str, word: str, make: Callable[[], object]) -> None:
        try:
            make()
        except (OSError, NotImplementedError):
            return
        made[name] = word

    attempt("dangling.png", "No such file", lambda: (folder / "dangling.png").symlink_to("nowhere.png"))
    attempt("self.png", "symbolic links", lambda: (folder / "self.png").symlink_to("self.png"))
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root reads everything
        closed = folder / "closed.png"
        closed.write_bytes(encoded(Image.new("RGB", (4, 4)), "PNG"))
        closed.chmod(0)
        made["closed.png"] = "Permission denied"
    return made


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def exif_block(*tags: tuple[int, int, int, int], order: str = "<") -> bytes:
    """Tags (number, type, count, value) as a camera may write them."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(order + "HHI", *tag[:3])
        + (struct.pack(order + "HH", tag[3], 0) if tag[1] == 3 else struct.pack(order + "I", tag[3]))
        for tag in tags
    )
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)

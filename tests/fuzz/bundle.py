"""Spoilt bundles and lists: a manifest with changed values, a golden file with a changed header, lines of a list."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byol.bundle.folder import Bundle, describe_file
from byol.bundle.manifest import CHECKSUM, GOLDEN, MANIFEST, Manifest
from byol.images.open import open_source
from byol.serve.proof import verify
from tests.fuzz._tries import tries
from tests.support.tiny import write_images, write_tiny_bundle

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5, "", "x" * 100_000),
    *("\x1b[31m", "\u202e", "../x", "/etc/passwd", "NUL", [], {}, [[]], {"": {}}, [None] * 1000),
)
LINES = (
    *(b"file:///etc/passwd", b"reference://a.png::file:///x", b"simplecache::s3://a/b", b"zip://a::b", b"memory://a"),
    *(b"://", b"http://", b"s3://", b"::", b" ", b"~", b"%00", b"*", b"[", b"'a'", b"$HOME/a.png", b"`id`.png"),
    *(b"/dev/zero", b"/proc/self/mem", b"a\0b", b"\xff\xfe", b"\xef\xbb\xbfa", b"x" * 10_000, b"../" * 3000),
)


def run(seconds: float = 0.0, seed: int | None = None, most: int | None = None) -> Counter[str]:
    """Raise `AssertionError` when a spoilt input gets anything but a refusal in one line."""
    seed = random.randrange(1 << 32) if seed is None else seed
    generator = random.Random(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        write_images(Path(folder), {"cat": 2})
        kinds = [spoil_manifest, spoil_text, spoil_golden, spoil_list]
        for _ in tries(seconds, most):
            kind = generator.choice(kinds)
            state = generator.getstate()
            try:
                outcomes[kind(bundle, generator)] += 1
            except AssertionError:
                raise
            except Exception as error:
                generator.setstate(state)
                raise AssertionError(
                    f"seed {seed}, {kind.__name__}: {type(error).__name__}: {str(error)[:300]}"
                ) from error
    return outcomes


def judged(call: Callable[[], Any]) -> str:
    """What is spoilt is refused as a user reads it, or harmless: "refused" or "read"."""
    try:
        call()
    except (ValueError, OSError) as error:
        said = str(error)
        assert 0 < len(said) < 5000, f"an error of {len(said)} characters: {said[:300]}"
        return "refused"
    return "read"


def spoil_manifest(bundle: Path, generator: random.Random) -> str:
    """Another value at one place, with the checksum that then belongs to it."""
    text = (bundle / MANIFEST).read_bytes()
    values = json.loads(text)
    place: Any = values
    while True:
        key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or generator.random() < 0.2:
            break
        place = place[key]
    if isinstance(place, dict) and generator.random() < 0.2:
        place[generator.choice(["", "x", "\n", key + "x"])] = place.pop(key)
    else:
        place[key] = generator.choice(VALUES)
    values.pop(CHECKSUM, None)
    return _verified(bundle, json.dumps(values), text)


def spoil_text(bundle: Path, generator: random.Random) -> str:
    """A few bytes changed, cut out or repeated."""
    text = (bundle / MANIFEST).read_bytes()
    spoilt = bytearray(text)
    for _ in range(generator.randrange(1, 4)):
        start, size = generator.randrange(len(spoilt)), generator.randrange(1, 40)
        spoilt[start : start + size] = generator.choice(
            [
                b"",
                b"[" * 5000,
                b'"',
                b"\\ud800",
                b"\xff",
                bytes([generator.randrange(256)]),
                spoilt[start : start + size] * 3,
            ]
        )
    (bundle / MANIFEST).write_bytes(spoilt)
    try:
        return judged(lambda: verify(bundle))
    finally:
        (bundle / MANIFEST).write_bytes(text)


def _verified(bundle: Path, spoilt: str, text: bytes) -> str:
    """Read a manifest whose checksum fits, so that what is spoilt is judged itself."""
    try:
        (bundle / MANIFEST).write_text(_with_checksum(spoilt))
        return judged(lambda: verify(bundle))
    finally:
        (bundle / MANIFEST).write_bytes(text)


def _with_checksum(text: str) -> str:
    values = json.loads(text)
    try:
        from byol.bundle.schema import build

        values[CHECKSUM] = build(Manifest, values).checksum
    except (ValueError, OSError):
        values[CHECKSUM] = "0" * 64
    return json.dumps(values)


def spoil_golden(bundle: Path, generator: random.Random) -> str:
    """A changed header of the golden file, hashed as it is: then its content is what must be judged."""
    text, content = (bundle / MANIFEST).read_bytes(), (bundle / GOLDEN).read_bytes()
    spoilt = bytearray(content)
    for _ in range(generator.randrange(1, 5)):
        spoilt[generator.randrange(min(400, len(spoilt)))] = generator.choice([0, 34, 48, 57, 91, 93, 123, 125, 255])
    if generator.random() < 0.3:
        spoilt[:8] = generator.choice([0, 1, 8, 1 << 20, 1 << 40, (1 << 64) - 1]).to_bytes(8, "little")
    try:
        (bundle / GOLDEN).write_bytes(spoilt)
        manifest = Bundle.open(bundle).manifest
        manifest.files[GOLDEN] = describe_file(bundle / GOLDEN)
        manifest.write(bundle)
        return judged(lambda: verify(bundle))
    finally:
        (bundle / GOLDEN).write_bytes(content)
        (bundle / MANIFEST).write_bytes(text)


def spoil_list(bundle: Path, generator: random.Random) -> str:
    """Lines that lead elsewhere: each is read as an image or refused; none is run, and no other line moves."""
    good = os.fsencode(bundle.parent / "cat" / "000.png")
    lines = [generator.choice([good, *LINES]) for _ in range(generator.randrange(1, 6))]
    path = bundle.parent / "list.txt"
    path.write_bytes(b"\n".join(lines))

    def read() -> None:
        source = open_source(path)
        for row in range(len(source)):
            judged(lambda row=row: source.open(row))  # type: ignore[misc]

    return judged(read)

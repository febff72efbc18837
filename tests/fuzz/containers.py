"""Containers of images, features and weights, changed at random: each is read, or refused for a reason, never more.

`run` divides its time among the kinds. A kind has a process of its own, with little memory, as a fault may end it. What
it printed last makes the fault again: `python -m tests.fuzz.containers KIND SEED SECONDS [FILES]`.
"""

from __future__ import annotations

import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from byol.images.surroundings import UnreadableImage
from tests.fuzz._tries import tries
from tests.support.inputs import bombs
from tests.support.inputs.odd_images import encoded, picture

KINDS = ("tar", "parquet", "features", "npz", "safetensors", "pth")
MEMORY = 6 << 30  # bytes of addresses; a child that imports torch takes most of them
MOST_MB = 600  # that reading one may take at its highest
NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def run(seconds: float = 0.0, seed: int | None = None, most: int | None = None) -> Counter[str]:
    """Raise `AssertionError` with the seed when reading a changed file ends in anything but a reason."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    outcomes: Counter[str] = Counter()
    for kind in KINDS:
        share = seconds / len(KINDS)
        command = [sys.executable, "-m", "tests.fuzz.containers", kind, str(seed), str(share)]
        command += [] if most is None else [str(-(-most // len(KINDS)))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=share + 120)
        assert done.returncode == 0, f"{' '.join(command[1:])}: status {done.returncode}\n{done.stderr[-3000:]}"
        print(f"{kind}: seed {seed}: {done.stdout.strip()}")
        outcomes += json.loads(done.stdout)
    return outcomes


def fuzz(kind: str, seed: int, seconds: float, most: int | None = None) -> Counter[str]:
    """Change and read files of a kind; how many were "read" and "refused"."""
    read, suffix = READERS[kind]()
    originals = ORIGINALS[kind]()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for original in originals:
        attempt(read, original, suffix)  # what is imported on first use does not count
    before, outcomes = peak_mb(), Counter[str]()
    for number in tries(seconds, most):
        chance = random.Random(seed + number)
        content = changed(chance.choice(originals), chance)
        outcomes["read" if attempt(read, content, suffix) else "refused"] += 1
        grown = peak_mb() - before
        assert grown < MOST_MB, f"{number + 1} files after seed {seed}: {grown:.0f} MB"
    return outcomes


def attempt(read: Callable[[Path], object], content: bytes, suffix: str) -> bool:
    """Whether a content can be read; what is no reason to refuse it is raised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        reason = ""
        try:
            read(path)
        except (ValueError, OSError) as error:
            reason = str(error) or f"no reason: {error!r}"
        assert not reason.startswith("no reason"), reason
        return not reason


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def changed(content: bytes, chance: random.Random) -> bytes:
    """A content with one to eight changes."""
    changing = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(changing)) if changing else 0
        if chance.random() < 0.5:  # most headers are at the ends
            place = chance.randrange(min(len(changing), 700)) if changing else 0
            place = place if chance.random() < 0.5 else len(changing) - place - 1
        chance.choice(CHANGES)(changing, max(0, place), chance)
    return bytes(changing)


def flip(content: bytearray, place: int, chance: random.Random) -> None:
    content[place : place + 1] = bytes([chance.randrange(256)])


def number(content: bytearray, place: int, chance: random.Random) -> None:
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice(NUMBERS) % 2 ** (8 * size)
    content[place : place + size] = value.to_bytes(size, chance.choice(("little", "big")))


def digits(content: bytearray, place: int, chance: random.Random) -> None:
    content[place : place + 8] = b"%08o" % chance.choice((0, 1, 511, 512, 8**8 - 1))


def cut(content: bytearray, place: int, chance: random.Random) -> None:
    del content[place : place + chance.choice((1, 8, 512, len(content)))]


def repeat(content: bytearray, place: int, chance: random.Random) -> None:
    size = chance.choice((1, 16, 512, 1024))
    content[place:place] = content[place : place + size] * chance.choice((1, 2, 50))


CHANGES = (flip, flip, flip, number, number, digits, cut, repeat)


# -------------------------------------------------------------------------------------------------- reading


def images() -> Callable[[Path], object]:
    from byol.images.open import open_source

    def read(path: Path) -> None:
        source = open_source(path)
        list(zip(source.ids[:100], source.labels[:100], strict=True))
        for i in range(min(len(source), 8)):
            try:
                source.open(i)
            except UnreadableImage:
                continue

    return read


def features() -> Callable[[Path], object]:
    from byol.serve.features.read import is_features, read_features

    return lambda path: (is_features(path), read_features(path))


def weights() -> Callable[[Path], object]:
    warnings.simplefilter("ignore")
    from byol.export.foreign.files import read_models

    return read_models


READERS = {
    "tar": lambda: (images(), ".tar"),
    "parquet": lambda: (images(), ".parquet"),
    "features": lambda: (features(), ".parquet"),
    "npz": lambda: (images(), ".npz"),
    "safetensors": lambda: (weights(), ".safetensors"),
    "pth": lambda: (weights(), ".pth"),
}


# ------------------------------------------------------------------------------------------------- originals


def png(seed: int) -> bytes:
    from PIL import Image

    return encoded(Image.fromarray(picture(8, 8, seed)), "PNG")


def tars() -> list[bytes]:
    import tarfile

    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for name in ("a.png", "a.cls", "d" * 80 + "/" + "e" * 60 + ".png"):
                member = tarfile.TarInfo(name)
                member.size = len(png(0))
                tar.addfile(member, io.BytesIO(png(0)))
        made.append(stream.getvalue())
    return [*made, made[0] + made[1]]


def tables() -> list[bytes]:
    structs = pa.array([{"bytes": png(i), "path": "a"} for i in range(4)])
    plain = pa.array([png(i) for i in range(4)])
    labels = pa.array(["a", "b", None, "a"])
    return [
        parquet({"image": structs, "label": pa.array([0, 1, -1, None])}, compression="zstd", row_group_size=2),
        parquet({"image": plain, "label": labels.dictionary_encode()}, use_dictionary=False, data_page_version="2.0"),
        parquet({"image": plain, "label": labels}, compression="none", write_page_index=True),
    ]


def banks() -> list[bytes]:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    ids, labels = pa.array([f"{i}.png" for i in range(6)]), pa.array(["a", "b", None] * 2)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    lists = pa.array(x.tolist(), pa.list_(pa.float32()))
    return [
        parquet({"id": ids, "label": labels, "features": fixed}, row_group_size=2),
        parquet({"id": ids, "label": labels.dictionary_encode(), "features": lists}, compression="zstd"),
    ]


def parquet(columns: dict[str, pa.Array], **options: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def archives() -> list[bytes]:
    arrays = {"images": np.zeros((3, 4, 4, 3), np.uint8), "labels": np.array(["a", "b", "a"])}
    made = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)  # type: ignore[arg-type]
        made.append(stream.getvalue())
    return made


def tensors() -> list[bytes]:
    from safetensors.numpy import save

    return [save({"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int64)}, {"format": "pt"})]


def checkpoints() -> list[bytes]:
    import torch

    saved = {"state_dict": {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, "epoch": 3}
    made = []
    for new in (True, False):
        stream = io.BytesIO()
        torch.save(saved, stream, _use_new_zipfile_serialization=new)
        made.append(stream.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = bombs.checkpoint(Path(folder) / "a", bombs.tensor(2, [2], [1]), {"0": bytes(8)})
        return [*made, path.read_bytes()]


ORIGINALS = {
    "tar": tars,
    "parquet": tables,
    "features": banks,
    "npz": archives,
    "safetensors": tensors,
    "pth": checkpoints,
}


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))))

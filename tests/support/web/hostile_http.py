"""Requests as an attacker, a broken client or a bad line sends them: raw bytes, drawn from a seed.

python -m tests.support.web.hostile_http URL COUNT [SEED]    # prints how many had which status
"""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support.inputs.odd_images import bad_images, odd_images

ROUTES = ("/features", "/classes", "/v1/embeddings", "/v2/models/encoder/infer")
CLOSED = 0  # the server closed the connection without an answer, or the attacker did


def post(route: str, body: bytes, kind: str = "application/json", *more: str, length: int | None = None) -> bytes:
    count = len(body) if length is None else length
    lines = (f"POST {route} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {count}", *more)
    return "\r\n".join((*lines, "Connection: close", "", "")).encode() + body


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(1, 4000))


def odd_lines(draw: random.Random) -> bytes:
    targets = ["/../../etc/passwd", "/%00", "/" + "a" * 70_000, "//x", "*", "http://other/", "/v1/%ff%fe", ""]
    method = draw.choice(["GET", "POST", "TRACE", "CONNECT", "HEAD", "G\tT", "X" * 5000])
    version = draw.choice(["1.1", "1.0", "2.0", "9"])
    return f"{method} {draw.choice(targets)} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def lying_lengths(draw: random.Random) -> bytes:
    header = draw.choice(
        ["Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 9\r\nContent-Length: 8"]
        + [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Expect: 100-continue",
        ]
    )
    body = draw.choice([b"5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFF\r\n", b"-1\r\n\r\n", b"zz\r\n", b""])
    return f"POST {draw.choice(ROUTES)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n".encode() + body


def cut_off(draw: random.Random) -> bytes:
    whole = valid(draw)
    return whole[: draw.randrange(len(whole))]


def valid(draw: random.Random) -> bytes:
    picture = draw.choice(list(odd_images().values()))
    return draw.choice([post("/features", picture, "image/png"), embeddings([picture])])


def damaged(draw: random.Random) -> bytes:
    picture = bytearray(draw.choice([*odd_images().values(), *bad_images().values()]))
    for _ in range(draw.randrange(1, 20)):
        if picture:
            picture[draw.randrange(len(picture))] = draw.randrange(256)
    return draw.choice([post("/features", bytes(picture), "image/png"), embeddings([bytes(picture)])])


def embeddings(pictures: list[bytes]) -> bytes:
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    return post("/v1/embeddings", json.dumps({"model": "encoder", "input": urls}).encode())


def odd_json(draw: random.Random) -> bytes:
    texts = [
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"9" * 5000,
        b'{"model":"encoder","input":"\\ud800"}',
        b"\xff\xfe",
        b"NaN",
    ]
    texts += [
        b'{"inputs":[' + b"[]," * 50_000 + b"[]]}",
        b'{"model":1e999,"input":{}}',
        b'{"model":"encoder","input":[[]]}',
    ]
    texts += [b'{"model":"encoder","input":"data:image/svg+xml;base64,PHN2Zy8+"}', b'"', b"", b"[null]", b"\x00" * 100]
    return post(draw.choice(ROUTES), draw.choice(texts))


def odd_tensor(draw: random.Random) -> bytes:
    number = [0, 1, -1, 2**63, 10**30, 16, 3, 0.5, None, "1", True]
    tensor = {
        "name": draw.choice(["images", "other", None]),
        "datatype": draw.choice(["UINT8", "BYTES", "FP32", 7]),
        "shape": [draw.choice(number) for _ in range(draw.randrange(6))],
        "data": draw.choice([[0] * 768, [[0], 1, "x"], {}, None, "AAAA", ["AAAA"], [10**400]]),
        "parameters": draw.choice([{}, {"binary_data_size": draw.choice(number)}, [], None]),
    }
    body = json.dumps({"inputs": [tensor] * draw.randrange(3)}).encode()
    length = draw.choice([len(body), len(body) - 1, 0, -5, 10**12])
    more = draw.choice([(), (f"Inference-Header-Content-Length: {length}",)])
    return post(ROUTES[3], body + draw.choice([b"", draw.randbytes(768)]), "application/json", *more)


def odd_form(draw: random.Random) -> bytes:
    part = draw.choice([b'Content-Disposition: form-data; name="i"; filename="a"', b"", b"x" * 9000, b"\xff: \x00"])
    part = b"--b\r\n" + part + draw.choice([b"\r\n\r\n", b"\r\n", b""]) + draw.randbytes(50) + b"\r\n"
    kind = draw.choice(["multipart/form-data; boundary=b", "multipart/form-data", 'multipart/form-data; boundary=""'])
    end = draw.choice([b"--b--\r\n", b"--b", b""])
    return post(draw.choice(ROUTES[:2]), part * draw.choice([1, 3, 400]) + end, kind)


def compressed(draw: random.Random) -> bytes:
    bomb = zlib.compress(bytes(10 << 20))
    return post(
        draw.choice(ROUTES), bomb, "application/json", f"Content-Encoding: {draw.choice(['gzip', 'deflate', 'br'])}"
    )


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    *(noise, odd_lines, lying_lengths, cut_off, valid, damaged, odd_json, odd_tensor, odd_form, compressed),
)

UNFINISHED = (noise, odd_lines, lying_lengths, cut_off)  # the server would wait for more


def attack(place: tuple[str, int], seed: int) -> tuple[str, int]:
    """Send one; the name of its kind, and the status that came back."""
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    with socket.create_connection(place, timeout=60) as connection:
        manner = draw.randrange(8) if kind is not valid else 0
        try:
            connection.sendall(kind(draw))
            if manner == 1:  # reset before the answer
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return kind.__name__, CLOSED
            if manner == 2 or kind in UNFINISHED:
                connection.shutdown(socket.SHUT_WR)
            first = connection.recv(1 << 16)
        except OSError:
            return kind.__name__, CLOSED
    return kind.__name__, int(first[9:12]) if first.startswith(b"HTTP/1.1 ") else CLOSED


def attacks(url: str, count: int, seed: int = 0, at_once: int = 16) -> Counter[tuple[str, int]]:
    """How many of `count` had which (kind, status)."""
    host, port = url.removeprefix("http://").split(":")
    with ThreadPoolExecutor(at_once) as pool:
        return Counter(pool.map(lambda turn: attack((host, int(port)), seed + turn), range(count)))


if __name__ == "__main__":
    for (kind, status), number in sorted(attacks(sys.argv[1], *map(int, sys.argv[2:])).items()):
        print(f"{kind:>14} {status:>4} {number}")

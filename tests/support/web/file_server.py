"""A web server of this machine for tests: folders, ranges, tags, and any misbehaviour that a test names."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pytest

from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage

Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """`files`: path to content. `odd`: path to what answers in its place. `asked`: the paths of all requests.

    `gone_after`: how many requests of files are answered before every connection is cut; None for all.
    """

    def __init__(self, files: dict[str, bytes] | None = None):
        self.files, self.odd, self.asked = dict(files or {}), dict[str, Answer](), list[str]()
        self.headers: list[dict[str, str]] = []
        self.gone_after: int | None = None
        self.ranges = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Web:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_gone(self, path: str) -> bool:
        """Count a request of a file."""
        if self.gone_after is None or (path not in self.files and self.gone_after > 0):
            return False
        self.gone_after -= 1
        return self.gone_after < 0

    def page(self, path: str) -> bytes | None:
        """The page of a folder; None where nothing lies below."""
        below = {name.removeprefix(path).partition("/") for name in self.files if name.startswith(path)}
        if not path.endswith("/") or not below:
            return None
        links = sorted({name + slash for name, slash, _ in below})
        return "".join(f'<a href="{link}">{link}</a>\n' for link in links).encode()


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            web.asked.append(self.path)
            web.headers.append(dict(self.headers))
            if web.is_gone(path):
                self.close_connection = True
            elif path in web.odd:
                web.odd[path](self)
            elif path in web.files:
                self._file(web.files[path])
            elif (page := web.page(path)) is not None:
                say(self, 200, page, {"Content-Type": "text/html"})
            elif web.page(path + "/") is not None:
                say(self, 301, headers={"Location": path + "/"})
            else:
                say(self, 404)

        def _file(self, content: bytes) -> None:
            facts = {"Content-Type": "application/octet-stream", "ETag": f'"{hash(content)}"'}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not asked or not web.ranges:
                say(self, 200, content, facts)
                return
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if start >= len(content):
                say(self, 416, headers={"Content-Range": f"bytes */{len(content)}"})
                return
            say(self, 206, content[start:end], facts | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    return Handler


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
    """Answer with a status, headers and a body of the length that is told."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def once(status: int, content: bytes, times: int = 1, headers: dict[str, str] | None = None) -> Answer:
    """A status for some requests, then the content."""
    left = [times]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        left[0] -= 1
        say(handler, status, headers=headers) if left[0] >= 0 else say(handler, 200, content)

    return answer


def always(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """The same answer to every request."""
    return lambda handler: say(handler, status, body, headers)


def listed(folder: Path, *lines: str) -> Path:
    """A list of images in a folder."""
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def reason(source: ImageSource, row: int = 0) -> str:
    """Why an image is left out."""
    with pytest.raises(UnreadableImage) as caught:
        source.open(row)
    return str(caught.value)

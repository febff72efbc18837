"""What a client is told that is not served, in the form of the protocol that it speaks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from byol.text import as_message

CLIENT_GONE = 499  # nginx's number for a client that went away before its answer

# OpenAI's words for the kind of an error.
_KINDS = {404: "invalid_request_error", 429: "requests", 500: "server_error", 503: "server_error"}


class Refused(Exception):
    """A request that is answered with an error. `message` is for its sender; `place` names the part at fault.

    `ends`: the connection is closed after the answer, as the rest of the request was not read.
    """

    def __init__(
        self, status: int, message: str, place: str | None = None, code: str | None = None, retry: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.place, self.code = status, message, place, code
        self.headers = {"Retry-After": str(retry)} if retry else {}
        self.ends = status in (408, 413, 503)


class BadImage(ValueError):
    """One picture of a request cannot be used: the `index`-th, for this reason."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index, self.reason = index, as_message(reason)


def answer(path: str, refused: Refused) -> JSONResponse:
    """The error as OpenAI (`/v1`), KServe (`/v2`) or FastAPI (the rest) would say it."""
    headers = {**refused.headers, **({"Connection": "close"} if refused.ends else {})}
    return JSONResponse(_body(path, refused), refused.status, headers)


def _body(path: str, refused: Refused) -> dict[str, Any]:
    if path.startswith("/v1/"):
        kind = _KINDS.get(refused.status, "invalid_request_error")
        said = {"message": refused.message, "type": kind, "param": refused.place, "code": refused.code}
        return {"error": said}
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": refused.message}
    return {"detail": refused.message}


def phrase(status: int) -> str:
    """HTTP's own words for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"

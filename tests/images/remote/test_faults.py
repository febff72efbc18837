"""Whose fault a failure is, by the exceptions of every protocol; S3 through a server that answers as S3 does."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from byol.files.regular import SourceUnavailable
from byol.images.open import open_source
from byol.images.remote import faults
from byol.images.remote.faults import Fault, Refusal, fault_of, patiently, words_for
from byol.images.remote.path import remote_path
from tests.support.tiny import write_images
from tests.support.web.file_server import Web, always, listed, once, reason, say


class GcsError(Exception):
    """As gcsfs.retry.HttpError."""

    def __init__(self, code: int):
        super().__init__("it says so")
        self.code = code


class AzureError(Exception):
    """As azure.core.exceptions.HttpResponseError."""

    def __init__(self, status_code: int | None, error_code: str | None = None):
        super().__init__("it says so")
        self.status_code, self.error_code = status_code, error_code


class BotoError(Exception):
    """As botocore.exceptions.ClientError."""

    def __init__(self, code: str, status: int, **headers: str):
        super().__init__(f"An error occurred ({code})")
        self.response = {
            "Error": {"Code": code, "Message": "it says so"},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        }


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("ask", ["files_below", "matching"])
def test_a_folder_of_shards_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """fsspec's own walk goes on without it, and without the shards in it."""
    monkeypatch.setenv("BYOL_PROTOCOLS", "file")
    real, failing = LocalFileSystem.ls, [1]

    def ls(self: LocalFileSystem, path: str, *words: object, **named: object) -> object:
        if path.rstrip("/").endswith("/b") and failing:
            failing.pop()
            raise ConnectionResetError("reset by peer")
        return real(self, path, *words, **named)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").touch()

    def found() -> int:
        if ask == "files_below":
            return len(remote_path(f"file://{tmp_path}").files_below({".tar"}))
        return len(remote_path(f"file://{tmp_path}/*/*.tar").matching())

    assert found() == 3  # at the second try
    failing.extend(range(9))
    with pytest.raises(SourceUnavailable, match="reset by peer"):
        found()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        *((FileNotFoundError("x"), Fault.ITS_OWN), (PermissionError("x"), Fault.DENIED)),
        *((IsADirectoryError(), Fault.ITS_OWN), (ImportError("x"), Fault.FINAL), (ValueError("x"), Fault.PASSING)),
        *((TimeoutError(), Fault.PASSING), (ConnectionResetError(), Fault.PASSING), (OSError("x"), Fault.PASSING)),
        *((RuntimeError("x"), Fault.PASSING), (KeyError("x"), Fault.PASSING), (UnicodeError(), Fault.PASSING)),
        (caused(FileNotFoundError("x"), ConnectionRefusedError()), Fault.PASSING),
        (caused(PermissionError("x"), BotoError("ExpiredToken", 400)), Fault.FINAL),
        (caused(PermissionError("x"), BotoError("RequestTimeTooSkewed", 403)), Fault.FINAL),
        (caused(PermissionError("x"), BotoError("AccessDenied", 403)), Fault.DENIED),
        (caused(FileNotFoundError("x"), BotoError("NoSuchKey", 404)), Fault.ITS_OWN),
        (caused(OSError("x"), BotoError("SlowDown", 503)), Fault.PASSING),
        (caused(OSError("x"), BotoError("KeyTooLongError", 400)), Fault.ITS_OWN),
        (caused(OSError("x"), BotoError("SomethingNew", 418)), Fault.FINAL),
        *((GcsError(404), Fault.ITS_OWN), (GcsError(401), Fault.FINAL), (GcsError(429), Fault.PASSING)),
        *((AzureError(404), Fault.ITS_OWN), (AzureError(403), Fault.DENIED), (AzureError(503), Fault.PASSING)),
        (AzureError(None), Fault.PASSING),  # no connection
        (AzureError(403, "AuthenticationFailed"), Fault.FINAL),
        (OSError("Forbidden: bucket/a.png"), Fault.DENIED),  # gcsfs
        (ValueError("Bad Request: bucket/a.png\ninvalid_grant"), Fault.PASSING),  # gcsfs
    ],
)
def test_whose_fault_it_is(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_what_is_not_known_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.0, 0.0))
    tries = []

    def call() -> None:
        tries.append(1)
        raise RuntimeError("https://me:hunter2@host/a?sig=hunter2 did something new")

    with pytest.raises(SourceUnavailable, match="did something new") as caught:
        patiently("https://me:hunter2@host/a?sig=hunter2", call)
    assert len(tries) == 3
    assert "hunter2" not in str(caught.value)


def test_an_s3_server_may_ask_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    answers = iter([caused(OSError("x"), BotoError("SlowDown", 503, **{"retry-after": "9"})), None])

    def call() -> str:
        if error := next(answers):
            raise error
        return "content"

    assert patiently("s3://bucket/a", call) == "content"
    assert slept == [9.0]


def test_reasons_are_for_people() -> None:
    assert words_for(caused(FileNotFoundError("s3://b/a"), BotoError("404", 404))) == "HTTP 404 (Not Found)"
    assert words_for(FileNotFoundError("http://host/a.png")) == "no such file"
    assert words_for(GcsError(599)) == "HTTP 599"
    assert words_for(TimeoutError()) == "it does not answer in time"
    assert words_for(Refusal("it is empty")) == "it is empty"


# ------------------------------------------------------------------------------------------------ S3


XML = {"Content-Type": "application/xml"}


def s3_error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>it says so</Message></Error>'.encode()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server that S3's client asks; no answer of it is tried again by that client."""
    monkeypatch.setattr(faults, "PAUSES", (0.01,))
    web = Web()
    settings = {"AWS_ENDPOINT_URL": web.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    with web:
        yield web
    S3FileSystem.clear_instance_cache()  # others would go on asking this server


@pytest.mark.parametrize(
    ("status", "code"), [(404, "NoSuchKey"), (404, "NoSuchBucket"), (403, "AccessDenied"), (403, "InvalidObjectState")]
)
def test_s3_says_it_of_one_image(s3: Web, status: int, code: str, tmp_path: Path) -> None:
    s3.odd["/bucket/a.png"] = always(status, s3_error(code), XML)
    assert code in reason(open_source(listed(tmp_path, "s3://bucket/a.png")))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (400, "InvalidToken")),
        *((403, "RequestTimeTooSkewed"), (503, "SlowDown"), (500, "InternalError"), (400, "SomethingNew")),
    ],
)
def test_s3_says_it_of_the_one_who_asks_or_of_itself(s3: Web, status: int, code: str, tmp_path: Path) -> None:
    s3.odd["/bucket/a.png"] = always(status, s3_error(code), XML)
    with pytest.raises(SourceUnavailable, match=rf"s3://bucket/a\.png cannot be read now: {code}"):
        open_source(listed(tmp_path, "s3://bucket/a.png")).open(0)


def test_s3_answers_end_early_come_late_or_are_empty(s3: Web, tmp_path: Path) -> None:
    png = (write_images(tmp_path, {"a": 1}) / "a" / "000.png").read_bytes()

    def cut(handler: BaseHTTPRequestHandler) -> None:
        say(handler, 200, png[:50], {"Content-Length": str(len(png))})
        handler.close_connection = True

    empty = always(416, s3_error("InvalidRange"), XML)
    s3.odd = {"/b/late.png": once(503, png), "/b/cut.png": cut, "/b/empty.png": empty}
    lines = ("s3://b/late.png", "s3://b/cut.png", "s3://b/empty.png", "s3://b", "s3://B_!/a.png", "s3:///")
    source = open_source(listed(tmp_path, *lines))
    assert source.open(0).size == (20, 24)
    assert len(s3.asked) == 2  # one request each
    with pytest.raises(SourceUnavailable, match=r"cut\.png cannot be read now"):
        source.open(1)
    assert "empty" in reason(source, 2)
    for row in (3, 4, 5):  # no names of images
        assert reason(source, row)

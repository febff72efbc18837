"""Bodies, and forms as clients and attackers write them, without a server."""

from __future__ import annotations

import pytest

from byol.serve.server.bounds import Bounds
from byol.serve.server.intake import Body, pictures_of
from byol.serve.server.refusals import Refused


def form(head: bytes, boundary: bytes = b"b", content: bytes = b"bytes") -> bytes:
    return b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n--" + boundary + b"--\r\n"


def disposition(parameters: str) -> bytes:
    return f'Content-Disposition: form-data; name="image"; {parameters}'.encode()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('filename="фото.jpg"', "фото.jpg"),  # as curl and browsers write it
        ("filename*=UTF-8''%D1%84%D0%BE%D1%82%D0%BE.jpg", "фото.jpg"),
        ('filename="a b.png"', "a b.png"),
        ("filename=plain.png", "plain.png"),
    ],
)
def test_a_file_keeps_its_name(written: str, name: str) -> None:
    assert pictures_of("multipart/form-data; boundary=b", form(disposition(written)), 4) == [(name, b"bytes")]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b c",
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data;charset=utf-8; BOUNDARY=b",
    ],
)
def test_a_boundary_is_found_however_it_is_written(content_type: str) -> None:
    assert pictures_of(content_type, form(disposition('filename="a"')), 4) == [("a", b"bytes")]


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "; boundary",
        "; boundary=",
        '; boundary=""',
        "; boundary*0=a; boundary*=b",
        "; boundary*=a%00b''xx",
        '; boundary="' + ";" * 60_000,
        "; boundary=" + "a" * 300 + '"',
        "; boundary=\u00e9",
    ],
)
def test_a_form_without_a_usable_boundary_is_refused(parameters: str) -> None:
    with pytest.raises(Refused) as caught:
        pictures_of("multipart/form-data" + parameters, b"--a\r\n\r\n\r\n--a--", 4)
    assert caught.value.status == 400


@pytest.mark.parametrize("written", ["filename*0=a; filename*=b", "filename*=a%00b''xx", "filename*=x'y"])
def test_a_name_that_is_none_harms_no_picture(written: str) -> None:
    ((_, content),) = pictures_of("multipart/form-data; boundary=b", form(disposition(written)), 4)
    assert content == b"bytes"


def test_a_part_with_long_headers_is_refused() -> None:
    with pytest.raises(Refused, match="too many"):
        pictures_of("multipart/form-data; boundary=b", form(disposition("filename=" + ";" * 2000)), 4)


def test_a_body_is_taken_once_and_counted_until_it_is_freed() -> None:
    bounds = Bounds()
    body = Body(bounds)
    body.add(b"ab")
    body.add(b"c")
    assert (body.take(), body.take()) == (b"abc", b"")
    assert bounds.held == body.size == 3
    body.free()
    assert bounds.held == 0

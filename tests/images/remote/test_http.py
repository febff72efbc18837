"""Images behind web servers that misbehave: what is left out, and what stops the work."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from byol.files.regular import SourceUnavailable
from byol.images import UnreadableImage
from byol.images.open import open_source
from byol.images.remote import faults
from tests.support.command_line import Outcome, byol
from tests.support.folders import contents
from tests.support.inputs.shards import write_tar
from tests.support.tiny import write_images, write_tiny_bundle
from tests.support.web.file_server import Answer, Web, always, listed, once, reason, say

CPU = ("--device", "cpu", "--part-images", 5, "--batch-size", 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(faults, "MOST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, and 40 images in two classes, one of them broken."""
    root = tmp_path_factory.mktemp("web")
    write_tiny_bundle(root / "bundle")
    write_images(root / "images", {"cat": 20, "dog": 20})
    (root / "images" / "cat" / "007.png").write_bytes(b"broken")
    return root


def extract(place: Path, images: object, out: Path, *more: object) -> Outcome:
    return byol("extract", place / "bundle", images, "--out", f"{out}/", *CPU, *more)


# ------------------------------------------------------------------------------------------------ a server goes


def write_shards(place: Path, web: Web, kind: str, tmp_path: Path) -> str:
    """Put the images into shards on the server."""
    files = sorted((place / "images").rglob("*.png"))
    for number in range(4):
        chosen = [file.read_bytes() for file in files[10 * number : 10 * number + 10]]
        shard = tmp_path / f"{number}.{kind}"
        if kind == "tar":
            write_tar(shard, {f"{i}.png": content for i, content in enumerate(chosen)})
        else:
            pq.write_table(pa.table({"image": chosen}), shard, row_group_size=3)
        web.files[f"/shards/{shard.name}"] = shard.read_bytes()
    return f"{web.url}/shards/{{0..3}}.{kind}"


@pytest.mark.parametrize("kind", ["list", "folder", "tar", "parquet"])
def test_a_server_that_goes_stops_the_work_and_the_same_command_goes_on(
    place: Path, web: Web, kind: str, tmp_path: Path
) -> None:
    urls = [f"{web.url}{name}" for name in web.files]
    images: object = {"list": listed(tmp_path, *urls), "folder": f"{web.url}/images"}.get(kind)
    images = images or write_shards(place, web, kind, tmp_path)
    done = extract(place, images, tmp_path / "whole")
    assert done.code == 0, done.err
    needed = len(web.asked)

    web.asked.clear()
    web.gone_after = {"list": 28, "folder": 28}.get(kind, needed * 2 // 3)
    done = extract(place, images, tmp_path / "out", "--decode-threads", 2)
    assert done.code == 1
    assert f"{web.url}/" in done.err
    assert "cannot be re" in done.err  # read now, or reached any longer
    assert "run the same command again" in done.err
    assert not json.loads((tmp_path / "out" / "_manifest.json").read_text())["complete"]
    parts = [path.name for path in (tmp_path / "out").glob("data/part-*")]
    assert 0 < len(parts) < len(list((tmp_path / "whole").glob("data/part-*")))

    web.gone_after = None
    done = extract(place, images, tmp_path / "out")
    assert done.code == 0, done.err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_list_s_stamp_changes_with_what_the_server_says(tmp_path: Path, web: Web, png: bytes) -> None:
    web.files |= {"/a.png": png, "/b.png": png}
    found = listed(tmp_path, f"{web.url}/a.png", f"{web.url}/b.png", f"{web.url}/gone.png", "ftp://x/c.png")

    def digests() -> list[str]:
        source = open_source(found)
        return [digest() for digest in (source.stamp, source.content, source.listing) if digest]

    before = digests()
    assert digests() == before
    web.files["/b.png"] += b"more"
    after = digests()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_a_stamp_changes_with_an_image_of_the_same_size(tmp_path: Path, web: Web, kind: str) -> None:
    url = f"{web.url}/images/cat/?signature=abc"
    location = url if kind == "folder" else listed(tmp_path, f"{web.url}/images/cat/003.png")
    web.odd = {"/images/cat/old": always(404), "/images/cat/old/": always(404)}  # a link that leads nowhere
    web.files["/images/cat/old/a.png"] = b""

    def stamp() -> str:
        source = open_source(location)
        assert source.stamp is not None
        return source.stamp()

    before = stamp()
    assert stamp() == before
    web.files["/images/cat/003.png"] = web.files["/images/cat/003.png"][:-1] + b"x"
    assert stamp() != before
    assert kind == "list" or all("signature=abc" in asked for asked in web.asked)


def test_a_port_where_nothing_listens_and_a_name_that_nobody_has(tmp_path: Path, png: bytes) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
    with pytest.raises(SourceUnavailable, match=r"a\.png cannot be read now: .*take it out of the list"):
        open_source(listed(tmp_path, url)).open(0)
    with pytest.raises(SourceUnavailable, match="cannot be read now"):
        open_source(listed(tmp_path, "http://no-such-host.invalid/a.png")).open(0)
    with pytest.raises(SourceUnavailable, match="run the same command again"):
        open_source(url)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_then_stops(web: Web, png: bytes, status: int, tmp_path: Path) -> None:
    web.odd = {"/a.png": once(status, png, times=2), "/b.png": always(status)}
    source = open_source(listed(tmp_path, f"{web.url}/a.png", f"{web.url}/b.png"))
    assert source.open(0).size == (20, 24)
    assert web.asked == ["/a.png"] * 3
    with pytest.raises(SourceUnavailable, match=rf"b\.png cannot be read now: HTTP {status}"):
        source.open(1)
    assert web.asked.count("/b.png") == 3


def test_a_server_may_ask_for_a_pause_but_not_for_any(
    web: Web, png: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(faults, "MOST_PAUSE", 60.0)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    dates = "Fri, 31 Dec 9999 23:59:59 GMT"
    for seconds, expected in (("7", 7.0), ("999999999999", 60.0), (dates, 60.0), ("soon", 0.01), ("-3", 0.01)):
        slept.clear()
        web.odd["/a.png"] = once(429, png, headers={"Retry-After": seconds})
        open_source(listed(tmp_path, f"{web.url}/a.png")).open(0)
        assert [pause for pause in slept if pause >= 0.01] == [expected]


@pytest.mark.parametrize("status", [400, 403, 404, 410, 451])
def test_what_the_server_says_of_one_url_is_that_images_own(
    place: Path, web: Web, png: bytes, status: int, tmp_path: Path
) -> None:
    web.odd["/a.png"] = always(status)
    web.files["/b.png"] = png
    done = extract(place, listed(tmp_path, f"{web.url}/a.png", f"{web.url}/b.png"), tmp_path / "out")
    assert done.code == 0, done.err
    assert f"{web.url}/a.png: HTTP {status}" in done.err
    assert web.asked.count("/a.png") == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (407, b""),
        (403, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
        (400, b"<Error><Code>ExpiredToken</Code></Error>"),
        (403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"),
        (403, b"<Error><Code>InvalidAccessKeyId</Code></Error>"),
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
        (403, b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code></Error>"),
    ],
)
def test_a_server_that_refuses_the_one_who_asks_stops_the_work(
    web: Web, status: int, body: bytes, tmp_path: Path
) -> None:
    web.odd["/a.png"] = always(status, body)
    with pytest.raises(SourceUnavailable, match=f"HTTP {status}"):
        open_source(listed(tmp_path, f"{web.url}/a.png")).open(0)
    assert len(web.asked) == 1


def test_one_file_of_a_folder_may_be_denied_or_gone(place: Path, web: Web, tmp_path: Path) -> None:
    web.odd = {"/images/cat/003.png": always(403), "/images/dog/004.png": always(404)}
    source = open_source(f"{web.url}/images")
    assert len(source) == 40
    assert reason(source, 3) == "HTTP 403 (Forbidden)"
    assert reason(source, 24) == "HTTP 404 (Not Found)"
    for answer in (always(403), always(404), always(401)):  # now all of it
        web.odd["/images"] = answer
        with pytest.raises(SourceUnavailable, match=r"images cannot be re"):
            source.open(3)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_folder_that_cannot_be_listed_stops_the_work(place: Path, web: Web, status: int, tmp_path: Path) -> None:
    web.odd["/images/dog"] = web.odd["/images/dog/"] = always(status)
    done = extract(place, f"{web.url}/images", tmp_path / "out")
    assert done.code == 1
    assert "images/dog cannot be" in done.err
    assert f"HTTP {status}" in done.err
    shards = write_shards(place, web, "tar", tmp_path).rpartition("/")[0]
    web.files = {f"/deep{name}": content for name, content in web.files.items() if "shards" in name}
    web.odd = {"/deep/shards": always(status), "/deep/shards/": always(status)}
    with pytest.raises(ValueError, match=f"HTTP {status}"):
        open_source(shards.replace("/shards", "/deep"))


def test_a_subfolder_that_went_after_its_parent_was_listed_is_named(web: Web) -> None:
    web.odd["/images/dog"] = web.odd["/images/dog/"] = always(404)
    source = open_source(f"{web.url}/images")
    assert (len(source), [(item.path, item.reason) for item in source.skipped]) == (
        20,
        [("dog", "HTTP 404 (Not Found)")],
    )


def test_a_page_may_escape_what_its_address_does_not(web: Web, png: bytes) -> None:
    page = b'<a href="/d%28x%29/a.png"> <a href="/d%28x%29/sub/"> <a href="/other/c.png">'
    web.files = {"/d(x)/a.png": png, "/d(x)/sub/b.png": png, "/other/c.png": png}
    web.odd["/d(x)/"] = always(200, page, {"Content-Type": "text/html"})
    source = open_source(f"{web.url}/d(x)/")
    assert (list(source.ids), source.open(0).size) == (["a.png", "sub/b.png"], (20, 24))


def test_a_large_file_of_which_the_server_says_nothing_is_no_page(
    web: Web, png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol.images.remote.http.MOST_PAGE", 100)
    web.odd["/0.tar"] = always(200, write_tar(tmp_path / "0.tar", {"b.png": png}).read_bytes())
    assert list(open_source(f"{web.url}/0.tar").ids) == ["b.png"]
    web.odd["/0.tar"] = always(200, bytes(200), {"Content-Type": "text/html"})
    with pytest.raises(SourceUnavailable, match="its page is larger than"):
        open_source(f"{web.url}/0.tar")


def test_formats_that_are_not_read_are_named_behind_a_url_too(web: Web) -> None:
    web.files["/images/dog/phone.HEIC"] = web.files["/images/dog/.hidden.heic"] = b"abc"
    source = open_source(f"{web.url}/images")
    assert (len(source), [item.path for item in source.skipped]) == (40, ["dog/phone.HEIC"])


def test_a_presigned_url_is_a_location(web: Web, png: bytes, tmp_path: Path) -> None:
    web.files = {"/a.png": png, "/0.tar": write_tar(tmp_path / "0.tar", {"b.png": png}).read_bytes()}
    for path, name in (("a.png", "a.png"), ("0.tar", "b.png")):
        source = open_source(f"{web.url}/{path}?X-Amz-Signature=ab%2Fc&x=1")
        assert (list(source.ids), source.open(0).size) == ([name], (20, 24))
        assert "ab%2Fc" not in source.name
        assert any("X-Amz-Signature=ab" in asked for asked in web.asked)


# ------------------------------------------------------------------------------------------------ bodies


def test_a_body_that_ends_early_is_no_broken_image(web: Web, png: bytes, tmp_path: Path) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        say(handler, 200, png[:50], {"Content-Length": str(len(png))})
        handler.close_connection = True

    web.odd["/a.png"] = cut
    with pytest.raises(SourceUnavailable, match=r"a\.png cannot be read now"):
        open_source(listed(tmp_path, f"{web.url}/a.png")).open(0)
    assert len(web.asked) == 3


def test_silence_and_drips_end(web: Web, png: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        say(handler, 200, headers={"Content-Length": str(len(png))})
        for byte in png:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.2)

    web.odd = {"/drip.png": drip, "/silent.png": lambda handler: time.sleep(3)}
    monkeypatch.setattr(faults, "PAUSES", ())
    monkeypatch.setenv("BYOL_URL_SECONDS", "1")
    with pytest.raises(SourceUnavailable, match=r"silent\.png cannot be read now"):
        open_source(listed(tmp_path, f"{web.url}/silent.png")).open(0)
    monkeypatch.setenv("BYOL_FETCH_SECONDS", "1")
    with pytest.raises(SourceUnavailable, match=r"drip\.png cannot be read now: it does not answer in time"):
        open_source(listed(tmp_path, f"{web.url}/drip.png")).open(0)


def test_nothing_is_unpacked_and_nothing_larger_than_the_limit_is_read(
    web: Web, png: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[int] = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            while True:
                handler.wfile.write(piece)
                sent.append(len(piece))
        except OSError:
            handler.close_connection = True

    bomb = gzip.compress(bytes(50 << 20))
    web.odd["/gzip.png"] = always(200, bomb, {"Content-Encoding": "gzip"})
    web.odd["/told.png"] = always(200, headers={"Content-Length": str(10**15)})
    web.odd["/endless.png"] = endless
    source = open_source(listed(tmp_path, *(f"{web.url}/{name}.png" for name in ("gzip", "told", "endless"))))
    monkeypatch.setenv("BYOL_MAX_PICTURE_MB", "2")
    assert reason(source, 0) == "its server sends it compressed (Content-Encoding), which byol does not unpack"
    assert reason(source, 1) == "it is larger than 2 MB (BYOL_MAX_PICTURE_MB)"
    assert reason(source, 2) == "it is larger than 2 MB (BYOL_MAX_PICTURE_MB)"
    assert sum(sent) < 30 << 20  # what its socket and ours hold, and no more
    assert {headers["Accept-Encoding"] for headers in web.headers} == {"identity"}
    assert len(web.asked) == 3


def test_redirects_end(web: Web, png: bytes, tmp_path: Path) -> None:
    web.files["/b.png"] = png
    web.odd["/a.png"] = always(302, headers={"Location": "/b.png"})
    web.odd["/loop.png"] = always(302, headers={"Location": "/loop.png"})
    web.odd["/file.png"] = always(302, headers={"Location": "file:///etc/passwd"})
    source = open_source(listed(tmp_path, *(f"{web.url}/{name}.png" for name in ("a", "loop", "file"))))
    assert source.open(0).size == (20, 24)
    assert reason(source, 1) == "it redirects endlessly"
    assert reason(source, 2) == "it redirects to something other than a web URL"
    assert len(web.asked) < 20


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_exchanged_while_it_is_read_stops_the_work(
    place: Path, web: Web, kind: str, tmp_path: Path
) -> None:
    pattern = write_shards(place, web, kind, tmp_path)
    source = open_source(pattern.replace("{0..3}", "2"))
    source.open(0)
    web.files[f"/shards/2.{kind}"] = web.files[f"/shards/2.{kind}"][:-1] + b"x"
    with pytest.raises(SourceUnavailable, match="it has changed since it was opened"):
        source.open(9)
    del web.files[f"/shards/2.{kind}"]
    with pytest.raises(SourceUnavailable, match="404"):
        source.open(9)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_server_without_ranges(place: Path, web: Web, kind: str, tmp_path: Path) -> None:
    """Nothing tells whether it still sends the file that was listed, and each part would cost the whole."""
    pattern = write_shards(place, web, kind, tmp_path)
    web.ranges = False
    source = open_source(pattern.replace("{0..3}", "1"))
    web.asked.clear()
    with pytest.raises(SourceUnavailable, match="sends whole files only; download it"):
        source.open(0)
    assert len(web.asked) <= 1


def test_a_folder_that_lists_itself_without_end(web: Web, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.images.remote.tree.DEEPEST", 5)
    web.files = {"/" + "a/" * 9 + "b.png": png, "/c.png": png}
    source = open_source(f"{web.url}/")
    assert list(source.ids) == ["c.png"]
    assert [item.path for item in source.skipped] == ["a/a/a/a/a/a"]


class _ListsItself(dict[str, Answer]):
    """Every path is a folder with a folder in it."""

    def __missing__(self, path: str) -> Answer:
        return always(200, b'<a href="a/">', {"Content-Type": "text/html"})

    def __contains__(self, path: object) -> bool:
        return True


@pytest.mark.parametrize("location", ["x/", "x/**/*.tar"])
def test_shards_of_a_server_that_lists_itself_without_end(web: Web, location: str) -> None:
    web.odd = _ListsItself()
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # some libraries raise it for the process
    try:
        with pytest.raises(SourceUnavailable, match="its folders are nested hundreds deep"):
            open_source(f"{web.url}/{location}")
    finally:
        sys.setrecursionlimit(usual)
    assert len(web.asked) < 1000  # and is not asked again


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_secret\r\n",
        b"HTTP/1.1 404 secret\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: secret\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: secret://secret\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: secret\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + 9999 * b"secret",
    ],
)
def test_what_a_server_inside_says_appears_in_no_message(web: Web, tmp_path: Path, said: bytes) -> None:
    """A stranger's list may lead to one, whose words are not the list's author's to know."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(said)
        handler.close_connection = True

    web.odd["/a.png"] = answer
    with pytest.raises((SourceUnavailable, UnreadableImage)) as caught:
        open_source(listed(tmp_path, f"{web.url}/a.png")).open(0)
    assert "secret" not in str(caught.value)


def test_links_that_lead_elsewhere_are_no_files_of_the_folder(web: Web, png: bytes) -> None:
    links = ("a.png", "../up.png", "/root.png", "http://127.0.0.1:9/far.png", "sub/../../x.png", "x&amp;y.png", "?C=N")
    page = "".join(f'<a href="{link}">' for link in (*links, "//[", "javascript:b.png")) + "<a " * 100_000
    web.odd["/pictures"] = web.odd["/pictures/"] = always(200, page.encode(), {"Content-Type": "text/html"})
    assert list(open_source(f"{web.url}/pictures").ids) == ["a.png", "x&y.png"]

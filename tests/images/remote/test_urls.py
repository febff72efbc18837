"""What a URL may be, in a command and in a stranger's list; that no output tells a URL's secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from byol.files.regular import SourceUnavailable
from byol.images.location import NEVER_IN_LISTS, PROTOCOLS, NotAllowed, allowed_protocol, last_part, written_out
from byol.images.open import open_source
from byol.images.remote.http import is_public
from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage
from tests.support.command_line import byol
from tests.support.folders import contents
from tests.support.inputs.shards import write_tar
from tests.support.tiny import write_images, write_tiny_bundle
from tests.support.web.file_server import Web, always, listed, reason

SECRET = "X-Amz-Credential=AKIA%2F1&X-Amz-Signature=f00dbeef"
USER = "someone:hunter2"
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, and images/ with four images in two classes."""
    root = tmp_path_factory.mktemp("urls")
    write_tiny_bundle(root / "bundle")
    write_images(root / "images", {"cat": 2, "dog": 2})
    return root


def source_of(folder: Path, *lines: str) -> ImageSource:
    return open_source(listed(folder, *lines))


# ------------------------------------------------------------------------------------------------ what is read at all


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The protocols whose file systems are made."""
    names: list[str] = []
    real = fsspec.get_filesystem_class

    def recorded(protocol: str) -> Any:
        names.append(protocol)
        return real(protocol)

    monkeypatch.setattr(fsspec, "get_filesystem_class", recorded)
    return names


@pytest.mark.parametrize(
    "line",
    [
        *("reference://a.png::{web}/ref.json", "reference://a.png", "simplecache::{web}/a.png", "filecache://a.png"),
        *("blockcache::s3://bucket/a.png", "file://{folder}/a.png", "FILE://{folder}/a.png", "local://{folder}/a.png"),
        *("tar://a.png::{web}/a.tar", "zip://a.png::{web}/a.zip", "libarchive://a.png", "memory://a.png"),
        *("dir://a.png", "generic://a.png", "data://image/png;base64,AAAA", "git://{folder}:a.png", "asynclocal://a"),
        *("s3://bucket/a.png::file://{folder}/a.png", "{web}/a.png::file://{folder}/a.png", "sftp://host/a.png"),
        *("gopher://host/a.png", "://a.png", "a b://c.png"),
    ],
)
def test_a_list_opens_no_other_protocol_and_no_chain(
    web: Web,
    png: bytes,
    line: str,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Also not when the setting names those that read this machine or wrap another protocol."""
    monkeypatch.setenv("BYOL_PROTOCOLS", ",".join({*NEVER_IN_LISTS, "simplecache"}))
    (tmp_path / "a.png").write_bytes(png)
    web.files |= dict.fromkeys(("/a.png", "/ref.json", "/a.tar", "/a.zip"), png)
    said = reason(source_of(tmp_path, line.format(web=web.url, folder=tmp_path)))
    assert any(words in said for words in ("never read from a list", "is not allowed", "chains", "does not begin"))
    assert (opened, web.asked) == ([], [])


def test_what_a_list_may_not_open_is_named(place: Path, web: Web, tmp_path: Path) -> None:
    lines = [
        f"{web.url}/images/dog/000.png",
        "reference://a.png::http://127.0.0.1:9/ref.json",
        f"file://{tmp_path}/a.png",
    ]
    done = byol("extract", place / "bundle", listed(tmp_path, *lines), "--out", tmp_path / "out.parquet", *CPU)
    assert done.code == 0, done.err
    assert "ref.json: chains of protocols (`::`) are not allowed" in done.err
    assert "a.png: the protocol file is never read from a list" in done.err
    assert pq.read_table(tmp_path / "out.parquet.errors.parquet")["path"].to_pylist() == lines[1:]


def test_a_template_in_a_reference_runs_nothing(place: Path, web: Web, tmp_path: Path) -> None:
    """fsspec from 2025.2 to 2026.4 handed such templates to Jinja2, unguarded."""
    canary = tmp_path / "canary"
    run = f"{{{{ cycler.__init__.__globals__.os.popen('touch {canary}').read() }}}}"
    web.files["/ref.json"] = json.dumps(
        {"version": 1, "templates": {"u": run}, "gen": [], "refs": {"a.png": ["{{u}}", 0, 10]}}
    ).encode()
    lines = listed(tmp_path, f"reference://a.png::{web.url}/ref.json", f"{web.url}/images/dog/000.png")
    words = ("extract", place / "bundle", lines, "--out", tmp_path / "out.parquet", *CPU)
    subprocess.run([sys.executable, "-m", "byol", *map(str, words)], check=True, capture_output=True, timeout=60)
    assert not canary.exists()
    assert "/ref.json" not in web.asked


def test_every_protocol_of_fsspec_that_wraps_or_reads_this_machine_is_known() -> None:
    modules = {name: str(facts["class"]) for name, facts in known_implementations.items()}
    here = (
        "cached",
        "reference",
        "local",
        "memory",
        "dirfs",
        "zip",
        "tar",
        "libarchive",
        "asyn_wrapper",
        "data",
        "git",
    )
    wrapping = {n for n, m in modules.items() if any(m.startswith(f"fsspec.implementations.{h}.") for h in here)}
    wrapping |= {name for name, module in modules.items() if module.startswith(("fsspec.generic", "morefs"))}
    assert len(wrapping) > 10
    assert wrapping <= NEVER_IN_LISTS
    assert not set(PROTOCOLS) & NEVER_IN_LISTS


def test_the_setting_adds_protocols_to_the_command_and_to_lists(
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(ValueError, match="the protocol file is not allowed"):
        open_source(f"file://{tmp_path}/a.png")
    with pytest.raises(NotAllowed):
        allowed_protocol("sftp://host/a.png", in_list=True)
    monkeypatch.setenv("BYOL_PROTOCOLS", " file, SFTP,,")
    assert open_source(f"file://{tmp_path}/a.png").open(0).size == (20, 24)
    assert allowed_protocol("sftp://host/a.png", in_list=True) == "sftp"
    with pytest.raises(NotAllowed, match="chains"):
        allowed_protocol("simplecache::file:///a.png")
    assert allowed_protocol("http://[::1]/a.png", in_list=True) == "http"
    with pytest.raises(NotAllowed, match="chains"):
        allowed_protocol("http://[::1]/a.png::file://x")


def test_a_package_that_is_missing_stops_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(protocol: str) -> Any:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ValueError, match="needs a package that is not installed: Please install gcsfs") as caught:
        source_of(tmp_path, "gs://bucket/a.png").open(0)
    assert not isinstance(caught.value, UnreadableImage)


@pytest.mark.parametrize(
    "line",
    [
        *("http://", "http:///a.png", "http://[bad/a.png", "http://host:99999/a.png", "http://host:x/a.png"),
        *("http://a..b/a.png", f"http://{'a' * 70}.com/a.png", "http://2130706433/a.png"),
        *("s3://", "s3://bucket", "s3:///a.png", "s3://a/", "http://\udcff/a.png"),
    ],
)
def test_a_line_that_is_no_url_is_left_out(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(line.encode("utf-8", "surrogateescape"))
    assert reason(open_source(tmp_path / "list.txt"))


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
        ),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
    ],
)
def test_internal_addresses_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_lists_may_be_kept_to_public_addresses(
    web: Web,
    png: bytes,
    host: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    web.files["/a.png"] = png
    monkeypatch.setenv("BYOL_LIST_ADDRESSES", "public")
    source = source_of(tmp_path, f"http://{host}:{web.port}/a.png")
    assert "BYOL_LIST_ADDRESSES=public" in reason(source)
    assert web.asked == []
    assert open_source(f"{web.url}/a.png").open(0).size == (20, 24)  # what the user names is the user's matter
    monkeypatch.delenv("BYOL_LIST_ADDRESSES")
    assert source_of(tmp_path, f"{web.url}/a.png").open(0).size == (20, 24)


def test_a_redirect_to_an_internal_address_is_refused(
    web: Web,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("byol.images.remote.http.is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setenv("BYOL_LIST_ADDRESSES", "public")
    web.files["/a.png"] = png
    web.odd["/b.png"] = always(302, headers={"Location": f"http://127.0.0.2:{web.port}/a.png"})
    source = source_of(tmp_path, f"{web.url}/a.png", f"{web.url}/b.png")
    source.open(0)
    assert "its address is not public" in reason(source, 1)
    assert web.asked == ["/a.png", "/b.png"]


def test_another_word_for_addresses_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BYOL_LIST_ADDRESSES", "private")
    with pytest.raises(ValueError, match="BYOL_LIST_ADDRESSES is 'private'; expected any or public"):
        source_of(tmp_path, "http://127.0.0.1/a.png").open(0)


# ------------------------------------------------------------------------------------------------ patterns, lines


@pytest.mark.parametrize(
    "ranges", ["{0..1000000000000000000}", "{0..9999}{0..9999}", "{1..1000001}", f"{{0..{'9' * 100}}}"]
)
def test_a_pattern_may_not_fill_the_memory(ranges: str) -> None:
    with pytest.raises(ValueError, match="stands for more than 1,000,000 files; BYOL_MAX_PATTERNS allows more"):
        open_source(f"s-{ranges}.tar")


def test_ranges_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(written_out("{08..11}-{1..2}")) == [f"{a}-{b}" for a in ("08", "09", "10", "11") for b in (1, 2)]
    assert list(written_out("{2..1}")) == []
    monkeypatch.setenv("BYOL_MAX_PATTERNS", "3")
    assert len(list(written_out("{1..3}"))) == 3
    with pytest.raises(ValueError, match="more than 3 files"):
        written_out("{1..4}")


def test_blanks_and_quotes_around_lines_do_not_count(web: Web, png: bytes, tmp_path: Path) -> None:
    web.files |= {"/a.png": png, "/b c.png": png}
    (tmp_path / "it's.png").write_bytes(png)
    (tmp_path / " d.png ").write_bytes(png)
    lines = [f"  {web.url}/a.png\t", f'"{web.url}/b c.png"', f" '{tmp_path}/it's.png' ", f'"{tmp_path}/ d.png "', '""']
    source = source_of(tmp_path, *lines)
    assert list(source.ids[:3]) == [f"{web.url}/a.png", f"{web.url}/b c.png", f"{tmp_path}/it's.png"]
    assert [source.open(i).size for i in range(4)] == [(20, 24)] * 4


def test_a_signed_url_is_an_image_a_table_or_a_list(place: Path, web: Web, tmp_path: Path) -> None:
    image = web.files["/images/dog/000.png"]
    write_tar(tmp_path / "s.tar", {"0.png": image})
    np.savez(tmp_path / "n.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    web.files |= {f"/{name}": (tmp_path / name).read_bytes() for name in ("s.tar", "n.npz")}
    web.files["/l.txt"] = f"{web.url}/images/dog/000.png\n".encode()
    for what, ids in (
        ("images/dog/000.png", ["000.png"]),
        ("s.tar", ["0.png"]),
        ("n.npz", ["0", "1"]),
        ("l.txt", [f"{web.url}/images/dog/000.png"]),
        ("images/dog/", None),
    ):
        source = open_source(f"{web.url}/{what}?{SECRET}")
        assert ids is None or list(source.ids) == ids
        assert "f00dbeef" not in source.name
        assert source.open(0).width > 0
    assert f"/s.tar?{SECRET}" in [asked.replace("AKIA/1", "AKIA%2F1") for asked in web.asked]


def test_a_server_that_goes_within_an_npz_makes_it_no_damaged_one(web: Web, tmp_path: Path) -> None:
    np.savez(tmp_path / "n.npz", images=np.zeros((50_000, 12, 12, 3), np.uint8))  # 20 MB, asked for in pieces
    web.files["/n.npz"] = (tmp_path / "n.npz").read_bytes()
    web.gone_after = 4
    with pytest.raises(SourceUnavailable, match=r"^http\S+/n.npz cannot be read now: (?!.*as an .npz).*again later$"):
        open_source(f"{web.url}/n.npz")


def test_patterns_of_a_web_server(web: Web, place: Path, tmp_path: Path) -> None:
    image = web.files["/images/dog/000.png"]
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {"0.png": image})
        web.files[f"/shards/{number}.tar"] = (tmp_path / f"{number}.tar").read_bytes()
    web.files |= dict.fromkeys(("/shards/.old/3.tar", "/shards/.4.tar", "/shards/5.md"), b"no shard")
    expected = [f"{number}.tar/0.png" for number in range(3)]
    assert list(open_source(f"{web.url}/shards/*.tar").ids) == expected
    assert list(open_source(f"{web.url}/shards/").ids) == expected
    assert open_source(f"{web.url}/shards/{{0..2}}.tar?{SECRET}").ids[0].startswith("0.tar?")
    web.odd["/shards/"] = always(503)
    with pytest.raises(SourceUnavailable, match="HTTP 503"):
        open_source(f"{web.url}/shards/*.tar")


# ------------------------------------------------------------------------------------------------ secrets


def test_ids_without_secrets_stay_apart(tmp_path: Path) -> None:
    lines = [f"https://{USER}@host/a.png?v={n}&{SECRET}" for n in range(3)]
    ids = list(source_of(tmp_path, *lines).ids)
    assert len(set(ids)) == 3
    assert {name.partition("?")[0] for name in ids} == {"https://host/a.png"}
    assert last_part(lines[0]) == ids[0].rpartition("/")[2]
    assert last_part(f"https://{USER}@host/images/") == "images"
    blanks = source_of(tmp_path, f"https://me:p w@host/a b.png?x y={SECRET}", "/no url?/a b.png").ids
    assert (blanks[0].partition("?")[0], blanks[1]) == ("https://host/a b.png", "/no url?/a b.png")


def test_nothing_tells_a_secret(place: Path, web: Web, tmp_path: Path) -> None:
    own = web.url.replace("://", f"://{USER}@")
    web.odd = {"/no.png": always(404), "/forbidden.png": always(403), "/down.png": always(503)}
    with_secrets = [f"{own}{path}?{SECRET}" for path in ("/images/dog/000.png", "/no.png", "/forbidden.png")]
    lines = [*with_secrets, f"sftp://{USER}@host/a.png?{SECRET}", f"http://{USER}@host:port/a.png?{SECRET}"]
    web.files["/list.txt"] = "\n".join(lines).encode()
    words: list[tuple[object, int]] = [
        (listed(tmp_path, *lines), 0),
        (f"{own}/list.txt?{SECRET}", 0),
        (f"{own}/images/dog/?{SECRET}", 0),
        (f"{own}/down.png?{SECRET}", 1),
        (f"{own}/none?{SECRET}", 1),
        (f"{own}/no.txt?{SECRET}", 1),
        (f"{own}/images/cat/000.png?{SECRET}", 0),
        (f"{own}/shards/{{0..9}}.tar?{SECRET}", 1),
        (f"sftp://{USER}@host/x?{SECRET}", 1),
        (f"memory::http://{USER}@host/x?{SECRET}", 1),
    ]
    for number, (images, code) in enumerate(words):
        command = ("extract", place / "bundle", images, "--out", f"{tmp_path}/{number}/", *CPU)
        done = byol(*command)
        assert done.code == code, done.err
        written = contents(tmp_path / str(number)).values()
        tables = [str(pq.read_table(path)).encode() for path in (tmp_path / str(number)).rglob("*.parquet")]
        for text in (done.out.encode(), done.err.encode(), *written, *tables):
            assert not [word for word in (b"hunter2", b"f00dbeef", b"AKIA") if word in text], text


def test_a_process_of_its_own_tells_none_either(place: Path, web: Web, tmp_path: Path) -> None:
    """What libraries say behind our back, as when they are torn down."""
    web.odd["/no.png"] = always(404)
    lines = [f"{web.url.replace('://', f'://{USER}@')}{path}?{SECRET}" for path in ("/images/dog/000.png", "/no.png")]
    words = ("extract", place / "bundle", listed(tmp_path, *lines), "--out", tmp_path / "out.parquet", *CPU)
    command = [sys.executable, "-X", "dev", "-m", "byol", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no.png" in done.stderr
    assert not [word for word in ("hunter2", "f00dbeef") if word in done.stdout + done.stderr]


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "bundle", "a", f"https://{USER}@host/x?{SECRET}"),
        ("extract", f"https://{USER}@host/x?{SECRET}", "a", "--out", "x"),
        ("extract", "bundle", "a", "--out", f"https://{USER}@host/x?{SECRET}"),
        ("knn", "bundle", "--train", "a", f"--tset=https://{USER}@host/x?{SECRET}"),
        (f"https://{USER}@host/x?{SECRET}",),
        ("train", f"https://{USER}@host/x?{SECRET}", f"https://{USER}@host/x?{SECRET}"),
        ("transfer", "bundle", f"https://{USER}@host/x?{SECRET}", "--json"),
    ],
)
def test_a_wrong_command_tells_no_secret(words: tuple[str, ...]) -> None:
    done = byol(*words)
    assert done.code in (1, 2)
    assert "hunter2" not in done.out + done.err
    assert "f00dbeef" not in done.out + done.err

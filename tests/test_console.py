"""What is printed beside results."""

import io
import os
import select
import sys
import threading
from collections.abc import Iterator

import pytest

from byol import console
from byol.images.open import open_source
from byol.images.picture.pages import Several
from byol.machine import NO_DRIVER


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 59.0, 61.0, 61.0, 62.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with console.progress("extract", 5000) as advance:
        for _ in range(3):
            advance(1000)
    assert capsys.readouterr().err == "extract: 2,000 of 5,000\n"


@pytest.mark.parametrize(
    ("asked", "reason", "line"),
    [
        ("auto", NO_DRIVER, ""),
        ("auto", "the NVIDIA driver shows no usable GPU (CUDA error 804)", "device: cpu (the NVIDIA driver shows "),
        ("cpu", "asked for", ""),
    ],
)
def test_the_device_is_said_where_there_was_a_choice(
    asked: str, reason: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.note_device(asked, "cpu", reason)
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("several", "line"),
    [
        (Several(), ""),
        (Several(1, ("a.gif",)), "1 of 3,000 images holds several pictures (a stack or an animation), of which the "),
        (Several(2, ("a.tif", "b\n.tif")), "first is read: a.tif, b\\n.tif\n"),
        (Several(12, ("a.tif", "b.tif", "c.tif")), "12 of 3,000 images hold several pictures"),
        (Several(12, ("a.tif", "b.tif", "c.tif")), "of which the first is read: a.tif, b.tif, c.tif, ...\n"),
    ],
)
def test_stacks_and_animations_are_one_line(several: Several, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.note_several(several, 3000)
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == bool(several.count)


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", b"\\u0141\xe9"), ("utf-8", "\u0141\u00e9".encode())])
def test_a_name_that_the_encoding_of_stdout_lacks_ends_no_finished_work(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    console.prepare()
    console.show_table([("out", "\u0141\u00e9")])
    sys.stdout.flush()
    assert written.getvalue().splitlines() == [b"out  " + shown]


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this system cannot tell")
def test_a_reader_that_has_gone_is_known() -> None:
    reading, writing = os.pipe()
    assert console.has_reader(writing)
    os.close(reading)
    assert not console.has_reader(writing)
    os.close(writing)


class Said:
    """What was said, and waiting for it: no test measures time."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def note(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for(self, start: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(line.startswith(start) for line in self.lines), timeout=30)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """A minute is short here."""
    found = Said()
    monkeypatch.setattr(console, "SECONDS_A_LINE", 0.05)
    monkeypatch.setattr(console, "note", found.note)
    with console.never_silent():
        yield found


def test_work_that_says_nothing_is_said_to_go_on(said: Said) -> None:
    said.wait_for("working (0 min")
    with console.progress("decode photos", 600) as advance:
        said.wait_for("decode photos: 0 of 600 (")  # while the first image takes long
        threads = [threading.Thread(target=advance, args=(1,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said.wait_for("decode photos: 20 of 600 (")
        with console.progress("within", None):
            said.wait_for("within: 0 (")
    said.lines.clear()
    said.wait_for("working (")


def test_work_that_speaks_for_itself_is_not_spoken_of(said: Said) -> None:
    with console.at_work(str):
        said.lines.clear()
        assert not threading.Event().wait(0.3)
        assert said.lines == []


def test_a_list_on_standard_input_can_be_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(console.READ_ALREADY, raising=False)
    for names in (["a.png", "b.png"], ["c.png"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
        assert [list(open_source("-").ids) for _ in range(2)] == [names, names]

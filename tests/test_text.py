"""Words for people: what names may do to terminals, spreadsheets, pages and logs, over names of any kind."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from byol import text
from byol.console import note_skipped
from byol.images.source import Skipped
from byol.text import as_message, cell, code_span, for_terminal, on_one_line, path_text, printable, without_secrets
from tests.support.command_line import harmless

# Whole Unicode with halves of surrogate pairs, and what does harm more often than chance would have it.
HARMFUL = (
    "\x1b]0;x\x07",
    "\u202e",
    "\n",
    "\r",
    "\t",
    "`",
    "|",
    "](http://x)",
    "<img src=x onerror=1>",
    "=1+1",
    "\ud800",
)
URLISH = ("://", "https://", "user:pa@ss:word@", "@", "?", "#", "/", "token=secret", "0a1b2c3d")
TEXTS = st.lists(st.text(st.characters(), max_size=5) | st.sampled_from((*HARMFUL, *URLISH)), max_size=8).map("".join)
READABLE = (
    "photos/\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.png",  # Persian, with a non-joiner
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family.jpg",  # joiners in an emoji
    "\u65e5\u672c\u3000\u8a9e.png",  # an ideographic space
    "l\u2019\u00e9t\u00e9\u00a0: 1.png",  # a no-break space, as French has it
    "\u05e2\u05d1\u05e8\u05d9\u05ea/\u0627\u0644\u0639\u0631\u0628\u064a\u0629.png",  # right to left by itself
    "cafe\u0301.png",
)


@given(TEXTS)
def test_nothing_that_a_terminal_obeys_is_left(given_text: str) -> None:
    assert harmless(on_one_line(given_text))
    assert harmless(as_message(given_text))
    assert harmless(printable(given_text))
    assert all(map(harmless, for_terminal(given_text).split("\n")))
    assert for_terminal(given_text).count("\n") == given_text.count("\n") or "://" in given_text
    as_message(given_text).encode()  # and any stream takes it


@given(TEXTS)
def test_what_was_cleaned_stays_as_it_is(given_text: str) -> None:
    for clean in (on_one_line, as_message, for_terminal, without_secrets):
        assert clean(clean(given_text)) == clean(given_text)


@pytest.mark.parametrize("name", READABLE)
def test_names_of_all_languages_stay_as_they_are(name: str) -> None:
    assert {on_one_line(name), as_message(name), for_terminal(name), printable(name), path_text(name)} == {name}
    assert cell(name) == name


@pytest.mark.parametrize(
    "secret",
    [
        "https://user:pass@host/a",
        "s3://key:p@ss:w@rd@host/a?X-Amz-Signature=abc#part",
        "http://tok@h:8080/?a=http://u:p@x",
    ],
)
def test_secrets_of_urls_are_left_out(secret: str) -> None:
    for shown in (
        as_message(f"cannot read {secret}: refused"),
        printable(secret),
        for_terminal(secret),
        code_span(secret),
    ):
        assert not re.search("pass|p@ss|w@rd|Signature|abc|tok|u:p|part", shown.replace("partial", "")), shown
        assert "host" in shown or "h:8080" in shown


@given(st.text("abcXYZ:@0/", max_size=12), st.text("abc=&%0", min_size=1, max_size=12))
def test_no_password_and_no_query_is_left(password: str, query: str) -> None:
    password = password.replace("/", "")  # it would end the host's part
    shown = as_message(f"see https://me:{password}@host/path?{query}")
    assert shown.startswith("see https://host/path?")
    assert re.fullmatch("[0-9a-f]{8}", shown.rpartition("?")[2])


def test_two_urls_that_differ_in_their_query_stay_apart() -> None:
    assert without_secrets("http://h/a?x=1") != without_secrets("http://h/a?x=2")


@given(TEXTS)
def test_no_cell_is_a_formula(given_text: str) -> None:
    written = cell(given_text)
    assert harmless(written)
    number = re.fullmatch(r"\s*[+-]?[0-9.]+([eE][+-]?[0-9]+)?\s*", written)
    assert number or written.strip()[:1] not in {*"=+-@", "\uff1d", "\uff0b", "\uff0d", "\uff20"}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        (" -1+1", "' -1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("-5.png", "'-5.png"),
        ("cat", "cat"),
        ("", ""),
    ],
)
def test_cells(name: str, written: str) -> None:
    assert cell(name) == written


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def rendered(markdown: str) -> Tags:
    page = Tags()
    page.feed(MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(markdown))
    return page


@given(TEXTS)
def test_a_code_span_is_one_whatever_is_in_it(given_text: str) -> None:
    page = rendered(f"a {code_span(given_text)} b")
    assert page.seen == ["p", "code"]
    assert page.words.split() == f"a {as_message(given_text)} b".split()
    row = rendered(f"| x | y |\n|---|---|\n| {code_span(given_text, in_table=True)} | end |")
    assert row.seen == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "code", "td"]
    assert row.words.split() == ["x", "y", *as_message(given_text).split(), "end"]


def test_the_limits_of_what_counts_as_done() -> None:
    assert text.reason_of(OSError(5, "bad\x1b[2J")) == "bad\\x1b[2J"
    assert text.first_line(ValueError("one\x07\ntwo")) == "one\\x07"


def test_long_texts_take_no_time() -> None:
    """Each would take an hour where every place of it is a beginning to be searched from: a test's time is limited."""
    many = 500_000
    assert cell("-" + "1" * many + "x").startswith("'-")
    assert without_secrets("a://" * many) == "a://" * many
    assert without_secrets("://a:" * many + "?secret").count("secret") == 0


def test_of_a_long_name_that_was_left_out_a_part_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    note_skipped([Skipped("a" * 1_000_000, "no such file")])
    assert len(capsys.readouterr().err) < 1200


def test_texts_are_told_apart_by_numbers() -> None:
    assert text.told_apart(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]

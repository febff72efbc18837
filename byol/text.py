"""Text for people: names, reasons and messages that are safe in any terminal, table, page or log. Torch-free.

What a stranger wrote (a file name, a class, a URL, an error) may hold terminal codes, changes of the writing direction,
line ends, secrets, markup and formulas. Data files keep names as they are (`path_text`). Messages use `printable` or
`on_one_line` where they are composed, `as_message` or `for_terminal` where they are written; spreadsheets use `cell`,
Markdown `code_span`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # they can make a name look like another
LONGEST = 1000  # characters of a path in a message
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_URL = re.compile(r"([^?#]*?://)(?:[^/?#]*@)?([^?#]*)(?:[?#](.*))?", re.DOTALL)
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # also in the wide forms that spreadsheets take
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_QUERY = re.compile(
    r"(://[^\s?#'\"<>]*)(?:[?#]([^\s'\"<>]*))?"
)  # also without a query, or each `://` would be searched


class Recipe(ValueError):
    """An error whose message ends in lines to copy; they are ours, and names in them are on one line."""


def missing(package: str, extra: str, wanted_by: str) -> str:
    """What to do about a missing package of an extra; `wanted_by` names the option or task that needs it."""
    return f"{wanted_by} needs {package}, which is not installed; {install(extra)}"


def install(extra: str = "") -> str:
    """How to install byol or an extra: from the source, since the name in a package index may be a stranger's."""
    what = f"'.[{extra}]'" if extra else "."
    return f"in a checkout of byol, run: pip install {what}"


def duration(seconds: float) -> str:
    """A length of time in words, rounded to what matters: "40 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def path_text(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path as text for data: bytes that are not UTF-8 become `\xNN`; the rest is unchanged."""
    if isinstance(path, bytes):
        return path.decode("utf-8", "backslashreplace")
    text = str(path)  # not os.fspath: a URL's path alone lacks its protocol
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        raw = text.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """A path or URL for a message: one line, no terminal codes, no password and no query of a URL."""
    text = url_without_secrets(on_one_line(path_text(path)))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


def quoted(path: str | bytes | os.PathLike[str]) -> str:
    """The same as an argument of a command to copy into a shell."""
    return shlex.quote(printable(path))


def is_plain(character: str) -> bool:
    """Whether a character is not a control character, a line end or a change of the writing direction.

    `str.isprintable` would also reject what joins letters in Persian, the spaces of French and Japanese, and emoji.
    """
    return unicodedata.category(character) not in _CONTROLS and unicodedata.bidirectional(character) not in TURNS


def on_one_line(text: str) -> str:
    """Text with escapes (`\\n`, `\\x1b`, `\\u202e`) for characters that are not plain."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def told_apart(texts: Iterable[str]) -> list[str]:
    """The same texts, all different: one that has been there before gets a number."""
    shown: dict[str, None] = {}
    for text in texts:
        name, number = text, 1
        while name in shown:
            number += 1
            name = f"{text} ({number})"
        shown[name] = None
    return list(shown)


def as_message(text: object) -> str:
    """A message for a terminal or a log: one line, no terminal codes, no secrets of URLs."""
    return without_secrets(on_one_line(str(text)))


def for_terminal(text: str) -> str:
    """A whole message, its lines kept, without terminal codes, changes of direction and secrets of URLs."""
    return without_secrets("\n".join(map(on_one_line, text.split("\n"))))


def cell(text: str) -> str:
    """A text for a file that spreadsheets open: on one line, and after an apostrophe where one would compute it."""
    plain = on_one_line(text)
    return f"'{plain}" if _FORMULA.match(plain) and not _NUMBER.fullmatch(plain) else plain


def code_span(text: str, in_table: bool = False) -> str:
    """A text as a code span of Markdown: nothing in it acts as a link, an image, HTML or the end of a table cell."""
    plain = as_message(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    space = " " if plain[0] in " `" or plain[-1] in " `" else ""  # one at each end is not shown
    span = f"{fence}{space}{plain}{space}{fence}"
    return span.replace("|", "\\|") if in_table else span


def without_secrets(text: str) -> str:
    """Text in which URLs have no user and password, and a short digest instead of a query and fragment.

    The digest tells apart URLs that differ only in their query.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(
        lambda found: found[1] if found[2] is None else f"{found[1]}?{_short(found[2])}", _USER.sub("", text)
    )


def url_without_secrets(url: str) -> str:
    """The same for a single URL, which may contain blanks, or a local path, which stays as it is."""
    found = _URL.fullmatch(url)
    if found is None:
        return url
    protocol, place, query = found.groups()
    return f"{protocol}{place}?{_short(query)}" if query else f"{protocol}{place}"


def _short(query: str) -> str:
    if re.fullmatch("[0-9a-f]{8}", query):  # done before
        return query
    return hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line without the path."""
    if isinstance(error, OSError) and error.strerror:
        return as_message(error.strerror)
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or a format that is not supported"
    return without_secrets(on_one_line(" ".join(str(error).split()))) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error message, for libraries that add a page of advice."""
    lines = str(error).strip().splitlines()
    return without_secrets(on_one_line(lines[0])) if lines else type(error).__name__

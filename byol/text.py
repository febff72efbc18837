"""Words for people: names, reasons and messages that any terminal, table or log takes. Torch-free.

What a stranger wrote (a file's name, a URL, an error's text) may hold terminal codes, changes of the writing direction,
line ends and secrets. Data files keep names as they are (`path_text`); what a person reads goes through `printable`,
`on_one_line` or `for_terminal`.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # they can make a name look like another
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_URL = re.compile(r"([^?#]*?://)(?:[^/?#]*@)?([^?#]*)(?:[?#](.*))?", re.DOTALL)
_QUERY = re.compile(r"(?<=://)([^\s?#'\"<>]*)[?#]([^\s'\"<>]*)")


def path_text(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path as text for data: bytes that are not UTF-8 become `\xNN`, all else stays as it is."""
    raw = path if isinstance(path, bytes) else os.fsencode(str(path))  # str: a URL's path alone lacks its protocol
    return raw.decode("utf-8", "backslashreplace")


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """A path or URL for a message: one line, no terminal codes, no password and no query of a URL."""
    return url_without_secrets(on_one_line(path_text(path)))


def is_plain(character: str) -> bool:
    """Whether a character is no control character, no line end and no change of the writing direction.

    `str.isprintable` would also refuse what joins letters in Persian, the spaces of French and Japanese, and emoji.
    """
    return unicodedata.category(character) not in _CONTROLS and unicodedata.bidirectional(character) not in TURNS


def on_one_line(text: str) -> str:
    """Text with escapes (`\\n`, `\\x1b`, `\\u202e`) in the place of characters that are not plain."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def for_terminal(text: str) -> str:
    """A whole message, its lines kept, without terminal codes, changes of direction and secrets of URLs."""
    return "\n".join(on_one_line(line) for line in without_secrets(text).split("\n"))


def without_secrets(text: str) -> str:
    """Text in which URLs have no user and password, and a short digest in the place of their query and fragment.

    The digest keeps two URLs apart that differ in their query alone.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(lambda found: f"{found[1]}?{_short(found[2])}", _USER.sub("", text))


def url_without_secrets(url: str) -> str:
    """The same for what is one URL as a whole, also with blanks in it, and for a local path, which is left as it is."""
    found = _URL.fullmatch(url)
    if found is None:
        return url
    protocol, place, query = found.groups()
    return f"{protocol}{place}?{_short(query)}" if query else f"{protocol}{place}"


def _short(query: str) -> str:
    if re.fullmatch("[0-9a-f]{8}", query):  # done before
        return query
    return hashlib.sha256(query.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line without the path."""
    if isinstance(error, OSError) and error.strerror:
        return on_one_line(error.strerror)
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or a format that is not supported"
    return on_one_line(without_secrets(" ".join(str(error).split()))) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for libraries that add a page of advice."""
    lines = str(error).strip().splitlines()
    return on_one_line(without_secrets(lines[0])) if lines else type(error).__name__

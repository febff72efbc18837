"""The code in the documentation, which tests run as it stands there. A page is named as a link from docs/ names it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.small import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = ("../README.md", *sorted(path.name for path in DOCS.glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading it stands under, what follows its fence, its lines."""

    heading: str
    language: str
    text: str


def tokens(document: str) -> list[Token]:
    """A page as Markdown's parser reads it."""
    return MarkdownIt("commonmark").enable("table").parse((DOCS / document).read_text())


def blocks(document: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found, heading = [], ""
    for token, following in pairwise([*tokens(document), Token("end", "", 0)]):
        if token.type == "heading_open":
            heading = following.content
        elif token.type == "fence":
            found.append(Block(heading, token.info.strip(), token.content))
    return found


def inline_code(document: str) -> list[str]:
    """Every code span in a page's prose and tables."""
    return [part.content for token in tokens(document) for part in token.children or [] if part.type == "code_inline"]


def code(document: str, heading: str) -> list[str]:
    """The Python blocks of a page under a heading, up to the next heading. Fails when there are none."""
    found = [block.text for block in blocks(document) if (block.heading, block.language) == (heading, "python")]
    assert found, f"{document} has no Python under {heading!r}"
    return found

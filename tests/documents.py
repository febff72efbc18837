"""The code in the documentation, which tests run as it stands there."""

from __future__ import annotations

from tests.small import REPOSITORY


def code(document: str, heading: str) -> list[str]:
    """The Python blocks of docs/DOCUMENT under a heading, up to the next heading. Fails when there are none."""
    found: list[str] = []
    here, block = "", None
    for line in (REPOSITORY / "docs" / document).read_text().splitlines(keepends=True):
        if block is not None:
            if line.rstrip() != "```":
                block.append(line)
                continue
            if here == heading and block[0] == "python\n":
                found.append("".join(block[1:]))
            block = None
        elif line.startswith("```"):
            block = [line[3:]]
        elif line.startswith("#"):
            here = line.strip("# \n")
    assert found, f"docs/{document} has no Python under {heading!r}"
    return found

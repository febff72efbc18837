"""docs/security.md against the code: every limit stands there as it is, and can be set."""

import re

import pytest

from byol.limits import LIMITS, BadLimit, limit
from tests.support.small import REPOSITORY


def test_the_page_lists_every_limit_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "security.md").read_text()
    rows = dict(re.findall(r"^\| `(BYOL_\w+)` \| ([\d,]+) \|", page, re.MULTILINE))
    assert rows == {name: f"{one.default:,}" for name, one in LIMITS.items()}


def test_variables_that_the_pages_name_exist() -> None:
    known = {*LIMITS, "BYOL_PROTOCOLS", "BYOL_LIST_ADDRESSES", "BYOL_CACHE_GB", "BYOL_HOME"}
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    assert {name for page in pages for name in re.findall(r"\bBYOL_[A-Z_]+\b", page.read_text())} <= known


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_what_the_environment_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " 17 ")
    assert limit(name) == 17
    for text in ("0", "-1", "1.5", "many", "9" * 30, "\u0663"):
        monkeypatch.setenv(name, text)
        with pytest.raises(BadLimit, match=name):
            limit(name)

"""The server's page in a real browser: a picture is chosen, its classes, nearest images and features are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import byol
from tests.support.web.browser import CHROMIUM, Browser
from tests.support.web.servers import serving, write_classified

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


def choose(browser: Browser, path: Path) -> None:
    """Give the page's file input a file, as a person does."""
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    field = browser.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])


def test_a_picture_shows_classes_neighbours_and_features(tmp_path: Path) -> None:
    bundle = write_classified(tmp_path)
    done = byol("extract", bundle, tmp_path / "images", "--out", tmp_path / "f.parquet", "--device", "cpu")
    assert done.code == 0, done.err
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<script>alert(1)</script>")
    with serving(bundle, "--index", tmp_path / "f.parquet") as served, Browser(tmp_path / "profile") as browser:
        browser.look()
        browser.call("Page.navigate", url=f"{served.url}/")
        browser.wait("document.readyState === 'complete' && location.protocol === 'http:'")
        is_seen = "document.querySelector('#shown').checkVisibility()"
        assert not browser.evaluate(is_seen)  # no frame of a broken image before there is one
        choose(browser, tmp_path / "images" / "dog" / "002.png")
        browser.wait(is_seen)
        browser.wait("document.querySelectorAll('#found canvas').length === 1")
        titles = browser.evaluate("[...document.querySelectorAll('#found h2')].map(h => h.textContent)")
        assert titles == ["Classes", "Nearest images, by cosine similarity", "8 features"]
        rows = browser.evaluate("[...document.querySelectorAll('#found li span:first-child')].map(s => s.textContent)")
        assert sorted(rows[:2]) == ["cat", "dog"]
        assert rows[2] == "dog/002.png"
        assert browser.problems == []
        choose(browser, bad)
        browser.wait("document.querySelector('#found [role=alert]') !== null")
        browser.wait(f"!{is_seen}")
        said = browser.evaluate("document.querySelector('#found').textContent")
        assert said == "bad.png: not an image, or a format that is not supported"
        assert all(url.startswith((f"{served.url}/", "blob:", "data:", "about:")) for url in browser.requests)

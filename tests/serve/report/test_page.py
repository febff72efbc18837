"""The report in a real browser: no error, no request, light and dark, the explorer by mouse and by keyboard."""

from __future__ import annotations

import re

import numpy as np
import pytest

from byol.serve.report.style import DARK_PAPER, LIGHT_PAPER, contrast
from tests.support.command_line import byol
from tests.support.reports import CPU, write_bundle_of, write_run
from tests.support.web.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

HOSTILE = "<img src=x onerror=alert(1)></script>"
DRAWN = "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"


def write_labelled(path, per_class, seed, names=("cat", HOSTILE)):
    """Noise around a brightness for each class; the name of one class is what HTML could take for markup."""
    generator = np.random.default_rng(seed)
    labels, tints = np.repeat(names, per_class), np.repeat(np.linspace(100, 0, len(names)).astype(int), per_class)
    images = generator.integers(0, 100, (len(labels), 20, 20, 3)) + tints[:, None, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    run = write_run(root / "run")
    bundle = write_bundle_of(run, root / "bundle")
    sources = ("--train", write_labelled(root / "train.npz", 20, 0), "--test", write_labelled(root / "test.npz", 30, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("byol.serve.report.measure.LABELS_PER_CLASS", (1, 2))
        done = byol("report", run, bundle, *sources, "--out", root / "report.html", *CPU)
    assert done.code == 0, done.err
    return root / "report.html"


LONG = ("$$x^2$$", "a" * 26, "a" * 27, "Ulmus glabra " * 6, "w" * 120)


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """A page of classes with names of up to 120 letters, one of which reads as TeX."""
    root = tmp_path_factory.mktemp("long")
    bundle = write_bundle_of(write_run(root / "run"), root / "bundle")
    parts = [
        (f"--{part}", write_labelled(root / f"{part}.npz", 8, i, LONG)) for i, part in enumerate(("train", "test"))
    ]
    done = byol("report", bundle, *parts[0], *parts[1], "--out", root / "report.html", *CPU)
    assert done.code == 0, done.err
    return root / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium, page):
    chromium.problems, chromium.requests = [], []
    chromium.look()
    chromium.open(page)
    chromium.wait(DRAWN)
    yield chromium
    assert chromium.problems == []


def test_it_loads_from_disk_without_errors_or_requests(browser, page):
    assert page.stat().st_size < 5e6
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", markup)
    addresses = {request.partition(":")[0] for request in browser.requests}
    assert addresses <= {"about", "file", "data", "blob"}
    figures = browser.evaluate("document.querySelectorAll('figure [data-root-id]').length")
    assert figures == browser.evaluate("Bokeh.documents[0].roots().length") > 5
    assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_names_of_classes_are_text(browser):
    assert browser.evaluate("document.querySelectorAll('[onerror]').length") == 0
    browser.evaluate("document.querySelector('.queries button').click()")  # sorted: `<` comes before `c`
    assert browser.evaluate("document.querySelector('.asked p').textContent").startswith(f"Labelled {HOSTILE}")
    assert browser.evaluate("Bokeh.documents[0].get_model_by_name('map').data.label.includes('cat')")


def test_a_click_shows_the_neighbours_of_that_image(browser):
    browser.click(".queries button:nth-child(5)")
    assert browser.evaluate("document.querySelectorAll('.queries [aria-pressed=true]').length") == 1
    label = browser.evaluate("document.querySelector('.queries [aria-pressed=true]').getAttribute('aria-label')")
    shown = browser.evaluate("document.querySelector('.asked small').textContent")
    assert label.startswith(f"{shown}: Labelled ")
    assert browser.evaluate("document.querySelectorAll('.found li').length") == 6
    data = "JSON.parse(document.getElementById('data').textContent)"
    expected = browser.evaluate(f"{data}.queries[4].neighbours.map((n) => n.id)")
    assert browser.evaluate("[...document.querySelectorAll('.found img')].map((i) => i.alt)") == expected


def test_arrow_keys_and_enter_do_the_same(browser):
    browser.evaluate("document.querySelector('.queries button[tabindex=\"0\"]').focus()")
    focused = "document.activeElement.dataset.query"
    pressed = "document.querySelector('.queries [aria-pressed=true]').dataset.query"
    for key, place in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1"), ("End", "47"), ("Home", "0")):
        browser.press(key)
        assert browser.evaluate(focused) == place
    browser.press("ArrowDown")
    below = browser.evaluate(focused)
    assert int(below) > 1  # the next line
    assert browser.evaluate(pressed) == "0"  # nothing is chosen by moving
    browser.press("Enter")
    assert browser.evaluate(pressed) == below
    browser.press("ArrowUp")
    assert browser.evaluate(focused) == "0"
    assert browser.evaluate("document.querySelectorAll('.queries button[tabindex=\"0\"]').length") == 1


def test_the_map_has_the_pictures_of_its_points(browser):
    pictures = browser.evaluate("Bokeh.documents[0].get_model_by_name('map').data.picture")
    assert len(pictures) == 60
    assert all(picture.startswith("data:image/webp;base64,") for picture in pictures)


def test_pointing_at_the_map_shows_the_picture(browser):
    browser.evaluate("document.querySelector('#map figure').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = browser.evaluate(FIRST_POINT)
    browser.point(x - 5, y)
    browser.point(x, y)
    browser.wait(f"({SHOWN_PICTURES})().length > 0")
    first = browser.evaluate("Bokeh.documents[0].get_model_by_name('map').data.picture[0]")
    assert first in browser.evaluate(f"({SHOWN_PICTURES})()")


ALPHAS = "[...new Set(Bokeh.documents[0].get_model_by_name('map').data.{key}.filter((_, i) => {which}))]"


@pytest.mark.parametrize("way", ["click", "key"])
def test_the_legend_shows_one_class_alone_and_all_again(browser, way):
    def choose():
        if way == "click":
            browser.click(".classes button[data-class=cat]")
        else:
            browser.evaluate("document.querySelector('.classes button[data-class=cat]').focus()")
            browser.press("Enter")

    label = "Bokeh.documents[0].get_model_by_name('map').data.label[i]"
    cats, others = (ALPHAS.format(key="alpha", which=f"{label} {sign} 'cat'") for sign in ("===", "!=="))
    pressed = "[...document.querySelectorAll('.classes [aria-pressed=true]')].map((b) => b.dataset.class)"
    assert (browser.evaluate(cats), browser.evaluate(others), browser.evaluate(pressed)) == ([0.8], [0.8], [])
    choose()
    assert (browser.evaluate(cats), browser.evaluate(others), browser.evaluate(pressed)) == ([0.8], [0.07], ["cat"])
    choose()
    assert (browser.evaluate(cats), browser.evaluate(others), browser.evaluate(pressed)) == ([0.8], [0.8], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_on_the_map_have_their_classes_colour_for_this_paper(browser, scheme):
    browser.look(scheme=scheme)
    names = "Bokeh.documents[0].get_model_by_name('names PCA').data"
    browser.wait(f"{names}.ink[0] === {names}.{scheme}[0]")
    paper = browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()")
    assert paper == {"light": LIGHT_PAPER, "dark": DARK_PAPER}[scheme]
    assert all(contrast(ink, paper) >= 4.5 for ink in browser.evaluate(f"[...{names}.ink]"))


@pytest.mark.parametrize("width", [390, 1280])
def test_tiles_are_large_framed_in_their_classes_colour_and_not_blown_up(browser, width):
    browser.look(width=width)
    tiles = browser.evaluate(TILES)
    assert len(tiles) == 48 + 1 + 6
    colours = dict(browser.evaluate("JSON.parse(document.getElementById('data').textContent).colours"))
    for frame, picture, pixels, colour in tiles:
        assert frame >= 96
        assert picture % pixels == 0  # 20 px, four times as large
        assert colour in colours.values()
    style = "getComputedStyle(document.querySelector('.queries .frame')).borderTopStyle"
    assert browser.evaluate(style) == "solid"
    browser.evaluate("document.querySelector('.queries button').classList.add('wrong')")
    assert browser.evaluate(style) == "dashed"


TILES = """[...document.querySelectorAll(".frame")].map((frame) => {
  const image = frame.querySelector("img");
  const colour = frame.style.getPropertyValue("--class");
  return [frame.clientWidth, image.clientWidth, image.naturalWidth, colour];
})"""


FIRST_POINT = """(() => {
  const source = Bokeh.documents[0].get_model_by_name("map");
  const view = Bokeh.index.roots.find((root) => root.el?.closest("#map"));
  const box = view.el.getBoundingClientRect();
  const { x_scale, y_scale } = view.frame;
  return [box.x + x_scale.compute(source.data["PCA 0"][0]), box.y + y_scale.compute(source.data["PCA 1"][0])];
})()"""

# In whatever shadow root Bokeh keeps its tooltips.
SHOWN_PICTURES = """() => {
  const found = [];
  const look = (root) => {
    for (const element of root.querySelectorAll("*")) {
      if (element.shadowRoot) look(element.shadowRoot);
      if (element.tagName === "IMG" && root !== document && element.clientWidth) found.push(element.src);
    }
  };
  look(document);
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser, scheme):
    browser.look(scheme=scheme)
    ratios = browser.evaluate(CONTRASTS)
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.2, success criterion 1.4.3


CONTRASTS = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const linear = (i) => {
      const value = parseInt(hex.slice(i, i + 2), 16) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * linear(1) + 0.7152 * linear(3) + 0.0722 * linear(5);
  };
  const result = {};
  for (const name of ["--ink", "--soft", "--accent", "--right", "--wrong"])
    for (const under of ["--paper", "--panel"]) {
      const [low, high] = [light(name), light(under)].sort((a, b) => a - b);
      result[`${name} on ${under}`] = (high + 0.05) / (low + 0.05);
    }
  return result;
})()"""


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_leave_room_for_the_matrix_and_tex_is_text(chromium, long_names, width):
    chromium.problems = []
    chromium.look(width=width)
    chromium.open(long_names)
    chromium.wait(DRAWN)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    inner, outer = chromium.evaluate(MATRIX)
    assert inner > outer / 2
    names = "Bokeh.documents[0].get_model_by_name('names PCA').data"
    assert chromium.evaluate(f"{names}.name.includes('$$x^2$$')")  # a glyph's text, which is never taken for TeX
    assert chromium.evaluate(f"[...{names}.class]") == sorted(LONG)
    room = "[...document.querySelectorAll('.classes button, .queries .name')].map((b) => b.getBoundingClientRect())"
    assert chromium.evaluate(f"{room}.every((r) => r.left >= 0 && r.right <= {width} && r.height < 40)")
    assert chromium.problems == []


MATRIX = """(() => {
  const view = Bokeh.index.roots.find((root) => root.model.x_range?.factors);
  return [view.frame.bbox.width, view.el.getBoundingClientRect().width];
})()"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser, width):
    browser.look(width=width)
    browser.wait(f"window.innerWidth === {width}")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_table_wider_than_a_phone_keeps_its_names_and_casts_a_shadow(browser):
    browser.look(width=390)
    browser.wait("window.innerWidth === 390")
    tables = "[...document.querySelectorAll('.scroll')].filter((e) => e.querySelector('table'))"
    wide = f"{tables}.find((e) => e.scrollWidth > e.clientWidth)"
    style = f"getComputedStyle({wide})"
    assert browser.evaluate(f"{style}.backgroundAttachment") == "local, local, scroll, scroll"
    browser.evaluate(f"{wide}.scrollLeft = 1000")
    name = f"{wide}.querySelector('tbody th').getBoundingClientRect()"
    assert browser.evaluate(f"{name}.left >= 0 && {name}.right < 200")

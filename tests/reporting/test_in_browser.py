"""Both pages in a real browser: a laptop and a phone, in the dark and in print, without a word to anybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import records
import site_pages

from fedmedseg.reporting.report import write_report
from fedmedseg.reporting.site_page import write_site_page

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no browser is installed ({', '.join(browser.NAMES)})"
)
PAGES = ("server", "site", "hearts", "hearts at a site")
LAPTOP, PHONE = 1280, 390
LEAST_CONTRAST = 4.5
"""WCAG 2.2, criterion 1.4.3, of text below 24 px."""
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const read = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = read(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  let least = 99, whose = '';
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(read(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least) { least = ratio; whose = texts.currentNode.data.trim(); }
  }
  return [least, whose];
})()
"""
"""The least contrast between a page's words and what lies under them, and the words."""
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(one => {
  if (one.closest('.scroll') && !one.matches('.scroll') || one.closest('pre')) return false;
  return one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 0.5;
}).map(one => one.tagName + '.' + one.className)
"""
"""Elements that stand out to the right, those left out that lie in a box which scrolls by itself."""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The server's page with long names and everything a page can hold, and a site's, of masks and of cardiac CT."""
    folder = tmp_path_factory.mktemp("pages")
    record = records.finished(("site-1", "a-hospital-with-a-name-that-is-rather-long", "site-3"))
    record["settings"] = {"study": "cardiac-study", "note": "x" * 300}
    record["models"] = [{"file": "models/shared.safetensors", "bytes": 10**7}]
    record["reason"] = "y" * 200
    write_site_page(folder, site_pages.page())
    hearts = folder / "hearts"
    write_site_page(hearts, site_pages.cardiac_ct_page())
    return {
        "server": write_report(record, folder, previous=records.finished()),
        "site": folder / "site_report.html",
        "hearts": write_report(records.cardiac_ct(), hearts, previous=records.cardiac_ct()),
        "hearts at a site": hearts / "site_report.html",
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_can_be_read_and_asks_for_nothing(
    window: browser.Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page = window.page(pages[name], width=width, dark=dark)
    try:
        assert page.complaints == []
        assert page.requests == [pages[name].as_uri()]
        assert page.evaluate("innerWidth") == width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark
        # what is folded away has to be readable, too
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        least, whose = page.evaluate(CONTRAST)
        assert least >= LEAST_CONTRAST, whose
        assert page.evaluate(TOO_WIDE) == []
    finally:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_in_print_a_page_is_black_on_white_and_whole_even_in_the_dark(
    window: browser.Browser, pages: dict[str, Path], name: str
) -> None:
    page = window.page(pages[name], width=LAPTOP, media="print", dark=True)
    try:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert page.evaluate("getComputedStyle(document.images[0]).filter") == "none"
        least, whose = page.evaluate(CONTRAST)
        assert least >= LEAST_CONTRAST, whose
        folded = "[...document.querySelectorAll('details > .scroll, details > pre')]"
        assert page.evaluate(f"{folded}.length") > 0
        assert page.evaluate(f"{folded}.every(one => one.getBoundingClientRect().height > 30)"), (
            "nothing is folded away"
        )
        assert page.pdf().startswith(b"%PDF")
    finally:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_is_given_every_table_and_picture_by_name(
    window: browser.Browser, pages: dict[str, Path], name: str
) -> None:
    """By the tree that the browser hands to it, not by the page's source."""
    page = window.page(pages[name], width=LAPTOP)
    try:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.call("Accessibility.enable")
        nodes = [one for one in page.call("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
        heard = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes]
        for roles in (("table",), ("image", "img"), ("heading",), ("rowheader",), ("columnheader",)):
            names = [text for role, text in heard if role in roles]
            assert names, roles
            assert all(text.strip() for text in names), roles
        assert [role for role, _ in heard].count("main") == 1
        # what is bold for those who see is a word for those who do not
        assert any(role == "StaticText" and text == "(best)" for role, text in heard) is (name in ("server", "hearts"))
    finally:
        page.close()


def test_the_browser_sees_what_it_is_for(window: browser.Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><body style='background:#fff'>"
        "<p style='width:2000px;color:#999'>pale</p>"
        "<img src='https://example.org/x.png' alt=''><script>undefined.x</script>"
    )
    page = window.page(file, width=PHONE)
    try:
        assert any("TypeError" in one for one in page.complaints)
        assert "https://example.org/x.png" in page.requests
        assert page.evaluate(TOO_WIDE) == ["P."]
        assert page.evaluate(CONTRAST)[0] < LEAST_CONTRAST
    finally:
        page.close()

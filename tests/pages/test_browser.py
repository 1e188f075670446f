"""Pages as people see them: in a real browser, on a desk and on a phone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pages.browser import DESK, PHONE, look
from pages.conftest import EVIL, LINES

SIZES = {"desk": DESK, "phone": PHONE}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LINES)
def test_a_page_stands_alone_and_fits(name: str, size: str, written: Path, browser: Any, tmp_path: Path) -> None:
    file = written / f"{name}.html"
    seen = look(browser, file, SIZES[size])
    assert seen.asked == [file.resolve().as_uri()]  # itself, and nothing else
    assert seen.errors == []
    assert seen.overflows == 0
    assert seen.page.locator("h1").is_visible()
    assert float(seen.page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 15
    picture = seen.shot(tmp_path / "shot.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000  # something is drawn on it


@pytest.mark.parametrize("size", SIZES)
def test_figures_are_drawn_and_scroll_by_themselves(size: str, written: Path, browser: Any) -> None:
    page = look(browser, written / "fusion.html", SIZES[size]).page
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    assert len(boxes) == 4
    assert all(box["height"] > 100 and box["width"] <= SIZES[size][0] for box in boxes)
    assert all(label for label in page.locator("figure").evaluate_all("all => all.map(f => f.ariaLabel)"))
    widths = page.locator("figure svg").evaluate_all("all => all.map(s => s.getBoundingClientRect().width)")
    assert min(widths) >= 450  # text stays large enough to be read


def column(page: Any, index: int) -> list[str]:
    return page.locator(f"main table >> nth=0 >> css=tbody tr > *:nth-child({index})").all_inner_texts()


def test_a_click_sorts_and_another_turns_the_order(written: Path, browser: Any) -> None:
    page = look(browser, written / "many.html", DESK).page
    names = column(page, 1)
    heads = page.locator("main table >> nth=0 >> css=th")
    heads.nth(5).locator("button").click()  # effective rank; odd.safetensors has none
    assert heads.nth(5).get_attribute("aria-sort") == "descending"
    values = column(page, 6)
    assert values[-1] == "-"
    assert [float(value) for value in values[:-1]] == sorted(map(float, values[:-1]), reverse=True)
    heads.nth(5).locator("button").press("Enter")  # by the keyboard too
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"
    values = column(page, 6)
    assert values[-1] == "-"
    assert [float(value) for value in values[:-1]] == sorted(map(float, values[:-1]))
    heads.nth(0).locator("button").click()
    assert heads.nth(5).get_attribute("aria-sort") is None
    assert column(page, 1) == sorted(names, key=str.lower)
    heads.nth(3).locator("button").click()
    heads.nth(0).locator("button").press(" ")  # coming back to it, its own order first
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("name", LINES)
def test_everything_that_can_be_reached_has_a_name(name: str, written: Path, browser: Any) -> None:
    page = look(browser, written / f"{name}.html", DESK).page
    heads = page.locator("thead button").all_inner_texts()
    assert all(text.strip() for text in heads), heads
    regions = page.locator("[role=region]").evaluate_all("all => all.map(r => r.ariaLabel)")
    assert all(label and "table" in label for label in regions)
    rows = page.locator("tbody tr").count()
    assert page.locator("tbody tr > th[scope=row]:first-child").count() == rows
    for _ in range(page.locator("[tabindex='0'], button, summary").count()):
        page.keyboard.press("Tab")
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth) || 0")
        assert width > 0, page.evaluate("document.activeElement.outerHTML.slice(0, 80)")


RATIO = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (e, what) => { const own = light(getComputedStyle(e)[what]);
    return (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05); };
  return [...document.querySelectorAll("p, dt, dd, td, th, h2")].map(e => ratio(e, "color"))
    .concat([...document.querySelectorAll("svg text")].map(e => ratio(e, "fill")));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["fusion", "many"])
def test_text_stands_out_by_day_and_by_night(name: str, scheme: str, written: Path, browser: Any) -> None:
    page = look(browser, written / f"{name}.html", PHONE, scheme).page
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is (scheme == "light")
    ratios = page.evaluate(RATIO)
    assert len(ratios) > 20
    assert min(ratios) >= 4.5  # WCAG AA


def test_a_phone_shows_a_row_s_name_beside_its_numbers(written: Path, browser: Any) -> None:
    page = look(browser, written / "many.html", PHONE).page
    scroller = page.locator(".scroll").first
    first = page.locator("tbody th").first
    assert first.bounding_box()["width"] < PHONE[0] / 2
    scroller.evaluate("element => { element.scrollLeft = 300; }")
    assert first.bounding_box()["x"] >= 0  # it stays
    head = page.locator("thead th").first.bounding_box()
    assert head["height"] >= 40  # a finger's width


@pytest.mark.parametrize("name", ["inspect", "compare", "family", "fusion"])
def test_text_in_figures_can_be_read_on_a_phone(name: str, written: Path, browser: Any) -> None:
    page = look(browser, written / f"{name}.html", PHONE).page
    script = """all => all.map(t => { const m = t.getScreenCTM();
      return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b); })"""
    sizes = page.locator("figure svg text").evaluate_all(script)
    assert min(sizes) >= 7.0  # pixels of the page, on a screen of twice as many


def test_long_tables_are_shut_at_first_and_open(written: Path, browser: Any) -> None:
    page = look(browser, written / "inspect.html", PHONE).page
    assert page.locator("details").count() == 0  # few modules: nothing is hidden
    assert page.get_by_text("What programs will take").is_visible()


def test_a_stranger_s_words_are_words(written: Path, browser: Any) -> None:
    seen = look(browser, written / "many.html", DESK)
    assert seen.page.title() == "Adapters side by side - nplora"
    assert EVIL.split("</script>")[1].strip() in seen.page.locator("body").inner_text()
    assert seen.page.locator("b").count() == 0


def test_the_check_for_requests_can_fail(written: Path, browser: Any, tmp_path: Path) -> None:
    text = (written / "many.html").read_text(encoding="utf-8")
    page = tmp_path / "loud.html"
    unguarded = re.sub(r"<meta http-equiv[^>]*>", "", text)
    page.write_text(unguarded.replace("</main>", "<img src='http://127.0.0.1:9/x.png'></main>"), encoding="utf-8")
    assert len(look(browser, page, DESK).asked) == 2
    page.write_text(text.replace("</main>", "<p style='width: 3000px; max-width: none'>x</p></main>"), encoding="utf-8")
    assert look(browser, page, PHONE).overflows > 0

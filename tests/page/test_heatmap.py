"""The heat map: a box is drawn by mouse, keyboard or form, is in the URL, and what distinguishes it is below."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from answers.made import MS, NOON, Made, kept, store
from backend.processes import until
from page.conftest import containing, settle, violations
from page.data import CODES
from stagetrace.output.answer import Answer
from stagetrace.output.units import moment, zone
from stagetrace.page.base import Asked, Part, Site
from stagetrace.page.templates import render
from stagetrace.page.views import heatmap
from stagetrace.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

    from page.conftest import OpenPage
    from stagetrace.page.base import Make

SITE = Site("store", lambda: open_store(""), lambda *_: Answer("", "", {}, []))
FIELDS = ["from", "to", "least_ms", "most_ms"]
PIXELS = "() => document.querySelector('#heat canvas').toDataURL()"


def asked(page: Page) -> dict[str, str]:
    """Return the box of the URL."""
    found = parse_qs(urlsplit(page.url).query)
    return {name: found[name][0] for name in FIELDS if name in found}


@pytest.mark.parametrize(
    ("name", "written"),
    [("UTC", "12:00:00.5Z"), ("Asia/Kolkata", "17:30:00.5+05:30"), ("America/New_York", "07:00:00.5-05:00")],
)
def test_a_time_of_a_box_is_the_same_in_each_zone(name: str, written: str) -> None:
    ns = NOON + 500_000_000
    text = heatmap.exact(ns, zone(name))
    assert text == f"2026-03-01T{written}"
    assert moment(text).at(0, zone("Asia/Tokyo")) == ns


def test_ticks_are_round_times_of_the_zone() -> None:
    """Of a day in a zone whose hours begin at half past of ours; a new day is named."""
    found = heatmap.ticks(NOON, NOON + 86_400 * 10**9, zone("Asia/Kolkata"))
    hours = [(at - NOON / 1e6) / 3_600_000 for at, _ in found]
    assert hours == [0.5, 3.5, 6.5, 9.5, 12.5, 15.5, 18.5, 21.5]
    assert [label for _, label in found] == ["18:00", "21:00", "03-02", "03:00", "06:00", "09:00", "12:00", "15:00"]


def below(page: Page, what: str) -> None:
    """Wait until the part below is about this."""
    expect(page.locator("#box h2")).to_have_text(f"What distinguishes {what}", timeout=20_000)
    settle(page)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over the picture, from and to shares of its width and height."""
    bounds = page.locator("#heat").bounding_box()
    assert bounds is not None
    at = [(bounds["x"] + bounds["width"] * x, bounds["y"] + bounds["height"] * y) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()
    settle(page)


def test_dragging_selects_a_box_that_is_in_the_url_and_back_undoes_it(open_page: OpenPage) -> None:
    page = open_page("demo", "/heatmap")
    below(page, "the breaches")
    before = page.evaluate(PIXELS)
    drag(page, (0.1, 0.05), (0.3, 0.3))
    first = asked(page)
    assert [*first] == FIELDS
    assert float(first["least_ms"]) > 50
    below(page, "the box")
    expect(page.locator("#box-form input[name=from]")).to_have_value(first["from"])
    expect(page.locator("#filter input[name=most_ms]")).to_have_value(first["most_ms"])
    assert page.evaluate(PIXELS) != before
    drag(page, (0.4, 0.6), (0.6, 0.9))
    second = asked(page)
    assert float(second["most_ms"]) < 50
    shown = page.locator("#box").inner_text()
    page.go_back()
    expect(page.locator("#box-form input[name=least_ms]")).to_have_value(first["least_ms"])
    expect(page.locator("#box")).not_to_have_text(shown, timeout=20_000)
    settle(page)
    assert asked(page) == first
    page.go_back()
    below(page, "the breaches")
    assert asked(page) == {}
    page.go_forward()
    below(page, "the box")


def test_causes_have_the_line_of_most(open_page: OpenPage) -> None:
    page = open_page("many", "/heatmap?since=2h")
    below(page, "the breaches")
    row = page.locator("#box tr", has=page.get_by_role("link", name="lock_wait"))
    line = row.locator("a:has(code)")
    assert line.inner_text() in CODES["lock_wait"]
    assert urlencode({"code": line.inner_text()}) in (line.get_attribute("href") or "")
    assert page.locator("#box tr", has=page.get_by_role("link", name="cpu_wait")).locator("code").count() == 0


def test_a_link_restores_the_box(open_page: OpenPage) -> None:
    page = open_page("many", "/heatmap?since=2h&least_ms=50&most_ms=1000")
    below(page, "the box")
    expect(page.locator("#box > p.soft").first).to_contain_text("10,000 requests in the box")
    boxed = page.evaluate(PIXELS)
    page.locator("#box-clear").click()
    below(page, "the breaches")
    settle(page)
    assert asked(page) == {}
    assert page.evaluate(PIXELS) != boxed
    drag(page, (0.5, 0.05), (0.8, 0.3))
    other = open_page("many", f"/heatmap?{urlsplit(page.url).query}")
    assert other.locator("#box > p.soft").first.inner_text() == page.locator("#box > p.soft").first.inner_text()


def test_the_keyboard_selects_a_box(open_page: OpenPage) -> None:
    page = open_page("demo", "/heatmap")
    page.locator("#heat").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#heat-now")).to_contain_text(" ms, p")
    spoken = page.locator("#heat-now").inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator("#heat-now").inner_text() != spoken
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(f"Shift+{key}")
    assert asked(page) == {}
    page.keyboard.press("Enter")
    below(page, "the box")
    assert [*asked(page)] == FIELDS
    page.keyboard.press("Escape")
    below(page, "the breaches")
    assert asked(page) == {}


def test_the_form_selects_a_box_and_keeps_the_selection(open_page: OpenPage) -> None:
    page = open_page("many", "/heatmap?since=2h&service=shop")
    page.locator("#box-form input[name=least_ms]").fill("100")
    page.locator("#box-form button").click()
    settle(page)
    assert asked(page) == {"least_ms": "100"}
    expect(page).to_have_url(containing("service=shop"))
    expect(page.locator("#box > p.soft").first).to_contain_text("The start to the end, 100 ms or more. ")


def test_a_tooltip_has_the_numbers_of_a_cell(open_page: OpenPage) -> None:
    page = open_page("many", "/heatmap?since=2h")
    page.locator("#heat").hover()
    tip = page.locator("#heat .tip")
    expect(tip).to_contain_text("UTC")
    expect(tip).to_contain_text("ms, p")
    expect(tip).to_contain_text("request")
    expect(tip).to_contain_text("breach")


def test_the_picture_is_drawn_again_in_the_dark_and_in_another_size(open_page: OpenPage) -> None:
    page = open_page("demo", "/heatmap", color_scheme="light")
    light = page.evaluate(PIXELS)
    page.emulate_media(color_scheme="dark")
    # Not `wait_for_function`, which asks a second time by `eval`: the page's policy forbids that.
    until(lambda: page.evaluate(PIXELS) != light)
    page.locator("#theme").click()  # light, whatever the system has
    until(lambda: page.evaluate(PIXELS) == light)
    page.set_viewport_size({"width": 390, "height": 800})
    until(lambda: page.evaluate("document.querySelector('#heat canvas').width < 390"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finding_is_a_filter_that_keeps_the_box(open_page: OpenPage) -> None:
    page = open_page("demo", "/heatmap?least_ms=100")
    link = page.locator("#box a.finding").first
    link.click()
    settle(page)
    segments = parse_qs(urlsplit(page.url).query)["segment"]
    assert all("=" in one for one in segments)
    assert asked(page) == {"least_ms": "100"}
    assert page.locator(".error").count() == 0
    expect(page.locator("#box")).to_contain_text("requests in the box")


def test_a_box_is_accessible(open_page: OpenPage) -> None:
    for scheme in ("light", "dark"):
        assert violations(open_page("demo", "/heatmap?least_ms=100", color_scheme=scheme)) == []


def test_the_longest_requests_lead_to_their_traces(open_page: OpenPage) -> None:
    page = open_page("many", "/heatmap?since=2h&least_ms=100")
    rows = page.locator("#box tr[data-row] a[href^='/trace/']")
    assert rows.count() == 10
    assert "Longest requests in the box: 10 of " in page.locator("#box").inner_text()
    assert "since=2h" in (rows.first.get_attribute("href") or "")


def test_little_data_is_told(open_page: OpenPage) -> None:
    assert open_page("none", "/heatmap").locator("#cells").inner_text().startswith("No request here.")
    page = open_page("one", "/heatmap")
    expect(page.locator("#box .sentence")).to_have_text(
        "Not enough data: 1 breaches and 0 good requests; 5 of each are needed."
    )
    assert page.locator("#heat").get_attribute("aria-label") == (
        "Heat map of 1 requests by start and duration, 1 of them breaches"
    )


@pytest.mark.thorough
@pytest.mark.smoke
@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("least_ms=fast", "is not a number of milliseconds"),
        ("least_ms=-1", "is not a number of milliseconds"),
        ("least_ms=20&most_ms=10", "the box is empty"),
        ("from=1m&to=2m", "the box is empty"),
        ("from=noon", "cannot read"),
    ],
)
def test_a_box_that_cannot_be_gets_the_remedy(site: Callable[[str], str], query: str, wrong: str) -> None:
    for path in ("/heatmap", "/heatmap/box"):
        response = httpx.get(f"{site('one')}{path}?{query}", timeout=30)
        assert response.status_code == 400
        assert wrong in response.text


def asked_of(folder: Path, make: Make, query: str = "") -> tuple[Part, str]:
    """Return one part of the view over a store, and its HTML."""
    asked = Asked.of([("since", "2026-03-01"), *parse_qsl(query)], {}, "1h")
    with open_store(str(folder)) as reader:
        part = make(asked, reader, SITE)
    assert isinstance(part, Part)
    return part, render("part.html", asked=asked, site=SITE, part=part, took_s=0.0, **part.values)


def test_without_verdicts_the_preset_is_the_slowest(tmp_path: Path) -> None:
    """More than 95 % take less, by the edges of the rows."""
    made = [Made(number, NOON + number * MS, {"inference": 10.0 + number / 10}) for number in range(1, 401)]
    folder = store(tmp_path / "store", made)
    part, html = asked_of(folder, heatmap.box)
    side = part.values["side"]
    assert side.is_preset
    assert 47 < side.box.least_ms <= 48
    assert side.cases.breaches == sum(one.took_ms >= side.box.least_ms for one in made)
    assert "What distinguishes the slowest 5 %" in html
    assert "since no request here is judged" in html
    assert "no request here is judged: set an objective" in asked_of(folder, heatmap.cells)[1]


def test_sampled_requests_are_estimates(tmp_path: Path) -> None:
    made = kept(
        Made(number, NOON + number * MS, within_ms=50, duration_ms=5.0 + number % 60, probability=0.25)
        for number in range(1, 401)
    )
    folder = store(tmp_path / "store", made)
    _, html = asked_of(folder, heatmap.box, "least_ms=10")
    assert re.search(r"~\d+ requests in the box, ~\d+ requests outside of it", html)
    part, html = asked_of(folder, heatmap.cells)
    assert part.values["data"]["mark"] == "~"
    assert "sampled requests" in html


def test_what_spans_say_is_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    made = [
        Made(number, NOON + number * MS, within_ms=50, duration_ms=90.0 if number % 2 else 5.0, route=evil,
             objective=evil, service=evil, cause=evil, attributes={evil: evil if number % 2 else "good"})
        for number in range(1, 101)
    ]  # fmt: skip
    folder = store(tmp_path / "store", made)
    for make in (heatmap.cells, heatmap.box):
        _, html = asked_of(folder, make)
        assert "<img" not in html
        assert html.count("</script>") == 1

"""The selection that all views share: its fields, links for usual times, suggestions, on a laptop and on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.sync_api import expect

if TYPE_CHECKING:
    from page.conftest import OpenPage


def test_a_usual_time_is_one_click_and_keeps_the_rest(open_page: OpenPage) -> None:
    page = open_page("demo", "/stages?service=ticket-router&since=15m&until=1m")
    expect(page.locator("#filter .tabs [aria-current]")).to_have_count(0)  # the window does not end now
    page.get_by_role("link", name="6h", exact=True).click()
    expect(page).to_have_url(page.url.partition("/stages")[0] + "/stages?since=6h&service=ticket-router")
    expect(page.locator("#filter .tabs [aria-current]")).to_have_text("6h")


def test_clear_takes_the_filters_away_and_keeps_the_time(open_page: OpenPage) -> None:
    page = open_page(
        "many", "/stages?since=6h&service=shop&cause=compute&code=app.py&code=ranker/model.py:12&segment=region%3Deu"
    )
    lines = [one.get_attribute("value") for one in page.get_by_label("code").all()]
    assert lines == ["app.py", "ranker/model.py:12"]
    page.get_by_role("link", name="Clear").click()
    expect(page).to_have_url(page.url.partition("/stages")[0] + "/stages?since=6h")
    expect(page.get_by_role("link", name="Clear")).to_have_count(0)


def test_names_are_suggested_once_a_field_is_used(open_page: OpenPage) -> None:
    page = open_page("many", "/compare")
    assert page.locator("datalist#routes").count() == 0
    page.get_by_label("route").focus()
    expect(page.locator("datalist#routes option")).to_have_count(3)
    assert [one.get_attribute("value") for one in page.locator("datalist#services option").all()] == ["shop"]
    assert page.locator("datalist#models option").get_attribute("value") == "ranker"


def test_a_phone_unfolds_the_selection(open_page: OpenPage) -> None:
    page = open_page("demo", "/stages?since=2h&service=ticket-router")
    expect(page.locator("#fold")).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 800})
    expect(page.locator("#filter")).to_be_hidden()
    expect(page.locator("#fold")).to_contain_text("since 2h, ticket-router")
    page.keyboard.press("/")
    expect(page.get_by_label("service")).to_be_focused()
    page.locator("#fold").click()
    expect(page.locator("#filter")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 390

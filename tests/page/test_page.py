"""What holds for all views: they open on any data, in both themes, accessibly; and the selection that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from page.conftest import violations
from page.data import DATA
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from page.conftest import OpenPage

PATHS = [view.path for view in VIEWS if view.in_menu]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("path", PATHS)
def test_each_view_opens_on_any_data(open_page: OpenPage, name: str, path: str) -> None:
    page = open_page(name, path)
    assert page.locator(".error").count() == 0
    assert page.locator("h1").count() == 1


@pytest.mark.parametrize("path", PATHS)
def test_each_view_is_accessible(open_page: OpenPage, path: str) -> None:
    page = open_page("demo", path, color_scheme="light")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []


@pytest.mark.smoke
@pytest.mark.usefixtures("services")
def test_shells_and_parts_respond(site: Callable[[str], str]) -> None:
    """Without a browser: each view, and each part of it."""
    address = site("demo")
    for view in VIEWS:
        if view.in_menu:
            for path in (view.path, *(f"{view.path}/{name}" for name in view.parts)):
                response = httpx.get(address + path, timeout=30)
                assert response.status_code == 200, (path, response.text)
                assert path.endswith(".json") or response.headers["content-type"] == "text/html; charset=utf-8"
                assert "default-src 'self'" in response.headers["content-security-policy"]


# --- The selection that all views share: its fields, links for usual times, suggestions, on a laptop and on a phone.


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

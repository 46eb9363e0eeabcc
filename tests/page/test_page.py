"""What holds for all views: they open, on any data, in both themes, without an error and accessibly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

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

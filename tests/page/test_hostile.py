"""Spans and URLs whose every text is hostile: it is text in each view and part, and never runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import pytest

from page.data import HOSTILE, HOSTILE_TRACE, fill
from page.markup import Markup
from page.paths import ALL_PARTS, ALL_SHELLS, paths
from page.serving import AS_BROWSER, AS_PART, Served, run_page
from stagetrace import page as package
from stagetrace.page.base import SHARED
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from page.conftest import OpenPage
    from stagetrace.page.base import View

pytestmark = pytest.mark.usefixtures("services")

OWN: Final = re.compile(r"""(?:\.one|\.number|params\.get|\.flag|\.choice)\(\s*"([\w-]+)\"""")


def own_parameters(view: View) -> list[str]:
    """Return the parameters that a view reads, as far as its source names them."""
    folder = Path(next(iter(package.__path__)))
    source = folder / "views" / f"{view.template.partition('.')[0].rstrip('_')}.py"
    text = source.read_text() if source.exists() else ""
    return sorted({*view.keeps, *OWN.findall(text)} - {*SHARED})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    fill(folder / "data", "hostile")
    with run_page(folder, str(folder / "data")) as running:
        yield running


def check(page: Served, path: str, *statuses: int) -> Markup | None:
    """Check one response; return what it shows, if it is HTML."""
    is_part = path.partition("?")[0].count("/") > 1
    response = page.get(path, headers=AS_PART if is_part else AS_BROWSER)
    assert response.status_code in statuses, (path, response.text[:2000])
    if not response.headers["content-type"].startswith("text/html"):
        assert response.headers["content-type"].startswith(("application/json", "text/plain", "text/csv")), path
        return None
    found = Markup(response.text)
    assert not found.wrong, (path, found.wrong)
    return found


@pytest.mark.parametrize("path", ALL_SHELLS)
def test_shells_show_hostile_selections_as_text(page: Served, path: str) -> None:
    check(page, path, 200)
    for name in SHARED:
        check(page, f"{path}?{urlencode({name: HOSTILE})}", 200, 400)
        check(page, f"{path}?{urlencode({name: f'{HOSTILE}={HOSTILE}'})}", 200, 400)
    check(page, f"{path}?{urlencode({HOSTILE: HOSTILE})}", 200, 400)


@pytest.mark.parametrize("path", ALL_PARTS)
def test_parts_show_hostile_spans_as_text(page: Served, path: str) -> None:
    check(page, path, 200, 400, 404)  # an answer may lack what it needs


def test_hostile_names_are_shown_somewhere(page: Served) -> None:
    """What the tests above look at has them."""
    texts = [found.text for path in ALL_PARTS if (found := check(page, path, 200, 400, 404)) is not None]
    assert any("<x-evil" in text for text in texts)


def test_hostile_stacks_are_shown(page: Served) -> None:
    """The trace that the tests look at is a breach that has some, with hostile lines."""
    found = check(page, f"/trace/{HOSTILE_TRACE}/body", 200)
    assert found is not None
    assert re.search(r"Where it stood.*<x-evil.*in </script>.*Stack, \d+ frame", found.text, re.DOTALL)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_parameters_of_a_view_are_shown_as_text(page: Served, view: View) -> None:
    """Its own, in the shell and in each part; those of its path; and of the shared ones those that filter."""
    for path in paths(view)[:1]:
        for name in own_parameters(view):
            query = urlencode({name: HOSTILE})
            for one in (path, *(f"{path}/{part}" for part in view.parts)):
                check(page, f"{one}?{query}", 200, 400, 404)
        filters = urlencode({"route": HOSTILE, "segment": f"{HOSTILE}={HOSTILE}", "cause": HOSTILE, "code": HOSTILE})
        for part in view.parts:
            check(page, f"{path}/{part}?{filters}", 200, 400, 404, 503)
    for path in paths(view, quote(HOSTILE.replace("/", ""), safe="")):
        for one in (path, *(f"{path}/{part}" for part in view.parts)):
            check(page, one, 200, 400, 404)


@pytest.mark.parametrize("path", [path for view in VIEWS if not view.in_menu for path in paths(view)[:2]])
def test_nothing_runs_in_a_browser(open_page: OpenPage, path: str) -> None:
    """No dialog, no error of a script or of the policy for content: `open_page` sees to that.

    The views of the menu are opened in `test_page.py`, which has a row of this data.
    """
    tab = open_page("hostile", path)
    assert tab.locator("x-evil").count() == 0
    assert tab.locator("[onerror], [onmouseover]").count() == 0
    assert tab.locator("main img[src=x], main script:not([type='application/json'])").count() == 0

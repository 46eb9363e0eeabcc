"""The page in a browser: `open_page("demo", "/breaches")` gives a tab on it, which must not fail in any way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from playwright.sync_api import expect, sync_playwright

from backend.running import Up, run_up
from page import chromium
from page.data import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

OpenPage: TypeAlias = "Callable[..., Page]"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Give the address of the page over one of `data.DATA`: a running `stagetrace up`, started on first use."""
    from contextlib import ExitStack

    running: dict[str, Up] = {}
    with ExitStack() as stack:

        def address(name: str) -> str:
            if name not in running:
                folder = tmp_path_factory.mktemp(f"page-{name}")
                fill(folder / "data", name)
                running[name] = stack.enter_context(run_up(folder))
            return running[name].url("query_http_port")

        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run one browser for the tests of a module: as long as it runs, no test of this process has a loop of its own."""
    installed = chromium.installed()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=installed.executable, args=list(chromium.FLAGS), env={**installed.environment}
        )
        yield running
        running.close()


# A page that a link or a form leads away from is busy: it stays for a moment, and `settle` would take it for the next.
BUSY_UNTIL_LEFT = """
const leave = event => {
    const link = event.target.closest?.("a[href]");
    const stays = event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey;
    const leads = event.type === "submit" || (link && !link.target && !link.download
        && link.href.split("#")[0] !== location.href.split("#")[0]);
    if (leads && !stays) document.documentElement.setAttribute("aria-busy", "true");
};
for (const type of ["click", "submit"]) window.addEventListener(type, leave);
"""


@pytest.fixture
def open_page(browser: Browser, site: Callable[[str], str], services: Any) -> Iterator[OpenPage]:
    """Give a function that opens a view of one of the data, or of a back end's address, and waits for all of its parts.

    At the end of the test there was no error in any tab: none of a script, of the policy for content, of a file that
    is missing; and none but our own address was asked.
    """
    del services
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
    context.set_default_timeout(10_000)
    context.add_init_script(BUSY_UNTIL_LEFT)
    expect.set_options(timeout=20_000)  # on a busy machine
    problems: list[str] = []
    own: set[str] = set()

    def open_it(name: str, path: str = "/", **emulated: Any) -> Page:
        address = name if name.startswith("http:") else site(name)
        own.add(address)
        page = context.new_page()
        page.on("console", lambda one: problems.extend([one.text] if one.type == "error" else []))
        page.on("dialog", lambda one: one.dismiss())
        page.on("dialog", lambda one: problems.append(f"a dialog: {one.message}"))
        page.on("pageerror", lambda error: problems.append(error.stack or str(error)))
        page.on("request", lambda one: problems.extend([] if one.url.startswith(tuple(own)) else [one.url]))
        if emulated:
            page.emulate_media(**emulated)
        page.goto(address + path)
        settle(page)
        return page

    yield open_it
    context.close()
    assert not problems


def settle(page: Page) -> None:
    """Wait until no part is asked for."""
    expect(page.locator(".waiting, [aria-busy=true]")).to_have_count(0, timeout=60_000)


def containing(part: str) -> re.Pattern[str]:
    """Return the pattern of a URL with this part, for `expect(page).to_have_url`: a URL changes a moment later."""
    return re.compile(re.escape(part))


def violations(page: Page) -> list[str]:
    """Return what axe-core finds against WCAG 2.1 A and AA, and its own best practices."""
    source = (chromium.installed().packages / "axe-core/axe.min.js").read_text()
    page.evaluate(source)
    found = page.evaluate("() => axe.run()")
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]

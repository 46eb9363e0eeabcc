"""Take the screenshots of docs/images anew: `PYTHONPATH=src:tests .venv/bin/python tests/page/screenshots.py`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import httpx
from playwright.sync_api import expect, sync_playwright

from backend.running import run_up
from page import chromium
from page.data import fill
from stagetrace.store import open_store
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES: Final = Path(__file__).resolve().parents[2] / "docs/images"
# File -> path of the page, on what the demo recorded; `{trace}`: its worst breach of the stage `inference`.
VIEWS: Final = {
    "board": "/board?since=3m",
    "heat-map": "/heatmap",
    "stages": "/stages",
    "breaches": "/breaches",
    "trace": "/trace/{trace}",
    "compare": "/compare",
    "answers": "/answers",
    "doctor": "/doctor",
}
DARK: Final = {"trace", "heat-map"}
SIZE: Final = (1280, 800)
_DRAWN_MS: Final = 1500  # by then scripts have drawn what parts brought


def main() -> None:
    """Write one file for each view."""
    IMAGES.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fill(folder / "data", "demo")
        up = stack.enter_context(run_up(folder))
        installed = chromium.installed()
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=installed.executable, args=list(chromium.FLAGS), env={**installed.environment}
        )
        for name, path in VIEWS.items():
            _take(browser, up.url("query_http_port") + path.format(trace=_worst(folder / "data")), name)
        browser.close()


def _take(browser: Browser, url: str, name: str) -> None:
    httpx.get(url).raise_for_status()
    scheme: Literal["dark", "light"] = "dark" if name in DARK else "light"
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme=scheme, locale="en-US")
    page.goto(url)
    expect(page.locator(".waiting, [aria-busy=true]")).to_have_count(0, timeout=60_000)
    page.wait_for_timeout(_DRAWN_MS)
    page.screenshot(path=IMAGES / f"{name}.png", animations="disabled")
    page.close()


def _worst(folder: Path) -> str:
    with open_store(str(folder)) as reader:
        breaches = reader.breaches(Selection(0, 2**62)).breaches
    return max((one for one in breaches if one.stage == "inference"), key=lambda one: one.overrun_ms or 0).trace_id


if __name__ == "__main__":
    main()

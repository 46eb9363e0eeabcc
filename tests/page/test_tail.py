"""Live tail: what arrives is shown at once, to each who watches; pausing, filters, restarts; nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from playwright.sync_api import expect

from backend.door import running
from backend.running import PROTOBUF, Up, run_up
from page.data import fill, request
from stagetrace.backend.counters import Counters
from stagetrace.backend.http_limits import Deadlines
from stagetrace.backend.http_port import HttpServer
from stagetrace.backend.options import Options
from stagetrace.backend.ports import Access
from stagetrace.backend.web import application, json_fault
from stagetrace.cli.ask import answer_of
from stagetrace.page.app import Page as Pages
from stagetrace.page.base import Site
from stagetrace.page.login import Login
from stagetrace.page.views.tail import WAITING, Live, Viewer
from stagetrace.store import open_store
from stagetrace.store.base import Selection
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page, Route

    from page.conftest import OpenPage

T = TypeVar("T")
CHANCE = random.Random(3)
EVER = Selection(0, 2**63 - 1)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with run_up(tmp_path_factory.mktemp("tail")) as running_up:
        yield running_up


def post(up: Up, service: str, *, is_late: bool = True) -> str:
    """Send a request that began now and return its trace."""
    message = request(CHANCE, time.time_ns(), is_late=is_late, service=service)
    content = message.SerializeToString()
    httpx.post(up.traces, content=content, headers={"content-type": PROTOBUF}).raise_for_status()
    return str(message.resource_spans[0].scope_spans[0].spans[0].trace_id.hex())


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns; in a thread, for the browser has a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def rows(page: Page, service: str) -> Locator:
    return page.locator("#rows tr").filter(has=page.get_by_role("cell", name=service, exact=True))


def following(page: Page) -> Page:
    expect(page.locator("#state")).to_contain_text("Following")
    return page


@pytest.mark.usefixtures("services")
def test_what_arrives_is_shown_to_each_viewer(open_page: OpenPage, up: Up) -> None:
    post(up, "before")
    pages = [following(open_page(up.url("query_http_port"), "/tail")) for _ in range(2)]
    trace = post(up, "<b>late</b>")
    post(up, "in time", is_late=False)
    for page in pages:
        expect(rows(page, "before")).to_have_count(1)
        expect(rows(page, "<b>late</b>")).to_have_class("is-breach is-new")
        expect(rows(page, "in time")).to_have_class("is-new")
        texts = page.locator("#rows tr td:nth-child(2)").all_inner_texts()
        assert set(texts[:2]) == {"in time", "<b>late</b>"}
        expect(page.locator("#missed")).to_be_hidden()
    rows(pages[0], "<b>late</b>").get_by_role("link").click()
    pages[0].wait_for_url(f"**/trace/{trace}**")


@pytest.mark.usefixtures("services")
def test_the_newest_are_asked_for_however_late_the_scripts_are(browser: Browser, open_page: OpenPage, up: Up) -> None:
    """The stream may be there long before them."""

    def late(route: Route) -> None:
        time.sleep(1.5)
        route.continue_()

    post(up, "waits")
    open_page(up.url("query_http_port"), "/tail")  # from here on the store is followed, and its state known
    browser.contexts[-1].route("**/htmx.min.js", late)
    page = following(open_page(up.url("query_http_port"), "/tail"))
    expect(rows(page, "waits")).to_have_count(1)


@pytest.mark.usefixtures("services")
def test_paused_it_holds_back_what_arrives(open_page: OpenPage, up: Up) -> None:
    page = following(open_page(up.url("query_http_port"), "/tail"))
    page.keyboard.press("Space")
    post(up, "held")
    expect(page.locator("#arrived")).to_have_text("1 request arrived, 1 request held back")
    assert rows(page, "held").count() == 0
    page.get_by_role("button", name="Resume").click()
    expect(rows(page, "held")).to_have_count(1)
    expect(page.locator("#arrived")).to_have_text("1 request arrived")


@pytest.mark.usefixtures("services")
def test_filters_hold_for_what_arrives(open_page: OpenPage, up: Up) -> None:
    page = following(
        open_page(up.url("query_http_port"), "/tail?service=mine&breached=1&segment=ml.model.version=7&model=ranker")
    )
    for service, is_late in (("other", True), ("mine", False), ("mine", True)):
        post(up, service, is_late=is_late)
    expect(rows(page, "mine")).to_have_count(1)
    assert page.locator("#arrived").inner_text() == "1 request arrived"
    assert page.locator("input[name=breached]").is_checked()


@pytest.mark.usefixtures("services")
def test_it_connects_again_after_a_restart(browser: Browser, tmp_path: Path) -> None:
    """The back end ends at once, a stream notwithstanding."""
    with run_up(tmp_path) as first:
        page = browser.new_page()
        page.goto(f"{first.url('query_http_port')}/tail")
        following(page)
        post(first, "first")
        expect(rows(page, "first")).to_have_count(1)
        assert first.stop() == 0
    assert "graceful shutdown exceeded" not in (tmp_path / "up.log").read_text()
    expect(page.locator("#state")).to_contain_text("Not connected")
    with run_up(tmp_path, f"--query-http-port={first.ready['query_http_port']}") as second:
        expect(page.locator("#state")).to_contain_text("connected again", timeout=20_000)
        post(second, "second")
        expect(rows(page, "second")).to_have_count(1)
        expect(rows(page, "first")).to_have_count(1)
    page.close()


def test_a_viewer_that_is_slow_is_told_what_it_missed() -> None:
    async def watch() -> tuple[str, str]:
        viewer = Viewer("", EVER, lambda _span: {})
        viewer.offer([{"id": number} for number in range(WAITING)])
        viewer.offer([{"id": "last"}, {"id": "very last"}])
        return await viewer.events(10), await viewer.events(0.01)

    sent, silence = in_a_loop(watch())
    assert '"missed": 2' in sent
    assert '[{"id": 2}, ' in sent
    assert silence.startswith(":")


@pytest.mark.thorough
def test_no_thread_is_left_without_a_viewer(tmp_path: Path) -> None:
    """Nor a second one made for more of them; whoever watches again gets what arrives then."""

    def threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "stagetrace-live"]

    async def watch(store: LocalStore, live: Live) -> None:
        for _ in range(2):
            viewers = [Viewer(str(number), EVER, lambda span: {"id": span.name}) for number in range(3)]
            for one in viewers:
                live.join(one)
            assert [await one.events(10) for one in viewers] == ['event: state\ndata: {"polled_s": null}\n\n'] * 3
            assert len(threads()) == 1
            store.append(request(CHANCE, time.time_ns(), is_late=True, service="shop").SerializeToString())
            assert all(['"id": "POST' in await one.events(10) for one in viewers])
            for one in viewers:
                live.leave(one)
            await asyncio.get_running_loop().run_in_executor(None, threads()[0].join, 10)
            assert threads() == []

    with LocalStore.open(tmp_path) as store, closing(Live(store.reader, 10)) as live:
        in_a_loop(watch(store, live))


@pytest.mark.usefixtures("services")
def test_a_store_that_does_not_report_what_is_new_is_asked_again(up: Up) -> None:
    async def watch() -> tuple[str, str]:
        viewer = Viewer("", EVER, lambda span: {"id": span.service})
        with closing(Live(lambda: open_store(up.as_jaeger.url), 10)) as live:
            live.join(viewer)
            state = await viewer.events(30)
            post(up, "polled")
            return state, await viewer.events(30)

    state, found = in_a_loop(watch())
    assert '"polled_s": 3.0' in state
    assert '{"id": "polled"}' in found


@pytest.mark.thorough
def test_a_quiet_stream_outlives_the_deadlines_of_its_port(tmp_path: Path) -> None:
    """Of reading, of a next request, of headers; and it ends with the server, whose client has not gone."""
    fill(tmp_path / "data", "none")
    counters = Counters()
    short = Deadlines(headers=0.3, keep_alive=0.3, reading=0.3)
    options = Options(tmp_path / "data")
    with LocalStore.open(tmp_path / "data") as store, ExitStack() as stack:
        site = Site("here", store.reader, partial(answer_of, "here"))
        pages = Pages(site, Login(options, 0, counters), stack)
        app = application((), json_fault, Access.of(options), lambda: "", counters, pages)
        server = HttpServer(app, options, "query-http", counters, most=8, deadlines=short)
        with running(server, counters) as door, httpx.stream("GET", f"{door.url}/tail/events", timeout=20) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            time.sleep(2)  # several deadlines, and looks at them
            store.append(request(CHANCE, time.time_ns(), is_late=True, service="shop").SerializeToString())
            assert any("POST" in line for line in lines)
            server.should_exit = True
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)

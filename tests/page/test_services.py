"""The map of services: who waits for whom, by the calls that are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from backend.running import run_up
from page import traces
from page.conftest import settle, violations
from stagetrace.analysis.service_map import Call, of_rows
from stagetrace.store import open_store
from stagetrace.store.base import Selection
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from page.conftest import OpenPage


def row(caller: str, callee: str) -> dict[str, object]:
    return Call(caller, callee, is_service=True, calls=2.0, took_ms=10.0, of_breaches=1.0)._asdict()


def test_callers_stand_before_their_callees() -> None:
    found = of_rows([row("a", "d"), row("a", "b"), row("b", "c"), row("c", "d")])
    assert found.columns == [["a"], ["b"], ["c"], ["d"]]
    assert found.calls[0].mean_ms == 5.0
    assert of_rows([]).columns == []


def test_circles_end() -> None:
    """Each name is drawn once."""
    found = of_rows([row("a", "b"), row("b", "a"), row("b", "c")])
    assert sorted(name for column in found.columns for name in column) == ["a", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("services")
    with LocalStore.open(made / "data") as store:
        for message in traces.all_of_them():
            assert not store.append(message.SerializeToString()).rejected
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with run_up(folder) as up:
        yield up.url("query_http_port")


def test_a_call_is_of_the_service_that_is_stored(folder: Path) -> None:
    """By its parent, whatever the call names; and with the breaches of its caller."""
    with open_store(str(folder / "data")) as reader, reader.relations(Selection(0, 2**62)) as relations:
        rows = relations.reduce("calls", one_in=1, most=50)
    found = {(one["caller"], one["callee"]): one for one in rows}
    assert {"is_service": True, "calls": 1, "took_ms": 60.0, "of_breaches": 1}.items() <= found[
        "front", "ranker"
    ].items()


def test_the_map_is_linked_from_the_board(open_page: OpenPage, address: str) -> None:
    page = open_page(address, "/board?since=24h")
    page.get_by_role("link", name="the map of services").click()
    page.wait_for_url("**/services?since=24h")
    settle(page)
    edge = page.locator("tbody tr", has_text="ranker").filter(has_text="front")
    expect(edge).to_contain_text("60.00 ms")
    assert page.locator(".map .call").count() == page.locator("tbody tr").count()
    assert violations(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".map a", has_text="ranker").first.click()
    page.wait_for_url("**/board?since=24h&service=ranker")


def test_nothing_stored_is_said(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        shown = httpx.get(f"{up.url('query_http_port')}/services/calls").raise_for_status().text
    assert "No call is stored in this window." in shown

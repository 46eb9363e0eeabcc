"""The SDK's own client, over stdio and over HTTP, to real processes."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from agents.asking import LATE, QUESTIONS, asked, fill, here, over_stdio, refused, requests
from answers.made import NOON, Made, messages
from backend.running import Up, post, run_up
from page.serving import TOKEN
from stagetrace.cli import mcp, up
from stagetrace.cli.main import main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
HEADERS = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("agents")
    fill(made / "data", requests(), ("app.py", 2))
    return made


@pytest.fixture(scope="module")
def open_up(folder: Path) -> Iterator[Up]:
    with run_up(folder) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = tmp_path_factory.mktemp("locked")
    fill(made / "data", requests())
    with run_up(made, f"--token={TOKEN}") as running:
        yield running


@asynccontextmanager
async def over_http(running: Up, **headers: str) -> AsyncIterator[Client]:
    """Give a client of /mcp."""
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport = streamable_http_client(f"{running.url('query_http_port')}/mcp", http_client=http)
        async with Client(transport) as client:
            yield client


def without_times(results: list[dict[str, Any]]) -> list[str]:
    """Return results without what depends on now, and without the order of keys."""
    for one in results:
        one["data"]["figures"].pop("until_unix_nano", None)
    return [json.dumps(one, sort_keys=True) for one in results]


def test_all_ways_give_the_same(folder: Path, open_up: Up) -> None:
    """Over stdio, over HTTP to the back end that has the store open, and in this process."""
    (folder / "app.py").write_text("def predict():\n    slow()\n")
    questions = [one for one in QUESTIONS.items() if one[0] not in ("doctor", "code_at")]
    store = folder / "data"
    told = without_times(asked(over_http(open_up), *questions))
    assert told == without_times(asked(over_stdio(store, folder), *questions))
    assert told == without_times(asked(here(store), *questions))
    (code,) = asked(over_stdio(store, folder), ("code_at", {"id": LATE}))
    assert code["data"]["figures"]["places"][0]["lines"] == [" 1 def predict():", ">2     slow()"]


def test_stdio_has_nothing_but_the_protocol_and_goes_on_after_an_error(folder: Path) -> None:
    """A note of the answers goes to stderr; a question that fails ends nothing."""
    client = over_stdio(folder / "data", folder)
    assert "cannot read" in refused(client, "why", since="1 hour")
    (doctor,) = asked(over_stdio(folder / "data", folder), ("doctor", {"long": True}))
    assert {"python", "packages", "activation"} <= {one["name"] for one in doctor["data"]["figures"]["checks"]}


def test_an_agent_sees_spans_as_they_arrive(open_up: Up) -> None:
    (message,) = messages([Made(900, NOON, service="newcomer")])
    assert post(open_up, message.SerializeToString()).status_code == 200
    (found,) = asked(over_http(open_up), ("services", {}))
    assert "newcomer" in found["data"]["figures"]["services"]


def test_http_needs_the_token(locked: Up) -> None:
    """As everything on that port."""
    url = f"{locked.url('query_http_port')}/mcp"
    for headers in ({}, {"authorization": "Bearer wrong"}):
        response = httpx.post(url, json=LIST, headers=HEADERS | headers)
        assert response.status_code == 401
        assert "token" in response.json()["error"]["message"]
    (found,) = asked(over_http(locked, authorization=f"Bearer {TOKEN}"), ("services", {}))
    assert found["data"]["figures"] == {"services": ["shop"]}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "null"},
    ],
)
def test_http_refuses_web_pages_of_other_sites(open_up: Up, locked: Up, headers: dict[str, str]) -> None:
    """With the token, too: as for the page."""
    for running, token in ((open_up, {}), (locked, {"authorization": f"Bearer {TOKEN}"})):
        url = f"{running.url('query_http_port')}/mcp"
        assert httpx.post(url, json=LIST, headers={**HEADERS, **token}).status_code == 200
        assert httpx.post(url, json=LIST, headers={**HEADERS, **token, **headers}).status_code == 403


def test_http_takes_requests_alone(open_up: Up) -> None:
    """No session is kept, so that there is no stream to open, and none to end."""
    url = f"{open_up.url('query_http_port')}/mcp"
    assert httpx.get(url, headers=HEADERS).status_code == 405
    assert httpx.delete(url, headers=HEADERS).status_code == 405
    assert httpx.post(url, content=b"{", headers={**HEADERS, "content-type": "application/json"}).status_code == 400
    assert (
        httpx.post(url, content=b"x" * (5 << 20), headers={**HEADERS, "content-type": "application/json"}).status_code
        == 413
    )


def test_without_the_package_the_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And `up` has no route."""
    for module in (mcp, up):
        monkeypatch.setattr(module, "find_spec", lambda _name: None)
    assert main(["mcp", "--store", str(tmp_path)]) == 2
    assert "agents need the package mcp\npip install" in capsys.readouterr().err
    no_store: Any = None
    assert up._for_agents("", no_store, no_store) == []

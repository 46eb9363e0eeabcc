"""The SDK's own client, and stores for agents."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from answers.made import MS, NOON, Made, messages
from messages import attribute
from stagetrace import semconv
from stagetrace.cli.agents import Agents
from stagetrace.mcp.server import server_of
from stagetrace.store import open_store
from stagetrace.store.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

COMMAND = ("-m", "stagetrace.cli.main", "mcp", "--store")
SINCE = {"since": "2026-03-01", "until": "2026-03-02"}
LATE = f"{1:032x}"
# Each tool, with arguments that give a result.
QUESTIONS: dict[str, dict[str, Any]] = {
    "why": SINCE,
    "explain_request": {"id": LATE},
    "where_does_time_go": SINCE,
    "causes": SINCE,
    "compare": SINCE,
    "slo": SINCE,
    "capacity": SINCE,
    "what_if": SINCE | {"workers": ["2"]},
    "breaches": SINCE,
    "services": {},
    "code_at": {"id": LATE},
    "sql": {"sql": "SELECT * FROM spans ORDER BY start_unix_nano, span_id", **SINCE},
    "doctor": {},
}


def requests(text: Callable[[str], str] = str, code: str = "app.py:2 in predict", many: int = 60) -> list[Made]:
    """Return requests of which each fifth is late, each by another time; what a sender chooses goes through `text`."""
    return [
        Made(
            1 + number,
            NOON + number * 1000 * MS,
            {"preprocess": 5.0, "inference": 100.0 + number if number % 5 == 0 else 10.0},
            service=text("shop"),
            route=text("/predict"),
            name=text("POST /predict"),
            within_ms=50,
            objective=text("POST /predict within 50ms"),
            model=text("ranker"),
            version=text("1" if number < many / 2 else "2"),
            attributes={
                text("tenant.id"): text("acme" if number % 5 == 0 else "other"),
                semconv.SLA_BREACH_EVIDENCE: text("it computed"),
                **({semconv.SLA_BREACH_CODE: code} if number % 5 == 0 else {}),
            },
            with_stage_spans=True,
        )
        for number in range(many)
    ]


def fill(folder: Path, made: Sequence[Made], *places: tuple[str, int]) -> Path:
    """Write requests to a local store; each has stood at these places, path and line."""
    with LocalStore.open(folder) as opened:
        for message in messages(made):
            for scope in (scope for resource in message.resource_spans for scope in resource.scope_spans):
                for span in (one for one in scope.spans if one.kind == 2):
                    for path, line in places:
                        _stall(span, path, line)
            opened.append(message.SerializeToString())
    return folder


def _stall(span: Any, path: str, line: int) -> None:
    event = span.events.add(time_unix_nano=span.start_time_unix_nano + MS, name=semconv.STALL)
    found = {semconv.STALL_OF: "request", semconv.STALL_SAMPLES: 9, semconv.STALL_OUT_OF: 10}
    found |= {semconv.CODE_FILE_PATH: path, semconv.CODE_LINE_NUMBER: line, semconv.CODE_FUNCTION_NAME: "predict"}
    event.attributes.extend(attribute(*one) for one in found.items())


@asynccontextmanager
async def here(folder: Path, *roots: Path) -> AsyncIterator[Client]:
    """Give a client of a server in this process, over a store."""
    agents = Agents(str(folder), partial(open_store, str(folder)), roots)
    async with Client(server_of(agents.tools())) as client:
        yield client
    agents.close()


def over_stdio(store: Path, folder: Path) -> Client:
    """Return a client of `stagetrace mcp`, which starts in a folder."""
    argv = [*COMMAND, str(store)]
    return Client(stdio_client(StdioServerParameters(command=sys.executable, args=argv, cwd=str(folder))))


def asked(client: Any, *questions: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of tools, none of which is an error, and each of which is its text."""

    async def run() -> list[Any]:
        async with client as opened:
            return [await opened.call_tool(*one) for one in questions]

    return [whole(one) for one in anyio.run(run)]


def whole(result: Any) -> dict[str, Any]:
    """Return a result, whose text is the same."""
    assert not result.is_error, result.content[0].text
    found: dict[str, Any] = json.loads(result.content[0].text)
    assert found == result.structured_content
    return found


def refused(client: Any, name: str, **given: Any) -> str:
    """Return the error of a tool."""

    async def run() -> Any:
        async with client as opened:
            return await opened.call_tool(name, given)

    result = anyio.run(run)
    assert result.is_error
    (key, text) = next(iter(json.loads(result.content[0].text)["data"].items()))
    assert key == "error"
    return str(text)

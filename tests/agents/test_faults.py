"""Forty requests with planted faults: the result of `explain_request` alone names the cause and the line of each."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from benchmarks.ground_truth.client import Client
from benchmarks.ground_truth.processes import service
from benchmarks.stalls.cases import SERVERS, SOCKET, STALLS
from benchmarks.stalls.run import POLICY, _drive, is_right

from agents.asking import asked
from agents.test_served import over_http
from backend.processes import until
from backend.running import run_up
from stagetrace.mcp.result import MOST, text_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("services")]

TIMES = 5
CAUSES = {
    **dict.fromkeys(("sleep", "recv", "process", "await_deep", "await_task"), "io_wait"),
    **dict.fromkeys(("loop", "regex"), "compute"),
    SOCKET: "socket_wait",  # its event loop is blocked by another request, whose line it is
}


def test_forty_faults_are_explained(tmp_path: Path) -> None:
    """Each is planted in a real service, amid others; an agent asks the back end about its trace id, and no more.

    Two may be named otherwise: a machine with other work delays requests, too.
    """
    (server,) = (one for one in SERVERS if one.name == "FastAPI, async def")
    with run_up(tmp_path) as running:
        sent = f"http://{running.target()}"
        environment = {"STAGETRACE": "1", "STAGETRACE_SLA": POLICY, "OTEL_EXPORTER_OTLP_ENDPOINT": sent}
        with service(server.argv, environment, server.python(), server.ready) as (port, pids):
            client = Client(port, pids, random.Random(43))
            asyncio.run(_drive(server, [STALLS[name] for name in CAUSES], client, TIMES))
        wanted = {one.trace_id: one.truth for one in client.asked if one.truth is not None}
        assert len(wanted) == 40
        ids = ", ".join(f"'{one}'" for one in wanted)
        count = {"sql": f"SELECT count(*) FROM requests WHERE trace_id IN ({ids})"}  # noqa: S608 -- of ours
        until(lambda: asked(over_http(running), ("sql", count))[0]["data"]["figures"]["rows"] == [[40]])
        results = asked(over_http(running), *(("explain_request", {"id": one}) for one in wanted))
    wrong = []
    for planted, result in zip(wanted.values(), results, strict=True):
        assert len(text_of(result).encode()) <= MOST
        figures, sentence = result["data"]["figures"], result["data"]["sentence"]
        cause, code = str(figures["cause"]), str(figures["code"])
        is_known = cause == CAUSES[planted] and is_right(code, STALLS[planted].planted)
        if not (is_known and cause in sentence and code in sentence):
            wrong.append((planted, sentence))
    assert len(wrong) <= 2, wrong

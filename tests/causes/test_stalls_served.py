"""Stalls planted in real services by the benchmark of stalls: each breach names the line that was planted."""

from __future__ import annotations

import re

import pytest
from benchmarks.stalls.cases import BUSY, POOLED, SERVERS, SOCKET, STALLS
from benchmarks.stalls.planted import lines
from benchmarks.stalls.run import is_right, measure

from stagetrace.request import in_flight
from stagetrace.sources import socket_wait, stacks

pytestmark = [
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(stacks.SOURCE.lacks is not None, reason="this interpreter shows no stacks"),
    pytest.mark.skipif(socket_wait.SOURCE.lacks is not None, reason="the kernel does not tell of waits in sockets"),
]
BY_NAME = {server.name: server for server in SERVERS}


@pytest.mark.parametrize(
    ("server", "planted"),
    [
        ("FastAPI, def", ("lock", POOLED)),
        ("FastAPI, async def", ("sleep", "await_deep", SOCKET)),
        ("Flask, gunicorn sync", ("database", BUSY)),
        ("grpc.server", ("recv", POOLED)),
    ],
)
def test_the_planted_line_is_named(server: str, planted: tuple[str, ...]) -> None:
    """Where the request itself stands, or the one that it waits for."""
    seen = measure([BY_NAME[server]], planted, 1, seed=1).seen
    assert [one.stall for one in seen] == list(planted)
    assert [one.code for one in seen if not one.is_right] == []
    for one in seen:
        assert re.search(rf"; ([a-z' ]+ )?at {re.escape(one.code)}.* \(\d+ of \d+ samples\)$", one.evidence)
        assert one.samples


@pytest.mark.skipif(not in_flight.SEES_HOLDER, reason="who holds the GIL is seen in 3.11 alone")
@pytest.mark.parametrize("server", ["FastAPI, def", "Flask, gunicorn gthread", "plain ASGI"])
def test_a_call_that_holds_the_gil_has_its_line_though_others_wait_for_it_too(server: str) -> None:
    """The request may be over before the sampler runs."""
    seen = measure([BY_NAME[server]], ["regex"], 3, seed=2).seen
    assert [one.code for one in seen if not one.is_right] == []


def test_each_of_many_late_requests_in_a_row_has_a_line_or_says_why_it_has_none() -> None:
    seen = measure([BY_NAME["FastAPI, async def"]], ["executor", "sleep"], 12, seed=3, in_turn=True).seen
    assert [one.evidence for one in seen if one.code == "no line" and "; no line of code: " not in one.evidence] == []
    assert sum(one.is_right for one in seen) >= len(seen) // 2


def test_each_stall_has_its_line() -> None:
    assert [name for name, stall in STALLS.items() if not lines(stall.planted)] == []
    assert {name for server in SERVERS for name in server.stalls} == set(STALLS)


def test_only_the_planted_line_is_right() -> None:
    (line,) = lines("lock")
    assert is_right(f"benchmarks/stalls/planted.py:{line} in lock", "lock")
    assert not is_right(f"benchmarks/stalls/planted.py:{line - 1} in lock", "lock")
    assert not is_right(f"elsewhere/planted.py:{line} in lock", "lock")
    assert not is_right("no breach", "lock")
    assert not is_right("", "lock")

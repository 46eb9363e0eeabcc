"""The causes of requests that nothing unusual was done to, in a service as many are."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from priority import ONE_AT_A_TIME, come_first
from services import Service, asgi_command, run_service
from stagetrace.sources import socket_wait, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = [
    ONE_AT_A_TIME,
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(
        thread_cpu.lacks_waiting() is not None or socket_wait.SOURCE.lacks is not None,
        reason="the kernel tells too little",
    ),
]
ENV = {
    "STAGETRACE_SOCKET_WAIT": "1",
    "STAGETRACE_SLA": "GET /health within 10s; POST /background within 10s; * within 20ms",
}
MOST = 0.8  # of them: other work of the machine adds causes of its own
TOKENS = 40  # of anyio's pool


@pytest.fixture(scope="module")
def running(sink: Sink, folder: Path) -> Iterator[tuple[Service, Sink]]:
    with run_service(folder, argv=asgi_command("uvicorn", "ordinary"), env=sink.environment(**ENV)) as service:
        service.call("GET", "/health")
        come_first(service.process.pid)
        yield service, sink


@contextmanager
def background(running: tuple[Service, Sink], count: int) -> Iterator[None]:
    """Let so many threads of the service compute in Python, for no request."""
    running[0].call("POST", f"/background?count={count}")
    try:
        yield
    finally:
        running[0].call("POST", "/background?count=0")


def causes(running: tuple[Service, Sink], path: str, count: int = 10, at_once: int = 1) -> Counter[str]:
    """Return the causes of the breaches among so many requests."""
    service, sink = running
    with ThreadPoolExecutor(at_once) as clients:
        asked = list(clients.map(lambda _: service.call("GET", path)[0], range(count)))
    found = [sink.request(trace_id).entry.attributes.get("sla.breach.cause") for trace_id in asked]
    return Counter(map(str, filter(None, found)))


def assert_named(named: Counter[str], *words: str) -> None:
    """Check that most have one of these causes, or skip where the machine has too few CPUs for its load."""
    right = sum(named[word] for word in words)
    assert named.total() >= 8
    if right < MOST * named.total() <= right + named["cpu_wait"] and os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip(f"the machine has too few CPUs for its load: {named}")
    assert right >= MOST * named.total(), named


def test_the_threads_of_a_blas_are_no_rivals_of_the_request_that_they_compute_for(
    running: tuple[Service, Sink],
) -> None:
    assert_named(causes(running, "/sleep-and-multiply?sleep_s=0.04&cpu_s=0.02"), "io_wait")


def test_two_requests_that_multiply_at_once_compute(running: tuple[Service, Sink]) -> None:
    assert_named(causes(running, "/multiply?cpu_s=0.06", at_once=2), "compute")


def test_a_thread_that_computes_in_the_background_is_no_reason_for_a_wait_for_a_database(
    running: tuple[Service, Sink],
) -> None:
    with background(running, 1):
        assert_named(causes(running, "/ask?takes_s=0.1"), "io_wait")


def test_threads_that_compute_in_the_background_hold_up_what_computes(running: tuple[Service, Sink]) -> None:
    with background(running, 3):
        assert_named(causes(running, "/compute?cpu_s=0.02"), "lock_wait")


def test_a_lock_that_a_request_holds_while_it_computes_is_what_others_wait_for(running: tuple[Service, Sink]) -> None:
    """The first one computes, the second has waited for as long as it computes, and the rest for longer."""
    named = sum((causes(running, "/holding?cpu_s=0.05", 5, at_once=5) for _ in range(3)), Counter[str]())
    assert_named(named, "lock_wait", "compute")
    assert named["lock_wait"] >= 3 * 2, named


@pytest.mark.parametrize(
    "path",
    [
        "/awaiting-and-computing?sleep_s=0&cpu_s=0.05",
        "/awaiting-and-computing?sleep_s=0.01&cpu_s=0.05",
        "/behind/computing?sleep_s=0.01&cpu_s=0.05",  # in a task that the request's own waits for
    ],
)
def test_an_asynchronous_handler_computes(running: tuple[Service, Sink], path: str) -> None:
    assert_named(causes(running, path), "compute")


def test_a_burst_that_computes_waits_for_the_gil_each_time(running: tuple[Service, Sink]) -> None:
    """In the sockets, too: there the event loop does, and a step of it that waits for the GIL is no blocker."""
    for _ in range(3):
        assert_named(causes(running, "/compute?cpu_s=0.01", 60, at_once=60), "lock_wait")


def test_a_burst_that_sleeps_waits_for_threads_beyond_the_pools_each_time(running: tuple[Service, Sink]) -> None:
    for _ in range(3):
        named = causes(running, "/sleep?sleep_s=0.5", 60, at_once=60)
        # Those that get a thread sleep for as long as the others wait for it, or a little longer.
        assert named["io_wait"] >= MOST * TOKENS, named
        assert_named(named, "io_wait", "pool_wait")

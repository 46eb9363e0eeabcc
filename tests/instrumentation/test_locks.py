"""The wait for a lock or semaphore that other requests have is `queue`; any other wait for one is not."""

from __future__ import annotations

import asyncio
import itertools
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from services import Service, asgi_command, run_service
from stagetrace import guard
from stagetrace.instrumentation import locks
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import sink

pytestmark = pytest.mark.usefixtures("services")
KINDS = {
    "asyncio-lock": "lock",
    "asyncio-semaphore": "semaphore",
    "anyio-lock": "lock",
    "anyio-semaphore": "semaphore",
}
HELD_S = 0.3
LIBRARY = """
    import asyncio

    async def read(guard, seconds):
        async with guard:
            await asyncio.sleep(seconds)
"""
_names = itertools.count()


@pytest.fixture(scope="module")
def running(sink: sink.Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, sink.Sink]]:
    folder = tmp_path_factory.mktemp("guarding")
    packages = folder / "site-packages"
    packages.mkdir()
    (packages / "site_packages_locks.py").write_text(textwrap.dedent(LIBRARY))
    env = sink.environment(STAGETRACE_SLA="GET /health within 10s; * within 30ms", PYTHONPATH=str(packages))
    with run_service(folder, argv=asgi_command("uvicorn", "guarding"), env=env) as service:
        yield service, sink


def behind(running: tuple[Service, sink.Sink], folder: Path, path: str, kind: str) -> sink.Request:
    """Ask for a path while another request has the guard; return what was recorded of it."""
    service, received = running
    signs = [folder / f"sign-{next(_names)}" for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(service.call, "GET", f"/guarded?kind={kind}&sign={signs[0]}&seconds={HELD_S}")
        while not signs[0].exists():
            time.sleep(0.002)
        trace_id, _ = service.call("GET", f"{path}?kind={kind}&sign={signs[1]}&seconds=0.001")
    return received.tiled(trace_id)


def reasons(request: sink.Request) -> list[Any]:
    return [one.attributes.get("queue.reason") for one in request.stages if one.name == "queue"]


@pytest.mark.parametrize("path", ["/guarded", "/entered"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_wait_for_what_another_request_has_is_a_queue(
    running: tuple[Service, sink.Sink], tmp_path: Path, kind: str, path: str
) -> None:
    found = behind(running, tmp_path, path, kind)
    assert KINDS[kind] in reasons(found)
    assert found.total_ns("queue") > HELD_S * 1e9 / 2
    breach = found.entry.attributes
    assert (breach["sla.breach.stage"], breach["sla.breach.cause"]) == ("queue", "pool_wait")
    assert f"ms waiting for a {KINDS[kind]}" in str(breach["sla.breach.evidence"])
    assert str(breach["sla.breach.code"]).startswith("guarding.py:")


@pytest.mark.parametrize("path", ["/gathered", "/grouped"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_waits_for_its_own_tasks_is_in_no_queue(
    running: tuple[Service, sink.Sink], kind: str, path: str
) -> None:
    service, received = running
    found, _ = received.traced(service, "GET", f"{path}?kind={kind}&seconds=0.05")
    assert KINDS[kind] not in reasons(found)


def test_a_lock_of_a_library_is_no_queue(running: tuple[Service, sink.Sink], tmp_path: Path) -> None:
    assert "lock" not in reasons(behind(running, tmp_path, "/library", "asyncio-lock"))


@pytest.mark.parametrize(("owner", "name"), [(locks, "recording"), (locks, "_is_taken"), (Request, "visit")])
def test_a_fault_of_ours_leaves_the_lock_as_it_is(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    failed: list[str] = []

    def fails(*_: object) -> None:
        failed.append(name)
        raise RuntimeError("injected fault")

    async def main() -> list[int]:
        record: Any = Request()
        record.bind(SpanContext(1, 1, is_remote=False), time.time_ns())
        record.step = record  # as if it were in a step of its own
        current.set(record)
        lock, found = asyncio.Lock(), list[int]()
        acquire: Any = locks._acquiring("lock", getattr(asyncio.Lock.acquire, "__wrapped__", asyncio.Lock.acquire))

        async def work(number: int) -> None:
            assert await acquire(lock)
            await asyncio.sleep(0.002)
            found.append(number)
            lock.release()

        await asyncio.gather(*map(work, range(3)))
        return found

    for part in ("_switches", "failures"):
        monkeypatch.setattr(guard, part, type(getattr(guard, part))())
    monkeypatch.setattr(owner, name, fails)
    assert asyncio.run(main()) == [0, 1, 2]
    assert failed


def test_a_cancelled_wait_leaves_the_lock_to_the_next() -> None:
    async def main() -> bool:
        current.set(Request())
        lock: Any = anyio.Lock()
        await lock.acquire()
        task = asyncio.ensure_future(lock.acquire())
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lock.release()
        await lock.acquire()
        return bool(lock.locked())

    assert asyncio.run(main())

"""Work that a request submits belongs to the request: in pools by itself, in other threads with a carrier."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from services import Service, asgi_command, run_service
from trees import measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")

EARLY = 0.95  # sleeps may end a little early on coarse clocks
MS = 1_000_000


LOOPS = ["asyncio", "uvloop"]
# What no event loop has a part in.
ON_ASYNCIO = pytest.mark.parametrize("service", LOOPS[:1], indirect=True)


@pytest.fixture(scope="module", params=LOOPS)
def service(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Service]:
    argv = [*asgi_command("uvicorn", "submitting"), "--loop", request.param]
    with run_service(folder, argv=argv, env=sink.environment()) as running:
        yield running


def traced(service: Service, sink: Sink, path: str) -> tuple[Any, Request]:
    request, response = sink.traced(service, "GET", path)
    assert response.status_code == 200, service.log
    return response.json(), request


@pytest.mark.parametrize("how", ["run_in_executor", "to_thread", "create_task", "gather", "wrap_future"])
def test_work_in_a_pool_belongs_to_the_request(service: Service, sink: Sink, how: str) -> None:
    """Its marks count, its spans hang under the stage that is open; the user's own variables are as untraced."""
    answer, request = traced(service, sink, f"/give/{how}")
    copied = how in ("to_thread", "create_task")  # asyncio's own doing
    assert set(answer) == {"the handler's" if copied else "nobody's"}
    check(request, len(answer))


@ON_ASYNCIO
@pytest.mark.parametrize("how", ["submit", "map", "wait", "as_completed"])
def test_work_that_a_plain_handler_submits_belongs_to_the_request(service: Service, sink: Sink, how: str) -> None:
    answer, request = traced(service, sink, f"/give-sync/{how}")
    assert set(answer) == {"nobody's"}
    check(request, len(answer))


def check(request: Request, calls: int) -> None:
    assert request.total_ns("inference") >= 30 * MS * EARLY
    stages = {stage.span_id: stage.name for stage in request.stages}
    inside = [span for span in request.others if span.name == "in thread"]
    assert len(inside) == calls
    assert {stages[span.parent_id] for span in inside} <= {"preprocess", "inference", "queue"}


def test_an_exception_passes_unchanged(service: Service, sink: Sink) -> None:
    answer, _ = traced(service, sink, "/raise")
    assert answer == "ValueError: invalid literal for int() with base 10: 'x'"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its work items differ; it has real ones")
def test_a_pool_that_pickles_gets_the_original_function(service: Service, sink: Sink) -> None:
    answer, _ = traced(service, sink, "/interpreters")
    assert answer == 7


@pytest.mark.parametrize(
    ("service", "path", "waiters"),
    [
        *((loop, f"/full/{how}", 1) for loop in LOOPS for how in ("await", "gather")),
        *(("asyncio", f"/full-sync/{how}", 0) for how in ("result", "exception", "wait", "as_completed", "map")),
    ],
    indirect=["service"],
)
def test_the_wait_for_a_thread_is_queue(service: Service, sink: Sink, path: str, waiters: int) -> None:
    """The one thread sleeps 200 ms; before a job of a coroutine there is another one in the queue."""
    expected = {"ml.stage": "queue", "queue.reason": "executor", "queue.pool_size": 1, "queue.waiters": waiters}

    def ask() -> dict[str, tuple[float, float]]:
        _, request = traced(service, sink, path)
        waits = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "executor"]
        assert expected in [stage.attributes for stage in waits]
        return {"queue": (sum(stage.end - stage.start for stage in waits), 200 * MS)}

    measure(ask)


def test_work_that_nothing_waits_for_is_no_queue_wait(service: Service, sink: Sink) -> None:
    _, request = traced(service, sink, "/full/nobody")
    assert "executor" not in {stage.attributes.get("queue.reason") for stage in request.stages}


def test_a_cancelled_wait_ends(service: Service, sink: Sink) -> None:
    """100 ms of waiting, then 200 ms of something else."""
    _, request = traced(service, sink, "/full/cancelled")
    queued = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "executor"]
    after = request.entry.end - queued[-1].end
    assert sum(stage.end - stage.start for stage in queued) >= 100 * MS * EARLY
    assert after >= 200 * MS * EARLY


@ON_ASYNCIO
def test_what_a_handler_does_before_it_waits_is_its_own_time(service: Service, sink: Sink) -> None:
    """100 ms of its own, 50 ms of waiting in vain, 150 ms of its own."""
    _, request = traced(service, sink, "/full-sync/partly")
    queued = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "executor"]
    assert len(queued) == 1
    assert queued[0].end - queued[0].start >= 50 * MS * EARLY
    assert queued[0].start - request.entry.start >= 100 * MS * EARLY
    assert request.entry.end - queued[0].end >= 150 * MS * EARLY


@ON_ASYNCIO
def test_a_plain_handlers_wait_has_the_size_of_anyios_pool(service: Service, sink: Sink) -> None:
    _, request = traced(service, sink, "/give-sync/submit")
    first = next(stage for stage in request.stages if stage.name == "queue")
    expected = {"queue.reason": "thread_pool", "queue.pool_size": 40, "queue.waiters": 0}
    assert first.attributes == {"ml.stage": "queue", **expected}


def test_work_that_outlives_its_request_harms_nothing_and_keeps_nothing_alive(service: Service, sink: Sink) -> None:
    """The collector is off: what is gone went by reference count."""
    service.call("GET", "/collect")
    _, request = traced(service, sink, "/outlives")
    assert "inference" not in request.names or request.total_ns("inference") < 250 * MS
    assert sink.span(request.entry.trace_id, "in thread").end > request.entry.end
    deadline = time.monotonic() + 60
    while alive := service.call("GET", "/live")[1].json():
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@ON_ASYNCIO
def test_a_carrier_joins_the_request_in_the_same_process(service: Service, sink: Sink) -> None:
    answer, request = traced(service, sink, "/own-queue")
    assert answer == [True, False]
    check(request, 1)


@ON_ASYNCIO
def test_a_carrier_that_comes_after_its_request_still_names_it(service: Service, sink: Sink) -> None:
    _, request = traced(service, sink, "/own-queue-late")
    late = sink.span(request.entry.trace_id, "in thread")
    assert late.parent_id in {request.entry.span_id, *(stage.span_id for stage in request.stages)}
    assert "inference" not in request.names


@pytest.mark.parametrize(
    ("service", "start"),
    [("asyncio", "fork"), ("uvloop", "fork"), ("asyncio", "spawn"), ("asyncio", "forkserver")],
    indirect=["service"],
)
def test_a_carrier_goes_on_in_another_process(service: Service, sink: Sink, start: str) -> None:
    """Work there is a span under the open stage, with stages below; a process that ends delivers first."""
    answer, request = traced(service, sink, f"/process/{start}")
    assert answer == {"is_another": True}
    top = sink.span(request.entry.trace_id, "resume")
    assert top.parent_id in {stage.span_id for stage in request.stages}
    model = {"ml.model.name": "SleepyModel", "ml.framework": "sklearn", "ml.batch.size": 1}
    assert top.attributes.items() >= model.items()
    below = sorted((one for one in sink.spans if one.parent_id == top.span_id), key=lambda one: one.start)
    assert [one.name for one in below if "ml.stage" in one.attributes][:2] == ["preprocess", "inference"]
    assert "before" in {one.name for one in below}
    inference = next(one for one in below if one.name == "inference")
    assert inference.end - inference.start >= 20 * MS * EARLY


@ON_ASYNCIO
def test_an_error_in_another_process_stands_on_its_span(service: Service, sink: Sink) -> None:
    answer, request = traced(service, sink, "/process/fork?seconds=-1")
    assert answer == {"error": "the worker's own error"}
    assert sink.span(request.entry.trace_id, "resume").status == 2

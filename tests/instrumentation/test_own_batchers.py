"""Batchers that a service implements itself over queues of the standard library, without `stagetrace.batch`."""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import time
from concurrent.futures import Future
from contextlib import suppress
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from at_once import at_once
from priority import ONE_AT_A_TIME, come_first
from services import Service, asgi_command, run_python, run_service
from sink import Request, Sink, assert_tiled
from stagetrace.instrumentation.batching import queued_items
from stagetrace.instrumentation.batching.gathered_batch import GatheredBatch
from stagetrace.instrumentation.models.base import description
from stagetrace.instrumentation.models.marked import marked
from stagetrace.patches import queues
from stagetrace.request.current import current
from stagetrace.request.request import Request as Recorded
from stagetrace.tracing.span_context import SpanContext
from trees import assert_true, batch_of, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

pytestmark = ONE_AT_A_TIME
IN_LOOP = ["direct", "timeouts", "executor", "to-thread", "tasks", "lazy", "two", "parts"]
OWN_FUTURES = ["pool", "sync"]  # of `concurrent.futures`
IN_THREADS = ["thread", "threads", *OWN_FUTURES]
UNCERTAIN = {"singly": 2, "steps": 2, "no-model": 1, "unasked": 1}  # and how many requests their consumer takes
SLOW_S = 0.8


def environment(sink: Sink) -> dict[str, str]:
    return sink.environment(STAGETRACE_SLA="* within 120ms", OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="/health")


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    with run_service(folder, "batchers", env=environment(sink)) as running:
        come_first(running.process.pid)
        yield running


@pytest.fixture(scope="module")
def untraced(folder: Path) -> Iterator[Service]:
    with run_service(folder, "batchers") as running:
        yield running


def ask(service: Service, path: str, rows: list[float]) -> list[tuple[str, httpx.Response]]:
    """Call for all rows at once."""
    return at_once(lambda row: service.call("POST", f"/{path}/{row}"), rows)


def stages_of(request: Request) -> list[Any]:
    """Return the stages without waits for a thread, of the handler and of the inference."""
    assert_tiled(request)
    stages = list(tree(request)[1])
    begins, infers = stages.index("queue (batch)") + 1, stages.index("inference")
    assert set(stages[begins:infers]) <= {"queue (executor)", "preprocess"}
    own = [one for one in [*stages[:begins], *stages[infers:]] if one != "queue (thread_pool)"]
    return [one for one, _ in groupby(own)]


def assert_batched(calls: list[tuple[str, httpx.Response]], sink: Sink) -> None:
    """Check that each request shows the batch that it was in, and that all of the batches are there."""
    batches, inferred = {}, []
    for trace_id, response in calls:
        request, truth = sink.request(trace_id), json.loads(response.headers["x-truth"])
        assert stages_of(request) == ["preprocess", "queue (batch)", "inference", "postprocess", "network.send"]
        batch, _ = batch_of(request, sink, under="inference")
        assert batch.attributes["ml.batch.size"] == request.entry.attributes["ml.batch.size"] == truth["size"]
        assert batch.attributes["ml.model.name"] == request.entry.attributes["ml.model.name"] == "Doubler"
        batches[batch.span_id] = truth["size"]
        inference = next(stage for stage in request.stages if stage.name == "inference")
        inferred.append((inference, [truth["started"], truth["ended"]]))
    assert sum(batches.values()) == len(calls)
    assert_true(inferred)


@pytest.mark.parametrize("path", [*IN_LOOP, *IN_THREADS, *UNCERTAIN, "given-up/no-model", "given-up/direct"])
def test_responses_equal_those_of_an_untraced_service(path: str, service: Service, untraced: Service) -> None:
    rows = [0.01, 0.02, 0.03][: UNCERTAIN.get(path)]
    answers = [[(one.status_code, one.content) for _, one in ask(which, path, rows)] for which in (service, untraced)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("path", [*IN_LOOP, *IN_THREADS])
def test_each_request_shows_its_batch(path: str, service: Service, sink: Sink) -> None:
    assert_batched(ask(service, path, [0.01, 0.02, 0.03]), sink)
    if path not in OWN_FUTURES:  # there a request that completes a batch may begin to wait after the batch has begun
        assert_batched(ask(service, path, [0.01, 0.02, 0.03, 0.04, 0.01, 0.02]), sink)


@pytest.mark.usefixtures("services")
def test_the_first_request_starts_the_consumer(sink: Sink, tmp_path: Path) -> None:
    """The consumer has the context of the first request, and is no part of it."""
    with run_service(tmp_path, argv=asgi_command("uvicorn uvloop", "batchers"), env=environment(sink)) as service:
        assert_batched(ask(service, "lazy", [0.01]), sink)
        assert_batched(ask(service, "lazy", [0.01, 0.02]), sink)
        assert_batched(ask(service, "thread", [0.01, 0.02]), sink)


@pytest.mark.parametrize(
    ("row", "stage", "cause"),
    [(0.01, "queue", "batch_wait"), (SLOW_S, "inference", "io_wait"), (-SLOW_S, "inference", "compute")],
    ids=["wait", "sleeping-model", "computing-model"],
)
@pytest.mark.parametrize("path", ["direct", "thread"])
def test_the_stage_of_a_breach_is_the_slow_one(
    path: str, row: float, stage: str, cause: str, service: Service, sink: Sink
) -> None:
    ask(service, path, [0.01])
    # A second one that came late into the window would wait for less of it, and be in time.
    rows = [row] if stage == "queue" else [row, 0.01]
    for trace_id, _ in ask(service, path, rows):
        entry = sink.request(trace_id).entry
        assert entry.attributes["sla.breach.stage"] == stage
        assert entry.attributes["sla.breach.cause"] == cause


@pytest.mark.parametrize("path", UNCERTAIN)
def test_what_is_uncertain_is_not_recorded(path: str, service: Service, sink: Sink) -> None:
    """Calls for one item each, steps that other items join, a function that is no model, unawaited work."""
    for trace_id, _ in ask(service, path, [0.01, 0.02, 0.03][: UNCERTAIN[path]]):
        request = sink.tiled(trace_id)
        assert set(tree(request)[1]) <= {"handler", "queue (consumer)", "network.send"}
        assert ("queue" in request.names) is (path != "unasked")


def test_a_request_that_times_out_has_its_stages_until_then(service: Service, sink: Sink) -> None:
    ((trace_id, response),) = ask(service, "given-up/to-thread", [SLOW_S])
    request = sink.request(trace_id)
    assert response.status_code == 504
    assert stages_of(request) == ["preprocess", "queue (batch)", "inference", "postprocess", "network.send"]
    assert request.total_ns("inference") < SLOW_S * 1e9 / 2


# --- the queues themselves


def test_a_process_that_serves_nothing_has_pythons_own() -> None:
    look = "import asyncio, queue; print([one._put.__code__.co_filename for one in (asyncio.Queue, queue.Queue)])"
    found = [run_python("-c", look, STAGETRACE=on).stdout for on in ("0", "1")]
    assert found[0] == found[1] != ""


def patched(module: Any) -> Any:
    """Return copies of a module's queues, patched."""
    kinds = [getattr(module, name) for name in ("Queue", "PriorityQueue", "LifoQueue")]
    copies = {kind.__name__: type(kind.__name__, kind.__bases__, dict(vars(kind))) for kind in kinds}
    queues.patch_queues(SimpleNamespace(**copies))  # type: ignore[arg-type]
    return SimpleNamespace(**copies)


@pytest.fixture
def request_() -> Iterator[Recorded]:
    """Run the test as a request's code."""
    record = Recorded()
    record.bind(SpanContext(1, 2, is_remote=False), record.started)
    token = current.set(record)
    yield record
    current.reset(token)
    gc.collect()
    assert not queued_items.queued
    assert not queued_items.taken


class Odd:
    """An object that cannot be compared or hashed, and that raises for unknown attributes."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, future: Any) -> None:
        self.future = future

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.usefixtures("request_")
def test_queues_of_threads_keep_objects_and_order() -> None:
    kinds = patched(queue)
    future: Future[int] = Future()
    odd = [Odd(future), [future], {"a": future, "b": future}, None, 7, "", (), object(), future, range(10**9)]
    for kind, order in ((kinds.Queue, 1), (kinds.LifoQueue, -1)):
        waiting = kind()
        for one in odd * 2:
            waiting.put(one)
        assert [id(waiting.get()) for _ in odd * 2] == [id(one) for one in (odd * 2)[::order]]
    waiting = kinds.PriorityQueue(3)
    for number in (3, 1, 2):
        waiting.put((number, Future()))
    with pytest.raises(queue.Full):
        waiting.put((4, Future()), timeout=0.001)
    assert [waiting.get()[0] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(queue.Empty):
        waiting.get(timeout=0.001)
    future.set_result(1)


@pytest.mark.usefixtures("request_")
def test_queues_of_asyncio_and_their_futures_work_as_untraced() -> None:
    async def run() -> list[Any]:
        kinds = patched(asyncio)
        waiting, loop = kinds.Queue(2), asyncio.get_running_loop()
        given_up = asyncio.create_task(waiting.get())
        await asyncio.sleep(0)
        given_up.cancel()
        with suppress(asyncio.CancelledError):
            await given_up
        futures = [loop.create_future() for _ in range(2)]
        for future in futures:
            waiting.put_nowait(Odd(future))
        with pytest.raises(asyncio.QueueFull):
            waiting.put_nowait(7)
        results = asyncio.gather(*futures, return_exceptions=True)
        await asyncio.sleep(0)
        (await waiting.get()).future.set_result(1)
        waiting.get_nowait().future.set_exception(ValueError("2"))
        return [str(one) for one in await results]

    assert asyncio.run(run()) == ["1", "2"]


def test_items_served_in_the_same_turn_of_the_loop_have_their_batch() -> None:
    """The consumer, woken by the first item, runs before the loop's next turn, which shows that the others wait."""

    async def consume(waiting: asyncio.Queue[Any]) -> None:
        while True:
            batch = [await waiting.get()]
            while not waiting.empty():
                batch.append(waiting.get_nowait())
            for (_, future), output in zip(batch, predict(None, [row for row, _ in batch]), strict=True):
                future.set_result(output)

    async def serve(waiting: asyncio.Queue[Any], number: int) -> list[str]:
        record = Recorded()
        record.bind(SpanContext(1, number, is_remote=False), record.started)
        current.set(record)
        future = asyncio.get_running_loop().create_future()
        await waiting.put((number, future))
        assert await future == number
        return [segment.stage for segment in record.close(record.started, time.time_ns()).segments()]

    async def run() -> list[list[str]]:
        waiting = patched(asyncio).Queue()
        consumer = asyncio.create_task(consume(waiting))
        await asyncio.sleep(0)
        stages = await asyncio.gather(*(serve(waiting, number) for number in (1, 2, 3)))
        consumer.cancel()
        return stages

    predict = marked(lambda _, rows: rows, lambda _, args, __: description("m", "f", args[0]))
    assert asyncio.run(run()) == [["preprocess", "queue", "inference", "postprocess"]] * 3


def test_two_calls_for_a_part_before_any_result_are_uncertain(request_: Recorded) -> None:
    """The second may be for the items of the first, or for the rest, if results come from another thread."""
    futures: list[Future[int]] = [Future() for _ in range(3)]
    items = [queued_items.Item(request_, ("row", future), future) for future in futures]
    batch = GatheredBatch(items, 1, ())
    for _ in range(2):
        batch.enter("inference", {"ml.batch.size": 2})
        batch.leave("inference")
    assert all(item.is_uncertain for item in items)
    for future, item in zip(futures, items, strict=True):
        future.set_result(1)
        item.end(future)


def test_a_replacement_of_the_queues_is_not_patched() -> None:
    class Queue:
        """Like gevent's own queue, in C, in the place of Python's."""

        __slots__ = ("_get", "_put")

    before = vars(Queue).copy()
    queues.patch_queues(SimpleNamespace(Queue=Queue, PriorityQueue=Queue, LifoQueue=Queue))  # type: ignore[arg-type]
    assert vars(Queue) == before


@pytest.mark.usefixtures("request_")
def test_items_deleted_with_their_queue_are_not_kept() -> None:
    waiting = patched(queue).Queue()
    waiting.put(("row", Future()))
    assert len(queued_items.queued) == 1
    del waiting
    gc.collect()
    assert not queued_items.queued


@pytest.mark.usefixtures("request_")
def test_the_number_of_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MAX_ITEMS", 2)
    waiting = patched(queue).Queue()
    for number in range(3):
        waiting.put((number, Future()))
    assert len(queued_items.queued) == 2


@pytest.mark.usefixtures("request_")
def test_an_object_that_is_put_twice_is_no_item() -> None:
    waiting = patched(queue).Queue()
    shared = ("row", Future[int]())
    waiting.put(shared)
    waiting.put(shared)
    assert not queued_items.queued

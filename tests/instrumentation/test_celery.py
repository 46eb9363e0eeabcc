"""Celery: each task is a request of its worker's, below the one that has sent it, with its wait for the worker."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from contextvars import copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, signals
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.utils.dispatch import Signal

from backend.processes import until
from services import APPS, PYTHON, UNSEEN, Service, clean_environment, end, run_service
from sink import assert_tiled
from stagetrace import guard
from stagetrace.runtime import runtime
from stagetrace_contrib import celery as module
from trees import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

ROW = [5.1, 3.5, 1.4, 0.2]
SLA = "celery/tasks.slow within 100ms; celery/* within 30s"
POOLS = ("prefork", "threads", "solo")


@contextmanager
def run_worker(
    folder: Path, env: dict[str, str], *options: str, app: str = "tasks"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of the tasks whose messages are in a folder, until the block ends."""
    argv = [PYTHON, "-m", "celery", "-A", f"{app}:queue", "worker", "-c", "2", "-l", "INFO", *options]
    log_file = folder / "worker.log"
    with log_file.open("wb") as log:
        env = {**clean_environment(), **UNSEEN, "TASKS_FOLDER": str(folder), **env}
        process = subprocess.Popen(argv, cwd=APPS, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: b" ready." in log_file.read_bytes(), process)
        yield process
    finally:
        end(process, within_s=30)


@pytest.fixture(scope="module", params=POOLS)
def service(sink: Sink, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Service]:
    """Yield an API, with a worker of each kind of pool."""
    folder = tmp_path_factory.mktemp("celery")
    with (
        run_worker(folder, sink.environment(STAGETRACE_SLA=SLA), "--pool", request.param),
        run_api(folder, sink) as api,
    ):
        yield api


@contextmanager
def run_api(folder: Path, sink: Sink) -> Iterator[Service]:
    env = sink.environment(TASKS_FOLDER=str(folder))
    argv = [PYTHON, "-m", "uvicorn", "tasks:api", "--port", "{port}", "--no-access-log"]
    with run_service(folder, argv=argv, env=env) as api:
        yield api


def outcome(service: Service, task_id: str) -> dict[str, Any]:
    """Return what became of a task, once it is done."""
    deadline = time.monotonic() + 30
    while True:
        found: dict[str, Any] = service.client.get(f"/result/{task_id}").json()
        if found["state"] not in ("PENDING", "RETRY"):
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sent(service: Service, task: str) -> tuple[str, dict[str, Any]]:
    """Send a task; return the trace of the request that did so, and what became of it."""
    trace_id, response = service.call("POST", f"/send/{task}", json=ROW)
    return trace_id, outcome(service, response.json())


def worked(task: Request) -> list[str]:
    """Return the stages of a task after its wait for the worker, which is checked."""
    assert task.stages[0].name == "queue"
    assert task.stages[0].attributes["queue.reason"] == "worker"
    return [name for name in task.names if name != "queue"]


def below(task: Request, sender: Request) -> bool:
    return task.entry.parent_id in {sender.entry.span_id, *(stage.span_id for stage in sender.stages)}


@pytest.mark.smoke
@pytest.mark.usefixtures("services")
def test_a_task_has_its_wait_and_its_inference(service: Service, sink: Sink) -> None:
    trace_id, result = sent(service, "predict")
    assert result == {"state": "SUCCESS", "result": 0}
    sender, task = sink.requests(trace_id, 2)
    assert below(task, sender)
    assert sender.entry.start < task.entry.start < sender.entry.end
    assert worked(task) == ["preprocess", "inference", "postprocess"]
    known = {name: task.entry.attributes[name] for name in ("rpc.system.name", "rpc.method", "sla.verdict")}
    assert known == {"rpc.system.name": "celery", "rpc.method": "celery/tasks.predict", "sla.verdict": "good"}


@pytest.mark.usefixtures("services")
def test_a_late_task_is_a_breach(service: Service, sink: Sink) -> None:
    _, task = sink.requests(sent(service, "slow")[0], 2)
    assert task.entry.attributes["sla.verdict"] == "breach"
    assert task.entry.attributes["sla.breach.stage"] == "preprocess"
    assert task.entry.attributes["sla.breach.code"] == line_of("tasks.py", "slow", "time.sleep(0.3)")


@pytest.mark.usefixtures("services")
def test_a_task_that_raises_is_an_error(service: Service, sink: Sink) -> None:
    trace_id, result = sent(service, "fails")
    assert result == {"state": "FAILURE", "result": f"no such row: {ROW}"}
    _, task = sink.requests(trace_id, 2)
    assert task.entry.status == 2


@pytest.mark.usefixtures("services")
def test_a_task_that_is_tried_again_does_not_wait_before_its_time(service: Service, sink: Sink) -> None:
    trace_id, result = sent(service, "again")
    assert result == {"state": "SUCCESS", "result": 0}
    _, first, second = sink.requests(trace_id, 3)
    assert first.entry.status != 2
    assert below(second, first)
    assert second.entry.start - first.entry.end >= 0.3e9  # of 0.5 s, from within the first
    assert worked(second) == ["preprocess", "inference", "postprocess"]


@pytest.mark.usefixtures("services")
def test_a_task_that_another_one_calls_is_a_part_of_that(service: Service, sink: Sink) -> None:
    trace_id, result = sent(service, "outer")
    assert result == {"state": "SUCCESS", "result": 0}
    _, task = sink.requests(trace_id, 2)
    assert task.entry.attributes["rpc.method"] == "celery/tasks.outer"
    assert worked(task) == ["preprocess", "inference", "postprocess"]


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("pool", POOLS)
def test_sigterm_loses_no_finished_task(pool: str, sink: Sink, tmp_path: Path) -> None:
    late = sink.environment(OTEL_BSP_SCHEDULE_DELAY="60000")
    with run_worker(tmp_path, late, "--pool", pool) as worker, run_api(tmp_path, sink) as api:
        found = [sent(api, "predict") for _ in range(8)]
        worker.terminate()
        worker.wait(30)
    assert {one["state"] for _, one in found} == {"SUCCESS"}
    for trace_id, _ in found:
        sink.requests(trace_id, 2)


@pytest.mark.usefixtures("services")
def test_a_task_whose_process_is_told_to_end_is_recorded_until_then(sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_SLA="* within 1ms")
    with run_worker(tmp_path, env, "--pool", "prefork"), run_api(tmp_path, sink) as api:
        trace_id, _ = api.call("POST", "/send/ends", json=ROW)
        _, task = sink.requests(trace_id, 2)
    assert task.entry.attributes["stagetrace.network.disconnect"] == "cancelled"
    assert task.entry.attributes["sla.verdict"] == "breach"


@pytest.mark.usefixtures("services")
def test_a_task_of_a_sender_that_is_not_recorded_begins_with_its_run(sink: Sink, tmp_path: Path) -> None:
    seen = sink.traces()
    with run_worker(tmp_path, sink.environment(), "--pool", "solo"):
        env = {**clean_environment(), "TASKS_FOLDER": str(tmp_path)}
        code = "import tasks; tasks.predict.delay([5.1, 3.5, 1.4, 0.2])"
        subprocess.run([PYTHON, "-c", code], cwd=APPS, env=env, check=True)
        spans = sink.wait_for(lambda all_: any(one.kind == 2 and one.trace_id not in seen for one in all_))
    (trace_id,) = {one.trace_id for one in spans} - seen
    (task,) = sink.requests(trace_id, 1)
    assert_tiled(task)
    assert task.names == ["preprocess", "inference", "postprocess"]


@pytest.mark.parametrize("sent", [None, "", "soon", "-1", "1e9", "\u0661", 1.5, b"1"])
def test_a_time_that_is_none_is_unknown(sent: Any) -> None:
    assert module._due(Context({module.SENT: sent})) is None


@pytest.mark.parametrize(
    ("eta", "due"),
    [
        (None, 10**18),
        ("2001-09-09T01:46:41+00:00", 10**18 + 10**9),
        ("2001-09-09T01:46:41Z", 10**18 + 10**9),
        ("2001-09-09T01:46:39", 10**18),
    ],
)
def test_a_task_waits_once_its_time_has_come(eta: str | None, due: int) -> None:
    assert module._due(Context({module.SENT: str(10**18), "eta": eta})) == due


@pytest.fixture
def connected() -> Iterator[None]:
    """Celery's signals, with our receivers."""
    every = [one for one in vars(signals).values() if isinstance(one, Signal)]
    before = [list(one.receivers) for one in every]
    module.patch_signals(signals)
    yield
    vars(signals.worker_process_init).pop("send")
    for one, receivers in zip(every, before, strict=True):
        one.receivers[:] = receivers
        one.sender_receivers_cache.clear()


@pytest.mark.usefixtures("services")
def test_a_provider_of_the_service_is_set_before_ours(sink: Sink, tmp_path: Path) -> None:
    worker = run_worker(tmp_path, sink.environment(), "--pool", "prefork", app="tasks_own_provider")
    with worker, run_api(tmp_path, sink) as api:
        trace_id, result = sent(api, "predict")
        _, task = sink.requests(trace_id, 2)
    assert result == {"state": "SUCCESS", "result": 0}
    assert task.entry.service == "own"
    assert "Overriding" not in (tmp_path / "worker.log").read_text()


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("part", ["recording", "_call", "_of", "runtime", "vars", "time"])
def test_a_fault_changes_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Celery("faults", broker="memory://", backend="cache+memory://")

    @queue.task  # type: ignore[untyped-decorator]
    def double(value: int) -> int:
        if value < 0:
            raise LookupError(value)
        return 2 * value

    monkeypatch.setattr(guard, "failures", {})
    given = {"runtime": SimpleNamespace(ready=True, prepare_now=lambda: None), part: None}
    for name, replaced in given.items():
        monkeypatch.setattr(runtime if name == "runtime" else module, name, replaced, raising=False)
    run = build_tracer(double.name, double, app=queue)
    for value, state, result in ((4, "SUCCESS", 8), (-4, "FAILURE", None)):
        asked = double.delay(value)
        copy_context().run(run, asked.id, [value], {}, {"id": asked.id, "task": double.name, "delivery_info": {}})
        assert asked.state == state
        assert result is None or asked.result == result
    assert guard.failures

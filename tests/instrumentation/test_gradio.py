"""Gradio's queue: an event has an entry span with its wait and its inference, below the request that asked for it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from at_once import at_once
from environments import interpreter_with
from services import APPS, Service, run_service
from sink import assert_tiled
from stagetrace import guard
from stagetrace_contrib import gradio as module
from stagetrace_contrib.gradio import patch_queueing
from trees import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

NEEDS = ("gradio", "onnx", "onnxruntime")
SLA = "gradio/slow within 100ms; gradio/* within 30s"


def gradio(test: Any) -> Any:
    """Mark a test of the real Gradio."""
    return pytest.mark.usefixtures("services")(pytest.mark.heavy(pytest.mark.xdist_group("gradio")(test)))


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(STAGETRACE_SLA=SLA, GRADIO_ANALYTICS_ENABLED="0")
    argv = [interpreter_with(NEEDS), str(APPS / "gradio_queue.py")]
    with run_service(folder, argv=argv, env=env, ready="/config", within_s=250) as running:
        yield running


def asked(service: Service, name: str, value: float) -> tuple[str, list[tuple[str, Any]]]:
    """Return the trace of the request that puts an event into the queue, and the messages about its result."""
    trace_id, response = service.call("POST", f"/gradio_api/call/{name}", json={"data": [value]})
    url = f"{service.url}/gradio_api/call/{name}/{response.json()['event_id']}"
    lines = httpx.get(url, timeout=60).text.splitlines()
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return trace_id, list(zip(events, data, strict=True))


def event_of(sink: Sink, trace_id: str) -> tuple[Request, Request]:
    """Return the request that has asked, and its event."""
    asking, event = sorted(sink.requests(trace_id, 2), key=lambda one: one.entry.attributes.get("rpc.method", ""))
    assert_tiled(asking)
    assert_tiled(event)
    assert event.entry.parent_id in {asking.entry.span_id, *(stage.span_id for stage in asking.stages)}
    return asking, event


@gradio
def test_an_event_has_its_wait_and_its_inference(service: Service, sink: Sink) -> None:
    trace_id, messages = asked(service, "negative", 3)
    assert messages == [("complete", [-3.0])]
    asking, event = event_of(sink, trace_id)
    assert "inference" not in asking.names
    worked = [name for name in event.names if name != "queue"]  # also for threads, between its parts
    assert list(dict.fromkeys(worked)) == ["preprocess", "inference", "postprocess"]
    assert event.stages[0].attributes["queue.reason"] == "worker"
    (inference,) = [stage for stage in event.stages if stage.name == "inference"]
    assert inference.attributes["ml.framework"] == "onnxruntime"
    known = {name: event.entry.attributes[name] for name in ("rpc.system.name", "rpc.method", "sla.verdict")}
    assert known == {"rpc.system.name": "gradio", "rpc.method": "gradio/negative", "sla.verdict": "good"}


@gradio
def test_a_late_event_is_a_breach(service: Service, sink: Sink) -> None:
    _, event = event_of(sink, asked(service, "slow", 3)[0])
    assert event.entry.attributes["sla.verdict"] == "breach"
    assert event.entry.attributes["sla.breach.code"] == line_of("gradio_queue.py", "slow", "time.sleep(0.3)")


@gradio
def test_each_result_of_a_generator_is_a_chunk(service: Service, sink: Sink) -> None:
    trace_id, messages = asked(service, "count", 3)
    assert [data for _, data in messages][-1] == [-2.0]
    _, event = event_of(sink, trace_id)
    assert event.names.count("inference") == 3
    assert event.entry.attributes["stagetrace.network.chunks"] >= 3
    assert "http.response.body.size" not in event.entry.attributes


@gradio
def test_a_function_that_raises_makes_the_event_an_error(service: Service, sink: Sink) -> None:
    trace_id, messages = asked(service, "fails", 3)
    assert messages[0][0] == "error"
    _, event = event_of(sink, trace_id)
    assert event.entry.status == 2


@gradio
def test_a_batch_is_one_inference_for_all_its_events(service: Service, sink: Sink) -> None:
    answers = at_once(lambda value: asked(service, "batched", value), range(4))
    assert [messages[-1][1] for _, messages in answers] == [[-0.0], [-1.0], [-2.0], [-3.0]]
    events = [event_of(sink, trace_id)[1] for trace_id, _ in answers]
    inferences = [stage for one in events for stage in one.stages if stage.name == "inference"]
    sizes = [stage.attributes["ml.batch.size"] for stage in inferences]
    assert len(sizes) == 4
    assert max(sizes) > 1
    for stage in inferences:  # those of one batch are at the same time
        size = stage.attributes["ml.batch.size"]
        assert size == sum((one.start, one.end) == (stage.start, stage.end) for one in inferences)


class Queue:
    """Works as Gradio's does."""

    def __init__(self) -> None:
        event = SimpleNamespace(fn=SimpleNamespace(api_name="any"), alive=True)
        self.event_ids_to_events = {"1": event}
        self.sent: list[str] = []

    async def push(self, body: str) -> tuple[bool, str, str]:
        return True, "1", body

    async def process_events(self, events: list[Any], batch: bool) -> None:
        for event in events:
            self.send_message(event, ProcessCompletedMessage())
        if batch:
            raise LookupError

    def send_message(self, event: Any, event_message: Any) -> None:  # noqa: ARG002
        self.sent.append(type(event_message).__name__)


class ProcessCompletedMessage:
    success, title = False, "why"


@pytest.mark.parametrize("part", ["recording", "_Events", "_call_of", "runtime", "vars"])
def test_a_fault_changes_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queueing = SimpleNamespace(Queue=type("Queue", (Queue,), dict(vars(Queue))))
    patch_queueing(queueing)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "runtime", SimpleNamespace(ready=True))
    monkeypatch.setattr(module, part, None, raising=False)
    monkeypatch.setattr(guard, "failures", {})
    queue = queueing.Queue()
    events = [*queue.event_ids_to_events.values()]

    async def use() -> None:
        assert await queue.push("success") == (True, "1", "success")
        await queue.process_events(events, batch=False)
        with pytest.raises(LookupError):
            await queue.process_events(events, True)  # noqa: FBT003

    asyncio.run(use())
    assert queue.sent == ["ProcessCompletedMessage"] * 2
    assert guard.failures

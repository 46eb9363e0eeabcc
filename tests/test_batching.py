"""`stagetrace.batch` in batchers of a service, in the same process and in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stagetrace
from at_once import at_once
from parts import parts
from services import Service, run_service
from stagetrace import guard, log
from trees import assert_true, at_its_best, batch_of, events_of, line_of, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(
        STAGETRACE_SLA="POST /late/* within 100ms; * within 10s", OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="/health"
    )
    with run_service(folder, "batching", env=env) as running:
        for where in ("thread", "process"):  # the first request of a process starts the thread that samples
            running.call("POST", f"/{where}/first")
        yield running


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_batch_is_one_inference(service: Service, sink: Sink, where: str) -> None:
    calls = at_once(lambda _: service.call("POST", f"/{where}/x"), range(3))
    batches, inferred = {}, []
    for trace_id, response in calls:
        request, truth = sink.tiled(trace_id), response.json()
        assert tree(request) == (
            "POST /{where}/{value}",
            ["preprocess", "queue (batch)", "inference", "postprocess", "render", "postprocess", "network.send"],
        )
        batch, under = batch_of(request, sink)
        assert [(span.name, span.parent_id) for span in under] == [("forward", batch.span_id)]
        assert request.entry.attributes["ml.batch.size"] == batch.attributes["ml.batch.size"] == truth["size"]
        batches[batch.span_id] = truth["size"]
        inferred.append((request.stages[2], [truth["started"], truth["ended"]]))
    assert sum(batches.values()) == 3
    assert_true(inferred)


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_breach_is_at_the_line_of_its_batch(service: Service, sink: Sink, where: str) -> None:
    calls = at_once(lambda _: service.call("POST", f"/late/{where}/stall"), range(3))
    entries = [sink.request(trace_id).entry for trace_id, _ in calls]
    stalled = [one.attributes for one in entries if one.attributes["sla.breach.stage"] == "inference"]
    assert stalled  # the others waited for a batch before theirs
    assert {one["sla.breach.code"] for one in stalled} == {line_of("batching.py", "infer", "# in a batch")}


def test_a_breach_is_at_the_line_that_resumes_it_elsewhere(service: Service, sink: Sink) -> None:
    """Where it ends soon after that; else it may have been at something else, and only an event shows that line."""
    line = line_of("batching.py", "infer", "# resumed")

    def look() -> str:
        request, response = sink.traced(service, "POST", "/late/process/resume")
        assert response.status_code == 200
        stalls = [one for one in events_of(sink, request.entry)["stall"] if one["code.function.name"] == "infer"]
        assert {one["code.line.number"] for one in stalls} == {int(line.partition(":")[2].partition(" ")[0])}
        assert {one["stagetrace.stall.of"] for one in stalls} <= {"request", "resumed"}
        return str(request.entry.attributes["sla.breach.code"])

    assert at_its_best(look, line) == line


def test_a_worker_that_dies_leaves_what_is_known(service: Service, sink: Sink) -> None:
    """The begin of the batch is not reported: the wait is the handler's."""
    request, response = sink.traced(service, "POST", "/process/exit")
    assert response.status_code == 504
    assert "inference" not in request.names


def test_where_nothing_is_traced_the_block_just_runs() -> None:
    unreadable: list[list[dict[str, str] | None]] = [
        [],
        [None, {}],
        [{"unknown": "x"}, {"stagetrace": "word-1", "traceparent": "no such"}],
        [{"stagetrace": "word-1-x", "traceparent": f"00-{1:032x}-{1:016x}-01"}],
    ]
    for carriers in unreadable:
        with stagetrace.batch(carriers):
            pass
    with pytest.raises(ValueError, match="the model's own"), stagetrace.batch([{}]):
        raise ValueError("the model's own")


PARTS = """
    api.carrier: has_provider
    request.remote_stages: RequestRef
    request.remote_stages: entry_of
    request.worker: Batch.__init__ Batch.finish at_work _come_in report_stages
"""


@pytest.mark.parametrize("part", parts(PARTS))
def test_whatever_breaks_the_block_runs_and_its_error_is_its_own(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("injected fault")

    monkeypatch.setattr(guard, "failures", {})
    monkeypatch.setattr(log, "_logged", set())
    monkeypatch.setattr("stagetrace.api.carrier.has_provider", lambda: True)
    monkeypatch.setattr(part.replace(":", "."), fails)
    carrier = {"stagetrace": f"word-1-{2:016x}", "traceparent": f"00-{1:032x}-{3:016x}-01"}
    ran = []
    with stagetrace.batch([carrier, carrier]):
        ran.append(True)
    with pytest.raises(ValueError, match="the model's own"), stagetrace.batch([carrier]):
        raise ValueError("the model's own")
    assert ran
    assert "injected fault" in capsys.readouterr().err

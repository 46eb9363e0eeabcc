"""mosec: each worker has an entry span for a task, in one trace; a batch has one inference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from at_once import at_once
from environments import interpreter_with
from services import APPS, Service, run_service
from sink import assert_tiled, request_of
from stagetrace import guard
from stagetrace_contrib import mosec
from stagetrace_contrib.mosec import MAGIC, patch_protocol
from trees import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Received, Request, Sink

NEEDS = ("mosec", "onnx", "onnxruntime")


@pytest.fixture(scope="module")
def both(sink: Sink, folder: Path) -> Iterator[tuple[Service, Service]]:
    argv = [interpreter_with(NEEDS), str(APPS / "mosec_workers.py"), "--address", "127.0.0.1", "--port", "{port}"]
    env = sink.environment(STAGETRACE_SLA="mosec/Prepare_1 within 10s; mosec/* within 50ms")
    with (
        run_service(folder, argv=argv, env=env, ready="/", within_s=120) as traced,
        run_service(folder, argv=argv, ready="/", within_s=120) as untraced,
    ):
        yield traced, untraced


def of_mosec(spans: list[Received], seen: set[str]) -> dict[str, list[Received]]:
    """Return the spans of each trace since then, by its id."""
    traces: dict[str, list[Received]] = {}
    for one in spans:
        if one.trace_id not in seen:
            traces.setdefault(one.trace_id, []).append(one)
    return traces


def entries_of(spans: list[Received]) -> dict[str, Request]:
    """Return the requests of one trace by the worker."""
    found = {}
    for entry in (one for one in spans if one.kind == 2):
        request = request_of([entry, *(one for one in spans if one.parent_id == entry.span_id and one.kind != 2)])
        assert_tiled(request)
        found[entry.name] = request
    return found


@pytest.mark.heavy
@pytest.mark.xdist_group("mosec")
@pytest.mark.usefixtures("services")
def test_a_request_is_one_trace_through_its_workers(both: tuple[Service, Service], sink: Sink) -> None:
    traced, untraced = both
    seen = sink.traces()
    bodies = [{"value": one} for one in range(4)]
    answers = at_once(lambda body: traced.call("POST", "/inference", json=body)[1].content, bodies)
    assert answers == at_once(lambda body: untraced.call("POST", "/inference", json=body)[1].content, bodies)

    def complete(spans: list[Received]) -> bool:
        counts = [sum(one.kind == 2 for one in trace) for trace in of_mosec(spans, seen).values()]
        return sorted(counts) == [*[0] * counts.count(0), 2, 2, 2, 2]  # and those of the batches' inferences

    found = [entries_of(one) for one in of_mosec(sink.wait_for(complete), seen).values()]
    traces = [one for one in found if one]
    sizes = []
    for one in traces:
        prepare, model = one["mosec/Prepare_1"], one["mosec/Model_2"]
        assert model.entry.parent_id in {prepare.entry.span_id, *(stage.span_id for stage in prepare.stages)}
        assert prepare.entry.attributes["sla.verdict"] == "good"
        assert model.entry.attributes["sla.verdict"] == "breach"
        assert model.entry.attributes["sla.breach.code"] == line_of("mosec_workers.py", "forward", "time.sleep(")
        assert model.stages[0].name == "queue"
        assert model.entry.start <= prepare.entry.end
        (inference,) = [stage for stage in model.stages if stage.name == "inference"]
        assert inference.attributes["ml.framework"] == "onnxruntime"
        sizes.append(inference.attributes["ml.batch.size"])
    assert max(sizes) > 1


@pytest.mark.heavy
@pytest.mark.xdist_group("mosec")
@pytest.mark.usefixtures("services")
def test_a_task_that_is_refused_is_an_error(both: tuple[Service, Service], sink: Sink) -> None:
    traced, untraced = both
    seen = sink.traces()
    responses = [one.call("POST", "/inference", json={"value": 101})[1] for one in (traced, untraced)]
    assert [one.status_code for one in responses] == [422, 422]
    assert responses[0].content == responses[1].content
    (spans,) = of_mosec(
        sink.wait_for(lambda all_: any(one.kind == 2 for one in all_ if one.trace_id not in seen)), seen
    ).values()
    assert entries_of(spans)["mosec/Prepare_1"].entry.status == 2


class Protocol:
    """Receives and sends as mosec's does."""

    name = "<Any_1|1>"

    def __init__(self, payloads: list[bytes], states: list[int]) -> None:
        self.received = 1, [b"%d" % at for at, _ in enumerate(payloads)], states, payloads
        self.sent: list[Any] = []

    def receive(self) -> Any:
        return self.received

    def send(self, flag: Any, ids: Any, states: Any, payloads: Any) -> None:
        self.sent.append((flag, ids, states, payloads))


@pytest.mark.parametrize("part", ["_call", "_Tasks", "_split", "runtime"])
def test_a_fault_changes_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = SimpleNamespace(Protocol=type("Protocol", (Protocol,), dict(vars(Protocol))))
    patch_protocol(module)
    monkeypatch.setattr(guard, "failures", {})
    monkeypatch.setattr(guard.switch(mosec.__name__), "off", False)
    monkeypatch.setattr(mosec, "runtime", SimpleNamespace(ready=True))
    monkeypatch.setattr(mosec, part, None, raising=False)
    protocol = module.Protocol([b"one", b"two"], [1, 2])
    for _ in range(12):
        flag, ids, states, payloads = protocol.receive()
        assert payloads == [b"one", b"two"]
        protocol.send(flag, ids, states, payloads)
    assert [sent[3] for sent in protocol.sent] == [[b"one", b"two"]] * 12
    assert guard.failures


def test_what_only_looks_like_a_trailer_stays() -> None:
    """A task's first worker has what the client sent; another one's trailer has a fixed length."""
    whole = MAGIC + b"0" * (mosec.TRAILER - len(MAGIC))
    assert mosec._without_trailers([1, 2, 2], [whole, MAGIC + b"0", b"body" + whole]) == (
        [whole, MAGIC + b"0", b"body"],
        [None, None, whole[len(MAGIC) :]],
    )

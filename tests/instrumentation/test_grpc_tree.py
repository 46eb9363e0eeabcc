"""The whole span tree of one RPC of each kind of server, as a literal; and what is left out of all of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from instrumentation.grpc_client import Service, run_service
from instrumentation.grpc_traced import OF_THE_MACHINE
from sink import SERVER, Received, Sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

# What differs from run to run; that it is there is part of the tree.
VARYING = (
    *("client.port", "server.port", "user_agent.original", "sla.overrun_ms", "sla.deadline.remaining_ms"),
    *("sla.breach.cause", "sla.breach.evidence"),
)
# What part of a breach the machine makes up, and whose sample a busy one may skip; whether this call is the first.
BY_CHANCE = (*OF_THE_MACHINE, "ml.cold_start", "sla.breach.part.", "sla.breach.code")
ENTRY = {
    "client.address": "127.0.0.1",
    "client.port": "...",
    "ml.batch.size": 1,
    "ml.framework": "sklearn",
    "ml.model.name": "SleepyModel",
    "ml.stage.inference.ms": "...",
    "ml.stage.network.receive.ms": "...",
    "ml.stage.postprocess.ms": "...",
    "ml.stage.preprocess.ms": "...",
    "stagetrace.network.received_bytes": 95,
    "stagetrace.network.sent_bytes": 66,
    "rpc.method": "ml.Scorer/Predict",
    "rpc.response.status_code": "OK",
    "rpc.system.name": "grpc",
    "server.address": "127.0.0.1",
    "server.port": "...",
    "sla.breach.cause": "...",
    "sla.breach.evidence": "...",
    "sla.breach.stage": "inference",
    "sla.breached": True,
    "sla.deadline.remaining_ms": "...",
    "sla.objective": "ml.Scorer/Predict within 10ms",
    "sla.overrun_ms": "...",
    "sla.severity": "critical",
    "sla.threshold_ms": 10.0,
    "sla.verdict": "breach",
    "user_agent.original": "...",
}
MODEL = {
    "ml.batch.size": 1,
    "ml.framework": "sklearn",
    "ml.model.name": "SleepyModel",
    "ml.stage": "inference",
}
MIDDLE: list[Any] = [
    ("network.receive", {"ml.stage": "network.receive"}, []),
    ("preprocess", {"ml.stage": "preprocess"}, []),
    ("inference", MODEL, []),
    ("postprocess", {"ml.stage": "postprocess"}, []),
]
QUEUE = {"ml.stage": "queue", "queue.pool_size": 4, "queue.reason": "grpc_pool", "queue.waiters": 0}
TREES: dict[str, Any] = {
    "grpc_threads": (
        "ml.Scorer/Predict",
        {**ENTRY, "ml.stage.queue.ms": "..."},
        [("queue", QUEUE, []), *MIDDLE],
    ),
    "grpc_aio": (
        "ml.Scorer/Predict",
        {**ENTRY, "ml.stage.network.send.ms": "..."},
        [*MIDDLE, ("network.send", {"ml.stage": "network.send"}, [])],
    ),
}
# The handler that opens a span of its own and sets an attribute on the current one.
SEEN: dict[str, Any] = {
    "grpc_threads": ["queue", "network.receive", "handler"],
    "grpc_aio": ["network.receive", "handler", "network.send"],
}


@pytest.fixture(scope="module", params=TREES)
def service(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Service]:
    sla = "ml.Scorer/Predict within 10ms; * within 20s"
    env = sink.environment(STAGETRACE_SLA=sla, STAGETRACE_RECORD_CLIENT="1", REFLECTION="1")
    with run_service(folder, request.param, env) as running:
        running.call("See")  # the first one waits for the provider to be set
        yield running


def kind_of(service: Service) -> str:
    return next(app for app in TREES if service.log_file.name.startswith(app))


def tree(spans: list[Received], span: Received) -> tuple[str, dict[str, Any], list[Any]]:
    """Return name, attributes and children, in order of time."""
    children = sorted((one for one in spans if one.parent_id == span.span_id), key=lambda one: (one.start, one.end))
    attributes = {
        key: "..." if key in VARYING or key.endswith(".ms") else value
        for key, value in span.attributes.items()
        if not key.startswith(BY_CHANCE)
    }
    return span.name, attributes, [tree(spans, child) for child in children]


def whole(sink: Sink, trace_id: str) -> tuple[str, dict[str, Any], list[Any]]:
    request = sink.request(trace_id)
    return tree([request.entry, *request.stages, *request.others], request.entry)


def test_the_whole_tree_of_an_rpc(service: Service, sink: Sink) -> None:
    work = {"load_s": 0.002, "preprocess_s": 0.002, "inference_s": 0.05, "dump_s": 0.002}
    trace_id, got = service.call("Predict", work)
    assert got.code == "OK"
    name, attributes, stages = whole(sink, trace_id)
    assert (name, dict(sorted(attributes.items())), stages) == _sorted(TREES[kind_of(service)])


def _sorted(expected: Any) -> Any:
    name, attributes, stages = expected
    return name, dict(sorted(attributes.items())), stages


def test_a_span_of_the_handlers_own_hangs_under_its_stage(service: Service, sink: Sink) -> None:
    trace_id, _ = service.call("See")
    _, attributes, stages = whole(sink, trace_id)
    assert [stage[0] for stage in stages] == SEEN[kind_of(service)]
    assert attributes["set.by.handler"] == "yes"
    assert [child for stage in stages for child in stage[2]] == [("child", {}, [])]
    assert next(stage for stage in stages if stage[0] == "handler")[2] == [("child", {}, [])]


def test_reflection_is_left_out(service: Service, sink: Sink) -> None:
    """The real service and its real client; its stream ends before the RPC that is asked last."""
    sink.request(service.call("See")[0])  # after those of the server's start
    before = {span.trace_id for span in sink.spans}
    assert "ml.Scorer" in ProtoReflectionDescriptorDatabase(service.channel).get_services()
    trace_id, _ = service.call("See")
    sink.request(trace_id)
    time.sleep(0.2)
    entries = {span.trace_id for span in sink.spans if span.kind == SERVER} - before
    assert entries == {trace_id}

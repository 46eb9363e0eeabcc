"""Real gRPC servers, one of threads and one of asyncio: stages, status and attributes of every kind of RPC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest

from instrumentation.grpc_client import Service, dump, load, new_trace, outcome, run_service
from instrumentation.grpc_traced import APPS, EARLY, MS, OF_THE_MACHINE, distinct, environment, traced
from trees import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

UNSET, ERROR = 0, 2
Services = dict[str, Service]


@pytest.fixture(scope="module")
def services(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with (
        run_service(folder, "grpc_threads", environment(sink)) as threads,
        run_service(folder, "grpc_aio", environment(sink)) as aio,
    ):
        yield {"grpc_threads": threads, "grpc_aio": aio}


@pytest.fixture(params=APPS)
def service(request: pytest.FixtureRequest, services: Services) -> Service:
    return services[request.param]


@pytest.fixture
def aio(services: Services) -> Service:
    return services["grpc_aio"]


WORK = {"load_s": 0.02, "preprocess_s": 0.03, "inference_s": 0.04, "dump_s": 0.02}


TESTED_ELSEWHERE = ("ml.", "sla.")
MIDDLE = ["network.receive", "preprocess", "inference", "postprocess"]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("app", "stages"), [("grpc_threads", ["queue", *MIDDLE]), ("grpc_aio", [*MIDDLE, "network.send"])]
)
def test_an_rpc_passes_through_all_stages_in_order(app: str, stages: list[str], services: Services, sink: Sink) -> None:
    """Deserialising is preprocess, serialising postprocess; a task has no queue, and sends."""
    request, got = traced(services[app], sink, "Predict", WORK)
    assert got.answers[0]["value"] == 0.04
    assert [stage.name for stage in request.stages] == stages
    for stage, least_ms in (("preprocess", 50), ("inference", 40), ("postprocess", 20)):
        assert request.total_ns(stage) >= least_ms * MS * EARLY


def test_each_stage_takes_as_long_as_what_happens_in_it(service: Service, sink: Sink) -> None:
    took = {"preprocess": 0.05, "inference": 0.04, "postprocess": 0.02}

    def ask() -> dict[str, tuple[float, float]]:
        request, _ = traced(service, sink, "Predict", WORK)
        return {name: (request.total_ns(name), seconds * 1e9) for name, seconds in took.items()}

    measure(ask)


def test_names_and_attributes_are_those_of_the_newest_conventions(service: Service, sink: Sink) -> None:
    request, _ = traced(service, sink, "Predict", {"inference_s": 0.02}, timeout=9)
    entry, attributes = request.entry, request.entry.attributes
    assert (entry.name, entry.kind, entry.status, entry.service) == ("ml.Scorer/Predict", 2, UNSET, "scorer")
    host, _, port = service.target.partition(":")
    assert {
        key: value for key, value in attributes.items() if not key.startswith(TESTED_ELSEWHERE + OF_THE_MACHINE)
    } == {
        "rpc.system.name": "grpc",
        "rpc.method": "ml.Scorer/Predict",
        "rpc.response.status_code": "OK",
        "stagetrace.network.received_bytes": len(dump({"inference_s": 0.02})),
        "stagetrace.network.sent_bytes": len(dump({"dump_s": 0, "dump_fails": 0, "value": 0.02})),
        "server.address": host,
        "server.port": int(port),
        "user_agent.original": attributes["user_agent.original"],
    }
    assert attributes["user_agent.original"].startswith("grpc-python/")
    assert 0 < attributes["sla.deadline.remaining_ms"] <= 9_100  # gRPC rounds up
    assert attributes["sla.objective"] == "ml.Scorer/Predict within 10ms"
    assert attributes["sla.breached"] is True
    assert attributes["sla.breach.stage"] == "inference"
    assert attributes["ml.model.name"] == "SleepyModel"


def test_a_stream_of_messages_is_a_few_spans(service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, "Count", {"to": 300, "step_s": 0.001}, kind="unary_stream")
    assert len(got.answers) == 300
    assert len(request.stages) <= 48


def test_without_a_deadline_none_is_recorded(service: Service, sink: Sink) -> None:
    trace_id, call = service.begin_traced("Sleep", kind="unary_unary", timeout=None)
    call.result()
    assert "sla.deadline.remaining_ms" not in sink.request(trace_id).entry.attributes


def test_context_comes_with_the_metadata_and_children_hang_under_their_stage(service: Service, sink: Sink) -> None:
    metadata = (("baggage", "tenant=acme"),)
    for method in ("See", "PooledSee") if service.log_file.name.startswith("grpc_aio") else ("See",):
        request, got = traced(service, sink, method, metadata=metadata)
        assert got.answers[0] == {"trace_id": request.entry.trace_id, "tenant": "acme"}
        assert request.entry.attributes["set.by.handler"] == "yes"
        (child,) = request.others
        stage = next(stage for stage in request.stages if stage.span_id == child.parent_id)
        assert stage.name == "handler"
        assert stage.start <= child.start <= child.end <= stage.end


# Of the codes of an abort, those that the conventions call an error, and the others.
ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
NO_ERRORS = (
    *("CANCELLED", "INVALID_ARGUMENT", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNAUTHENTICATED", "NOT_FOUND"),
)


@pytest.mark.parametrize(
    ("method", "code", "status"),
    [
        ("Raise", "UNKNOWN", ERROR),
        ("SetCode", "RESOURCE_EXHAUSTED", UNSET),
        ("CodeAndRaise", "INVALID_ARGUMENT", UNSET),
        *(("Abort", code, ERROR) for code in ERRORS),
        *(("Abort", code, UNSET) for code in NO_ERRORS),
    ],
)
def test_status_is_what_the_caller_gets(method: str, code: str, status: int, service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, method, *[{"code": code}] * (method == "Abort"))
    assert got.code == request.entry.attributes["rpc.response.status_code"] == code
    assert request.entry.status == status
    assert request.entry.attributes.get("error.type") == (code if status == ERROR else None)


@pytest.mark.parametrize("fails", ["load_fails", "dump_fails"])
def test_a_message_that_cannot_be_read_or_written(fails: str, service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, "Predict", {fails: True})
    assert got.code in ("INTERNAL", "UNKNOWN")  # of threads, of asyncio
    assert request.entry.status == ERROR


def test_a_method_that_is_not_there(service: Service, sink: Sink) -> None:
    """Its name is the caller's invention: kept, but not as a name of which there may be any number."""
    request, got = traced(service, sink, "Nope")
    assert got.code == "UNIMPLEMENTED"
    assert request.entry.name == request.entry.attributes["rpc.method"] == "_OTHER"
    assert request.entry.attributes["rpc.method_original"] == "ml.Scorer/Nope"
    assert request.entry.status == ERROR


def test_what_other_interceptors_do_is_recorded(service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, "Predict", metadata=(("refuse", "1"),))
    assert (got.code, got.details) == ("UNAUTHENTICATED", "who are you")
    request, got = traced(service, sink, "Predict", metadata=(("trip", "1"),))
    assert got.code == "UNKNOWN"
    assert request.entry.status == ERROR


def test_a_stream_of_answers(service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, "Count", {"to": 3, "step_s": 0.02}, kind="unary_stream")
    assert [answer["number"] for answer in got.answers] == [0, 1, 2]
    first = "queue" if service.log_file.name.startswith("grpc_threads") else "network.receive"
    assert request.stages[0].name == first
    assert set(distinct(request)) == {first, "network.receive", "handler", "network.send"}
    assert request.total_ns("handler") >= 60 * MS * EARLY


@pytest.mark.parametrize(("method", "code"), [("CountAndRaise", "UNKNOWN"), ("CountAndAbort", "DATA_LOSS")])
def test_a_stream_that_breaks_off(method: str, code: str, service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, method, kind="unary_stream")
    assert [answer["number"] for answer in got.answers] == [0]
    assert got.code == code
    assert request.entry.status == ERROR


def test_a_stream_of_requests_waits_in_network_receive(service: Service, sink: Sink) -> None:
    """The client takes its time between two messages; so does a handler, which that is told apart from."""
    trace_id, parent = new_trace()

    def slowly() -> Iterator[dict[str, float]]:
        for value in (1, 2):
            time.sleep(0.05)
            yield {"value": value}

    multi = service.channel.stream_unary("/ml.Scorer/Sum", dump, load)
    assert multi(slowly(), metadata=parent, timeout=30)["value"] == 3
    request = sink.tiled(trace_id)
    assert request.total_ns("network.receive") >= 80 * MS
    attributes = request.entry.attributes
    assert attributes["stagetrace.network.messages.received"] == 2
    assert attributes["stagetrace.network.received_bytes"] == 2 * len(dump({"value": 1}))


def test_the_wait_for_a_slow_caller_is_network_receive(service: Service, sink: Sink) -> None:
    """As long as the handler says that it waited; what it does itself in between is its own."""

    def slowly() -> Iterator[dict[str, float]]:
        for value in range(4):
            time.sleep(0.1)
            yield {"value": value}

    def ask() -> dict[str, tuple[float, float]]:
        trace_id, parent = new_trace()
        upload = service.channel.stream_unary("/ml.Scorer/Upload", dump, load)
        answer = upload(slowly(), metadata=parent, timeout=30)
        request = sink.tiled(trace_id)
        assert (answer["count"], answer["waited_s"] > 0.3) == (4, True)
        # In a server of threads the wait begins as the handler asks, in a thread that is there by then.
        waited = sum(one.end - one.start for one in request.stages if one.name == "network.receive")
        return {"network.receive": (waited, answer["waited_s"] * 1e9)}

    measure(ask, tries=5)


def test_a_slow_reader_is_network_send(service: Service, sink: Sink) -> None:
    """A server of gRPC takes no more than fits its windows: as long as it kept the handler waiting, that is sending."""

    def ask() -> dict[str, tuple[float, float]]:
        trace_id, answers = service.begin_traced("Large", {"megabytes": 30}, kind="unary_stream", timeout=60)
        time.sleep(0.8)
        took_s = list(answers)[-1]["took_s"]
        request = sink.tiled(trace_id)
        assert took_s > 0.4
        assert request.entry.attributes["stagetrace.network.chunks"] == 31
        assert request.entry.attributes["stagetrace.network.sent_bytes"] > 30_000_000
        return {"network.send": (request.total_ns("network.send"), took_s * 1e9)}

    measure(ask, tries=5)


def test_a_stream_is_judged_by_its_messages(service: Service, sink: Sink) -> None:
    """0.3 s to each, where 0.25 s were promised."""

    def ask() -> dict[str, tuple[float, float]]:
        request, got = traced(service, sink, "Count", {"to": 3, "step_s": 0.3}, kind="unary_stream")
        said = request.entry.attributes
        assert len(got.answers) == said["stagetrace.network.chunks"] == 3
        assert said["stagetrace.network.chunk_gap.max_ms"] <= said["stagetrace.network.chunk_gap.p99_ms"] * 1.0000001
        assert (said["sla.verdict"], said["sla.breach.promise"]) == ("breach", "per_chunk")
        assert said["sla.breach.stage"] == "handler"
        return {
            "first": (said["stagetrace.network.first_byte_ms"] * MS, 300 * MS),
            "gap": (said["stagetrace.network.chunk_gap.max_ms"] * MS, 300 * MS),
        }

    measure(ask, tries=5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_streams_both_ways(values: list[float], service: Service, sink: Sink) -> None:
    request, got = traced(service, sink, "Double", *({"value": value} for value in values), kind="stream_stream")
    assert [answer["value"] for answer in got.answers] == [2 * value for value in values]
    assert got.code == "OK"
    assert request.entry.attributes["rpc.method"] == "ml.Scorer/Double"


def test_many_messages_make_a_bounded_number_of_spans(service: Service, sink: Sink) -> None:
    values = [{"value": value} for value in range(1_500)]
    request, got = traced(service, sink, "Double", *values, kind="stream_stream")
    assert len(got.answers) == 1_500
    assert len(request.stages) < 200


def test_handlers_that_write_themselves_are_left_as_they_are(aio: Service, sink: Sink) -> None:
    """Coroutines without a `yield`: opentelemetry-instrumentation-grpc breaks them (contrib#3066)."""
    request, got = traced(aio, sink, "Write", {"to": 3}, kind="unary_stream")
    assert [answer["number"] for answer in got.answers] == [0, 1, 2]
    assert request.entry.attributes["stagetrace.network.chunks"] == 3
    request, got = traced(aio, sink, "WriteDouble", {"value": 1}, {"value": 2}, kind="stream_stream")
    assert [answer["value"] for answer in got.answers] == [2, 4]
    assert request.entry.attributes["rpc.response.status_code"] == "OK"


def test_plain_functions_of_an_asyncio_server_wait_for_its_pool(aio: Service, sink: Sink) -> None:
    request, got = traced(aio, sink, "Pooled", {"inference_s": 0.02})
    assert got.answers[0]["value"] == 0.02
    names = [stage.name for stage in request.stages]
    assert names == ["network.receive", "preprocess", "queue", "preprocess", "inference", "postprocess", "network.send"]
    queue = next(stage for stage in request.stages if stage.name == "queue")
    assert queue.attributes["queue.reason"] == "grpc_pool"
    request, got = traced(aio, sink, "PooledCount", {"to": 2, "step_s": 0.02}, kind="unary_stream")
    assert len(got.answers) == request.entry.attributes["stagetrace.network.chunks"] == 2
    assert request.entry.attributes["stagetrace.network.first_byte_ms"] >= 20 * EARLY
    request, got = traced(aio, sink, "PooledSum", {"value": 1}, {"value": 2}, kind="stream_unary")
    assert got.answers[0]["value"] == 3


@pytest.mark.parametrize(
    ("method", "code"),
    [("PooledAbort", "FAILED_PRECONDITION"), ("PooledSetCode", "OUT_OF_RANGE"), ("PooledRaise", "UNKNOWN")],
)
def test_status_of_plain_functions(method: str, code: str, aio: Service, sink: Sink) -> None:
    _, got = traced(aio, sink, method)
    assert got.code == code


@pytest.mark.parametrize("method", ["Sleep", "Block"])
def test_a_deadline_that_passes(method: str, services: Services, sink: Sink) -> None:
    """Whether the handler is cancelled or blocks on: its caller got DEADLINE_EXCEEDED."""
    for name, service in services.items():
        if method == "Block" and name == "grpc_threads":
            continue
        request, got = traced(service, sink, method, {"seconds": 0.5}, timeout=0.2)
        assert got.code == "DEADLINE_EXCEEDED"
        assert request.entry.status == ERROR
        assert request.entry.attributes["error.type"] == "DEADLINE_EXCEEDED"
        assert request.entry.attributes["stagetrace.network.disconnect"] == "cancelled"
        assert request.entry.attributes["sla.verdict"] == "excluded"  # the objective allows 20 s


def test_a_caller_that_cancels(service: Service, sink: Sink) -> None:
    trace_id, call = service.begin_sleep(1)
    call.cancel()
    entry = sink.request(trace_id).entry
    assert entry.attributes["rpc.response.status_code"] == "CANCELLED"
    assert entry.status == UNSET
    assert entry.attributes["stagetrace.network.disconnect"] == "cancelled"
    assert entry.attributes["sla.verdict"] == "excluded"


def test_a_caller_that_cancels_a_stream_closes_the_generator(service: Service, sink: Sink) -> None:
    before = service.log.count("count is closed")
    endless = {"to": 1_000_000, "step_s": 0.01}
    trace_id, call = service.begin_traced("Count", endless, kind="unary_stream", timeout=60)
    next(call)
    call.cancel()
    request = sink.tiled(trace_id)
    assert request.entry.attributes["rpc.response.status_code"] == "CANCELLED"
    service.wait_for_log("count is closed", before + 1)


def test_health_checks_reflection_and_excluded_services_are_not_recorded(service: Service, sink: Sink) -> None:
    names = ("grpc.health.v1.Health", "ray.serve.RayServeAPIService", "left.Out")
    left_out = [service.call("Check", b"abc", service=name)[0] for name in names]  # it answers the bytes in reverse
    traced(service, sink, "Predict")
    assert not sink.traces() & set(left_out)


def test_bytes_without_serialisers_pass_as_they_are(service: Service, sink: Sink) -> None:
    for data in (b"\xff\x00abc", b""):
        trace_id, parent = new_trace()
        call = service.channel.unary_unary("/ml.Scorer/Bytes", None, None)
        assert call(data, metadata=parent, timeout=30) == data[::-1]
        sink.tiled(trace_id)


def test_a_blocked_loop_is_time_of_whom_it_blocks(aio: Service, sink: Sink) -> None:
    def ask() -> dict[str, tuple[float, float]]:
        waiting, call = aio.begin_sleep(0.1)
        request, _ = traced(aio, sink, "Block", {"seconds": 0.5})
        call.result()
        waited = sink.request(waiting).total_ns("handler")
        return {
            "handler": (request.total_ns("handler"), 500 * MS),
            "another's handler": (min(waited, 400 * MS), 400 * MS),
        }

    measure(ask)


def test_outcome_of_a_call_tells_a_failure(aio: Service) -> None:
    """Else the tests above would show nothing."""
    call = aio.begin("Raise", kind="unary_unary", metadata=(), timeout=30)
    assert outcome(call, is_stream=False).code == "UNKNOWN"
    assert isinstance(call.exception(), grpc.RpcError)

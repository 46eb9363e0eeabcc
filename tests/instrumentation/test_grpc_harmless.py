"""Whatever breaks in stagetrace, a gRPC service answers as it does untraced: messages, code, details and metadata."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.grpc_client import Outcome, Service, run_service
from parts import parts
from sink import Sink, run_sink

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

VALUES = [{"value": value} for value in (1, 2, 3)]
BOTH: list[tuple[str, str, list[Any], dict[str, Any]]] = [
    ("Predict", "unary_unary", [{"inference_s": 0.01}], {}),
    ("Predict", "unary_unary", [{"load_fails": True}], {}),
    ("Predict", "unary_unary", [{"dump_fails": True}], {}),
    ("Predict", "unary_unary", [{}], {"metadata": (("refuse", "1"),)}),
    ("Predict", "unary_unary", [{}], {"metadata": (("trip", "1"),)}),
    ("Predict", "unary_unary", [{}], {"metadata": (("baggage", "tenant=acme"), ("some-bin", b"\xff"))}),
    ("Raise", "unary_unary", [{}], {}),
    ("Abort", "unary_unary", [{}], {}),
    ("SetCode", "unary_unary", [{}], {}),
    ("CodeAndRaise", "unary_unary", [{}], {}),
    ("Sleep", "unary_unary", [{"seconds": 0.3}], {"timeout": 0.05}),
    ("Nope", "unary_unary", [{}], {}),
    ("Bytes", "unary_unary", [b"abc"], {}),
    ("Count", "unary_stream", [{"to": 3}], {}),
    ("Count", "unary_stream", [{"to": 0}], {}),
    ("CountAndRaise", "unary_stream", [{}], {}),
    ("CountAndAbort", "unary_stream", [{}], {}),
    ("Sum", "stream_unary", VALUES, {}),
    ("Sum", "stream_unary", [{"load_fails": True}], {}),
    ("Double", "stream_stream", VALUES, {}),
    ("Double", "stream_stream", [*VALUES, {"load_fails": True}], {}),
]
THREADS = [
    *BOTH,
    ("Abort", "unary_unary", [{"code": "OK"}], {}),  # an asyncio server hangs then
    ("NoIterator", "unary_stream", [{}], {}),
    ("ReadAfterEnd", "stream_stream", VALUES[:2], {}),
]
AIO = [
    *BOTH,
    ("Write", "unary_stream", [{"to": 3}], {}),
    ("WriteDouble", "stream_stream", VALUES, {}),
    ("Pooled", "unary_unary", [{"inference_s": 0.01}], {}),
    ("PooledAbort", "unary_unary", [{}], {}),
    ("PooledSetCode", "unary_unary", [{}], {}),
    ("PooledRaise", "unary_unary", [{}], {}),
    ("PooledCount", "unary_stream", [{"to": 3}], {}),
    ("PooledSum", "stream_unary", VALUES, {}),
]
CALLS = {"grpc_threads": THREADS, "grpc_aio": AIO}

# Where a server is made, started and stopped. What both kinds call in the same way fails in one of them.
START = [
    pytest.param("grpc_threads", "stagetrace.patches.grpc.server:_adopts", marks=pytest.mark.smoke),
    ("grpc_aio", "stagetrace.patches.grpc.server:_adopts"),
    ("grpc_threads", "stagetrace.system.sigterm:start"),
    ("grpc_threads", "stagetrace.protocols.grpc_request:Server.__init__"),
    ("grpc_aio", "stagetrace.protocols.grpc_request:Server.__init__"),
    ("grpc_aio", "stagetrace.protocols.grpc_request:Server.listen"),
    ("grpc_threads", "stagetrace.runtime.provider:set_up"),
    ("grpc_threads", "stagetrace.runtime.runtime:Runtime.flush_now"),
    ("grpc_aio", "stagetrace.runtime.runtime:Runtime.flush_now"),
]
ANYWHERE = """
    protocols.grpc_request: Server.block Server._make Server.wait read_metadata status_block peer_block
    protocols.grpc_request: _is_excluded Rpc._raised Rpc._aborted Rpc._expires_in Rpc.conclude
    protocols.grpc_request: Rpc.has_no_method Rpc.__init__ open_entry
    protocols.grpc_request: Rpc.describe Stream Rpc.end_chunk
    request.request: OwnSpan
    request.context: here.attach here.get_current here.extract
    request.request: Request.enter Request.leave Request.close Request.abandon
    request.request: Request.end_entry
    sla.entry_recorder: EntryRecorder.end EntryRecorder.identify EntryRecorder._send EntryRecorder._rest
    sla.entry_recorder: encode_request finish entry_rest
    policy.policy: Policy.candidates Policy.applying
    otlp.export.batch_processor: EncodingSpanProcessor.put
"""
FAULTS = {
    "grpc_threads": parts(
        ANYWHERE
        + """
    protocols.grpc_threads: arrive ThreadRpc.wrap ThreadRpc._look_at Requests Answers ThreadRpc.take_up
    protocols.grpc_threads: ThreadRpc.finish
    """
    ),
    "grpc_aio": parts(
        ANYWHERE
        + """
    protocols.grpc_aio: arrive _flags AioRpc.wrap AioRpc._look_at AioRpc._outcome AioRequests
    protocols.grpc_aio: Requests PooledAnswers PooledContext
    """
    ),
}


def outcomes(service: Service, app: str) -> list[tuple[str, Outcome]]:
    return [(method, service.call(method, *sent, kind=kind, **more)[1]) for method, kind, sent, more in CALLS[app]]


@pytest.fixture(scope="module")
def untraced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, Outcome]]]:
    found = {}
    for app in CALLS:
        with run_service(tmp_path_factory.mktemp("untraced"), app) as service:
            found[app] = outcomes(service, app)
    return found


def environment(sink: Sink, **more: str) -> dict[str, str]:
    return sink.environment(STAGETRACE_SLA="* within 5ms", ON_SIGTERM="1", **more)


@pytest.mark.parametrize("app", CALLS)
def test_the_untraced_service_does_all_that_is_asked_of_it(app: str, untraced: dict[str, Any]) -> None:
    """Else the tests below would compare nothing."""
    codes = {outcome.code for _, outcome in untraced[app]}
    assert codes >= {"OK", "UNKNOWN", "NOT_FOUND", "UNAUTHENTICATED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "DATA_LOSS"}
    assert ("kept", "yes") in untraced[app][0][1].trailing


# gRPC's asyncio server keeps these in cycles of its own: an abort's exception, whose frames hold its context, and
# the generator of a plain function.
# PooledSum is ours to mend: since work given to a pool stays its request's, the messages of one are in a cycle, too.
KEPT_BY_GRPC = {"CountAndAbort", "PooledAbort", "PooledCount", "PooledSum"}
OWN = [(app, own) for app in CALLS for own in ("", "provider")]


@pytest.mark.parametrize(("app", "own"), OWN)
def test_traced_answers_are_the_untraced_ones_and_nothing_holds_an_rpc_that_has_ended(
    app: str, own: str, untraced: dict[str, Any], tmp_path: Path
) -> None:
    """The exception of a handler keeps type, message and traceback, as gRPC logs it: its frames are there, in order.

    Each RPC goes by reference count: no work for the collector, whose full runs are what shows in a p99.
    """
    with run_sink() as sink:
        env = environment(sink, OTEL_PYTHON_GRPC_EXCLUDED_SERVICES="left.Out", OWN=own, SINK=sink.endpoint)
        with run_service(tmp_path, app, env) as service:
            assert outcomes(service, app) == untraced[app]
            service.wait_for_log("grpc_parts.OddError: the handler's own error")
            logged = service.log
            time.sleep(0.5)  # handlers whose caller did not wait for them
            before = _left(service)
            for method, kind, sent, more in CALLS[app]:
                if method not in KEPT_BY_GRPC:
                    service.call(method, *sent, kind=kind, **more)
            wait_for_no_more_than(before, service)
    assert "This is a fault of stagetrace" not in logged
    assert 'raise parts.OddError("the handler\'s own error")' in logged
    assert logged.count("grpc_parts.OddError: the handler's own error") == 1


def wait_for_no_more_than(before: dict[str, list[str]], service: Service) -> None:
    """Wait until no more objects are alive than before, with nothing left to the collector meanwhile."""
    deadline = time.monotonic() + 60
    while True:
        left = _left(service)
        # A cycle once kept to be looked at stays.
        assert sorted(left["garbage"]) == sorted(before["garbage"])
        more = Counter(left["alive"]) - Counter(before["alive"])
        if not more:
            return
        assert time.monotonic() < deadline, more
        time.sleep(0.1)


def _left(service: Service) -> dict[str, list[str]]:
    left: dict[str, list[str]] = json.loads(service.call("Count_left", b"", service="left.Out")[1].answers[0])
    return left


@pytest.mark.parametrize("app", CALLS)
def test_a_failing_part_changes_no_answer_and_is_said_once(app: str, untraced: dict[str, Any], tmp_path: Path) -> None:
    with run_sink() as sink:
        env = environment(sink, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
        env["OTEL_PYTHON_GRPC_EXCLUDED_SERVICES"] = "left.Out"
        with run_service(tmp_path, app, env) as service:
            for fault in FAULTS[app]:
                assert _break(service, fault) == {}, fault
                assert outcomes(service, app) == untraced[app], fault
                assert _break(service, ""), f"{fault} was never used"
            trace_id, _ = service.call("Predict", {"inference_s": 0.02})  # a breach, sampled or not
            assert sink.request(trace_id).entry.attributes["rpc.response.status_code"] == "OK"
            log = service.log
    said = Counter(line for line in log.splitlines() if line.startswith("stagetrace:") and "injected fault" in line)
    assert said, log
    assert set(said.values()) == {1}


def _break(service: Service, fault: str) -> dict[str, int]:
    failed: dict[str, int] = json.loads(service.call("Break", fault.encode(), service="left.Out")[1].answers[0])
    return failed


@pytest.mark.parametrize(("app", "fault"), START)
def test_a_part_that_fails_at_start_or_end_changes_no_answer(
    app: str, fault: str, untraced: dict[str, Any], tmp_path: Path
) -> None:
    with run_sink() as sink, run_service(tmp_path, app, environment(sink, BREAK=fault)) as service:
        for (method, kind, sent, more), (_, expected) in zip(CALLS[app], untraced[app], strict=True):
            # A server of threads may never stop, untraced too, once a message of a stream could not be deserialised.
            if not any("load_fails" in one for one in sent if isinstance(one, dict)):
                assert service.call(method, *sent, kind=kind, **more)[1] == expected
        assert service.stop(15) == 0
        said = [line for line in service.log.splitlines() if "injected fault" in line]
    assert len(said) == 1, service.log


HANGING = (
    "stagetrace.otlp.export.client:ExportClient.send",
    "stagetrace.otlp.export.spool:Spool.write",
    "stagetrace.process_status.publish:Publisher.publish",
)


@pytest.mark.parametrize("app", CALLS)
def test_what_hangs_off_the_rpcs_threads_holds_up_nothing(app: str, untraced: dict[str, Any], tmp_path: Path) -> None:
    """RPCs are answered, and the service ends, though neither the export nor the disk ever comes back."""
    folders = {"STAGETRACE_SPOOL": str(tmp_path / "spool"), "STAGETRACE_STATUS": str(tmp_path / "status")}
    with run_sink() as sink:
        env = environment(sink, HANG=",".join(HANGING), **folders)
        with run_service(tmp_path, app, env) as service:
            for (method, kind, sent, more), (_, expected) in list(zip(CALLS[app], untraced[app], strict=True)):
                if not any("load_fails" in one for one in sent if isinstance(one, dict)):  # as above
                    assert service.call(method, *sent, kind=kind, **more)[1] == expected
            assert service.stop(signal.SIGTERM) == 0  # within twenty seconds

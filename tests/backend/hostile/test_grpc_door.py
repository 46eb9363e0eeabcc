"""Hostile clients of the gRPC ports: others are served meanwhile, and nobody's request stays for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from backend.hostile import probes_grpc
from backend.hostile.probes_http import silent
from backend.processes import until
from backend.running import Up, export, names_of, raw_call, request, run_up
from stagetrace.backend.counters import Counters
from stagetrace.backend.grpc_port import HEALTH, Slots
from stagetrace.backend.intake import Intake
from stagetrace.backend.jaeger_query import Query, QueryError
from stagetrace.backend.options import Limits
from stagetrace.backend.receivers import METHOD, METRICS_METHOD, receiver_handlers
from stagetrace.backend.refusal import BUSY, SLOW, Refused
from stagetrace.store.jaeger import api_v3
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("services")

TOKEN = "s3cret"  # noqa: S105 -- made for these tests
SERVING = b"\x08\x01"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with run_up(tmp_path_factory.mktemp("attacked")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with run_up(tmp_path_factory.mktemp("guarded"), f"--token={TOKEN}") as running:
        yield running


def address(up: Up, port: str = "grpc_port") -> probes_grpc.Address:
    return "127.0.0.1", up.ready[port]


def folder_of(up: Up) -> Path:
    return Path(up.ready["data"]).parent


def check_health(up: Up, port: str, service: str = "") -> bytes:
    return raw_call(up.target(port), HEALTH, StringValue(value=service).SerializeToString())


def assert_serves(up: Up) -> None:
    """Both ports, on connections of their own."""
    sent = request("beside hostile ones")
    with grpc.insecure_channel(up.target()) as channel:
        export(channel, sent.SerializeToString())
    found: Any = api_v3.GetServicesResponse.FromString(
        raw_call(up.target("query_grpc_port"), api_v3.path("GetServices"))
    )
    assert "svc" in found.services
    for port in ("grpc_port", "query_grpc_port"):
        assert check_health(up, port) == SERVING


def test_calls_whose_message_never_comes_delay_nobody(attacked: Up) -> None:
    before = attacked.metric('stagetrace_refused_requests_total{reason="busy"}')
    with ExitStack() as stack:
        for port, path in (("grpc_port", METHOD), ("query_grpc_port", api_v3.path("GetServices"))):
            stack.enter_context(probes_grpc.begun_calls(address(attacked, port), path, 4))
            stack.enter_context(probes_grpc.begun_calls(address(attacked, port), HEALTH, 2))
        for _ in range(3):
            assert_serves(attacked)
    assert attacked.metric('stagetrace_refused_requests_total{reason="busy"}') > before
    log = (folder_of(attacked) / "up.log").read_text()
    assert "a request over grpc was refused: " in log
    assert "a query over gRPC was refused: " in log


def test_half_messages_delay_nobody(attacked: Up) -> None:
    part = b"\n" * 1000
    with (
        probes_grpc.begun_calls(address(attacked), METHOD, 2, part, length=60 << 20),
        probes_grpc.begun_calls(address(attacked), METRICS_METHOD, 2, part),
        probes_grpc.begun_calls(address(attacked, "query_grpc_port"), api_v3.path("GetServices"), 2, b"x"),
    ):
        for _ in range(3):
            assert_serves(attacked)


def test_responses_that_nobody_reads_hold_no_query_up(attacked: Up) -> None:
    names = [f"{'long' * 1000} {number}" for number in range(50)]  # more than a transport buffers
    sent = request(*names, service="unread", trace=b"unread" + b"\1" * 10)
    with grpc.insecure_channel(attacked.target()) as channel:
        export(channel, sent.SerializeToString())
    wanted: Any = api_v3.GetTraceRequest(trace_id=(b"unread" + b"\1" * 10).hex())
    method = api_v3.path("GetTrace")
    with probes_grpc.unread_responses(address(attacked, "query_grpc_port"), method, wanted.SerializeToString(), 2):
        for _ in range(3):
            assert_serves(attacked)
    assert names_of(attacked, wanted.trace_id) == sorted(names)


def test_cancelled_calls_silence_and_garbage_delay_nobody(attacked: Up) -> None:
    for port, path in (("grpc_port", METHOD), ("query_grpc_port", api_v3.path("GetServices"))):
        with silent(address(attacked, port), 300):
            probes_grpc.reset_calls(address(attacked, port), path, 2000)
            probes_grpc.send_garbage(address(attacked, port))
            assert_serves(attacked)
    log = (folder_of(attacked) / "up.log").read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) < 20


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("port", ["grpc_port", "query_grpc_port"])
def test_a_call_has_exactly_one_message(attacked: Up, port: str, count: int) -> None:
    path = METHOD if port == "grpc_port" else api_v3.path("GetServices")
    with grpc.insecure_channel(attacked.target(port)) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(path, None, None)(iter([b""] * count), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "exactly one message" in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("port", "service"),
    [
        ("grpc_port", "opentelemetry.proto.collector.trace.v1.TraceService"),
        ("grpc_port", "opentelemetry.proto.collector.metrics.v1.MetricsService"),
        ("query_grpc_port", "jaeger.api_v3.QueryService"),
    ],
)
def test_health_is_for_everyone_and_names_services(guarded: Up, port: str, service: str) -> None:
    assert check_health(guarded, port) == SERVING
    assert check_health(guarded, port, service) == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        check_health(guarded, port, "another.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_query_has_a_small_request(attacked: Up) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(attacked.target("query_grpc_port"), api_v3.path("GetServices"), b"\n" * (1 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_query_ends_when_its_client_has_disconnected(tmp_path: Path) -> None:
    """The thread is free long before such a query would end by itself."""
    query = Query()
    with LocalStore.open(tmp_path / "data") as store, store.reader() as reader, ThreadPoolExecutor(1) as pool:

        def work() -> None:
            with query.running(reader):
                reader._all("SELECT count(*) FROM range(1000000000000)")

        running = pool.submit(work)
        while not running.done():
            query.abandon()
            time.sleep(0.01)
        with pytest.raises(QueryError, match="disconnected"):
            running.result()
        with pytest.raises(QueryError, match="disconnected"), query.running(reader):
            pass


class Caller:
    """A call, as far as slots know one."""

    def __init__(self, peer: str = "ipv4:127.0.0.1:1") -> None:
        self.cancelled = threading.Event()
        self._peer = peer
        self.callbacks: list[Callable[[], None]] = []

    def peer(self) -> str:
        return self._peer

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True

    def cancel(self) -> None:
        self.cancelled.set()
        for callback in self.callbacks:
            callback()


def stall(slots: Slots, caller: Any, within_s: float = 60) -> None:
    """Hold a slot until it is lost."""
    with slots.hold(caller) as slot, slot.client(within_s):
        assert caller.cancelled.wait(60)


def test_a_slot_is_lost_in_the_end_and_sooner_where_others_wait() -> None:
    slots = Slots(1, 1, patience_s=0.01)
    with pytest.raises(Refused) as late:
        stall(slots, Caller(), within_s=0.01)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(stall, slots, Caller("slow"))
        until(lambda: slots._granted == 1)
        with slots.hold(Caller()), pytest.raises(Refused) as taken:  # type: ignore[arg-type]
            slow.result(60)
    assert (late.value.kind, taken.value.kind) == (SLOW, BUSY)


def test_a_call_at_work_keeps_its_slot() -> None:
    slots = Slots(1, 1, patience_s=0.001)
    caller: Any = Caller()
    with ThreadPoolExecutor(1) as pool:
        with slots.hold(caller) as slot:
            waiting = pool.submit(stall, slots, Caller("waits"), 0.01)
            until(lambda: len(slots._waiting) == 1)
            time.sleep(0.2)
            assert slot.lost is None
            assert not caller.cancelled.is_set()
        with pytest.raises(Refused):
            waiting.result(60)


def test_the_connection_with_most_calls_waits_longest_and_is_refused_first() -> None:
    slots = Slots(1, 3)
    order: list[str] = []

    def take(peer: str) -> None:
        with slots.hold(Caller(peer)):  # type: ignore[arg-type]
            order.append(peer)

    with ThreadPoolExecutor(4) as pool, slots.hold(Caller()):  # type: ignore[arg-type]
        hostile = [pool.submit(take, "hostile") for _ in range(3)]
        until(lambda: len(slots._waiting) == 3)
        good = pool.submit(take, "good")
        until(lambda: any(one.done() for one in hostile))
    good.result(60)
    assert [type(one.exception(60)) for one in hostile].count(Refused) == 1
    assert order == ["good", "hostile", "hostile"]


def test_large_requests_delay_no_small_ones(tmp_path: Path) -> None:
    """While one of the largest is being decoded, others of them wait apart."""
    small = request("small").SerializeToString()
    large = small * ((17 << 20) // len(small))
    with LocalStore.open(tmp_path / "data") as store, ThreadPoolExecutor(20) as pool:
        intake = Intake(store, Counters(), Limits(in_flight=1 << 30))
        export_to = receiver_handlers(intake)[METHOD].stream_unary
        assert export_to is not None
        callers: list[Any] = [Caller(f"peer {number}") for number in range(17)]
        with intake._decoding_alone:
            waiting = [pool.submit(export_to, iter([large]), caller) for caller in callers]
            until(lambda: intake.counters.value("received_bytes", "grpc") == 17 * len(large))
            assert export_to(iter([small]), Caller()) == b""  # type: ignore[arg-type]
            for caller in callers:
                caller.cancel()
        for one in waiting:
            with pytest.raises(AttributeError, match="set_trailing_metadata"):  # of their refusal
                one.result(60)


def test_a_call_that_was_cancelled_waits_no_longer() -> None:
    slots = Slots(1, 1)
    caller: Any = Caller()
    with slots.hold(Caller()), ThreadPoolExecutor(1) as pool:  # type: ignore[arg-type]
        waiting = pool.submit(stall, slots, caller)
        until(lambda: caller.callbacks)
        caller.cancel()
        with pytest.raises(Refused, match="disconnected"):
            waiting.result(5)

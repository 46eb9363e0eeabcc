"""The Collector stops under a running service: with a spool nothing is lost, and breaches are delivered first."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import backends
from backend.processes import until
from cli.running import cli
from heavy import scaled
from messages import attribute, leaves
from otlp.receiver import Receiver, run_receiver
from services import PYTHON, Service, recorded, run_service
from sink import SERVER
from stagetrace.otlp.export.spool import Spool, state

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backends import Jaeger

pytestmark = pytest.mark.usefixtures("services")

SLOW_S = 0.6
TWO_WORKERS = "uvicorn --workers 2"


def environment(endpoint: str, spool: Path | None, **more: str) -> dict[str, str]:
    more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2", "OTEL_BSP_SCHEDULE_DELAY": "200", **more}
    return recorded(endpoint, "* within 500ms", **({"STAGETRACE_SPOOL": str(spool)} if spool else {}), **more)


def ask(service: Service, count: int, slow_every: int = 10) -> dict[str, bool]:
    """Make requests, eight at a time; return by trace whether it was made to be slow."""

    def one(number: int) -> tuple[str, bool]:
        is_slow = number % slow_every == 0
        body = {"preprocess_s": SLOW_S if is_slow else 0.0}
        trace_id, response = service.call("POST", "/async-predict", json=body)
        assert response.status_code == 200
        return trace_id, is_slow

    with ThreadPoolExecutor(8) as pool:
        slow = dict(pool.map(one, reversed(range(count))))
    assert len(slow) == count
    return slow


def entries_of(request: bytes) -> dict[str, bool]:
    """Return the traces whose entry span is in a request, and whether it is a breach."""
    breach = attribute("sla.verdict", "breach")
    spans = (span for _, _, span in leaves(ExportTraceServiceRequest.FromString(request)))
    return {span.trace_id.hex(): breach in span.attributes for span in spans if span.kind == SERVER}


def wait_for_entries(receiver: Receiver, traces: Iterable[str]) -> None:
    """Wait until the entry spans of these traces have arrived."""
    receiver.wait_for(lambda one: set(traces) <= {trace for request in one.requests for trace in entries_of(request)})


def spooled(folder: Path) -> set[str]:
    traces: set[str] = set()
    for file in folder.glob("*.otlp"):
        traces |= set(entries_of(file.read_bytes()))
    return traces


def check_whole(receiver: Receiver, traces: set[str]) -> None:
    """Each trace is there once, with stages that tile its entry span."""
    spans: dict[str, list[tuple[int, int, int]]] = {}
    for span in receiver.spans():
        spans.setdefault(span.trace_id.hex(), []).append(
            (span.kind, span.start_time_unix_nano, span.end_time_unix_nano)
        )
    for trace in traces:
        entry = [span for span in spans[trace] if span[0] == SERVER]
        stages = [span for span in spans[trace] if span[0] != SERVER]
        assert len(entry) == 1
        assert sum(end - start for _, start, end in stages) == entry[0][2] - entry[0][1]


def check_breaches_first(requests: list[bytes], slow: dict[str, bool]) -> None:
    """No breach that was spooled arrived after a good request that was spooled."""
    arrived = [pair for request in requests for pair in entries_of(request).items() if pair[0] in slow]
    breaches = [is_breach for _, is_breach in arrived]
    assert breaches == sorted(breaches, reverse=True)
    assert {trace for trace, is_slow in slow.items() if is_slow} <= {trace for trace, breach in arrived if breach}


def test_two_workers_through_an_outage(receiver: Receiver, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    env = environment(receiver.grpc, spool)
    with run_service(tmp_path, launcher=TWO_WORKERS, env=env) as service:
        before = ask(service, 20)
        wait_for_entries(receiver, before)
        receiver.stop()
        during = ask(service, 80)
        until(lambda: spooled(spool) == set(during))
        count = len(receiver.requests)
        receiver.start()
        wait_for_entries(receiver, during)
        check_breaches_first(receiver.requests[count:], during)
        after = ask(service, 20)
        # A worker that does not know yet that the receiver is back would leave these in the spool at its end.
        wait_for_entries(receiver, after)
        service.stop()
        log = service.log
    everything = set(before) | set(during) | set(after)
    check_whole(receiver, everything)
    assert spooled(spool) == set()
    assert {count for name, count in state(spool).items() if name not in ("bytes", "files")} == {0}
    assert "delivering to" in log
    assert 1 <= log.count("cannot deliver spans to") <= 2, "once in each worker"


def test_what_was_spooled_outlives_kill_9(receiver: Receiver, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    receiver.stop()
    env = environment(receiver.grpc, spool)
    with run_service(tmp_path, launcher=TWO_WORKERS, env=env) as service:
        during = ask(service, 40)
        until(lambda: set(during) <= spooled(spool))
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()
    receiver.start()
    with run_service(tmp_path, launcher=TWO_WORKERS, env=env) as service:
        wait_for_entries(receiver, during)
        service.stop()
    check_whole(receiver, set(during))
    check_breaches_first(receiver.requests, during)


@pytest.mark.parametrize("launcher", ["uvicorn", "gunicorn"])
def test_a_service_that_ends_in_the_outage_leaves_everything_to_the_next(
    launcher: str, receiver: Receiver, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    receiver.stop()
    # Nothing would leave the queue by itself within the test.
    env = environment(receiver.grpc, spool, OTEL_BSP_SCHEDULE_DELAY="600000")
    with run_service(tmp_path, launcher=launcher, env=env) as service:
        during = ask(service, 40)
        service.stop()
        assert "are lost" not in service.log
    assert set(during) <= spooled(spool)
    receiver.start()
    with run_service(tmp_path, launcher=launcher, env=environment(receiver.grpc, spool)) as service:
        wait_for_entries(receiver, during)
    check_whole(receiver, set(during))


POINT = r'"outcome": "(\w+)"\s*},\s*"start_time_unix_nano": \d+,\s*"time_unix_nano": \d+,\s*"value": (\d+)'


def test_without_a_spool_the_loss_is_counted_and_shown(receiver: Receiver, tmp_path: Path) -> None:
    receiver.stop()
    env = environment(receiver.grpc, None, OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_METRICS_EXPORTER="console")
    with run_service(tmp_path, env=env) as service:
        during = ask(service, 60)
        service.stop()
        log = service.log
    assert len(during) == 60
    assert log.count("cannot deliver spans to") == 1
    (still,) = re.findall(r"not all spans were delivered to .* in time: (\d+) still wait", log)
    assert int(still) <= 100
    outcomes = {outcome: int(spans) for outcome, spans in re.findall(POINT, log)}  # the last that was said
    assert outcomes["dropped"] > 0
    assert outcomes["delivered"] == 0
    assert outcomes["dropped_breaches"] == 0


HANGING = [
    "stagetrace.otlp.export.client:ExportClient.send",
    *(f"stagetrace.otlp.export.spool:Spool.{name}" for name in ("write", "names", "claim", "read", "settle")),
]


@pytest.fixture(scope="module")
def ended(services: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[None]]:  # noqa: ARG001
    """Run a service for each part that hangs, some at a time: they mostly wait for their end."""
    with ThreadPoolExecutor(3) as pool:
        return {part: pool.submit(_serve_and_end, part, tmp_path_factory.mktemp("hanging")) for part in HANGING}


def _serve_and_end(part: str, folder: Path) -> None:
    spool = folder / "spool"
    with run_receiver() as receiver:
        if "write" in part:
            receiver.stop()
        else:
            _leave_something(spool)
        env = environment(receiver.grpc, spool, HANG=part)
        with run_service(folder, "broken", env=env) as service:
            ask(service, 20)
            time.sleep(0.5)
            ask(service, 20)
            service.stop()  # fails if that takes more than twenty seconds


@pytest.mark.parametrize("part", HANGING)
def test_what_hangs_off_the_requests_threads_holds_up_nothing(part: str, ended: dict[str, Future[None]]) -> None:
    """Requests are answered, and the service ends, though the export or the disk never returns."""
    ended[part].result()


def _leave_something(folder: Path) -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="left")
    Spool(folder).write(request.SerializeToString(), 1, breach=False)


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_real_collector_comes_late(protocol: str, jaeger: Jaeger, tmp_path: Path) -> None:
    name = f"late collector {protocol}"
    ports = [backends.free_port() for _ in range(3)]
    endpoint = f"http://127.0.0.1:{ports[0] if protocol == 'grpc' else ports[1]}"
    spool = tmp_path / "spool"
    env = environment(endpoint, spool, OTEL_SERVICE_NAME=name, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    with run_service(tmp_path, launcher=TWO_WORKERS, env=env) as service:
        during = ask(service, 40, slow_every=4)
        until(lambda: set(during) <= spooled(spool))
        with backends.run_collector(tmp_path / "collector", jaeger, ports=ports):
            until(lambda: not list(spool.glob("*.otlp")))
            service.stop()
    slow = {trace for trace, is_slow in during.items() if is_slow}
    until(lambda: slow <= _breaches(jaeger, name))


def _breaches(jaeger: Jaeger, name: str) -> set[str]:
    asked = cli("breaches", "--each", "--store", jaeger.url, "--service", name, "--json")
    return {one["trace_id"] for one in json.loads(asked.stdout)["breaches"]} if asked.returncode == 0 else set()


# A minute at 500 requests a second.


@dataclass
class Load:
    """Requests at an even rate over keep-alive connections; latencies from the time at which each was due."""

    port: int
    rate: float
    traces: set[str] = field(default_factory=set)
    latencies_s: list[float] = field(default_factory=list)

    def run(self, seconds: float, threads: int = 16) -> None:
        start = time.monotonic()
        workers = [
            threading.Thread(target=self._work, args=(number / self.rate, threads / self.rate, start, seconds))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _work(self, first_s: float, step_s: float, start: float, seconds: float) -> None:
        body = b'{"inference_s": 0}'
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            due_s = first_s
            while due_s < seconds:
                time.sleep(max(0.0, start + due_s - time.monotonic()))
                trace = secrets.token_hex(16)
                connection.sendall(
                    b"POST /async-predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                    b"traceparent: 00-%s-00000000000000aa-01\r\ncontent-length: %d\r\n\r\n%s"
                    % (trace.encode(), len(body), body)
                )
                answer = connection.recv(65536)
                while b"\r\n\r\n" not in answer or not answer.endswith(b"]"):
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
                self.latencies_s.append(time.monotonic() - start - due_s)
                self.traces.add(trace)
                due_s += step_s

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1e3


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123 -- no file in the usual sense
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.heavy("an outage of 60 s at 500 requests/s")
@pytest.mark.parametrize("spool", [pytest.param(True, marks=pytest.mark.sample), False], ids=["spool", "no spool"])
def test_a_minute_of_outage_at_500_requests_a_second(*, spool: bool, receiver: Receiver, tmp_path: Path) -> None:
    rate = float(os.environ.get("STAGETRACE_OUTAGE_RATE", scaled(500, 200, 500)))
    seconds = float(os.environ.get("STAGETRACE_OUTAGE_S", scaled(60, 15, 60)))
    folder = tmp_path / "spool"
    more = {"OTEL_BSP_SCHEDULE_DELAY": "1000", "OTEL_METRICS_EXPORTER": "console"}
    env = environment(receiver.grpc, folder if spool else None, **more)
    argv = [PYTHON, "-m", "uvicorn", "ml:app", "--port", "{port}", "--no-access-log"]
    with run_service(tmp_path, argv=argv, env=env) as service:
        port = int(service.url.rpartition(":")[2])
        up, first, rest, again = (Load(port, rate) for _ in range(4))
        up.run(seconds / 3)
        wait_for_entries(receiver, up.traces)
        receiver.stop()
        first.run(seconds / 3)
        early = _resident(service.process.pid)
        rest.run(seconds * 2 / 3)
        late = _resident(service.process.pid)
        size = sum(file.stat().st_size for file in folder.glob("*.otlp"))
        receiver.start()
        again.run(seconds / 3)
        everything = up.traces | first.traces | rest.traces | again.traces
        if spool:
            until(lambda: not list(folder.glob("*.otlp")), within_s=180)
        service.stop()
        log = service.log
    arrived = [trace for request in receiver.requests for trace in entries_of(request)]
    loads = (("up", up), ("away", first), ("away, later", rest), ("up again", again))
    figures = ", ".join(
        f"{name}: p50 {load.percentile_ms(50):.1f} p99 {load.percentile_ms(99):.1f} ms" for name, load in loads
    )
    print(f"{rate:g}/s; {figures}; resident {early >> 20} then {late >> 20} MiB; spool {size >> 20} MiB")  # noqa: T201
    assert late - early < 64 << 20, "memory grows with the outage"
    if spool:
        lost = everything - set(arrived)
        assert not lost, f"{len(lost)} of {len(everything)} lost: {log[-2000:]}"
        assert len([trace for trace in arrived if trace in everything]) == len(everything)
        assert state(folder)["dropped"] == 0
    else:
        outcomes = {outcome: int(spans) for outcome, spans in re.findall(POINT, log)}
        assert outcomes["delivered"] == len(receiver.spans())
        assert outcomes["dropped"] > 0
        assert {outcome for outcome, spans in outcomes.items() if spans} == {"delivered", "dropped"}
        assert "lost so far" in log

"""The causes of a handler that calls no model are found behind WSGI and gRPC, too."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from priority import ONE_AT_A_TIME, come_first
from services import APPS, PYTHON, Service, clean_environment, new_trace, run_service, wsgi_command
from sink import SERVER, Sink, run_sink
from stagetrace.sources import thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    ONE_AT_A_TIME,
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting())),
]
SLA = "* within 5ms"
COMPUTED_MS = 39.0


def assert_told(attributes: dict[str, Any]) -> None:
    collected_ms = attributes.get("sla.breach.part.gc_ms", 0)  # meanwhile, and counted as that
    assert attributes["sla.breach.part.compute_ms"] + collected_ms >= COMPUTED_MS, attributes
    assert attributes["sla.breach.cause"] in ("compute", "cpu_wait")  # the latter on a busy machine


@contextmanager
def serving(server: str, sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(STAGETRACE_SLA=SLA)
    with run_service(folder, argv=wsgi_command(server, "computing"), env=env) as service:
        yield service


@pytest.mark.parametrize("server", ["gunicorn", "gunicorn gthread", "wsgiref"])
def test_computing_behind_wsgi(server: str, sink: Sink, tmp_path: Path) -> None:
    with serving(server, sink, tmp_path) as service:
        come_first(service.process.pid)
        request, _ = sink.traced(service, "GET", "/")
        assert_told(request.entry.attributes)


def test_reading_a_slow_body_behind_wsgi_is_no_part_of_what_the_thread_was_blocked_by(
    sink: Sink, tmp_path: Path
) -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x"
            time.sleep(0.1)

    with serving("gunicorn", sink, tmp_path) as service:
        come_first(service.process.pid)
        entry = sink.traced(service, "POST", "/read", content=trickle())[0].entry
    assert entry.attributes["sla.breach.cause"] == "slow_upload"
    parts = [took for key, took in entry.attributes.items() if key.startswith("sla.breach.part.")]
    whole = (entry.end - entry.start) / 1e6
    assert abs(sum(parts) - whole) <= max(2, 0.05 * whole), entry.attributes


def test_a_thread_without_the_gil_is_no_slow_client(sink: Sink, tmp_path: Path) -> None:
    with serving("gunicorn gthread", sink, tmp_path) as service:
        service.call("GET", "/compete")
        asked = [service.call("POST", "/read", content=b"x" * 15)[0] for _ in range(20)]
        entries = [sink.request(trace_id).entry.attributes for trace_id in asked]
    parts = [key for attributes in entries for key in attributes]
    assert "sla.breach.part.lock_wait_ms" in parts
    assert "sla.breach.part.slow_download_ms" not in parts
    causes = {attributes.get("sla.breach.cause") for attributes in entries}
    assert {"slow_upload", "slow_download"}.isdisjoint(causes)


def test_a_client_that_does_not_read_behind_wsgi(sink: Sink, tmp_path: Path) -> None:
    with serving("gunicorn", sink, tmp_path) as service:
        come_first(service.process.pid)
        trace_id, headers = new_trace()
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            parent = f"connection: close\r\ntraceparent: {headers['traceparent']}"
            client.sendall(f"GET /download HTTP/1.1\r\nhost: x\r\n{parent}\r\n\r\n".encode())
            time.sleep(0.5)
            while client.recv(1 << 20):
                pass
        attributes = sink.request(trace_id).entry.attributes
    assert attributes["sla.breach.cause"] == "slow_download"
    assert attributes["sla.breach.stage"] == "network.send"


@pytest.mark.parametrize("kind", [(), ("coroutine",), ("pool",)])
def test_computing_behind_grpc(kind: tuple[str, ...]) -> None:
    with run_sink() as sink:
        env = clean_environment() | sink.environment(STAGETRACE_SLA=SLA)
        with subprocess.Popen([PYTHON, "computing.py", *kind], cwd=APPS, env=env) as process:
            come_first(process.pid)
            assert process.wait(timeout=60) == 0
        spans = sink.wait_for(lambda all_: any(span.kind == SERVER for span in all_))
    assert_told(next(span for span in spans if span.kind == SERVER).attributes)

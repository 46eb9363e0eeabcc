"""The causes of a handler that calls no model are found behind WSGI and gRPC, too."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from priority import come_first
from services import APPS, PYTHON, run_service, wsgi_command
from sink import SERVER, run_sink
from stagetrace.sources import thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting())),
]
ENV = {"STAGETRACE": "1", "STAGETRACE_SLA": "* within 5ms", "OTEL_BSP_SCHEDULE_DELAY": "50"}
COMPUTED_MS = 39.0


def assert_told(attributes: dict[str, Any]) -> None:
    collected_ms = attributes.get("sla.breach.part.gc_ms", 0)  # meanwhile, and counted as that
    assert attributes["sla.breach.part.compute_ms"] + collected_ms >= COMPUTED_MS, attributes
    assert attributes["sla.breach.cause"] in ("compute", "cpu_wait")  # the latter on a busy machine


@pytest.mark.parametrize("server", ["gunicorn", "gunicorn gthread", "wsgiref"])
def test_computing_behind_wsgi(server: str, tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {**ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        with run_service(tmp_path, argv=wsgi_command(server, "computing"), env=env) as service:
            come_first(service.process.pid)
            trace_id, _ = service.call("GET", "/")
            assert_told(sink.request(trace_id).entry.attributes)


def test_reading_a_slow_body_behind_wsgi_is_no_part_of_what_the_thread_was_blocked_by(tmp_path: Path) -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x"
            time.sleep(0.1)

    with run_sink() as sink:
        env = {**ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        with run_service(tmp_path, argv=wsgi_command("gunicorn", "computing"), env=env) as service:
            come_first(service.process.pid)
            trace_id, _ = service.call("POST", "/read", content=trickle())
            entry = sink.request(trace_id).entry
    assert entry.attributes["sla.breach.cause"] == "slow_upload"
    parts = [took for key, took in entry.attributes.items() if key.startswith("sla.breach.part.")]
    whole = (entry.end - entry.start) / 1e6
    assert abs(sum(parts) - whole) <= max(2, 0.05 * whole), entry.attributes


def test_a_thread_without_the_gil_is_no_slow_client(tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {**ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        with run_service(tmp_path, argv=wsgi_command("gunicorn gthread", "computing"), env=env) as service:
            service.call("GET", "/compete")
            asked = [service.call("POST", "/read", content=b"x" * 15)[0] for _ in range(20)]
            parts = [key for trace_id in asked for key in sink.request(trace_id).entry.attributes]
    assert "sla.breach.part.lock_wait_ms" in parts
    assert "sla.breach.part.slow_download_ms" not in parts
    assert {"slow_upload", "slow_download"}.isdisjoint(
        sink.request(trace_id).entry.attributes.get("sla.breach.cause") for trace_id in asked
    )


def test_a_client_that_does_not_read_behind_wsgi(tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {**ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        with run_service(tmp_path, argv=wsgi_command("gunicorn", "computing"), env=env) as service:
            come_first(service.process.pid)
            trace_id = os.urandom(16).hex()
            with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as client:
                parent = f"traceparent: 00-{trace_id}-{'b' * 16}-01"
                client.sendall(f"GET /download HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{parent}\r\n\r\n".encode())
                time.sleep(0.5)
                while client.recv(1 << 20):
                    pass
            attributes = sink.request(trace_id).entry.attributes
    assert attributes["sla.breach.cause"] == "slow_download"
    assert attributes["sla.breach.stage"] == "network.send"


@pytest.mark.parametrize("kind", [(), ("coroutine",), ("pool",)])
def test_computing_behind_grpc(kind: tuple[str, ...]) -> None:
    with run_sink() as sink:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "STAGETRACE"))}
        env = {**clean, **ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        subprocess.run([PYTHON, "computing.py", *kind], cwd=APPS, env=env, check=True, timeout=60)
        spans = sink.wait_for(lambda all_: any(span.kind == SERVER for span in all_))
    assert_told(next(span for span in spans if span.kind == SERVER).attributes)

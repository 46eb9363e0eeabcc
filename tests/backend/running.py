"""Start `stagetrace up` as a person would, on free ports, and send to it over real sockets."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from backend.processes import WITHIN_S, Lines
from backends import LOOPBACK, Jaeger
from cli import running
from cli.running import refusal
from messages import add_scope, leaves
from stagetrace.backend.receivers import METHOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FREE_PORTS = ("--grpc-port=0", "--http-port=0", "--query-grpc-port=0", "--query-http-port=0")
COMMAND = (sys.executable, "-m", "stagetrace.cli.main", "up")
PROTOBUF, JSON = "application/x-protobuf", "application/json"
MS = 1_000_000


@dataclass
class Up:
    """A running back end: what its `--json` line said, and its process."""

    ready: dict[str, Any]
    process: subprocess.Popen[str]

    @property
    def traces(self) -> str:
        return f"{self.url('http_port')}/v1/traces"

    @property
    def query(self) -> str:
        return f"{self.url('query_http_port')}/api/v3"

    def url(self, port: str) -> str:
        return f"{'https' if self.ready['tls'] else 'http'}://{LOOPBACK}:{self.ready[port]}"

    def target(self, port: str = "grpc_port") -> str:
        return f"{LOOPBACK}:{self.ready[port]}"

    @property
    def as_jaeger(self) -> Jaeger:
        """The same addresses in the form in which tests know a Jaeger."""
        return Jaeger(
            query_grpc=self.target("query_grpc_port"),
            query_http=self.url("query_http_port"),
            otlp_grpc=f"http://{self.target()}",
            otlp_http=self.url("http_port"),
            pid=self.process.pid,
        )

    def metric(self, series: str) -> int:
        """Return one number of /metrics."""
        text = httpx.get(f"{self.url('query_http_port')}/metrics").raise_for_status().text
        return int(next(line for line in text.splitlines() if line.startswith(series + " ")).rpartition(" ")[2])

    def peak_kib(self) -> int:
        """Return how large it has been at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN_S)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return running.environment(**(extra or {}))


@contextmanager
def run_up(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Up]:
    """Run a back end on the folder `data` in `folder`; what it says to stderr goes to `up.log` there."""
    argv = [*COMMAND, "--data", str(folder / "data"), *FREE_PORTS, "--json", *flags]
    with serving(argv, folder / "up.log", env) as (ready, process):
        yield Up(ready, process)


@contextmanager
def serving(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Run a command that serves, until the end of the block; yield what it prints once ready, and its process."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            argv,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        try:
            ready = json.loads(Lines(process.stdout).next())
        except AssertionError as error:
            message = f"it did not start, {error}:\n{log.read_text()[-4000:]}"
            raise AssertionError(message) from None
        yield ready, process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(WITHIN_S)
        if process.stdout is not None:
            process.stdout.close()


def fail_to_start(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run `up` so that it must not start; return what it says."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )
    return refusal(done)


def request(*names: str, service: str = "svc", start: int | None = None, trace: bytes | None = None) -> Any:
    """Return an export request of spans with these names, each in a trace of its own unless `trace` is given."""
    message = ExportTraceServiceRequest()
    scope = add_scope(message, service)
    start = time.time_ns() - 1000 * MS if start is None else start
    for name in names:
        scope.spans.add(
            trace_id=trace or secrets.token_bytes(16),
            span_id=secrets.token_bytes(8),
            name=name,
            kind=2,
            start_time_unix_nano=start,
            end_time_unix_nano=start + 5 * MS,
        )
    return message


def ids(message: Any) -> list[str]:
    """Return the trace ids of all spans in a request."""
    return [span.trace_id.hex() for _, _, span in leaves(message)]


def post(up: Up, body: bytes, kind: str = PROTOBUF, encoding: str | None = None, **headers: str) -> httpx.Response:
    """Send one request over HTTP, serialized and perhaps encoded."""
    coded = {"content-encoding": encoding} if encoding else {}
    return httpx.post(up.traces, content=body, headers={"content-type": kind, **coded, **headers}, timeout=60)


def export(channel: grpc.Channel, body: bytes, **call: Any) -> bytes:
    """Send one serialized request and return the serialized response."""
    return raw_call(channel, METHOD, body, **call)


def trailers(error: grpc.RpcError) -> dict[str, Any]:
    """Return the trailing metadata of a refusal."""
    return {item.key: item.value for item in error.trailing_metadata() or ()}


def raw_call(target: str | grpc.Channel, method: str, body: bytes = b"", **call: Any) -> bytes:
    """Call a method in raw bytes."""
    if isinstance(target, str):
        with grpc.insecure_channel(target) as channel:
            return raw_call(channel, method, body, **call)
    answer: bytes = target.unary_unary(method, request_serializer=None, response_deserializer=None)(
        body, timeout=30, **call
    )
    return answer


def stored_spans(up: Up, trace_id: str, **headers: str) -> list[dict[str, Any]]:
    """Return the stored spans of one trace, over HTTP, as JSON has them."""
    answer = httpx.get(f"{up.query}/traces/{trace_id}", headers=headers, timeout=60)
    if answer.status_code == 404:
        return []
    result = answer.raise_for_status().json()["result"]
    return [span for one in result["resourceSpans"] for scope in one["scopeSpans"] for span in scope.get("spans", [])]


def names_of(up: Up, trace_id: str, **headers: str) -> list[str]:
    return sorted(span["name"] for span in stored_spans(up, trace_id, **headers))

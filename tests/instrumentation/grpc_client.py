"""Start the gRPC test services and call them, each RPC in a trace of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.struct_pb2 import Struct

import services
from backends import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

APPS = Path(__file__).parent.parent / "apps"
SERVICE = "ml.Scorer"
OK = "OK"


@dataclass(frozen=True)
class Outcome:
    """All that the caller gets."""

    code: str
    details: str | None
    answers: list[Any]
    initial: list[tuple[str, Any]]
    trailing: list[tuple[str, Any]]


@dataclass
class Service:
    """A running service. `log` is readable meanwhile, as far as it got."""

    target: str
    process: subprocess.Popen[bytes]
    log_file: Path
    channel: grpc.Channel

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def call(
        self,
        method: str,
        *requests: Mapping[str, Any] | bytes,
        kind: str = "unary_unary",
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 30,
        service: str = SERVICE,
    ) -> tuple[str, Outcome]:
        """Make one RPC; return its trace id and what came of it."""
        trace_id, parent = new_trace()
        call = self.begin(method, *requests, kind=kind, metadata=(*parent, *metadata), timeout=timeout, service=service)
        return trace_id, outcome(call, "stream" in kind.rpartition("_")[2])

    def begin_traced(self, method: str, *requests: Any, **how: Any) -> tuple[str, Any]:
        """Begin an RPC in a trace of its own, and return its trace id and gRPC's own call."""
        trace_id, parent = new_trace()
        return trace_id, self.begin(method, *requests, metadata=parent, **how)

    def begin(
        self,
        method: str,
        *requests: Mapping[str, Any] | bytes,
        kind: str,
        metadata: Any,
        timeout: float | None,
        service: str = SERVICE,
    ) -> Any:
        """Begin an RPC, and return gRPC's own call."""
        make = getattr(self.channel, kind)(f"/{service}/{method}", dump, load)
        messages: Any = iter(requests) if kind.startswith("stream") else (requests or ({},))[0]
        call = make if kind.endswith("stream") else make.future
        return call(messages, metadata=metadata, timeout=timeout)

    def begin_sleep(self, seconds: float, timeout: float | None = None) -> tuple[str, Any]:
        """Begin a `Sleep`; return its trace id and gRPC's call once its handler runs."""
        before = self.log.count("sleeping")
        begun = self.begin_traced("Sleep", {"seconds": seconds}, kind="unary_unary", timeout=timeout)
        self.wait_for_log("sleeping", before + 1)
        return begun

    def wait_for_log(self, text: str, count: int = 1) -> None:
        """Wait until a text stands in the log this many times."""
        deadline = time.monotonic() + 60
        while self.log.count(text) < count:
            assert time.monotonic() < deadline, f"{text!r} is not logged {count} times:\n{self.log[-4000:]}"
            time.sleep(0.01)

    def stop(self, number: int) -> int:
        """Signal the process and wait for its end; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


def new_trace() -> tuple[str, tuple[tuple[str, str]]]:
    """Return a new trace id, and the metadata by which an RPC belongs to that trace."""
    trace_id, headers = services.new_trace()
    return trace_id, (("traceparent", headers["traceparent"]),)


def dump(message: Any) -> bytes:
    if isinstance(message, bytes):
        return message
    made = Struct()
    made.update(message)
    return made.SerializeToString()


def load(data: bytes) -> Any:
    try:
        return dict(Struct.FromString(data))
    except Exception:  # noqa: BLE001 -- a response of bytes
        return data


def outcome(call: Any, is_stream: bool) -> Outcome:
    answers: list[Any] = []
    try:
        if is_stream:
            answers.extend(call)
        else:
            answers.append(call.result())
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    initial, trailing = (
        [(one.key, one.value) for one in metadata or ()]
        for metadata in (call.initial_metadata(), call.trailing_metadata())
    )
    return Outcome(call.code().name, call.details(), answers, initial, trailing)


@contextmanager
def run_service(
    folder: Path, app: str, env: Mapping[str, str] | None = None, argv: Sequence[str] = ()
) -> Iterator[Service]:
    """Run a gRPC app of tests/apps until the block ends; `argv` stands before its file."""
    port = free_port()
    address = (env or {}).get("ADDRESS", f"127.0.0.1:{port}")
    log_file = folder / f"{Path(app).name}-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*(argv or [sys.executable]), str(APPS / f"{app}.py")],
            cwd=APPS,
            env={**services.clean_environment(), "PORT": str(port), "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # By default the second attempt to connect waits for a second.
    backoff = [(f"grpc.{name}_reconnect_backoff_ms", 100) for name in ("initial", "min", "max")]
    options = [("grpc.use_local_subchannel_pool", 1), *backoff]
    with grpc.insecure_channel(address, options) as channel:
        service = Service(address, process, log_file, channel)
        try:
            _wait_ready(service)
            yield service
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(20)


def _wait_ready(service: Service) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            grpc.channel_ready_future(service.channel).result(timeout=0.2)
        except grpc.FutureTimeoutError:
            continue
        return
    raise AssertionError(f"the service did not get ready:\n{service.log[-4000:]}")

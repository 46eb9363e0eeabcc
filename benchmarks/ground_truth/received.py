"""Receive the spans of a measured service over OTLP, and find the entry span of each request by its trace id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from benchmarks.receiver import Keep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

SERVER: Final = 2


@contextmanager
def receiver() -> Iterator[tuple[str, Keep]]:
    """Receive spans until the block ends; yield the endpoint, and what has been received."""
    keep = Keep()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[keep])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", keep
    finally:
        server.stop(None).wait()


def entry_spans(bodies: Sequence[bytes]) -> dict[str, Span]:
    """Return the entry spans in these exports by trace id."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return {
        span.trace_id.hex(): span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.kind == SERVER
    }


def attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """Return the attributes of a span or an event by name."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in pairs}

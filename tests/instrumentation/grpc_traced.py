"""The gRPC services as tests trace them: which there are, their environment, an RPC and what is recorded of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instrumentation.grpc_client import Service
    from sink import Request, Sink

MS = 1_000_000
EARLY = 0.9  # a loop's timer may fire up to a millisecond early
# What a span of a breach has where the machine was busy, or the collector of garbage ran.
OF_THE_MACHINE = ("stagetrace.cpu.", "stagetrace.gc.", "stagetrace.skipped_stalls")
APPS = ("grpc_threads", "grpc_aio")


def environment(sink: Sink, **more: str) -> dict[str, str]:
    return sink.environment(
        STAGETRACE_SLA="ml.Scorer/Predict within 10ms; ml.Scorer/Count within 20s per_chunk 250ms; * within 20s",
        OTEL_SERVICE_NAME="scorer",
        OTEL_PYTHON_GRPC_EXCLUDED_SERVICES="left.Out, other.One",
        **more,
    )


def traced(service: Service, sink: Sink, method: str, *requests: Any, **kwargs: Any) -> tuple[Request, Any]:
    """Make one RPC; return what was recorded of it, and what the caller got."""
    request, got = sink.traced(service, method, *requests, **kwargs)
    if got.code != "CANCELLED":
        assert request.entry.attributes["rpc.response.status_code"] == got.code
    return request, got


def distinct(request: Request) -> list[str]:
    """The stages in the order in which each began first."""
    return list(dict.fromkeys(stage.name for stage in request.stages))

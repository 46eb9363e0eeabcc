"""What the protocols share, without OpenTelemetry: the request of a scope, and services that are no requests."""

from __future__ import annotations

from typing import Any

from stagetrace.request.current import SCOPE_KEY

# --- The contract of a patch, and what patches share.

# For servers and clients of gRPC: health checks, reflection and the calls between Ray's processes are no requests, and
# a receiver of telemetry must not make more of it.
EXCLUDED_SERVICES = (
    *("grpc.", "opentelemetry.proto.collector."),
    *("ray.rpc.", "ray.serve.RayServeAPIService", "ray.serve.ASGIService"),
)


def request_in(scope: Any) -> Any:
    """Return what records the request of a scope or environ; None if nothing does."""
    request = scope.get(SCOPE_KEY)
    if type(request) is str:
        from stagetrace.protocols.scope import goes_on

        request = scope[SCOPE_KEY] if goes_on(scope, request) else None
    return request

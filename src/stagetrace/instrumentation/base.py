"""The contract of a hook, and what hooks share.

A hook is a module with `hook(module)`, called once, right after the library's module was executed. It wraps classes and
functions in place; its wrappers call the original exactly once and let nothing of ours reach the caller. Libraries are
also imported by programs that serve nothing, so a hook of a library that is no server imports no OpenTelemetry. Nor do
those of servers that have processes besides which serve nothing: what their wrappers need of it is imported in
functions that are guarded. All else is imported with the hook.
"""

from __future__ import annotations

from typing import Any

# In an ASGI scope: what records the request. A mounted app shares it with the app around it. It is None where nothing
# is to be recorded, and a text where the scope comes out of a pickle (pickled_scope.py).
SCOPE_KEY = "stagetrace.request"
# Of gRPC, for servers and clients: health checks, reflection and what Ray's processes ask each other are no requests,
# and receivers of telemetry must not make more of it.
EXCLUDED_SERVICES = (
    *("grpc.", "opentelemetry.proto.collector."),
    *("ray.rpc.", "ray.serve.RayServeAPIService", "ray.serve.ASGIService"),
)


def request_in(scope: Any) -> Any:
    """Return what records the request of a scope or environ; None if nothing does."""
    request = scope.get(SCOPE_KEY)
    if type(request) is str:
        from stagetrace.instrumentation.http.pickled_scope import goes_on

        request = scope[SCOPE_KEY] if goes_on(scope, request) else None
    return request

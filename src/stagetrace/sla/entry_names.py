"""Method and route of an entry span that another instrumentation has made, as the policy names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.sla.objective import WEBSOCKET

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


def _is_websocket(attributes: Any) -> bool:
    return (attributes.get("url.scheme") or attributes.get("http.scheme")) in ("ws", "wss")


def request_of(span: ReadableSpan | None) -> tuple[str | None, str]:
    """Return method and route as the policy names them, from HTTP (stable or old names) or RPC attributes."""
    attributes: Any = getattr(span, "attributes", None) or {}
    if "rpc.method" in attributes:
        method = str(attributes["rpc.method"])
        return None, method if "/" in method else f"{attributes.get('rpc.service', '')}/{method}"
    if _is_websocket(attributes):
        return WEBSOCKET, str(attributes.get("http.route", ""))
    method = attributes.get("http.request.method") or attributes.get("http.method")
    route = str(attributes.get("http.route", ""))
    if route and not route.startswith("/"):  # Django's, by OpenTelemetry's instrumentation
        route = f"/{route}"
    return (str(method).upper() if method else None), route

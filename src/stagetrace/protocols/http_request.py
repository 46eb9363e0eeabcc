"""What the adapters of ASGI and WSGI share: the attributes of one HTTP request, the name of its span, its metrics."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from stagetrace.protocols import http
from stagetrace.protocols.connection import transport_of
from stagetrace.protocols.http_headers import RECORDED, header_attributes
from stagetrace.request.limits import longest, shorten
from stagetrace.request.request import Request
from stagetrace.semconv import QUEUE_IN_FRONT_MS
from stagetrace.text import redacted_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stagetrace.bridge.metrics import HttpMetrics
    from stagetrace.otlp.encode import Block


class HttpRequest(Request):
    """One HTTP request. Its protocol fills it and says how its headers are read."""

    # The class's until something happens: each request makes one.
    status_code: int | None = None
    _response_headers: Any = None
    _ended_at: int | None = None  # when the last byte was handed over
    _finished = False
    mount = ""  # what precedes the route: templates of mounts, or what a dispatching middleware took from the path
    _long_agent: bytes | None = None  # a user agent too long to be remembered: it is recorded at the end
    _in_front_ms: float | None = None  # in the queue of a load balancer
    _counted: HttpMetrics | None = None
    is_announced = False  # an instrumentation inside the application announces the trace to the caller
    block: Block  # the attributes that many requests share
    client: Block
    method: str
    path: str | None

    def _requested(self, asked_for: http.AskedFor) -> dict[str, Any]:
        """Return the attributes that environment variables request."""
        raise NotImplementedError

    def known_attributes(self) -> dict[str, Any]:
        """Return all that is known as the request comes in; name the span by its route, if that is known."""
        attributes = {**self.block.attributes, **self.client.attributes}
        template = self._template()
        if template:
            attributes["http.route"] = template
        self._add_rest(attributes)
        return attributes

    def late_attributes(self) -> dict[str, Any]:
        """Return what is known when the request has ended, and was not before."""
        attributes = dict(http.route_block(self.route, self.status_code).attributes)
        self._add_rest(attributes)
        return attributes

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        """Return the attributes of our own entry span: blocks, that of the client, and the rest."""
        attributes = self.transfer_attributes(self.started)
        self._add_rest(attributes)
        return [self.block, http.route_block(self.route, self.status_code)], self.client, attributes

    def _add_rest(self, attributes: dict[str, Any]) -> None:
        """Add what no two requests share."""
        path, agent, asked_for = self.path, self._long_agent, http.asked_for()
        if path:
            attributes["url.path"] = path
        if self._in_front_ms is not None:
            attributes[QUEUE_IN_FRONT_MS] = self._in_front_ms
        if agent is not None:
            attributes.update(http.agent_attributes(agent))
        if asked_for is not None:
            attributes.update(self._requested(asked_for))
        if RECORDED:
            attributes.update(header_attributes(self.header))
        if asked_for is not None or agent is not None or RECORDED or len(path or "") > longest():
            shorten(attributes)
        if path:
            attributes["url.path"] = redacted_path(attributes["url.path"])  # shortened before: it may be endless

    def set_route(self, template: str) -> None:
        """Note the route that serves the request, within the mounts that it went through."""
        route = self.mount + template
        if route != self.route:
            self.route = route
            if self.adopted is None or not self.gave_way:
                if not self._finished:
                    self.rename(http.span_name(self.method, route))
            elif "http.route" not in (getattr(self.adopted, "attributes", None) or ()):
                self.adopted.set_attribute("http.route", route)  # the plain ASGI middleware's has none

    def _rename(self, route: str) -> None:
        if not self._finished:
            self.rename(http.span_name(self.method, route))

    def _template(self) -> str:
        """Return the route, as far as it is known."""
        return self.route

    def _failed(self) -> bool:
        return (self.status_code or 0) >= http.SERVER_ERROR

    def count_in(self, counted: HttpMetrics) -> None:
        """Count the request in `counted`, now and at its end."""
        self._counted = counted
        counted.begin(self.block.attributes)

    def leave_to_others(self) -> None:
        """Leave this to an instrumentation inside the application: it counts although its spans are not exported."""
        self.is_announced = True
        self._uncount()
        self._counted = None

    def _uncount(self) -> None:
        if self._counted is not None:
            self._counted.uncount(self.block.attributes)

    def _end(self, ended_at: int) -> None:
        """End the entry span at a time in nanoseconds, and count the request."""
        self.failed = (self.status_code or 0) >= http.SERVER_ERROR
        try:
            self.route = self.route or self._template()
            self.end_entry(ended_at)
        finally:
            if self._counted is not None:
                attributes = {**self.block.attributes, **http.route_block(self.route, self.status_code).attributes}
                # A span without identity at its end was dropped by the sampler, and is no exemplar.
                seen = self if self.backend is not None or self.ids is not None else None
                self._counted.end(attributes, max(ended_at - self.started, 0) / 1e9, seen)


# --- Whether a client has disconnected, and whether it had the whole response, as announced by its headers.

BODILESS: Final = (204, 304)
AT_ONCE: Final = 16_384  # bytes: the initial size of a connection's send buffer in Linux
LENGTH: Final = ("content-length", b"content-length")


def announced(method: str, status: int | None, headers: Iterable[tuple[Any, Any]] | None) -> int | None:
    """Return the length of a response's body in bytes, by its headers of bytes or str; None if they do not give it."""
    if method == "HEAD" or status in BODILESS:
        return 0
    for name, value in headers or ():
        if name.lower() in LENGTH:
            try:
                return int(value)
            except (TypeError, ValueError):  # a fault of the application, which the server handles
                return None
    return None


def is_written(connection: Any, size: int) -> bool:
    """Return whether a server has passed all `size` bytes for an ASGI connection on to the kernel.

    Where the server does not show how many are left, only as few as any connection takes at once count as passed on.
    """
    transport = transport_of(connection)
    if transport is None:
        return size <= AT_ONCE
    return bool(not transport.is_closing() and transport.get_write_buffer_size() == 0)


@functools.cache
def disconnect_flag(module: str) -> str | None:
    """Return the attribute of this module's connections that is true once the client has disconnected, if any."""
    servers = {"uvicorn": "disconnected", "hypercorn": "closed"}
    return servers.get(module.partition(".")[0])

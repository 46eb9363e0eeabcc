"""One request of a server that calls its own applications: what it reads and writes becomes marks, as under ASGI.

The patch of a server begins a request where the server has its headers, passes on what the application reads and sends,
and ends it.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.protocols import http, http_headers
from stagetrace.protocols.asgi import begin_request
from stagetrace.protocols.asgi_channels import begin_work, watched
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.protocols.connection import show, waited_ns
from stagetrace.runtime.runtime import runtime
from stagetrace.semconv import HTTP_RESPONSE_BODY_SIZE, NETWORK_SEND
from stagetrace.sources import loops

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

WHERE = __name__
GONE = "RequestCancelled"  # what sanic raises in a handler whose client has gone
UPGRADE = (b"upgrade", b"websocket")
_patch = switch(WHERE)


class ServerRequest(AsgiRequest):
    """One request and its response. Its server's patch sets what only that server knows."""

    server: Any = None  # what of the server has this request: it finds its request by that
    carrier: Any = None  # the headers, as OpenTelemetry's instrumentation of this server reads them
    is_lost: Callable[[], bool]  # whether the client has disconnected
    body_size: Callable[[], int] | None = None  # bytes of the request's body that were received
    route_of: Callable[[], str | None] | None = None  # where the route is asked for at the end
    file_bytes = 0  # of a file that the event loop sends
    is_unsized = False  # the bytes of the response are unknown
    _error: Exception | None = None  # for which the response may be a server's error

    def _is_disconnected(self) -> bool:
        return self.is_lost()

    def _template(self) -> str:
        if not self.route and self.route_of is not None:
            self.route = self.route_of() or ""
            if self.route:
                self.rename(http.span_name(self.method, self.route))
        return self.route

    def begin(self, status: int, headers: Iterable[tuple[Any, Any]]) -> list[tuple[str, str]]:
        """Note status line and headers of the response before they are sent; return the headers to add.

        Where the client has gone, nothing is sent.
        """
        if self.is_lost():
            self.note_disconnect()
            return []
        if self.adopted is not None and self.route:
            route, self.route = self.route, ""
            self.set_route(route)  # which may have been found before somebody else started the entry span
        if self._error is not None and status >= http.SERVER_ERROR:
            self.fail(self._error)
        self._error = None
        given = list(headers)
        if http.asked_for() is not None:
            given = [(_in_bytes(name).lower(), _in_bytes(value)) for name, value in given]
        message: dict[str, Any] = {"status": status, "headers": given}
        sent = self.begin_response(message)
        added = message["headers"][len(given) :]
        if sent is not None and http_headers.is_for(self._caller):
            added = [*added, sent["headers"][-1]]
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in added]

    @guarded
    def note_error(self, error: BaseException) -> None:
        """Note an exception of the application, which the server may respond to with an error."""
        if not isinstance(error, Exception):
            return
        if (isinstance(error, OSError) or type(error).__name__ == GONE) and self.is_lost():
            return
        if self.status_code is None:
            self._error = error
        else:
            self.fail(error)

    def fail_silently(self, error: Exception) -> None:
        """Note an exception after which the server responds nothing."""
        status = self.status_code
        self.fail(error)
        self.status_code = status

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how request and response passed."""
        if self.body_size is not None:
            self.received_bytes = self.body_size()
        attributes = super().transfer_attributes(start)
        if self.is_unsized:
            attributes.pop(HTTP_RESPONSE_BODY_SIZE, None)
        return attributes

    @guarded_end
    def note_stopped(self) -> None:
        """Note that the application was stopped in its work: since the client disconnected, or by the server."""
        if self.is_lost():
            self.note_disconnect()
        self.note_incomplete()

    @property
    def is_begun(self) -> bool:
        """Return whether the status line was sent."""
        return self.status_code is not None

    @property
    def is_ended(self) -> bool:
        """Return whether the last byte was handed over."""
        return self._ended_at is not None

    def finish(self) -> None:
        """End with the request's work, if the response has not ended it."""
        try:
            super().finish()
        finally:
            self.server = self.carrier = self.route_of = self.body_size = self._error = None


def _in_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("latin-1", "replace")


def begin(scope: dict[str, Any], connection: Any, is_lost: Callable[[], bool], **known: Any) -> ServerRequest | None:
    """Return the request that begins with this scope of ASGI; None if it is not to be recorded, as websockets are not.

    `connection` has the asyncio transport as its `transport`. Never raises.
    """
    if _patch.off or not runtime.ready:
        return None
    try:
        if any(name == UPGRADE[0] and value.lower() == UPGRADE[1] for name, value in scope["headers"]):
            return None
        waited = waited_ns(connection)
        now = time_ns()
        request: Any = begin_request(scope, connection, now - waited, ServerRequest)
        loops.record(now)
        if request is not None:
            request.is_lost = is_lost
            for name, value in known.items():
                setattr(request, name, value)
            if waited:
                show(request, now - waited, now)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(WHERE, error)
        return None
    return request  # type: ignore[no-any-return]


def addresses(transport: Any) -> dict[str, tuple[str, int] | None]:
    """Return `server` and `client` of a scope, None where they are no addresses of IP."""
    return {"server": _address(transport, "sockname"), "client": _address(transport, "peername")}


def _address(transport: Any, name: str) -> tuple[str, int] | None:
    address = None if transport is None else transport.get_extra_info(name)
    return (address[0], address[1]) if isinstance(address, tuple) and len(address) > 1 else None


async def receiving(request: ServerRequest, work: Awaitable[Any], activity: str) -> Any:
    """Return the result of `work`, which is marked as this activity of the request."""
    return (await _passing(request, work, activity))[0]


async def sending(request: ServerRequest, work: Awaitable[Any]) -> tuple[Any, int]:
    """Return the result of `work`, which sends a part of the response, and when it had sent that (ns)."""
    try:
        return await _passing(request, work, NETWORK_SEND)
    except OSError:
        request.note_disconnect()
        raise


async def _passing(request: ServerRequest, work: Any, activity: str) -> tuple[Any, int]:
    _note(request.enter, activity)
    awaited = None
    try:
        inner, awaited = begin_work(work)
        result = awaited if inner is None else await watched(inner, awaited, request, activity)
    except BaseException:
        awaited = None  # the exception of a future would refer to itself by this frame
        _note(request.leave, activity)
        raise
    now = time_ns()
    _note(request.leave, activity, now)
    return result, now


def _note(method: Any, *what: Any) -> None:
    try:
        method(*what)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(WHERE, error)


__all__ = ["ServerRequest", "addresses", "begin", "receiving", "sending"]

"""An outgoing call of a recorded request: a CLIENT span under the open stage, whose context is sent in the headers.

Nothing is added where OpenTelemetry's own instrumentation of the client is active, or the headers carry a context that
is not the request's own.
"""

from __future__ import annotations

import functools
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import by_kind
from stagetrace.instrumentation.clients import gen_ai_apis, kserve
from stagetrace.protocols.http_headers import CALLER, asks
from stagetrace.request.context import here
from stagetrace.request.current import current, recording
from stagetrace.request.spans import child
from stagetrace.text import redacted_path
from stagetrace.tracing.span import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from urllib.parse import SplitResult

    from stagetrace.instrumentation.base import Wrap
    from stagetrace.instrumentation.clients.callee import Pairs, Reported, Times
    from stagetrace.instrumentation.clients.gen_ai_apis import Api, Asked
    from stagetrace.instrumentation.clients.gen_ai_response import BodyReader
    from stagetrace.request.own_span import Recorder
    from stagetrace.request.request import Request
    from stagetrace.tracing.span_context import SpanContext


CALL = "_stagetrace_call"  # on a response object that is not read to its end yet: the Call
CLIENT_ERROR = 400  # for a client, this status code and all higher ones are errors
DEFAULT_PORTS = {"http": 80, "https": 443}


class Read(Protocol):
    """What is read of a call as it goes on."""

    def attributes(self) -> Mapping[str, Any]:
        """Return what is known by now."""


class Call:
    """One outgoing call, from its begin until its response was read to the end, closed or deleted."""

    api: Api | None = None  # of a language model, which it calls
    read: Read | None = None
    _status: Mapping[str, Any] = {}
    _reported: Reported | None = None  # what the called service says of itself
    _responded_at: int | None = None
    _is_held = False
    _ended_at: int | None = None  # while it is held
    _request: Request | None = None  # of the request, until this has ended

    def __init__(self, request: Request, name: str, attributes: dict[str, Any], parent: SpanContext) -> None:
        self._request = request
        self._name = name
        self._attributes = attributes
        self._parent = parent
        self._start = time_ns()

    def span(self) -> Any:
        """Return the span, or a stand-in with its context until the call has ended."""
        raise NotImplementedError

    def headers(self) -> Mapping[str, str]:
        """Return the headers that carry the context, as the propagators of OTEL_PROPAGATORS write them."""
        carrier = here.headers(self._request, self.span().get_span_context())
        if carrier and asks():
            carrier[CALLER] = "1"
        return carrier

    @guarded_end
    def note_response(
        self, status: Mapping[str, Any], find: Callable[[], Any] | None = None, headers: Pairs = ()
    ) -> None:
        """Note the attributes of the response's status; its body may follow. An `error.type` makes the span an error.

        `find` returns the socket of the connection; `headers` are those of the response.
        """
        self._status, self._responded_at = status, time_ns()
        if headers:
            self.note_headers(headers, is_whole=False)
        if find is not None:
            from stagetrace.protocols.connection import add_call

            self._status = {**status}
            add_call(find, self._status)

    def reader(self, status: int, content_type: str | None) -> BodyReader | None:
        """Return what takes the response's body, decoded, as it passes to the application; None: no use."""
        if self.api is None:
            return None
        from stagetrace.instrumentation.clients.gen_ai_response import reader_of

        reader = reader_of(self.api, status, content_type or "", self._start)
        self.read = reader
        return reader

    @guarded
    def note_headers(self, headers: Pairs, *, is_whole: bool) -> None:
        """Note what headers of the response report; `is_whole`: trailing metadata, of the call as a whole."""
        from stagetrace.instrumentation.clients.callee import read_headers

        self._reported = read_headers(headers, is_whole=is_whole)

    @guarded
    def note_reported(self, times: Times) -> None:
        """Note times that the body of the response reports; they count rather than those of its headers."""
        from stagetrace.instrumentation.clients.callee import with_times

        self._reported = with_times(self._reported, times)

    @guarded
    def _report(self, ended_at: int) -> None:
        """Add what was reported to the attributes, as the call ends."""
        if self._reported is not None:
            responded_at = ended_at if self._responded_at is None else self._responded_at
            times = ((at - self._start) / 1e6 for at in (responded_at, ended_at))
            self._status = {**self._status, **self._reported.attributes(*times)}

    @guarded_end
    def fail(self, error: BaseException) -> None:
        """End the call with the exception that it raised."""
        from stagetrace.request.limits import name_of

        self._status = {"error.type": name_of(type(error))}
        self._finish(time_ns())

    @guarded_end
    def end(self) -> None:
        """End now, unless it has ended; while it is held, note that it ends now."""
        if self._is_held:
            self._ended_at = self._ended_at or time_ns()
        else:
            self._finish(time_ns())

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._request is None

    def hold(self) -> None:
        """Do not end before `let_go`."""
        self._is_held = True

    @guarded_end
    def let_go(self) -> None:
        """End, if it was to end since `hold`."""
        self._is_held = False
        if self._ended_at is not None:
            self._finish(self._ended_at)

    def _finish(self, ended_at: int) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        read, self.read = self.read, None
        if read is not None:
            self._status = {**self._status, **(_read(read) or {})}
            times = getattr(read, "times", None)  # that the body reports
            if times is not None:
                self.note_reported(times)
        self._report(ended_at)
        entered = current.set(request)  # SLASpanProcessor notes the call there; gRPC ends it in any context
        try:
            self._end_span(max(ended_at, self._start))
        finally:
            current.reset(entered)

    def _end_span(self, ended_at: int) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        # The response was neither read to its end nor closed, or the call was held until now.
        if self._request is not None and self._responded_at is not None:
            self._end_unread(self._ended_at or self._responded_at)

    @guarded_end
    def _end_unread(self, responded_at: int) -> None:
        self._finish(responded_at)


@guarded_end
def _read(read: Read) -> Mapping[str, Any]:
    return read.attributes()


class OwnCall(Call):
    """A call that we record: its span is encoded when it ends, like those of stages."""

    def __init__(
        self, request: Request, name: str, attributes: dict[str, Any], parent: SpanContext, recorder: Recorder
    ) -> None:
        super().__init__(request, name, attributes, parent)
        self._recorder = recorder
        self._context = child(parent)

    def get_span_context(self) -> SpanContext:
        """Return the identity of its span."""
        return self._context

    def span(self) -> Any:
        """Return what has its identity."""
        return self

    def _end_span(self, ended_at: int) -> None:
        self._recorder.add_call(
            self._name, self._context, self._parent, {**self._attributes, **self._status}, (self._start, ended_at)
        )


class SdkCall(Call):
    """A call at a provider that the service has set: its span is one of the SDK."""

    def __init__(self, request: Request, name: str, attributes: dict[str, Any], parent: SpanContext) -> None:
        super().__init__(request, name, attributes, parent)
        self._span = here.start_span(name, here.get_current(), SpanKind.CLIENT, attributes, start=self._start)

    def span(self) -> Any:
        """Return the span."""
        return self._span

    def _end_span(self, ended_at: int) -> None:
        self._span.set_attributes(self._status)
        if "error.type" in self._status:
            here.set_error(self._span, None)
        self._span.end(ended_at)


def begin(name: str, attributes: dict[str, Any]) -> Call | None:
    """Begin an outgoing call; return None outside a recorded request, and where instrumentation is suppressed."""
    request = recording()
    if request is None or here.is_suppressed(here.get_current()):
        return None
    parent = here.parent_of_call(request)
    if parent is None:  # the service has left the trace of the request
        return None
    if here.recorder is not None:
        return OwnCall(request, name, attributes, parent, here.recorder)
    return SdkCall(request, name, attributes, parent)


def begin_http(
    instrumentation: str, method: str, url: str, headers: Mapping[str, str], body: Any = None
) -> Call | None:
    """Begin an HTTP request to `url`; return None if its headers carry a context that is not the request's own.

    `headers` are found by lower-case names. `instrumentation` is the client's name in
    OTEL_PYTHON_<instrumentation>_EXCLUDED_URLS. `body` is bytes, a text, or what JSON is made of; None: not known.
    """
    request = recording()
    if request is None or carries_other(headers, request):
        return None
    from stagetrace.protocols import http

    excluded = http.excluded(instrumentation)
    if excluded is not None and excluded.url_disabled(url):
        return None
    parts = urlsplit(url)
    attributes = _http_attributes(http, method, parts)
    asked = _asked_of_model(parts, body, attributes) if method == "POST" else None
    call = begin(asked.name if asked else http.span_name(method, ""), attributes)
    if call is not None and asked is not None:
        call.api = asked.api
    return call


@guarded
def _asked_of_model(parts: SplitResult, body: Any, attributes: dict[str, Any]) -> Asked | None:
    """Add what a request says of the model that it calls; return what it asks, if that is a language model."""
    model = kserve.attributes_of_http(parts.path, body)
    if model is not None:
        attributes.update(model)
        return None
    asked = gen_ai_apis.asked_of(parts.hostname or "", parts.path, body)
    if asked is not None:
        attributes.update(asked.attributes)
    return asked


def _http_attributes(http: Any, method: str, parts: SplitResult) -> dict[str, Any]:
    server, origin = _server(parts.scheme, parts.netloc)
    asked = http.asked_for() if parts.query else None
    query = asked.query(parts.query) if asked is not None else ""
    path = redacted_path(parts.path)
    known = http.sanitize_method(method)
    attributes = {
        "http.request.method": known,
        **server,
        "url.full": f"{origin}{path}?{query}" if query else f"{origin}{path}",
    }
    if known != method:
        attributes["http.request.method_original"] = method
    return attributes


@functools.lru_cache(maxsize=1024)
def _server(scheme: str, netloc: str) -> tuple[Mapping[str, Any], str]:
    """Return the attributes of a server, and the beginning of its URLs without user and password."""
    parts = urlsplit(f"//{netloc}")
    server: dict[str, Any] = {"server.address": parts.hostname or ""}
    port = parts.port or DEFAULT_PORTS.get(scheme)
    if port is not None:
        server["server.port"] = port
    return server, f"{scheme}://{netloc.rpartition('@')[2]}"


@functools.lru_cache(maxsize=1024)
def http_status(code: int) -> Mapping[str, Any]:
    """Return the attributes of a response with this status code, not to be changed."""
    attributes: dict[str, Any] = {"http.response.status_code": code}
    if code >= CLIENT_ERROR:
        attributes["error.type"] = str(code)
    return attributes


@guarded_end
def _end_of(response: Any) -> None:
    call = response.__dict__.get(CALL)
    if call is not None:
        call.end()
        if call.has_ended:
            del response.__dict__[CALL]


def ending(original: Any) -> Any:
    """Return a method of a response that ends its call."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            _end_of(self)

    return method


class Begun(NamedTuple):
    """A call that has begun, and the arguments with which the client goes on: with our headers."""

    call: Call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    restore: Callable[[], object] = bool  # called when the client's function has returned; by default nothing to do


def calling(
    begin: Callable[..., Begun | None],
    note: Callable[..., None],
    fail: Callable[[Call, BaseException], object] = Call.fail,
) -> Wrap:
    """Return how to wrap a client's function, or coroutine function, that makes a request and returns the response.

    `begin` gets its arguments, and returns None where there is nothing to record; `note` gets the call, the response
    and the arguments, `fail` the call and what was raised.
    """
    begin, note = guarded(begin), guarded(note)

    def wrap(original: Any) -> Any:
        def request(*args: Any, **kwargs: Any) -> Any:
            begun = None if recording() is None else begin(args, kwargs)
            if begun is None:
                return original(*args, **kwargs)
            call, args, kwargs, restore = begun
            try:
                response = original(*args, **kwargs)
            except BaseException as error:
                fail(call, error)
                raise
            finally:
                restore()
            note(call, response, *args)
            return response

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            begun = None if recording() is None else begin(args, kwargs)
            if begun is None:
                return await original(*args, **kwargs)
            call, args, kwargs, restore = begun
            try:
                response = await original(*args, **kwargs)
            except BaseException as error:
                fail(call, error)
                raise
            finally:
                restore()
            note(call, response, *args)
            return response

        return by_kind(original, request, awaited)

    return wrap


def carries_other(headers: Mapping[str, str], request: Request) -> bool:
    """Return whether headers, found by lower-case names, carry a context that is not the request's own.

    Its own is that of its entry span or of one of its stages: the service has injected the current context by hand.
    """
    return any(name in headers for name in context_fields()) and not _is_own(headers, request)


def context_fields() -> frozenset[str]:
    """Return the names, in lower case, of the headers in which the context of a span is written."""
    return here.fields - {"baggage"}


def _is_own(headers: Mapping[str, str], request: Request) -> bool:
    carried = here.span_in(here.extract({name: headers[name] for name in here.fields if name in headers}))
    entry = request.entry
    if entry is None or carried is None or carried.trace_id != entry.trace_id:
        return False
    stages = (one.context for one in request.so_far())
    return carried.span_id in {entry.span_id, *(one.span_id for one in stages if one is not None)}

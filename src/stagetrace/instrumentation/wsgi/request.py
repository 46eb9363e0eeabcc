"""The adapter of WSGI: what a server calls and an application returns becomes marks and attributes of the record."""

from __future__ import annotations

import functools
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import SCOPE_KEY, request_in
from stagetrace.instrumentation.connection.tcp_attributes import add_wsgi
from stagetrace.instrumentation.http import attributes as http
from stagetrace.instrumentation.http import metrics as http_metrics
from stagetrace.instrumentation.http.conventions import PROPAGATORS
from stagetrace.instrumentation.http.pickled_scope import adapter_of, below
from stagetrace.instrumentation.http.queue_headers import HEADERS, time_in_queue_ms
from stagetrace.instrumentation.wsgi.response import Transfer, incomplete_reason
from stagetrace.recording.context import NO_CONTEXT, with_span
from stagetrace.recording.current_record import current
from stagetrace.recording.limits import cut, longest
from stagetrace.recording.loop_blockers import LONG_NS, note
from stagetrace.recording.own_span import OwnSpan
from stagetrace.recording.record import RequestRecord
from stagetrace.recording.span_backend import SdkSpan
from stagetrace.semconv import QUEUE_IN_FRONT_MS, STAGETRACE_TRUNCATED_ATTRIBUTES

if TYPE_CHECKING:
    from stagetrace.instrumentation.connection.arrival import Arrival
    from stagetrace.otlp.encode.span_encoder import Block
    from stagetrace.recording.span_backend import SpanBackend
    from stagetrace.sla.entry_recorder import EntryRecorder

STARTS = tuple(f"HTTP_{name.upper().replace('-', '_')}" for name in HEADERS)
_known: dict[Any, tuple[Block, Block, str]] = {}


def path_of(environ: Any) -> str:
    """Return the whole path of a request."""
    return _decoded(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))


def _decoded(text: str) -> str:
    """Return what WSGI hands over as if its bytes were latin-1."""
    return text if text.isascii() else text.encode("latin-1").decode(errors="replace")


def _carried(environ: Any) -> Context:
    """Return the context that the headers carry, which is empty if they carry none."""
    textmap = propagate.get_global_textmap()
    fields = _fields(textmap)
    carrier = {field: [environ[key]] for field, key in fields if key in environ}
    if not fields:
        carrier = {name: [value] for name, value in _headers(environ)}
    return textmap.extract(carrier, context=Context()) if carrier else NO_CONTEXT


@functools.lru_cache(maxsize=4)
def _fields(textmap: Any) -> tuple[tuple[str, str], ...]:
    return tuple((field.lower(), f"HTTP_{field.upper().replace('-', '_')}") for field in textmap.fields)


def _headers(environ: Any) -> list[tuple[str, str]]:
    headers = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    others = ("CONTENT_TYPE", "CONTENT_LENGTH")  # these two go without a prefix
    headers.extend((key.replace("_", "-").lower(), environ[key]) for key in others if environ.get(key))
    return headers


def _in_bytes(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def known(environ: Any, method: str, user_agent: bytes | None) -> tuple[Block, Block, str]:
    """Return what many requests have in common, as `http.known`."""
    get = environ.get
    host = get("HTTP_HOST") or get("SERVER_NAME", "")
    if len(host) > http.MAX_CACHED_KEY:
        host = ""
    port, version, scheme = get("SERVER_PORT"), get("SERVER_PROTOCOL", ""), get("wsgi.url_scheme")
    client = get("REMOTE_ADDR"), get("REMOTE_PORT")
    key = (method, user_agent, host, port, version, scheme, client)
    found = _known.get(key)
    if found is None:
        name, _, named_port = host.rpartition(":")
        server = (name if named_port.isdigit() and name else host), int(port) if port else None
        scope = {"scheme": scheme, "http_version": version.rpartition("/")[2], "server": server}
        address, own_port = client
        asking = http.client_block((address, int(own_port or 0)) if address else None)
        found = http.request_block(method, scope, user_agent), asking, http.span_name(method, "")
        http.remember(_known, key, found, http.MAX_CACHED_CLIENTS)
    return found


class WsgiRequest(Transfer, http_metrics.Counted):
    """One request and its response, from the server's first sight of it to the last byte handed over."""

    # The class's until something happens.
    _status: int | None = None
    _response_headers: Any = None
    _finished = False
    _route = ""
    _failure: BaseException | None = None
    _long_agent: bytes | None = None
    _in_front_ms: float | None = None  # in the queue of a load balancer
    mount = ""  # what a dispatching middleware moved from the path to the script's name
    span: SpanBackend

    def __init__(self, environ: Any, arrival: Arrival | None, started: int, recorder: EntryRecorder | None) -> None:
        parent_context = self._come_in(environ)
        self._begun = started  # when the application was called
        self.record = record = RequestRecord(start=started if arrival is None else arrival.start)
        record.exchange = self
        if arrival is not None:
            for activity, attributes, begin, end in arrival.waits:
                record.enter(activity, attributes, begin)
                record.leave(activity, end or started)
        self.wrap_body(environ)
        if recorder is None:
            self.span = SdkSpan(record, self, self._span_name, parent_context)
        else:
            self.span = OwnSpan(record, self, self._span_name, recorder, parent_context)
        self._context = with_span(self.span.seen, parent_context)
        if recorder is not None and recorder.has_others:
            recorder.begin(self.span, parent_context)  # type: ignore[arg-type]  # it is ours

    def _come_in(self, environ: Any) -> Context:
        """Note what came in; return the context that the headers carry."""
        self._environ = environ
        self._script = environ.get("SCRIPT_NAME", "")
        agent = environ.get("HTTP_USER_AGENT")
        if agent is not None:
            agent = agent.encode("latin-1")
            if len(agent) > http.MAX_CACHED_KEY or len(agent) > longest():
                self._long_agent, agent = agent, None
        for key in STARTS:
            if key in environ:
                starts = [environ[key] for key in STARTS if key in environ]
                self._in_front_ms = time_in_queue_ms(starts, time_ns())
                break
        self._method = method = environ.get("REQUEST_METHOD", "")
        self._path = path_of(environ)
        self._block, self._client, self._span_name = known(environ, method, agent)
        context = below(environ.get(SCOPE_KEY), _carried(environ))
        environ[SCOPE_KEY] = self
        return context

    def connection_attributes(self) -> dict[str, Any]:
        """Return what the kernel reports of the connection now, as the request ends."""
        attributes: dict[str, Any] = {}
        add_wsgi(self._environ, attributes)
        return attributes

    def known_attributes(self) -> dict[str, Any]:
        """Return all that is known as the request comes in."""
        attributes = dict(self._block.attributes)
        attributes.update(self._client.attributes)
        self._add_rest(attributes)
        return attributes

    def late_attributes(self) -> dict[str, Any]:
        """Return what is known when the request has ended, and was not before."""
        attributes = dict(http.route_block(self._template(), self._status).attributes)
        self._add_rest(attributes)
        return attributes

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        """Return the attributes of our own entry span: blocks, that of the client, and the rest."""
        attributes = self.transfer_attributes(self.record.started)
        self._add_rest(attributes)
        return [self._block, http.route_block(self._template(), self._status)], self._client, attributes

    def _add_rest(self, attributes: dict[str, Any]) -> None:
        """Add what no two requests share."""
        if self._path:
            attributes["url.path"] = self._path
        if self._in_front_ms is not None:
            attributes[QUEUE_IN_FRONT_MS] = self._in_front_ms
        if self._failure is not None and not self._failed():
            attributes["error.type"] = type(self._failure).__qualname__
        if self._long_agent is not None:
            attributes.update(http.agent_attributes(self._long_agent))
        asked = http.asked_for()
        if asked is not None:
            query = self._environ.get("QUERY_STRING", "").encode("latin-1")
            scope = {"headers": _in_bytes(_headers(self._environ)), "query_string": query}
            attributes.update(asked.attributes(scope, self._response_headers))
        if asked is not None or self._long_agent is not None or len(self._path) > longest():
            shorter, count = cut(attributes)
            if count:
                attributes.update(shorter)
                attributes[STAGETRACE_TRUNCATED_ATTRIBUTES] = count

    def set_route(self, template: str) -> None:
        """Note the route that serves the request, within the mounts that it went through."""
        self._route = self.mount + template
        if not self._finished:
            self.span.rename(http.span_name(self._method, self._route))

    def enter_framework(self, environ: Any) -> None:
        """Note that a framework within gets the request, perhaps mounted under a part of the path."""
        script = environ.get("SCRIPT_NAME", "")
        if script != self._script and script.startswith(self._script):
            self.mount = _decoded(script[len(self._script) :])
            if not self._finished:
                self.span.rename(http.span_name(self._method, self.mount))

    def _template(self) -> str:
        return self._route or self.mount

    def _note_headers(self, status: str, headers: Any) -> Any:
        digits = status[:3]
        self._status = int(digits) if digits.isdigit() else None
        if PROPAGATORS in sys.modules and not self.is_announced:
            added = http.announced(self.span.entry)
            headers = [*headers, *added] if added else headers
        if http.asked_for() is not None:
            self._response_headers = _in_bytes(headers)
        return headers

    def _failed(self) -> bool:
        return self._status is not None and self._status >= http.SERVER_ERROR

    @guarded_end
    def fail(self, error: BaseException) -> None:
        """Note the exception behind a response that is to be a 500."""
        if self._failure is error:
            return
        self._failure = error
        span = self.span.entry
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))

    @guarded_end
    def note_incomplete(self) -> None:
        """Note that the server closes an incomplete response, as a rule since nobody takes the rest."""
        if self._failure is None and not self._has_all():
            self.record.disconnect = incomplete_reason()

    @guarded_end
    def note_uncaught(self, error: BaseException) -> None:
        """Note an exception that the application let through; a server that has sent nothing yet sends a 500."""
        self.fail(error)
        if not self._has_sent:
            self._status = http.SERVER_ERROR

    @guarded_end
    def finish(self) -> None:
        """End as the response has, if nothing has ended it yet."""
        if self._finished:
            return
        self._finished = True
        ended_at = time_ns() if self._ended_at is None else self._ended_at
        try:
            if ended_at - self._begun >= LONG_NS and not self._environ.get("wsgi.multithread"):
                note(self._begun, ended_at, self.record)  # its worker has served nobody else
            self.record.divide_rest()
            self.span.end_request(ended_at, self._method, self._template(), failed=self._failed())
        finally:
            if self._counted is not None:
                route = http.route_block(self._template(), self._status).attributes
                attributes = {**self._block.attributes, **route}
                self._counted.end(attributes, max(ended_at - self.record.started, 0) / 1e9, self.span.entry)
            # They held this, and this holds them: no work for the garbage collector.
            self._environ.pop(SCOPE_KEY, None)
            self._environ = self._start_response = self._failure = None
            self.span.release()
            self.record.release()


@guarded
def note_route(template: str, environ: Any = None) -> None:
    """Note by which route the request at hand is served, whichever server it came by."""
    request = (request_in(environ) if environ is not None else None) or adapter_of(current.get())
    set_route = getattr(request, "set_route", None)
    if set_route is not None:
        set_route(template)


@guarded
def note_failure(error: BaseException) -> None:
    """Note an exception that a framework has answered with a 500."""
    fail = getattr(adapter_of(current.get()), "fail", None)
    if fail is not None:
        fail(error)

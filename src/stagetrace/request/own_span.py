"""The entry span that stagetrace records itself. It does what takes an SDK span tens of microseconds only on demand."""

from __future__ import annotations

import functools
import threading
from random import getrandbits
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
)

from stagetrace.guard import guarded, report
from stagetrace.request.limits import span_limits
from stagetrace.request.spans import SCOPE, UNSET, FinishedSpan
from stagetrace.semconv import STAGETRACE_DROPPED_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Tracer

    from stagetrace.request.record import RequestRecord

_making = threading.Lock()  # guards the making of any span's notes
_drawing = threading.local()  # whose identity this thread is drawing


class Identity(NamedTuple):
    """The ids of a span and of its parent, and whether the head sampler keeps it."""

    context: SpanContext
    parent: SpanContext | None
    is_sampled: bool


NO_IDENTITY = Identity(INVALID_SPAN_CONTEXT, None, is_sampled=False)


class Recorder(Protocol):
    """Draws ids, asks the sampler, and ends spans: `sla.entry_recorder.EntryRecorder`."""

    @property
    def has_others(self) -> bool:
        """Whether other processors are to know that a span begins."""

    @property
    def resource(self) -> Resource:
        """The resource of the spans."""

    def begin(self, entry: OwnSpan, parent_context: Context) -> None:
        """Let other processors know that a span begins."""

    def identify(self, entry: OwnSpan, parent_context: Context) -> Identity:
        """Return the identity of a span whose parent is the remote span in `parent_context`, if there is one."""

    def end(self, entry: OwnSpan, end_time: int, method: str | None, route: str) -> None:
        """Judge and send the request."""


class Described(Protocol):
    """The adapter of a request's protocol, as far as the request's own entry span asks it."""

    def known_attributes(self) -> dict[str, Any]:
        """Return the attributes that are known when the request is received, for samplers of the service."""

    def describe(self) -> tuple[list[Any], Any, dict[str, Any]]:
        """Return the entry span's attributes, besides those set on it.

        They are blocks (`otlp.encode.span_encoder.Block`), of which there are few combinations in a service, one block
        of the client, and the rest.
        """


class OwnSpan(Span):
    """The entry span of a request where this package has set the provider.

    To the request's code it is the current span, as the SDK's would be. Ids are drawn when they are first asked for, at
    the latest at the end. Attributes and events that are set go to an SDK span, its notes, which is made at the first
    of them: limits, cleaning and exceptions are the SDK's own.

    While the request runs, `get_span_context` is that of the open stage, so that a span that is started hangs under
    that stage. Times in nanoseconds since the epoch; `end_time` is None until the request has ended.
    """

    kind = SpanKind.SERVER
    # The class's until something happens: each request has a span.
    record: RequestRecord
    adapter: Described | None = None
    drawn = 0  # the trace id, where it was drawn before the other ids
    _identity: Identity | None = None
    end_time: int | None = None
    added: Mapping[str, Any] | None = None  # by the sampler
    probability: float | None = None  # with which the head sampler keeps it; 0: not known, None: it keeps all
    held = False  # spans under it are held until it ends: the head sampler dropped it
    failed = False  # the response was a server's error
    notes: ReadableSpan | None = None
    may_give_way = False
    description: tuple[list[Any], Any, dict[str, Any]] | None = None  # by the adapter, at the first call

    def __init__(
        self, record: RequestRecord, adapter: Described, name: str, recorder: Recorder, parent_context: Context
    ) -> None:
        self.record = record
        self.adapter = adapter
        self.name = self._named = record.label = name
        self._recorder = recorder
        self.parent_context = parent_context
        record.own, record.bound = self, True

    @property
    def entry(self) -> Span:
        """Itself, in each of the parts of a `SpanBackend`."""
        return self

    @property
    def seen(self) -> Span:
        """Itself."""
        return self

    @property
    def gave_way(self) -> bool:
        """Whether another instrumentation has made the entry span of this request."""
        return self.record.adopted is not None

    def hides(self) -> bool:
        """Return whether the span was not seen yet."""
        return self._identity is None and self.notes is None and self.end_time is None

    def rename(self, name: str) -> None:
        """Name the span, unless the request's code has."""
        if self.name == self._named:
            self.name = self._named = self.record.label = name

    def end_request(self, ended_at: int, method: str | None, route: str, *, failed: bool) -> None:
        """End the span: judge and send the request."""
        self.failed = failed
        self._recorder.end(self, ended_at, method, route)

    def discard(self) -> None:
        """Send nothing of the request, whose entry span was not seen yet."""
        self.record.abandon()

    def release(self) -> None:
        """Drop the references to the adapter and from the record."""
        self.record.release()
        self.adapter = None

    @property
    def identity(self) -> Identity:
        """The ids of this span, drawn when they are first asked for."""
        return self._identity or self._draw()

    def _draw(self) -> Identity:
        """Draw the ids once. Never raise: the request's code calls this, too.

        A sampler of the service may fail, and it may look at the current span, which is this one.
        """
        if getattr(_drawing, "entry", None) is self:
            return NO_IDENTITY
        with self.record._lock:  # noqa: SLF001
            if self._identity is None:
                _drawing.entry = self
                try:
                    self._identity = self._recorder.identify(self, self.parent_context)
                except Exception as error:  # noqa: BLE001
                    report("stagetrace.request.own_span", error)
                    context = SpanContext(getrandbits(128) or 1, getrandbits(64) or 1, is_remote=False)
                    self._identity = Identity(context, None, is_sampled=False)
                finally:
                    _drawing.entry = None
            return self._identity

    def identify_as(self, identity: Identity) -> None:
        """Give the span ids that were drawn elsewhere, unless it has some."""
        with self.record._lock:  # noqa: SLF001
            if self._identity is None:
                self._identity = identity

    def gives_way(self, parent: SpanContext | None) -> bool:
        """Return whether this span was not seen yet, and a SERVER span with this parent would be of its request."""
        return self.may_give_way and self._may_be(parent)

    def take_ids(self, context: SpanContext, parent: SpanContext | None) -> None:
        """Take the ids of a SERVER span that is not sent anywhere: logs and headers have them already."""
        if self._may_be(parent):
            self.drawn = context.trace_id
            mine = self.identity
            ids = (mine.context.trace_id, context.span_id)
            flags, state = mine.context.trace_flags, mine.context.trace_state
            self._identity = mine._replace(
                context=SpanContext(*ids, is_remote=False, trace_flags=flags, trace_state=state)
            )

    def _may_be(self, parent: SpanContext | None) -> bool:
        if self._identity is not None or self.notes is not None or self.end_time is not None:
            return False
        context = self.parent_context
        remote = get_current_span(context).get_span_context() if context else INVALID_SPAN_CONTEXT
        return remote.span_id == (parent or INVALID_SPAN_CONTEXT).span_id

    def give_way(self, entry: SpanContext) -> None:
        """Leave the request to another instrumentation's entry span: this is no span any more."""
        self._identity = Identity(entry, None, is_sampled=False)

    @property
    def has_identity(self) -> bool:
        """Whether the ids of this span were drawn."""
        return self._identity is not None

    @property
    def context(self) -> SpanContext:
        """The entry span's own context."""
        return self.identity.context

    @property
    def parent(self) -> SpanContext | None:
        """The caller's span, in another process."""
        return self.identity.parent

    @property
    def start_time(self) -> int:
        return self.record.started

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        try:
            context = self.identity.context
            if not context.is_valid:  # asked by the sampler that is to decide on this very span
                return context
            return self.record.stage_context() or context
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report("stagetrace.request.own_span", error)
            return INVALID_SPAN_CONTEXT

    def is_recording(self) -> bool:
        return self.end_time is None

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: only the server ends the span."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._note("set_attributes", attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._note("set_attribute", key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._note("add_event", name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self._note("add_link", context, attributes)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._note("set_status", status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._note("record_exception", exception, attributes, timestamp, escaped)

    def update_name(self, name: str) -> None:
        if self.end_time is None:
            self.name = name

    @guarded
    def _note(self, method: str, *args: Any) -> None:
        if self.end_time is not None:
            return
        if self.notes is None:
            with _making:
                if self.notes is None:
                    self.notes = _tracer().start_span(self.name, context=Context())  # type: ignore[assignment]
        notes: Any = self.notes
        try:
            getattr(notes, method)(*args)
        except Exception:  # noqa: BLE001 -- a value that holds itself or has no text: the SDK lets that through to the code
            count = self.attributes.get(STAGETRACE_DROPPED_ATTRIBUTES, 0) + 1
            notes.set_attribute(STAGETRACE_DROPPED_ATTRIBUTES, count)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return what was set so far, as the SDK's span does."""
        return (self.notes.attributes if self.notes is not None else None) or {}

    @property
    def status(self) -> Status:
        """Return the status set by the request's code, else what the response says."""
        status = self.notes.status if self.notes is not None else UNSET
        return Status(StatusCode.ERROR) if self.failed and status.is_unset else status

    def described(self) -> tuple[list[Any], Any, dict[str, Any]]:
        """Return what the adapter describes of the request, which it is asked for once."""
        if self.description is None and self.adapter is not None:
            self.description = self.adapter.describe()
        return self.description or ([], None, {})

    @property
    def resource(self) -> Resource:
        """The resource that its span has."""
        return self._recorder.resource

    def readable(self, resource: Resource) -> ReadableSpan:
        """Return the ended span as the SDK's processors know it, with what was set on it."""
        notes = self.notes
        span = ReadableSpan(
            name=self.name,
            context=self.context,
            parent=self.parent,
            resource=resource,
            attributes=self.attributes,
            events=notes.events if notes is not None else (),
            links=notes.links if notes is not None else (),
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=SCOPE,
        )
        return span if notes is None else FinishedSpan(span, {}, counts=notes)


@functools.cache
def _tracer() -> Tracer:
    """Return a tracer whose spans go nowhere."""
    provider = TracerProvider(ALWAYS_ON, Resource.get_empty(), shutdown_on_exit=False, span_limits=span_limits())
    return provider.get_tracer("stagetrace")

"""The entry span that stagetrace records itself. It does what takes an SDK span tens of microseconds only on demand."""

from __future__ import annotations

import threading
from random import getrandbits
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stagetrace.guard import guarded, report
from stagetrace.request.limits import span_limits
from stagetrace.request.marks import Marks
from stagetrace.semconv import STAGETRACE_DROPPED_ATTRIBUTES
from stagetrace.tracing.propagation import NO_CONTEXT
from stagetrace.tracing.span import NO_RESOURCE, Span, SpanKind, Status, StatusCode
from stagetrace.tracing.span_context import INVALID, SpanContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stagetrace.tracing.span import Link

_making = threading.Lock()  # guards the making of any span's notes
_drawing = threading.local()  # whose identity this thread is drawing


class Identity(NamedTuple):
    """The ids of a span and of its parent, and whether the head sampler keeps it."""

    context: SpanContext
    parent: SpanContext | None
    is_sampled: bool


NO_IDENTITY = Identity(INVALID, None, is_sampled=False)


class Recorder(Protocol):
    """Draws ids, asks the sampler, and ends requests: `sla.end.EntryRecorder`."""

    @property
    def processor(self) -> Any:
        """What knows whether other processors are to see a span that begins: `has_others`."""

    @property
    def resource(self) -> Any:
        """The resource of the spans."""

    @property
    def sampler_text(self) -> str:
        """The head sampler, as OpenTelemetry describes it."""

    def force_flush(self, timeout_millis: int) -> bool:
        """Send what has ended; return whether all was delivered in time."""

    def begin(self, request: Any) -> None:
        """Let other processors know that the entry span of a request begins."""

    def span_in(self, context: Mapping[str, Any]) -> SpanContext | None:
        """Return the span in a context that a request has brought along."""

    def start_span(
        self,
        name: str,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        *,
        links: Iterable[Link],
        start: int | None,
    ) -> Span:
        """Start a span that is no entry span."""

    def add_call(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        attributes: dict[str, Any],
        times: tuple[int, int],
    ) -> None:
        """Record a call to another service, which has ended."""

    def add_span(self, span: Span) -> None:
        """Send a span that has ended, and is of no request."""

    def identify(self, request: Any) -> Identity:
        """Return the identity of an entry span, whose parent is the remote span in its `parent_context`, if any."""

    def end(self, request: Any) -> None:
        """Judge and send the request."""


class Entry(Marks):
    """A request as far as it is an entry span of ours: its ids, its name, and what was set on it.

    Ids are drawn when they are first asked for, at the latest at the end. Attributes and events that are set go to a
    span of their own, the notes, which is made at the first of them.
    """

    # The class's until something happens: each request has these.
    recorder: Recorder | None = None  # None where the entry span is not ours
    own = False  # whether the entry span is ours, and the request goes on
    name = ""  # of the entry span: as the request's code has named it, else
    label: str | None = None  # as its adapter has
    parent_context: Mapping[str, Any] = NO_CONTEXT  # what the request has brought along
    drawn = 0  # the trace id, where it was drawn before the other ids
    ids: Identity | None = None  # drawn when they are first asked for: `identity`
    is_over = False  # nothing can be set any more
    added: Mapping[str, Any] | None = None  # by the sampler
    probability: float | None = None  # with which the head sampler keeps it; 0: not known, None: it keeps all
    held = False  # spans under it are held until it ends: the head sampler dropped it
    failed = False  # the response was a server's error
    backend: Any = None  # `bridge.entry.SdkSpan`: its entry span, where that is at the service's own provider
    notes: Span | None = None
    may_give_way = False
    description: tuple[list[Any], Any, dict[str, Any]] | None = None  # of itself, at the first call
    kind: tuple[Any, ...] | None = None  # of plain requests, where there is no plan for it yet: see `sla.plan`
    end = 0  # when it ended, in nanoseconds since the epoch
    lock: Any  # guards the identity

    @property
    def identity(self) -> Identity:
        """The ids of the entry span, drawn when they are first asked for."""
        return self.ids or self._draw()

    def _draw(self) -> Identity:
        """Draw the ids once. Never raise: the request's code calls this, too.

        A sampler of the service may fail, and it may look at the current span, which is this one.
        """
        if getattr(_drawing, "entry", None) is self or self.recorder is None:
            return NO_IDENTITY
        with self.lock:
            if self.ids is None:
                _drawing.entry = self
                try:
                    self.ids = self.recorder.identify(self)
                except Exception as error:  # noqa: BLE001
                    report("stagetrace.request.own_span", error)
                    context = SpanContext(getrandbits(128) or 1, getrandbits(64) or 1, is_remote=False)
                    self.ids = Identity(context, None, is_sampled=False)
                finally:
                    _drawing.entry = None
            return self.ids

    @property
    def is_unseen(self) -> bool:
        """Whether nobody has looked at the entry span, or set something on it, while it could be."""
        return self.ids is None and self.notes is None and not self.is_over

    def may_be(self, parent: SpanContext | None) -> bool:
        """Return whether the span was not seen yet, and a SERVER span with this parent would be of its request."""
        if not self.is_unseen:
            return False
        context = self.parent_context
        remote = self.recorder.span_in(context) if context and self.recorder is not None else None
        return (remote or INVALID).span_id == (parent or INVALID).span_id

    def take_ids(self, context: SpanContext, parent: SpanContext | None) -> None:
        """Take the ids of a SERVER span that is not sent anywhere: logs and headers have them already."""
        if self.own and self.may_be(parent):
            self.drawn = context.trace_id
            mine = self.identity
            ids = (mine.context.trace_id, context.span_id)
            flags, state = mine.context.trace_flags, mine.context.trace_state
            self.ids = mine._replace(context=SpanContext(*ids, is_remote=False, trace_flags=flags, trace_state=state))

    def give_way(self, entry: SpanContext) -> None:
        """Leave the request to another instrumentation's entry span: this is no span any more."""
        self.ids = Identity(entry, None, is_sampled=False)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What was set on the entry span so far."""
        return self.notes.attributes if self.notes is not None else {}

    @property
    def status(self) -> Status:
        """The status set by the request's code, else what the response says."""
        status = self.notes.status if self.notes is not None else Status()
        return Status(StatusCode.ERROR) if self.failed and status.is_unset else status

    def note(self, method: str, *args: Any) -> None:
        """Set something on the entry span, by this method of `Span`, while the request goes on."""
        if self.is_over:
            return
        if self.notes is None:
            with _making:
                if self.notes is None:
                    self.notes = Span(self.name, INVALID, limits=span_limits())
        notes = self.notes
        try:
            getattr(notes, method)(*args)
        except Exception:  # noqa: BLE001 -- a value that holds itself or has no text
            count = self.attributes.get(STAGETRACE_DROPPED_ATTRIBUTES, 0) + 1
            notes.set_attribute(STAGETRACE_DROPPED_ATTRIBUTES, count)

    def stage_context(self) -> SpanContext | None:
        """Return the open stage's span context, under which a span that starts now belongs."""
        raise NotImplementedError

    def describe(self) -> tuple[list[Any], Any, dict[str, Any]]:
        """Return the entry span's attributes, besides those set on it.

        They are blocks (`otlp.encode.Block`), of which there are few combinations in a service, one block of the
        client, and the rest.
        """
        raise NotImplementedError

    def entry_attributes(self) -> tuple[list[Any], Any, dict[str, Any]]:
        """Return what the request describes of itself, which it is asked for once."""
        if self.description is None:
            self.description = self.describe()
        return self.description


class OwnSpan:
    """The entry span of a request that we record, as code sees it: a view of the request, which holds all.

    While the request runs, `get_span_context` is that of the open stage, so that a span that is started hangs under
    that stage. Times in nanoseconds since the epoch; `end_time` is None until the request has ended.
    """

    kind = SpanKind.SERVER

    def __init__(self, request: Entry) -> None:
        self.request = request

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        try:
            context = self.request.identity.context
            if not context.is_valid:  # asked by the sampler that is to decide on this very span
                return context
            return self.request.stage_context() or context
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report("stagetrace.request.own_span", error)
            return INVALID

    def is_recording(self) -> bool:
        return not self.request.is_over

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

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._note("set_status", status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._note("record_exception", exception, attributes, timestamp, escaped)

    @guarded
    def _note(self, method: str, *args: Any) -> None:
        self.request.note(method, *args)

    def update_name(self, name: str) -> None:
        if not self.request.is_over:
            self.request.name = name

    # What the SDK's span offers beyond the API.

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def context(self) -> SpanContext:
        """The entry span's own context."""
        return self.request.identity.context

    @property
    def parent(self) -> SpanContext | None:
        """The caller's span, in another process."""
        return self.request.identity.parent

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What was set so far."""
        return self.request.attributes

    @property
    def status(self) -> Status:
        return self.request.status

    @property
    def start_time(self) -> int:
        return self.request.started

    @property
    def end_time(self) -> int | None:
        return self.request.end if self.request.is_over else None

    @property
    def resource(self) -> Any:
        recorder = self.request.recorder
        return NO_RESOURCE if recorder is None else recorder.resource


NOBODY = Entry()  # whose entry span nothing is set on
NOBODY.is_over, NOBODY.ids = True, NO_IDENTITY

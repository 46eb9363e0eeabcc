"""A span: recorded while it goes on, and read when it has ended; what it holds is bounded, and what is lost counted."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Mapping, Sequence
from enum import Enum
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stagetrace.tracing.span_context import SpanContext


class SpanKind(Enum):
    """What a span stands for in its trace; the numbers are OpenTelemetry's."""

    INTERNAL = 0
    SERVER = 1
    CLIENT = 2
    PRODUCER = 3
    CONSUMER = 4


class StatusCode(Enum):
    """How what a span stands for has ended; the numbers are OpenTelemetry's."""

    UNSET = 0
    OK = 1
    ERROR = 2


class Status(NamedTuple):
    """How it has ended, and of an error what it is."""

    status_code: StatusCode = StatusCode.UNSET
    description: str | None = None

    @property
    def is_unset(self) -> bool:
        """Whether nothing was said of it."""
        return self.status_code is StatusCode.UNSET


UNSET: Final = Status()
NO_ATTRIBUTES: Final[Mapping[str, Any]] = {}


class Scope(NamedTuple):
    """What has recorded a span."""

    name: str
    version: str | None = None
    schema_url: str | None = None
    attributes: Mapping[str, Any] | None = None


class Resource:
    """What spans come from: a service, its process, its host. Compared by identity."""

    def __init__(self, attributes: Mapping[str, Any], schema_url: str = "") -> None:
        self.attributes = attributes
        self.schema_url = schema_url


NO_RESOURCE: Final = Resource({})


class Event(NamedTuple):
    """What happened at a time, in nanoseconds since the epoch."""

    name: str
    attributes: Mapping[str, Any] | None = None
    timestamp: int = 0
    dropped_attributes: int = 0


class Link(NamedTuple):
    """Another span that a span has to do with."""

    context: SpanContext
    attributes: Mapping[str, Any] | None = None
    dropped_attributes: int = 0


class Limits(NamedTuple):
    """How much a span may hold; None: any number. `longest`: characters of a text."""

    attributes: int | None = 128
    event_attributes: int | None = 128
    link_attributes: int | None = 128
    events: int | None = 128
    links: int | None = 128
    longest: int | None = None


NO_LIMITS: Final = Limits(None, None, None, None, None, None)


class Attributes(dict[str, Any]):
    """Attributes of which the oldest go when there are too many. Values are made ones that can be sent, texts cut."""

    __slots__ = ("_longest", "_most", "dropped")

    def __init__(self, most: int | None, longest: int | None, given: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._most = most
        self._longest = longest
        self.dropped = 0
        self.add(given or {})

    def add(self, given: Mapping[str, Any]) -> None:
        """Set several."""
        for key, value in given.items():
            self.put(key, value)

    def put(self, key: str, value: Any) -> None:
        """Set one, as the newest; one without a name is dropped."""
        if self._most == 0 or not key or not isinstance(key, str):
            self.dropped += 1
            return
        clean = cleaned(value, self._longest)
        self.pop(key, None)
        if self._most is not None and len(self) >= self._most:
            del self[next(iter(self))]
            self.dropped += 1
        self[key] = clean


def cleaned(value: Any, longest: int | None) -> Any:
    """Return a value that can be sent: lists as tuples, what is of another class as its text, None without one."""
    if value is None or isinstance(value, bool | int | float | bytes):
        return value
    if isinstance(value, str):
        return value if longest is None else value[:longest]
    if isinstance(value, Sequence):
        return tuple(cleaned(one, longest) for one in value)
    if isinstance(value, Mapping):
        named = {key if isinstance(key, str) else _text(key): one for key, one in value.items() if key}
        return {key: cleaned(one, longest) for key, one in named.items() if key is not None}
    return _text(value)


def _text(value: Any) -> str | None:
    kind = type(value)
    bare: Any = object
    has_text = kind.__str__ is not bare.__str__ or kind.__repr__ is not bare.__repr__
    return str(value) if has_text else None


class Span:
    """A span. Any thread may record on it until `end`, which hands it to `on_end`, if there is one.

    Times are in nanoseconds since the epoch. `record_exception` and the rest do what the methods of OpenTelemetry's
    interface do; statuses and kinds may be of that, too.
    """

    end_time: int | None = None
    instrumentation_scope: Any = None

    def __init__(  # noqa: PLR0913 -- what a span has
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None = None,
        *,
        resource: Any = NO_RESOURCE,
        attributes: Mapping[str, Any] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Iterable[Link] = (),
        start_time: int | None = None,
        end_time: int | None = None,
        scope: Scope | None = None,
        limits: Limits = NO_LIMITS,
        on_end: Callable[[Span], object] | None = None,
    ) -> None:
        self.name = name
        self.context = context
        self.parent = parent
        self.resource = resource
        self.kind = kind
        self.status: Any = UNSET
        self.start_time = time_ns() if start_time is None else start_time
        self.instrumentation_scope = scope
        self.events: list[Event] = []
        self.links: list[Link] = []
        self.dropped_events = self.dropped_links = 0
        self.attributes = Attributes(limits.attributes, limits.longest, attributes)
        self._limits = limits
        self._on_end = on_end
        self._lock = threading.Lock()
        for link in links:
            self.add_link(link.context, link.attributes)
        if end_time is not None:
            self.end_time = end_time

    @property
    def dropped_attributes(self) -> int:
        """How many attributes there was no room for."""
        return self.attributes.dropped

    def get_span_context(self) -> SpanContext:
        """Return its identity."""
        return self.context

    def is_recording(self) -> bool:
        """Return whether it goes on."""
        return self.end_time is None

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes."""
        with self._lock:
            if self.end_time is None:
                self.attributes.add(attributes)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Note an event, now or at a time."""
        kept = Attributes(self._limits.event_attributes, self._limits.longest, attributes)
        event = Event(name, kept, time_ns() if timestamp is None else timestamp, kept.dropped)
        with self._lock:
            if self.end_time is None:
                self.dropped_events += _append(self.events, event, self._limits.events)

    def add_link(self, context: Any, attributes: Mapping[str, Any] | None = None) -> None:
        """Note that it has to do with another span."""
        if context is None or not (context.is_valid or attributes or context.trace_state):
            return
        kept = Attributes(self._limits.link_attributes, self._limits.longest, attributes)
        with self._lock:
            if self.end_time is None:
                self.dropped_links += _append(self.links, Link(context, kept, kept.dropped), self._limits.links)

    def update_name(self, name: str) -> None:
        """Name it anew."""
        if self.end_time is None:
            self.name = name

    def set_status(self, status: Any, description: str | None = None) -> None:
        """Set how it ends; OK is final, and only an error has a description."""
        code = StatusCode(getattr(status, "status_code", status).value)
        if self.end_time is not None or self.status.status_code is StatusCode.OK or code is StatusCode.UNSET:
            return
        text = getattr(status, "description", description)
        self.status = Status(code, text if code is StatusCode.ERROR and isinstance(text, str) else None)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Note an exception, with its message and its stack."""
        kind = type(exception)
        is_built_in = kind.__module__ in ("", "builtins")
        noted = {
            "exception.type": kind.__qualname__ if is_built_in else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**noted, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """End it, once."""
        with self._lock:
            if self.end_time is not None:
                return
            self.end_time = time_ns() if end_time is None else end_time
        if self._on_end is not None:
            self._on_end(self)


def _append(kept: list[Any], one: Any, most: int | None) -> int:
    """Append one, and drop the oldest where there are too many; return how many were dropped."""
    if most == 0:
        return 1
    is_full = most is not None and len(kept) >= most
    if is_full:
        del kept[0]
    kept.append(one)
    return int(is_full)


class ChangedSpan:
    """A finished span, of ours or of an SDK, with other attributes and perhaps more; it counts the same as lost."""

    def __init__(
        self,
        span: Any,
        attributes: Mapping[str, Any],
        context: SpanContext | None = None,
        events: Sequence[Any] | None = None,
        links: Sequence[Any] | None = None,
    ) -> None:
        self.span = span
        self.name = span.name
        self.context = context or span.context
        self.parent = span.parent
        self.resource = span.resource
        self.attributes = {**(span.attributes or {}), **attributes}
        self.events = span.events if events is None else events
        self.links = span.links if links is None else links
        self.kind = span.kind
        self.status = span.status
        self.start_time = span.start_time
        self.end_time = span.end_time
        self.instrumentation_scope = span.instrumentation_scope
        self.dropped_attributes = span.dropped_attributes
        self.dropped_events = span.dropped_events
        self.dropped_links = span.dropped_links
        self.of_breach = getattr(span, "of_breach", False)

"""Jaeger's own JSON, as its UI downloads and uploads it and `/api/traces` gives it, to OTLP.

It is read as Jaeger's own translation does (`internal/jptrace`): tags that stand for fields of a span (`span.kind`,
`otel.status_code`, `error` ...) become these fields, all others attributes; a process becomes a resource. Times are
microseconds there, so the nanoseconds of a span are lost.
"""

# ruff: noqa: TRY004 -- the value is wrong in a document, whatever its type

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from stagetrace.otlp.decode.json import quote
from stagetrace.store.rows import FOLLOWS_FROM, REF_TYPE

WARNINGS: Final = "@jaeger@warnings"  # an attribute: Jaeger's warnings about a span, as in jaeger.api_v3
_KINDS: Final = {name.removeprefix("SPAN_KIND_").lower(): number for name, number in Span.SpanKind.items()}
_STATUSES: Final = {name.removeprefix("STATUS_CODE_"): number for name, number in Status.StatusCode.items()}
_SCOPE_NAME: Final = ("otel.scope.name", "otel.library.name")
_SCOPE_VERSION: Final = ("otel.scope.version", "otel.library.version")
_FORMAT: Final = "internal.span.format"  # how the span came to Jaeger
_CHILD_OF: Final = "CHILD_OF"
_FOLLOWS_FROM: Final = "FOLLOWS_FROM"
_INT64: Final = range(-(2**63), 2**63)
_TIMES_NS: Final = range(2**63)
_SPAN_BYTES: Final = 8
_TRACE_BYTES: Final = 16

Json = dict[str, Any]


class Read(NamedTuple):
    """The contents of a document: its spans, how many could not be read, and what is wrong with the first of these."""

    request: ExportTraceServiceRequest
    rejected: int = 0
    reason: str | None = None


def read(document: Any) -> Read:
    """Return the spans of a trace, of a list of traces, or of an object with these as `data`. Raise ValueError."""
    reading = _Reading()
    for trace in _traces(document):
        reading.trace(trace)
    return Read(reading.request, reading.rejected, reading.reason)


def _traces(document: Any) -> Iterator[Json]:
    found = document.get("data", document) if isinstance(document, dict) else document
    for trace in found if isinstance(found, list) else [found]:
        if not isinstance(trace, dict) or not isinstance(trace.get("spans"), list):
            raise ValueError("it is neither a trace of Jaeger's, with spans, nor a list of these")
        yield trace


class _Reading:
    """One document while it is read."""

    def __init__(self) -> None:
        self.request = ExportTraceServiceRequest()
        self.rejected = 0
        self.reason: str | None = None

    def trace(self, trace: Json) -> None:
        """Take in one trace. Raise ValueError where its processes are none."""
        processes = trace.get("processes") or {}
        if not isinstance(processes, dict):
            raise ValueError("its processes are no object")
        groups: dict[tuple[str, ...], Any] = {}
        for given in trace["spans"]:
            try:
                self._add(given, trace, processes, groups)
            except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:  # noqa: PERF203
                self.rejected += 1
                name = given.get("spanID") if isinstance(given, dict) else given
                self.reason = self.reason or f"span {quote(repr(name))[:40]}: {quote(error)}"

    def _add(self, given: Json, trace: Json, processes: Json, groups: dict[tuple[str, ...], Any]) -> None:
        """Add a span to those of its process and scope, which `groups` knows."""
        span, scope = _span(given, trace)
        process = given.get("process") or processes.get(str(given.get("processID")))
        key = json.dumps(process, sort_keys=True)
        place = (key, *scope)
        if (key,) not in groups:
            resource = _resource(process)
            groups[(key,)] = self.request.resource_spans.add()
            groups[(key,)].CopyFrom(resource)
        if place not in groups:
            groups[place] = groups[(key,)].scope_spans.add()
            groups[place].scope.name, groups[place].scope.version = scope
        groups[place].spans.append(span)


def _span(given: Json, trace: Json) -> tuple[Span, tuple[str, str]]:
    """Return a span, and name and version of its scope. Raise ValueError, or the error of a wrong type."""
    trace_id = _id(given.get("traceID") or trace.get("traceID"), _TRACE_BYTES, "traceID")
    start = _time(given.get("startTime"), "startTime")
    end = start + _microseconds(given.get("duration", 0), "duration")
    if end not in _TIMES_NS:
        raise ValueError(f"its end is no time: its duration is {given.get('duration')!r}")
    span = Span(
        trace_id=trace_id,
        span_id=_id(given.get("spanID"), _SPAN_BYTES, "spanID"),
        name=_text(given.get("operationName", ""), "operationName"),
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        flags=int(given.get("flags") or 0) & 0xFF,
    )
    tags = _Tags(given.get("tags"))
    _fields(span, tags)
    scope = (tags.text(*_SCOPE_NAME), tags.text(*_SCOPE_VERSION))
    span.attributes.extend(tags.rest())
    warnings = [_text(one, "warnings") for one in given.get("warnings") or ()]
    if warnings:
        listed = AnyValue()
        listed.array_value.values.extend(AnyValue(string_value=one) for one in warnings)
        span.attributes.append(KeyValue(key=WARNINGS, value=listed))
    _refer(span, given)
    for log in given.get("logs") or ():
        fields = _Tags(log.get("fields"))
        event = span.events.add(time_unix_nano=_time(log.get("timestamp"), "timestamp"), name=fields.text("event"))
        event.attributes.extend(fields.rest())
    return span, scope


def _fields(span: Span, tags: _Tags) -> None:
    """Fill in the fields of a span that tags hold."""
    kind = tags.text("span.kind")
    span.kind = _KINDS.get(kind.lower(), Span.SPAN_KIND_UNSPECIFIED)
    code, message = tags.text("otel.status_code").upper(), tags.text("otel.status_description")
    error = tags.pop("error")
    if not code and error is not None and error.value in (True, "true"):
        code = "ERROR"
    if code or message:
        span.status.code = _STATUSES.get(code, Status.STATUS_CODE_UNSET)
        span.status.message = message
    if error is not None and error.value not in (True, False, "true", "false"):
        tags.put(error)  # a text: the error
    span.trace_state = tags.text("w3c.tracestate")
    tags.pop(_FORMAT)


def _refer(span: Span, given: Json) -> None:
    """Fill in the parent: the first span of the same trace that this is a child of, else follows. Link all others.

    One that is only followed is linked too, which distinguishes it from one that is awaited.
    """
    references = [
        (
            one.get("refType"),
            _id(one.get("traceID") or given.get("traceID"), _TRACE_BYTES, "traceID of a reference"),
            _id(one.get("spanID"), _SPAN_BYTES, "spanID of a reference"),
        )
        for one in given.get("references") or ()
    ]
    older = given.get("parentSpanID")
    if older not in (None, "", "0", 0) and not any(kind == _CHILD_OF for kind, *_ in references):
        references.insert(0, (_CHILD_OF, span.trace_id, _id(older, _SPAN_BYTES, "parentSpanID")))
    parent = next(
        (
            one
            for wanted in (_CHILD_OF, _FOLLOWS_FROM)
            for one in references
            if one[:2] == (wanted, span.trace_id) and one[2] != span.span_id
        ),
        None,
    )
    if parent is not None:
        span.parent_span_id = parent[2]
        if parent[0] == _CHILD_OF:
            references.remove(parent)
    for one in references:
        kind, trace_id, span_id = one
        link = span.links.add(trace_id=trace_id, span_id=span_id)
        if kind == _CHILD_OF or one is parent:
            word = "child_of" if kind == _CHILD_OF else FOLLOWS_FROM
            link.attributes.append(KeyValue(key=REF_TYPE, value=AnyValue(string_value=word)))


def _resource(process: Any) -> ResourceSpans:
    """Return the resource that a process is: its name and its tags. Raise ValueError where there is none."""
    if not isinstance(process, dict):
        raise ValueError("its processID is none of the trace's processes")
    name = _text(process.get("serviceName", ""), "serviceName")
    found = ResourceSpans()
    found.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value=name)))
    found.resource.attributes.extend(one for one in _Tags(process.get("tags")).rest() if one.key != "service.name")
    return found


class _Tag(NamedTuple):
    key: str
    kind: str
    value: Any


class _Tags:
    """The tags of a span, process or log, from which those are taken that are no attributes."""

    def __init__(self, given: Any) -> None:
        given = given or ()
        if isinstance(given, dict):  # as Elasticsearch keeps them when all are stored as fields
            given = [{"key": key, "value": value} for key, value in given.items()]
        self._tags = [_Tag(_text(one["key"], "key"), str(one.get("type") or ""), one.get("value")) for one in given]

    def pop(self, *keys: str) -> _Tag | None:
        """Take away the tags of these keys, and return the first of them."""
        found = [one for one in self._tags if one.key in keys]
        self._tags = [one for one in self._tags if one.key not in keys]
        return found[0] if found else None

    def text(self, *keys: str) -> str:
        """Take away the tags of these keys, and return the text of the first, empty where it is none."""
        found = self.pop(*keys)
        return "" if found is None or found.value is None else str(found.value)

    def put(self, tag: _Tag) -> None:
        self._tags.append(tag)

    def rest(self) -> Iterator[KeyValue]:
        """Yield the tags that are left, as attributes."""
        for one in self._tags:
            yield KeyValue(key=one.key, value=_value(one))


def _value(tag: _Tag) -> AnyValue:
    """Return the value of a tag, of its declared type if the value fits, else of its JSON type."""
    value = tag.value
    read = _READ.get(tag.kind.lower())
    found = None if read is None else read(value)
    if found is not None:
        return found
    if isinstance(value, (bool, int, float)):
        whole = None if isinstance(value, float) else _whole(value)
        return _boolean(value) or whole or _fraction(value) or AnyValue(string_value=str(value))
    if value is None:
        return AnyValue()
    return AnyValue(string_value=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _boolean(value: Any) -> AnyValue | None:
    found = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
    return AnyValue(bool_value=found) if isinstance(found, bool) else None


def _whole(value: Any) -> AnyValue | None:
    """Return a whole number; those that JavaScript cannot hold come as text."""
    is_whole = isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())
    try:
        found = int(value) if is_whole and not isinstance(value, bool) else None
    except ValueError:
        return None
    return AnyValue(int_value=found) if found is not None and found in _INT64 else None


def _fraction(value: Any) -> AnyValue | None:
    try:
        return None if isinstance(value, bool) else AnyValue(double_value=float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _binary(value: Any) -> AnyValue | None:
    try:
        return AnyValue(bytes_value=base64.b64decode(value, validate=True)) if isinstance(value, str) else None
    except binascii.Error:
        return None


def _string(value: Any) -> AnyValue | None:
    return AnyValue(string_value=value) if isinstance(value, str) else None


_READ: Final[Mapping[str, Callable[[Any], AnyValue | None]]] = {
    "string": _string,
    **dict.fromkeys(("bool", "boolean"), _boolean),
    **dict.fromkeys(("int64", "long", "int"), _whole),
    **dict.fromkeys(("float64", "double", "float", "number"), _fraction),
    "binary": _binary,
}


def _id(given: Any, size: int, what: str) -> bytes:
    """Return an id, which may lack zeros in front. Raise ValueError."""
    try:
        found = bytes.fromhex(_text(given, what).zfill(2 * size))
    except ValueError:
        found = b""
    if len(found) != size or not any(found):
        raise ValueError(f"its {what} is no id of up to {2 * size} hex digits: {given!r}")
    return found


def _time(given: Any, what: str) -> int:
    """Return a time in microseconds as nanoseconds. Raise ValueError."""
    found = _microseconds(given, what)
    if found not in _TIMES_NS:
        raise ValueError(f"its {what} is no time in microseconds: {given!r}")
    return found


def _microseconds(given: Any, what: str) -> int:
    """Return nanoseconds; Jaeger writes a number below zero, of a clock that stepped back, as 2**64 more."""
    if isinstance(given, str) and given.lstrip("-").isdecimal():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not isfinite(given):
        raise ValueError(f"its {what} is no number of microseconds: {given!r}")
    if given >= 2**63:
        given = int(given) - 2**64
    return given * 1000 if isinstance(given, int) else round(given * 1000)


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise ValueError(f"its {what} is no text: {given!r}")
    return given

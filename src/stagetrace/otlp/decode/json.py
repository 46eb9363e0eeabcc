"""OTLP's JSON form to and from its messages: Protobuf JSON, but with ids in hex and enums as numbers.

Reading keeps what can be kept: a span that is no span is counted and left out, its neighbours stay.
"""

# ruff: noqa: TRY004 -- in a document the value is wrong, whatever its type

from __future__ import annotations

import base64
import binascii
import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.message import EncodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stagetrace.otlp.decode.request import MOST_HOLDERS, TooManyHolders
from stagetrace.otlp.decode.wire import TOO_DEEP, is_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from google.protobuf.message import Message
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from stagetrace.otlp.decode.request import Check

# --- Single spans to and from OTLP's JSON form, as `json` has them but for a fifth of its time.
#
# Whatever is odd or rare is left to protobuf's own `json_format`, which decides what is right: what it gives, or
# refuses, is what these give.

Json = dict[str, Any]
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_RESOURCE_SPANS: Final = ("resourceSpans", "resource_spans")
_SCOPE_SPANS: Final = ("scopeSpans", "scope_spans")
# What json_format raises of values that do not fit, beside its own error. SystemError: of a key with a lone surrogate.
_UNFIT: Final = (
    json_format.ParseError,
    EncodeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    SystemError,
)


class _Reading:
    """One request while it is read: how many spans had to be skipped, and the first reason."""

    def __init__(self, check: Check | None) -> None:
        self.rejected = 0
        self.reason: str | None = None
        self.check: Check = (lambda: None) if check is None else check

    def reject(self, count: int, error: Exception) -> None:
        self.rejected += count
        self.reason = self.reason or f"a span cannot be read: {quote(error)}"


def quote(error: object) -> str:
    """Return the beginning of a text that may quote a request: without surrogates, which no response can carry."""
    return str(error)[:200].encode("utf-8", "replace").decode()


def most_values(body: bytes) -> int:
    """Return how many values a JSON document can have at most; each becomes an object of Python's."""
    return 1 + sum(map(body.count, (b"{", b"[", b",")))


def parse(body: str | bytes, check: Check | None = None) -> tuple[ExportTraceServiceRequest, int, str | None]:
    """Return the request in `body`, the number of spans that were skipped, and why the first of them was.

    Raise ValueError where the body is not JSON or not an export request at all. `check` is as in `request.decode`.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {quote(error)}") from None
    return _parse_document(document, check)


def _parse_document(document: Any, check: Check | None = None) -> tuple[ExportTraceServiceRequest, int, str | None]:
    if not isinstance(document, dict):
        raise ValueError("the body is not a JSON object with resourceSpans")
    request = ExportTraceServiceRequest()
    reading = _Reading(check)
    resources = _list(document, _RESOURCE_SPANS)
    if check is not None and len(resources) + sum(map(_count_scopes, resources)) > MOST_HOLDERS:
        raise TooManyHolders
    for given in resources:
        _resource(request, given, reading)
    return request, reading.rejected, reading.reason


def _count_scopes(given: Any) -> int:
    return len(_list(given, _SCOPE_SPANS)) if isinstance(given, dict) else 0


def decode_document(document: Any) -> tuple[ExportTraceServiceRequest, int, str | None]:
    """Return as `parse` of a JSON value, only spans with ids of the right lengths. Raise ValueError if none is left."""
    request, rejected, reason = _parse_document(document)
    left = 0
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            bad = {at: why for at, span in enumerate(scope.spans) if (why := _wrong_ids(span))}
            for at in reversed(bad):
                del scope.spans[at]
            rejected += len(bad)
            reason = reason or next(iter(bad.values()), None)
            left += len(scope.spans)
    if rejected and not left:
        raise ValueError(reason)
    return request, rejected, reason


def _wrong_ids(span: Span) -> str | None:
    """Return what is wrong with the ids of a span, if anything is."""
    holders: tuple[Any, ...] = (span, *span.links)
    if any((len(one.trace_id), len(one.span_id)) != (16, 8) for one in holders):
        return "a trace id is not 32 hex digits, or a span id not 16"
    return None if len(span.parent_span_id) in (0, 8) else "a parent span id is not 16 hex digits"


def encode(message: ExportTraceServiceRequest) -> str:
    """Return a request as one line of OTLP JSON, as the Collector's file exporter writes it."""
    return json.dumps(_document(message), ensure_ascii=False, separators=(",", ":"))


def render(message: Message) -> Json:
    """Return a message of traces as OTLP JSON as the Collector's own marshaller has it, which never omits some."""
    document = _document(message)
    for resource in document.get("resourceSpans", ()):
        resource.setdefault("resource", {})
        for scope in resource.setdefault("scopeSpans", []):
            scope.setdefault("scope", {})
            for span in scope.get("spans", ()):
                span.setdefault("status", {})
    return document


def _document(message: Message) -> Json:
    """Return numbers for enums, hex for ids, text for 64-bit integers."""
    return _with(
        message, "resource_spans", lambda one: _with(one, "scope_spans", lambda two: _with(two, "spans", _span))
    )


def _with(message: Message, name: str, form: Callable[[Any], Json]) -> Json:
    """Return a message as JSON, what it has under `name` by `form`."""
    document: Json = {}
    for field, value in message.ListFields():
        if field.name == name:
            document[field.json_name] = [form(one) for one in value]
        elif field.message_type is not None and not field.is_repeated:
            document[field.json_name] = plain(value)
        elif field.message_type is None and not field.is_repeated and isinstance(value, str):
            document[field.json_name] = value
        else:
            rest = type(message)()
            rest.MergeFrom(message)
            rest.ClearField(name)
            document[field.json_name] = plain(rest)[field.json_name]
    return document


def _span(span: Span) -> Json:
    document = write(span)
    if document is None:
        document = plain(span)
        for holder in (document, *document.get("links", ())):
            for key in _IDS & holder.keys():
                holder[key] = base64.b64decode(holder[key]).hex()
    return document


def _list(holder: Json, names: tuple[str, ...]) -> list[Any]:
    found = next((holder[name] for name in names if name in holder), None)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"{names[0]} is not an array")
    return found


def _resource(request: ExportTraceServiceRequest, given: Any, reading: _Reading) -> None:
    if not isinstance(given, dict):
        raise ValueError("an item of resourceSpans is not an object")
    reading.check()
    scopes = _list(given, _SCOPE_SPANS)
    added = request.resource_spans.add()
    try:
        _fill({key: value for key, value in given.items() if key not in _SCOPE_SPANS}, added)
    except _UNFIT as error:
        del request.resource_spans[-1]
        reading.reject(sum(1 for scope in scopes for _ in _spans(scope)), error)
        return
    for scope in scopes:
        _scope(added, scope, reading)
    if scopes and not added.scope_spans:  # else it would count as refused once more: as empty
        del request.resource_spans[-1]


def _scope(resource: Any, given: Any, reading: _Reading) -> None:
    reading.check()
    spans = list(_spans(given))
    added = resource.scope_spans.add()
    try:
        _fill({key: value for key, value in given.items() if key != "spans"}, added)
    except _UNFIT as error:
        del resource.scope_spans[-1]
        reading.reject(len(spans), error)
        return
    for span in spans:
        reading.check()
        message = added.spans.add()
        if read(span, message):
            continue
        message.Clear()
        try:
            _fill(_with_plain_ids(span), message)
        except _UNFIT as error:
            del added.spans[-1]
            reading.reject(1, error)
    if spans and not added.spans:
        del resource.scope_spans[-1]


def _spans(scope: Any) -> Iterator[Any]:
    if not isinstance(scope, dict):
        raise ValueError("an item of scopeSpans is not an object")
    yield from _list(scope, ("spans",))


def _fill(given: Json, message: Message) -> None:
    try:
        json_format.ParseDict(given, message, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(TOO_DEEP if "too deep" in str(error) else str(error)) from None
    if not is_readable(type(message), message.SerializeToString()):
        raise ValueError(TOO_DEEP)


def _with_plain_ids(span: Any) -> Json:
    """Return the span with its ids, and those of its links, as json_format wants bytes."""
    if not isinstance(span, dict):
        raise TypeError("it is not an object")
    found = {key: _id(value) if key in _IDS else value for key, value in span.items()}
    if isinstance(links := span.get("links"), list):
        found["links"] = [
            {key: _id(value) if key in _IDS else value for key, value in link.items()}
            if isinstance(link, dict)
            else link
            for link in links
        ]
    return found


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("an id is not text")
    try:
        return base64.b64encode(binascii.unhexlify(value)).decode()
    except (binascii.Error, ValueError):
        raise ValueError(f"id {value[:40]!r} is not hex") from None


Fields = dict[str, Any]
_PAIR: Final = (1, 2)  # fields of a KeyValue that has a key and a value, and nothing else


def write(span: Span) -> Fields | None:
    """Return a span with numbers for enums and hex for ids; None if it has something else than this knows."""
    document: Fields = {}
    for field, value in span.ListFields():
        known = _WRITTEN.get(field.number)
        if known is None:
            return None
        name, form = known
        document[name] = value if form is None else form(value)
    return document


def _attributes(attributes: Iterable[KeyValue]) -> list[Fields]:
    return [_attribute(one) for one in attributes]


def _attribute(attribute: KeyValue) -> Fields:
    fields = attribute.ListFields()
    if tuple(field.number for field, _ in fields) == _PAIR:
        value: Fields | None = _value(fields[1][1])
        if value is not None:
            return {"key": fields[0][1], "value": value}
    return plain(attribute)


def _value(value: AnyValue) -> Fields | None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return {"stringValue": value.string_value}
    if kind == "double_value" and math.isfinite(value.double_value):
        return {"doubleValue": value.double_value}
    if kind == "int_value":
        return {"intValue": str(value.int_value)}
    if kind == "bool_value":
        return {"boolValue": value.bool_value}
    return None


def plain(message: Message) -> Fields:
    """Return any message as protobuf's own JSON, with numbers for enums."""
    found: Fields = json_format.MessageToDict(message, use_integers_for_enums=True)
    return found


# Number of a field of Span -> its name, and how its value is written. Links have ids in them: `json` writes them.
_WRITTEN: Final[dict[int, tuple[str, Callable[[Any], Any] | None]]] = {
    1: ("traceId", bytes.hex),
    2: ("spanId", bytes.hex),
    3: ("traceState", None),
    4: ("parentSpanId", bytes.hex),
    5: ("name", None),
    6: ("kind", None),
    7: ("startTimeUnixNano", str),
    8: ("endTimeUnixNano", str),
    9: ("attributes", _attributes),
    10: ("droppedAttributesCount", None),
    11: ("events", lambda events: [plain(event) for event in events]),
    12: ("droppedEventsCount", None),
    15: ("status", plain),
    16: ("flags", None),
}


def read(given: Any, span: Span) -> bool:
    """Fill a span; False, and some of it filled, where it has something else than this knows."""
    try:
        for key, value in given.items():
            if key == "attributes":
                for one in _exactly(list, value):
                    _read_attribute(span, one)
            elif key == "status":
                span.status.SetInParent()
                for name, content in value.items():
                    _set(span.status, _STATUS[name], content)
            else:
                _set(span, _READ[key], value)
    # KeyError: it is not known here; AttributeError: it is no object; the others: surrogates in a text, no hex, a
    # number out of range.
    except (KeyError, AttributeError, ValueError, TypeError, OverflowError):
        return False
    return True


def _read_attribute(span: Span, given: Any) -> None:
    if given.keys() != {"key", "value"}:
        raise KeyError
    ((kind, content),) = given["value"].items()
    _set(span.attributes.add(key=_text(given["key"])).value, _VALUES[kind], content)


def _set(message: Any, field: tuple[str, Callable[[Any], Any]], given: Any) -> None:
    name, form = field
    setattr(message, name, form(given))


def _exactly(kind: type, given: Any) -> Any:
    if type(given) is not kind:
        raise TypeError
    return given


_text: Final = partial(_exactly, str)
_number: Final = partial(_exactly, int)


def _id_bytes(given: Any) -> bytes:
    if not _text(given).isalnum():  # `fromhex` takes spaces, too
        raise ValueError
    return bytes.fromhex(given)


def _time(given: Any) -> int:
    return int(given) if type(given) is str and given.isascii() and given.isdigit() else int(_number(given))


def _integer(given: Any) -> int:
    is_text = type(given) is str and given.isascii() and given.removeprefix("-").isdigit()
    return int(given) if is_text else int(_number(given))


def _double(given: Any) -> float:
    if type(given) not in (float, int) or not math.isfinite(given):
        raise ValueError
    return float(given)


# Key -> the name of the field, and how its value is read.
_VALUES: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "stringValue": ("string_value", _text),
    "doubleValue": ("double_value", _double),
    "boolValue": ("bool_value", partial(_exactly, bool)),
    "intValue": ("int_value", _integer),
}
_STATUS: Final = {"code": ("code", _number), "message": ("message", _text)}
_READ: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "traceId": ("trace_id", _id_bytes),
    "spanId": ("span_id", _id_bytes),
    "traceState": ("trace_state", _text),
    "parentSpanId": ("parent_span_id", _id_bytes),
    "name": ("name", _text),
    "kind": ("kind", _number),
    "startTimeUnixNano": ("start_time_unix_nano", _time),
    "endTimeUnixNano": ("end_time_unix_nano", _time),
    "droppedAttributesCount": ("dropped_attributes_count", _number),
    "droppedEventsCount": ("dropped_events_count", _number),
    "droppedLinksCount": ("dropped_links_count", _number),
    "flags": ("flags", _number),
}

"""Single spans to and from OTLP's JSON form, as `json` has them but for a fifth of its time.

Whatever is odd or rare is left to protobuf's own `json_format`, which decides what is right: what it gives, or refuses,
is what these give.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

Json = dict[str, Any]
_PAIR: Final = (1, 2)  # fields of a KeyValue that has a key and a value, and nothing else


def write(span: Span) -> Json | None:
    """Return a span with numbers for enums and hex for ids; None if it has something else than this knows."""
    document: Json = {}
    for field, value in span.ListFields():
        known = _WRITTEN.get(field.number)
        if known is None:
            return None
        name, form = known
        document[name] = value if form is None else form(value)
    return document


def _attributes(attributes: Iterable[KeyValue]) -> list[Json]:
    return [_attribute(one) for one in attributes]


def _attribute(attribute: KeyValue) -> Json:
    fields = attribute.ListFields()
    if tuple(field.number for field, _ in fields) == _PAIR:
        value: Json | None = _value(fields[1][1])
        if value is not None:
            return {"key": fields[0][1], "value": value}
    return plain(attribute)


def _value(value: AnyValue) -> Json | None:
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


def plain(message: Message) -> Json:
    """Return any message as protobuf's own JSON, with numbers for enums."""
    found: Json = json_format.MessageToDict(message, use_integers_for_enums=True)
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
    if type(given) is not dict:
        return False
    try:
        return all(key in _READ and _READ[key](span, value) for key, value in given.items())
    except (
        ValueError,
        TypeError,
        OverflowError,
    ):  # surrogates in a text, no hex, a number out of range
        return False


def _id(name: str) -> Callable[[Span, Any], bool]:
    def fill(span: Span, given: Any) -> bool:
        # Of the digits alone: `fromhex` takes spaces, too.
        if type(given) is not str or not given.isalnum():
            return False
        setattr(span, name, bytes.fromhex(given))
        return True

    return fill


def _text(name: str) -> Callable[[Any, Any], bool]:
    def fill(span: Any, given: Any) -> bool:
        if type(given) is not str:
            return False
        setattr(span, name, given)
        return True

    return fill


def _number(name: str) -> Callable[[Any, Any], bool]:
    def fill(span: Any, given: Any) -> bool:
        if type(given) is not int:
            return False
        setattr(span, name, given)
        return True

    return fill


def _time(name: str) -> Callable[[Span, Any], bool]:
    def fill(span: Span, given: Any) -> bool:
        if type(given) is str and given.isascii() and given.isdigit():
            given = int(given)
        if type(given) is not int:
            return False
        setattr(span, name, given)
        return True

    return fill


def _read_attributes(span: Span, given: Any) -> bool:
    return type(given) is list and all(_read_attribute(span.attributes, one) for one in given)


def _read_attribute(attributes: Any, given: Any) -> bool:
    if type(given) is not dict or given.keys() != {"key", "value"} or type(given["key"]) is not str:
        return False
    value = given["value"]
    if type(value) is not dict or len(value) != 1:
        return False
    ((kind, content),) = value.items()
    attribute = attributes.add(key=given["key"])
    if kind == "stringValue" and type(content) is str:
        attribute.value.string_value = content
    elif kind == "doubleValue" and type(content) in (float, int) and math.isfinite(content):
        attribute.value.double_value = content
    elif kind == "boolValue" and type(content) is bool:
        attribute.value.bool_value = content
    elif kind == "intValue" and type(content) is int:
        attribute.value.int_value = content
    elif kind == "intValue" and type(content) is str and content.isascii() and content.removeprefix("-").isdigit():
        attribute.value.int_value = int(content)
    else:
        return False
    return True


def _status(span: Span, given: Any) -> bool:
    if type(given) is not dict or not given.keys() <= {"code", "message"}:
        return False
    span.status.SetInParent()
    return all(
        _number("code")(span.status, value) if key == "code" else _text("message")(span.status, value)
        for key, value in given.items()
    )


_READ: Final[dict[str, Callable[[Span, Any], bool]]] = {
    "traceId": _id("trace_id"),
    "spanId": _id("span_id"),
    "traceState": _text("trace_state"),
    "parentSpanId": _id("parent_span_id"),
    "name": _text("name"),
    "kind": _number("kind"),
    "startTimeUnixNano": _time("start_time_unix_nano"),
    "endTimeUnixNano": _time("end_time_unix_nano"),
    "attributes": _read_attributes,
    "droppedAttributesCount": _number("dropped_attributes_count"),
    "droppedEventsCount": _number("dropped_events_count"),
    "droppedLinksCount": _number("dropped_links_count"),
    "status": _status,
    "flags": _number("flags"),
}

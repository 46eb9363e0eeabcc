"""Single spans to and from OTLP's JSON form, as `json` has them but for a fifth of its time.

Whatever is odd or rare is left to protobuf's own `json_format`, which decides what is right: what it gives, or refuses,
is what these give.
"""

from __future__ import annotations

import math
from functools import partial
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


def _id(given: Any) -> bytes:
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
    "traceId": ("trace_id", _id),
    "spanId": ("span_id", _id),
    "traceState": ("trace_state", _text),
    "parentSpanId": ("parent_span_id", _id),
    "name": ("name", _text),
    "kind": ("kind", _number),
    "startTimeUnixNano": ("start_time_unix_nano", _time),
    "endTimeUnixNano": ("end_time_unix_nano", _time),
    "droppedAttributesCount": ("dropped_attributes_count", _number),
    "droppedEventsCount": ("dropped_events_count", _number),
    "droppedLinksCount": ("dropped_links_count", _number),
    "flags": ("flags", _number),
}

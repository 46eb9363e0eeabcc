"""The types of attributes in a store that has only their texts: of those that stagetrace knows, and its times."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from stagetrace import semconv
from stagetrace.columns import NUMBER, SCHEMA, TRUTH, WHOLE

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

_KINDS: Final = {semconv.INT: WHOLE, semconv.DOUBLE: NUMBER, semconv.BOOLEAN: TRUTH}
_TYPES: Final = {
    **{name: _KINDS[one.kind] for name, one in semconv.ATTRIBUTES.items() if one.kind in _KINDS},
    **{name: one.type for one in SCHEMA for name in (one.attribute, one.older) if name is not None},
}
_OURS: Final = ("ml.", "sla.", "stagetrace.")
_TIMES: Final = (".ms", "_ms")


def value(key: str, text: str) -> AnyValue:
    """Return the value of an attribute that has this text form: of its type where that is known, else the text."""
    is_time = key.startswith(_OURS) and key.endswith(_TIMES)  # as `ml.stage.<name>.ms`
    kind = _TYPES.get(key, NUMBER if is_time else None)
    try:
        if kind == WHOLE:
            return AnyValue(int_value=int(text))
        if kind == NUMBER and isfinite(number := float(text)):
            return AnyValue(double_value=number)
    except ValueError:  # also of a number that 64 bits cannot hold
        pass
    if kind == TRUTH and text in ("true", "false"):
        return AnyValue(bool_value=text == "true")
    return AnyValue(string_value=text)


def give_types(data: TracesData) -> None:
    """Turn the texts that attributes of spans are into values of their types."""
    for resource in data.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for item in span.attributes:
                    item.value.CopyFrom(value(item.key, item.value.string_value))

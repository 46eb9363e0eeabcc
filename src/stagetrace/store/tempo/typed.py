"""The types of attributes that VictoriaTraces returns as text: of those with one in our schema, and of stage totals."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.columns import NUMBER, SCHEMA, TRUTH, WHOLE
from stagetrace.semconv import stage_of_total

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

_KINDS: Final = {semconv.INT: WHOLE, semconv.DOUBLE: NUMBER, semconv.BOOLEAN: TRUTH}
_TYPES: Final = {
    **{name: _KINDS[one.kind] for name, one in semconv.ATTRIBUTES.items() if one.kind in _KINDS},
    **{name: one.type for one in SCHEMA for name in (one.attribute, one.older) if name is not None},
}


def give_types(data: TracesData) -> None:
    """Turn texts into values of the type that their attribute has; one that is no such value stays a text."""
    for resource in data.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for item in span.attributes:
                    kind = NUMBER if stage_of_total(item.key) else _TYPES.get(item.key)
                    if kind is not None and item.value.WhichOneof("value") == "string_value":
                        _give(item.value, kind)


def _give(value: AnyValue, kind: str) -> None:
    text = value.string_value
    if kind == TRUTH and text in ("true", "false"):
        value.bool_value = text == "true"
    try:
        if kind == WHOLE and -(2**63) <= (whole := int(text)) < 2**63:
            value.int_value = whole
        elif kind == NUMBER and isfinite(number := float(text)):
            value.double_value = number
    except ValueError:
        pass

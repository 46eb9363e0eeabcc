"""What one serialized attribute means for the columns; common ones are remembered by their bytes."""

from __future__ import annotations

from math import isfinite
from struct import Struct
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from stagetrace import semconv
from stagetrace.otlp.decode.columns import BOOL, COLUMNS, DOUBLE, INT, STRING, TYPED
from stagetrace.otlp.decode.protobuf_wire import MORE

OTHER: Final = len(COLUMNS)  # place of the sum of stage totals that have no column
_KEPT: Final = 4096  # attributes that are remembered
_LONGEST: Final = 64  # bytes of one that is
_DOUBLE: Final = Struct("<d").unpack_from
_HEAD: Final = 4  # bytes of an attribute with short parts beside key and value: two tags, two lengths
_STAGE_TOTAL: Final = b"ml.stage."  # what `semconv.stage_total_ms` begins with

# Attribute key -> place of its column, its OTLP type, the tag of this type in an AnyValue.
TAGS: Final = {STRING: 0x0A, BOOL: 0x10, INT: 0x18, DOUBLE: 0x21}
_HUGE: Final = 1e300  # beyond lie infinity and what is no number, which are no measurement: no column has them
_DOUBLE_TAG: Final = TAGS[DOUBLE]
PLACES: Final = {key.encode(): (COLUMNS.index(one.column), TAGS[one.kind]) for key, one in TYPED.items()}


# A column's place and the value for it, if any; the attribute's bytes, if the column does not hold all of it.
Meaning = tuple["int | None", Any, "bytes | None"]
known: dict[bytes, Meaning] = {}


def looked_up(pair: bytes) -> Meaning:
    """Return what a serialized KeyValue means, as it is remembered or as `meaning` says."""
    return known.get(pair) or meaning(pair)


def meaning(pair: bytes) -> Meaning:
    """Return what a serialized KeyValue means; it must be one."""
    size = len(pair)
    key_size = pair[1] if size > _HEAD else MORE
    value_at = _HEAD + key_size
    # As every encoder writes it: key, value, nothing else, each with a length of one byte.
    if (
        key_size >= MORE
        or value_at >= size
        or pair[0] != _KEY
        or pair[value_at - 2] != _VALUE
        or pair[value_at - 1] != size - value_at
    ):
        return _odd(pair)
    key = pair[2 : value_at - 2]
    typed = PLACES.get(key)
    if typed is None:
        return _odd(pair) if key.startswith(_STAGE_TOTAL) else (None, None, pair)
    if typed[1] == _DOUBLE_TAG and pair[value_at] == _DOUBLE_TAG and size == value_at + 9:
        value = _DOUBLE(pair, value_at + 1)[0]
        if -_HUGE < value < _HUGE:
            return typed[0], value, None
    return _odd(pair)


_KEY: Final = 0x0A
_VALUE: Final = 0x12


def _odd(pair: bytes) -> Meaning:
    """Return what an attribute means by way of protobuf's own reading; remember it if it is short."""
    read = KeyValue.FromString(pair)
    found = _by_value(read, _canonical(read, pair))
    if len(pair) <= _LONGEST:
        if len(known) >= _KEPT:
            known.clear()
        known[pair] = found
    return found


def _canonical(read: KeyValue, pair: bytes) -> bytes:
    """Return the bytes as protobuf writes them, so that equal attributes are equal bytes."""
    written = read.SerializeToString()
    return pair if written == pair else written


def _by_value(read: KeyValue, pair: bytes) -> Meaning:
    typed = TYPED.get(read.key)
    kind = read.value.WhichOneof("value")
    if typed is None:
        if kind in (INT, DOUBLE) and semconv.stage_of_total(read.key):
            total = float(getattr(read.value, kind))
            if isfinite(total):
                return (OTHER, total, pair)
        return (None, None, pair)
    place = COLUMNS.index(typed.column)
    value = getattr(read.value, typed.kind)
    if kind == typed.kind and (kind != DOUBLE or isfinite(value)):
        plain = KeyValue(key=read.key)
        setattr(plain.value, typed.kind, value)
        return (place, value, None if plain.SerializeToString() == pair else pair)
    if kind == INT and typed.kind == DOUBLE:
        return (place, float(read.value.int_value), pair)
    return place, None, pair  # so that the key counts as seen

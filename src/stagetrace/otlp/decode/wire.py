"""Protobuf's wire format, as far as taking messages apart needs it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

MORE: Final = 0x80  # set in each byte of a number but its last
DELIMITED: Final = 2
_VARINT: Final = 0
_WIDTHS: Final = {1: 8, 5: 4}
_LEAST_TAG: Final = 1 << 3  # of field number 1
_GREATEST_TAG: Final = (1 << 32) - 1
_LONGEST: Final = 70  # bits, ten bytes of seven


class BrokenError(ValueError):
    """Say that the bytes are no message."""


class Field(NamedTuple):
    """Where a field of a message is: its number, its tag's first byte, its value's first byte, what follows it."""

    number: int
    start: int
    first: int
    after: int
    delimited: bool


def varint(number: int) -> bytes:
    """Return a number as lengths are written."""
    out = bytearray()
    while number >= MORE:
        out.append(number & (MORE - 1) | MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def varint_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at` and what follows it. Raise BrokenError if there is none."""
    number = shift = 0
    for place in range(at, len(data)):
        byte = data[place]
        number |= (byte & (MORE - 1)) << shift
        if byte < MORE:
            return number, place + 1
        shift += 7
        if shift >= _LONGEST:
            break
    raise BrokenError(at)


def field_at(data: bytes | memoryview, at: int, end: int) -> Field:
    """Return the field at `at` of a message that ends at `end`. Raise BrokenError if it does not fit in."""
    tag, first = varint_at(data, at)
    if not _LEAST_TAG <= tag <= _GREATEST_TAG:
        raise BrokenError(at)
    kind = tag & 7
    if kind == DELIMITED:
        size, first = varint_at(data, first)
        after = first + size
    elif kind == _VARINT:
        _, after = varint_at(data, first)
    elif kind in _WIDTHS:
        after = first + _WIDTHS[kind]
    else:
        raise BrokenError(at)  # groups, which nothing has used for twenty years
    if after > end:
        raise BrokenError(at)
    return Field(tag >> 3, at, first, after, kind == DELIMITED)


def fields(data: bytes | memoryview, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message at data[at:end]. Raise BrokenError where it breaks."""
    while at < end:
        field = field_at(data, at, end)
        yield field
        at = field.after


# --- How deep messages nest. protobuf reads 100 levels, counted from wherever it begins.
#
# A span alone begins three levels beneath its request, so one that is readable alone may be unreadable in every
# response. Here all are read as deep as they are in a request, and in fewer levels than any reader of OTLP takes.

DEEPEST: Final = 64  # levels of messages in a request: 29 arrays within each other, or 19 maps
TOO_DEEP: Final = "attributes nest too deep (more than some 19 maps or 29 arrays within each other)"
_READ: Final = 100  # levels that protobuf reads
# The level of each message within a request.
_LEVELS: Final[dict[type[Message], int]] = {ExportTraceServiceRequest: 0, ResourceSpans: 1, ScopeSpans: 2, Span: 3}
_BEGIN: Final = b"\x0b"  # of the group `level` in a Level
_END: Final = b"\x0c"
_FIRST: Final = 2  # number of the field of a Level for the first of `_LEVELS`


def _level() -> type[Message]:
    """Return a message that contains itself, or one of `_LEVELS`. A group begins and ends without a length."""
    made = descriptor_pb2.FileDescriptorProto(name="stagetrace/level.proto", package="stagetrace", syntax="proto2")
    level = made.message_type.add(name="Level")
    field = descriptor_pb2.FieldDescriptorProto
    optional = field.LABEL_OPTIONAL
    level.field.add(name="level", number=1, label=optional, type=field.TYPE_GROUP, type_name=".stagetrace.Level")
    for number, kind in enumerate(_LEVELS, _FIRST):
        name = f".{kind.DESCRIPTOR.full_name}"
        level.field.add(name=f"m{number}", number=number, label=optional, type=field.TYPE_MESSAGE, type_name=name)
    pool = DescriptorPool()
    for module in (common_pb2, resource_pb2, trace_pb2, trace_service_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        made.dependency.append(module.DESCRIPTOR.name)
    pool.AddSerializedFile(made.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("stagetrace.Level"))


_read: Final = _level().FromString


def _around(number: int, level: int) -> tuple[bytes, bytes]:
    """Return the bytes before the length of a message, and those behind it, at which only DEEPEST levels are read."""
    levels = _READ - DEEPEST + level - 1
    return _BEGIN * levels + bytes((number << 3 | 2,)), _END * levels


_AROUND: Final = {kind: _around(number, _LEVELS[kind]) for number, kind in enumerate(_LEVELS, _FIRST)}


def is_readable(kind: type[Message], data: bytes) -> bool:
    """Return whether protobuf can read a message, and it nests no deeper than DEEPEST in its request."""
    begin, end = _AROUND[kind]
    try:
        _read(b"%b%b%b%b" % (begin, varint(len(data)), data, end))
    except DecodeError:
        return False
    return True


def holds_more(kind: type[Message], data: bytes, most: int) -> bool:
    """Return whether a message holds more than `most` others, at any depth. What is no message is not counted."""
    count = 0
    waiting = [(kind.DESCRIPTOR, 0, len(data))]
    while waiting:
        descriptor, at, end = waiting.pop()
        held = _message_fields(descriptor)
        try:
            for field in fields(data, at, end):
                inner = held.get(field.number) if field.delimited else None
                if inner is not None:
                    count += 1
                    if count > most:
                        return True
                    waiting.append((inner, field.first, field.after))
        except BrokenError:  # protobuf refuses it, too
            continue
    return False


@lru_cache
def _message_fields(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the kinds of messages that one holds, by the numbers of its fields."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}

"""How deep messages nest. protobuf reads 100 levels, counted from wherever it begins.

A span alone begins three levels beneath its request, so one that is readable alone may be unreadable in every response.
Here all are read as deep as they are in a request, and in fewer levels than any reader of OTLP takes.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from stagetrace.otlp.decode.protobuf_wire import varint

if TYPE_CHECKING:
    from collections.abc import Iterator

DEEPEST: Final = 64  # levels of messages in a request: 29 arrays within each other, or 19 maps
TOO_DEEP: Final = "attributes nest too deep (more than some 19 maps or 29 arrays within each other)"
_READ: Final = 100  # levels that protobuf reads
# The level of each message within a request; of an attribute, the deepest: that of an event or a link.
_LEVELS: Final[dict[type[Message], int]] = {
    ExportTraceServiceRequest: 0,
    ResourceSpans: 1,
    ScopeSpans: 2,
    Span: 3,
    KeyValue: 5,
}
_BEGIN: Final = b"\x0b"  # of the group `level` in a Level
_END: Final = b"\x0c"
_FIRST: Final = 2  # number of the field of a Level for the first of `_LEVELS`
_SHALLOW: Final = 2 * (DEEPEST - 3)  # bytes that cannot nest too deep: each level has a tag and a length, or two tags
_KEPT: Final = 1000  # resources and scopes that are remembered


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


def shallow(kind: type[Message], data: bytes) -> bytes:
    """Return a span, or a resource or scope without spans, without the attributes that nest too deep.

    These are counted in the message, as OTLP has it. Older versions have stored such spans. Raise DecodeError where
    protobuf cannot read it at all.
    """
    if len(data) <= _SHALLOW or is_readable(kind, data):
        return data
    message = kind.FromString(data)
    for holder in _holders(message):
        _drop_deep(holder)
    found = message.SerializeToString()
    if not is_readable(kind, found):  # fields that OTLP does not have
        message.DiscardUnknownFields()
        found = message.SerializeToString()
    return found


shared_shallow: Final = lru_cache(_KEPT)(shallow)


def _holders(message: Any) -> Iterator[Any]:
    """Yield the messages with attributes of a Span, ResourceSpans or ScopeSpans."""
    if isinstance(message, Span):
        return chain((message,), message.events, message.links)
    return iter((message.resource if isinstance(message, ResourceSpans) else message.scope,))


def _drop_deep(holder: Any) -> None:
    deep = [at for at, one in enumerate(holder.attributes) if not is_readable(KeyValue, one.SerializeToString())]
    for at in reversed(deep):
        del holder.attributes[at]
    if deep:
        holder.dropped_attributes_count += len(deep)

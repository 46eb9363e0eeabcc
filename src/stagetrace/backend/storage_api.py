"""Messages of Jaeger's remote storage (`jaeger.storage.v2`), built field by field as in `store/jaeger/api_v3.py`.

Only messages that `jaeger.api_v3` lacks in the same wire form; services and operations are its messages.
Attributes are OTLP's KeyValue in all but name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.common.v1 import common_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

PACKAGE: Final = "jaeger.storage.v2"
READER: Final = f"{PACKAGE}.TraceReader"
_Field = descriptor_pb2.FieldDescriptorProto
_TIMESTAMP: Final = ".google.protobuf.Timestamp"
_DURATION: Final = ".google.protobuf.Duration"
_ATTRIBUTES: Final = "[].opentelemetry.proto.common.v1.KeyValue"

# message -> ((field, number, type), ...). A leading dot names a message; `[]` repeats.
MESSAGES: Final[dict[str, tuple[tuple[str, int, str], ...]]] = {
    "GetTraceParams": (("trace_id", 1, "bytes"), ("start_time", 2, _TIMESTAMP), ("end_time", 3, _TIMESTAMP)),
    "GetTracesRequest": (("query", 1, f"[].{PACKAGE}.GetTraceParams"),),
    "TraceQueryParameters": (
        ("service_name", 1, "string"),
        ("operation_name", 2, "string"),
        ("attributes", 3, _ATTRIBUTES),
        ("start_time_min", 4, _TIMESTAMP),
        ("start_time_max", 5, _TIMESTAMP),
        ("duration_min", 6, _DURATION),
        ("duration_max", 7, _DURATION),
        ("search_depth", 8, "int32"),
    ),
    "FindTracesRequest": (("query", 1, f".{PACKAGE}.TraceQueryParameters"),),
    "FoundTraceID": (("trace_id", 1, "bytes"), ("start", 2, _TIMESTAMP), ("end", 3, _TIMESTAMP)),
    "FindTraceIDsResponse": (("trace_ids", 1, f"[].{PACKAGE}.FoundTraceID"),),
}
_SCALARS: Final = {"string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES, "int32": _Field.TYPE_INT32}


def path(method: str) -> str:
    """Return the HTTP/2 path of a method of the reader."""
    return f"/{READER}/{method}"


def _pool() -> DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="storage/v2/trace_storage.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[module.DESCRIPTOR.name for module in (timestamp_pb2, duration_pb2, common_pb2)],
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = _Field.LABEL_REPEATED if kind.startswith("[]") else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            plain = kind.removeprefix("[]")
            if plain.startswith("."):
                added.type, added.type_name = _Field.TYPE_MESSAGE, plain
            else:
                added.type = _SCALARS[plain]
    pool = DescriptorPool()
    for module in (timestamp_pb2, duration_pb2, common_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL: Final = _pool()


def _message(name: str) -> type[Message]:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


GetTracesRequest: Final[Any] = _message("GetTracesRequest")
FindTracesRequest: Final[Any] = _message("FindTracesRequest")
FindTraceIDsResponse: Final[Any] = _message("FindTraceIDsResponse")

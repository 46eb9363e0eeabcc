"""Protobuf messages built field by field, for services whose messages no package ships for Python.

That takes no compiler and no copied `.proto`; tests compare each field with the descriptors inside the real Jaeger.
Each file has a pool of its own, so that another Jaeger client in the same process cannot collide with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import Message

# message -> ((field, number, type), ...). A leading dot names a message; `[]` repeats; `{}` maps string to string.
Messages: TypeAlias = "Mapping[str, tuple[tuple[str, int, str], ...]]"

TIMESTAMP: Final = ".google.protobuf.Timestamp"
DURATION: Final = ".google.protobuf.Duration"
_DEPENDENCIES: Final = (timestamp_pb2, duration_pb2, common_pb2, resource_pb2, trace_pb2)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
}


def file_of(name: str, package: str, messages: Messages) -> descriptor_pb2.FileDescriptorProto:
    """Return the description of a file with these messages."""
    dependencies = [module.DESCRIPTOR.name for module in _DEPENDENCIES]
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=dependencies)
    for message, fields in messages.items():
        added = file.message_type.add(name=message)
        for field in fields:
            _add_field(package, added, *field)
    return file


class MessagePool:
    """The messages of one file."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        """Build them, with everything that they refer to."""
        self._package = file.package
        self._pool = DescriptorPool()
        for module in _DEPENDENCIES:
            self._pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self._pool.AddSerializedFile(file.SerializeToString())

    def message(self, name: str) -> type[Message]:
        """Return the class of a message."""
        return GetMessageClass(self._pool.FindMessageTypeByName(f"{self._package}.{name}"))


def _add_field(package: str, message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    """Add one field to `message`, and the entry type that a map needs."""
    repeated = kind.startswith("[]") or kind == "{}"
    field = message.field.add(
        name=name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    kind = kind.removeprefix("[]")
    if kind == "{}":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(package, entry, "key", 1, "string")
        _add_field(package, entry, "value", 2, "string")
        kind = f".{package}.{message.name}.{entry.name}"
    if kind.startswith("."):
        field.type = _Field.TYPE_MESSAGE
        field.type_name = kind
    else:
        field.type = _SCALARS[kind]


# --- Messages and method paths of Jaeger's gRPC service `jaeger.api_v3.QueryService`.
#
# Responses with spans are plain OTLP (`opentelemetry.proto.trace.v1.TracesData`).

PACKAGE: Final = "jaeger.api_v3"
SERVICE: Final = f"{PACKAGE}.QueryService"
FILE: Final = "api_v3/query_service.proto"

_TRACES: Final = ".opentelemetry.proto.trace.v1.TracesData"

_MESSAGES: Final[Messages] = {
    "GetTraceRequest": (
        ("trace_id", 1, "string"),
        ("start_time", 2, TIMESTAMP),
        ("end_time", 3, TIMESTAMP),
        ("raw_traces", 4, "bool"),
    ),
    "TraceQueryParameters": (
        ("service_name", 1, "string"),
        ("operation_name", 2, "string"),
        ("attributes", 3, "{}"),
        ("start_time_min", 4, TIMESTAMP),
        ("start_time_max", 5, TIMESTAMP),
        ("duration_min", 6, DURATION),
        ("duration_max", 7, DURATION),
        ("search_depth", 8, "int32"),
        ("raw_traces", 9, "bool"),
    ),
    "FindTracesRequest": (("query", 1, f".{PACKAGE}.TraceQueryParameters"),),
    "GetServicesRequest": (),
    "GetServicesResponse": (("services", 1, "[]string"),),
    "GetOperationsRequest": (("service", 1, "string"), ("span_kind", 2, "string")),
    "Operation": (("name", 1, "string"), ("span_kind", 2, "string")),
    "GetOperationsResponse": (("operations", 1, f"[].{PACKAGE}.Operation"),),
}

# method -> (request, response, whether the response is a stream)
_METHODS: Final[dict[str, tuple[str, str, bool]]] = {
    "GetTrace": (f".{PACKAGE}.GetTraceRequest", _TRACES, True),
    "FindTraces": (f".{PACKAGE}.FindTracesRequest", _TRACES, True),
    "GetServices": (f".{PACKAGE}.GetServicesRequest", f".{PACKAGE}.GetServicesResponse", False),
    "GetOperations": (f".{PACKAGE}.GetOperationsRequest", f".{PACKAGE}.GetOperationsResponse", False),
}


def path(method: str) -> str:
    """Return the HTTP/2 path of `method`."""
    return f"/{SERVICE}/{method}"


def file_descriptor() -> FileDescriptorProto:
    """Return the description of the whole file: messages and service."""
    file = file_of(FILE, PACKAGE, _MESSAGES)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name, (request, response, streams) in _METHODS.items():
        service.method.add(name=name, input_type=request, output_type=response, server_streaming=streams)
    return file


_POOL: Final = MessagePool(file_descriptor())
GetTraceRequest: Final[Any] = _POOL.message("GetTraceRequest")
FindTracesRequest: Final[Any] = _POOL.message("FindTracesRequest")
GetServicesRequest: Final[Any] = _POOL.message("GetServicesRequest")
GetServicesResponse: Final[Any] = _POOL.message("GetServicesResponse")
GetOperationsRequest: Final[Any] = _POOL.message("GetOperationsRequest")
GetOperationsResponse: Final[Any] = _POOL.message("GetOperationsResponse")

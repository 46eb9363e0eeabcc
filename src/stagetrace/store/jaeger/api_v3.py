"""Messages and method paths of Jaeger's gRPC service `jaeger.api_v3.QueryService`, built here field by field.

No package ships these messages for Python. Building their descriptors takes no compiler and no copied `.proto`; the
tests compare each field with the descriptor inside the real Jaeger. They live in a pool of their own, so that another
Jaeger client in the same process cannot collide with them. Answers with spans are plain OTLP
(`opentelemetry.proto.trace.v1.TracesData`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

PACKAGE: Final = "jaeger.api_v3"
SERVICE: Final = f"{PACKAGE}.QueryService"
FILE: Final = "api_v3/query_service.proto"
# Metadata of FindTraces by which our own back end may leave out of each trace the spans that do not meet the search. It
# never does where a matching span has no stage totals: its children hold them. Jaeger does not know this key.
ONLY_FOUND: Final = ("stagetrace-only-found", "true")

_Field = descriptor_pb2.FieldDescriptorProto
_TIMESTAMP: Final = ".google.protobuf.Timestamp"
_DURATION: Final = ".google.protobuf.Duration"
_TRACES: Final = ".opentelemetry.proto.trace.v1.TracesData"

# message -> ((field, number, type), ...). A leading dot names a message; `[]` repeats; `{}` maps string to string.
_MESSAGES: Final[dict[str, tuple[tuple[str, int, str], ...]]] = {
    "GetTraceRequest": (
        ("trace_id", 1, "string"),
        ("start_time", 2, _TIMESTAMP),
        ("end_time", 3, _TIMESTAMP),
        ("raw_traces", 4, "bool"),
    ),
    "TraceQueryParameters": (
        ("service_name", 1, "string"),
        ("operation_name", 2, "string"),
        ("attributes", 3, "{}"),
        ("start_time_min", 4, _TIMESTAMP),
        ("start_time_max", 5, _TIMESTAMP),
        ("duration_min", 6, _DURATION),
        ("duration_max", 7, _DURATION),
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

_SCALARS: Final = {"string": _Field.TYPE_STRING, "bool": _Field.TYPE_BOOL, "int32": _Field.TYPE_INT32}


def path(method: str) -> str:
    """Return the HTTP/2 path of `method`."""
    return f"/{SERVICE}/{method}"


def file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """Return the description of the whole file: messages and service."""
    file = descriptor_pb2.FileDescriptorProto(
        name=FILE,
        package=PACKAGE,
        syntax="proto3",
        dependency=[timestamp_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name, trace_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, *field)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name, (request, response, streams) in _METHODS.items():
        service.method.add(name=name, input_type=request, output_type=response, server_streaming=streams)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    """Add one field to `message`, and the entry type that a map needs."""
    repeated = kind.startswith("[]") or kind == "{}"
    field = message.field.add(
        name=name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    kind = kind.removeprefix("[]")
    if kind == "{}":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, "string")
        kind = f".{PACKAGE}.{message.name}.{entry.name}"
    if kind.startswith("."):
        field.type = _Field.TYPE_MESSAGE
        field.type_name = kind
    else:
        field.type = _SCALARS[kind]


def _build_pool() -> DescriptorPool:
    """Return a pool that holds our file and everything that it refers to."""
    pool = DescriptorPool()
    for module in (timestamp_pb2, duration_pb2, common_pb2, resource_pb2, trace_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file_descriptor().SerializeToString())
    return pool


_POOL: Final = _build_pool()


def _message(name: str) -> type[Message]:
    """Return the class of message `name`."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


GetTraceRequest: Final = _message("GetTraceRequest")
FindTracesRequest: Final = _message("FindTracesRequest")
GetServicesRequest: Final = _message("GetServicesRequest")
GetServicesResponse: Final = _message("GetServicesResponse")
GetOperationsRequest: Final = _message("GetOperationsRequest")
GetOperationsResponse: Final = _message("GetOperationsResponse")

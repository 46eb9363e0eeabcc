"""Messages and method paths of Jaeger's gRPC service `jaeger.api_v3.QueryService`.

Responses with spans are plain OTLP (`opentelemetry.proto.trace.v1.TracesData`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.store.jaeger.message_pool import DURATION, TIMESTAMP, MessagePool, Messages, file_of

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto


PACKAGE: Final = "jaeger.api_v3"
SERVICE: Final = f"{PACKAGE}.QueryService"
FILE: Final = "api_v3/query_service.proto"
# Metadata of FindTraces by which our own back end may leave out of each trace the spans that do not meet the search. It
# never does where a matching span has no stage totals: its children hold them. Jaeger does not know this key.
ONLY_FOUND: Final = ("stagetrace-only-found", "true")

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

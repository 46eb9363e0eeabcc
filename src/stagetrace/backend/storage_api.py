"""Messages of Jaeger's remote storage (`jaeger.storage.v2`), built as in `store/jaeger/api_v3.py`.

Only messages that `jaeger.api_v3` lacks in the same wire form; services and operations are its messages.
Attributes are OTLP's KeyValue in all but name.
"""

from __future__ import annotations

from typing import Any, Final

from stagetrace.store.jaeger.message_pool import DURATION, TIMESTAMP, MessagePool, Messages, file_of

PACKAGE: Final = "jaeger.storage.v2"
READER: Final = f"{PACKAGE}.TraceReader"
_ATTRIBUTES: Final = "[].opentelemetry.proto.common.v1.KeyValue"

MESSAGES: Final[Messages] = {
    "GetTraceParams": (("trace_id", 1, "bytes"), ("start_time", 2, TIMESTAMP), ("end_time", 3, TIMESTAMP)),
    "GetTracesRequest": (("query", 1, f"[].{PACKAGE}.GetTraceParams"),),
    "TraceQueryParameters": (
        ("service_name", 1, "string"),
        ("operation_name", 2, "string"),
        ("attributes", 3, _ATTRIBUTES),
        ("start_time_min", 4, TIMESTAMP),
        ("start_time_max", 5, TIMESTAMP),
        ("duration_min", 6, DURATION),
        ("duration_max", 7, DURATION),
        ("search_depth", 8, "int32"),
    ),
    "FindTracesRequest": (("query", 1, f".{PACKAGE}.TraceQueryParameters"),),
    "FoundTraceID": (("trace_id", 1, "bytes"), ("start", 2, TIMESTAMP), ("end", 3, TIMESTAMP)),
    "FindTraceIDsResponse": (("trace_ids", 1, f"[].{PACKAGE}.FoundTraceID"),),
}


def path(method: str) -> str:
    """Return the HTTP/2 path of a method of the reader."""
    return f"/{READER}/{method}"


_POOL: Final = MessagePool(file_of("storage/v2/trace_storage.proto", PACKAGE, MESSAGES))
GetTracesRequest: Final[Any] = _POOL.message("GetTracesRequest")
FindTracesRequest: Final[Any] = _POOL.message("FindTracesRequest")
FindTraceIDsResponse: Final[Any] = _POOL.message("FindTraceIDsResponse")

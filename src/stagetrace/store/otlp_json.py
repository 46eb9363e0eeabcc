"""OTLP's JSON, which is protobuf's own but for ids in hex and enums as numbers: one object to and from a message."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IDS = {"traceId": 32, "spanId": 16, "parentSpanId": 16}


def decode(text: str | bytes) -> ExportTraceServiceRequest:
    """Return the request that one JSON object is; unknown keys are ignored. Raise ValueError saying what is wrong."""
    try:
        given = json.loads(text)
        _each_id(given, _base64)
        message = ExportTraceServiceRequest()
        json_format.ParseDict(given, message, ignore_unknown_fields=True)
    except (ValueError, json_format.ParseError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return message


def encode(message: ExportTraceServiceRequest) -> str:
    """Return a request as one line of OTLP JSON, as the Collector's file exporter writes it."""
    given = json_format.MessageToDict(message, use_integers_for_enums=True)
    _each_id(given, _hex)
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def _each_id(request: dict[str, Any], change: Callable[[str, int], str]) -> None:
    """Change each id of each span and link."""
    for holder in _holders(request):
        for key, digits in _IDS.items():
            if isinstance(holder.get(key), str):
                holder[key] = change(holder[key], digits)


def _holders(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource_spans in request.get("resourceSpans") or ():
        for scope_spans in resource_spans.get("scopeSpans") or ():
            for span in scope_spans.get("spans") or ():
                yield span
                yield from span.get("links") or ()


def _base64(text: str, digits: int) -> str:
    """Return hex as base64. Raise ValueError for what is no id of this many digits; an empty one is absent."""
    if len(text) not in (0, digits):
        raise ValueError(f"an id has {digits} hex digits, not {text[:80]!r}")
    return base64.b64encode(bytes.fromhex(text)).decode()


def _hex(text: str, _: int) -> str:
    return base64.b64decode(text).hex()

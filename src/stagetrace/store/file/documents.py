"""The forms in which JSON documents hold spans: each is recognised by its keys, then decoded; any other is named.

Read are OTLP (also of before 1.0, with ids in base64, and as Tempo and `jaeger.api_v3` wrap it), Jaeger's own JSON and
its documents in Elasticsearch. Nothing is taken for an empty request: an object without spans is an error that says
what it looks like.
"""

# ruff: noqa: TRY004 -- the value is wrong in a document, whatever its type

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stagetrace.otlp.decode.json import decode_document, quoted
from stagetrace.store.file import jaeger_json
from stagetrace.store.file.jaeger_json import Read

Json = dict[str, Any]
_RESOURCES: Final = ("resourceSpans", "resource_spans", "batches")  # batches: as Tempo's API has it, and OTLP of 2020
_SCOPES: Final = (
    "scopeSpans",
    "scope_spans",
    "instrumentationLibrarySpans",  # before OTLP 1.0
    "instrumentation_library_spans",
    "ilSpans",
)
_LIBRARY: Final = ("instrumentationLibrary", "instrumentation_library")
_IDS: Final = {"traceId": 16, "spanId": 8, "parentSpanId": 8, "trace_id": 16, "span_id": 8, "parent_span_id": 8}
_OTHER_SIGNALS: Final = ("resourceMetrics", "resourceLogs", "resourceProfiles")
_WRAPPERS: Final = ("result", "trace", "_source")  # jaeger.api_v3; Tempo's API; Elasticsearch
_KEYS: Final = 5  # that an error names


def parse(text: str | bytes) -> Any:
    """Return a JSON value. Raise ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {quoted(error)}") from None


def parse_all(text: bytes) -> Iterator[Any]:
    """Yield the JSON values that stand one after another in a text, over any lines. Raise ValueError."""
    decoder, place = json.JSONDecoder(), 0
    whole = text.decode("utf-8", "replace").lstrip("\ufeff").strip()
    while place < len(whole):
        try:
            value, place = decoder.raw_decode(whole, place)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {quoted(error)}") from None
        yield value
        while place < len(whole) and whole[place] in " \t\r\n,":
            place += 1


def read(document: Any) -> Read | None:
    """Return the spans of a document, None where it is of another signal. Raise ValueError where it is of no form."""
    for is_of, decode in _FORMS:
        if is_of(document):
            return decode(document)
    raise ValueError(_named(document))


def _has(*keys: str) -> Callable[[Any], bool]:
    """Return whether a document is an object with all of these keys."""
    return lambda document: isinstance(document, dict) and all(key in document for key in keys)


def _resources(document: Any) -> str | None:
    return next((key for key in _RESOURCES if isinstance(document, dict) and key in document), None)


def _wrapper(document: Any) -> str | None:
    """Return the key under which a document holds another one."""
    return next(
        (key for key in _WRAPPERS if isinstance(document, dict) and isinstance(document.get(key), dict)
         and (key != "trace" or _resources(document[key]))), None,
    )  # fmt: skip


def _is_list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda document: isinstance(document, list) and bool(document) and is_one(document[0])


def _otlp(document: Json) -> Read:
    """Decode OTLP, whose older names and ids in base64 become those of today."""
    resources = document[_resources(document) or ""]
    for resource in resources if isinstance(resources, list) else ():
        if isinstance(resource, dict):
            _modernise(resource)
    return Read(*decode_document({"resourceSpans": resources}))


def _modernise(resource: Json) -> None:
    key = next((key for key in _SCOPES if key in resource), None)
    scopes = [] if key is None else resource.pop(key)
    resource["scopeSpans"] = scopes
    for scope in scopes if isinstance(scopes, list) else ():
        if not isinstance(scope, dict):
            continue
        for older in _LIBRARY:
            if older in scope:
                scope["scope"] = scope.pop(older)
        spans = scope.get("spans")
        for span in spans if isinstance(spans, list) else ():
            if isinstance(span, dict):
                links = span.get("links")
                for holder in (span, *(links if isinstance(links, list) else ())):
                    _write_hex(holder)


def _write_hex(holder: Any) -> None:
    """Write ids in hex that are base64, as protobuf's own JSON has them: their length distinguishes them."""
    for key in _IDS.keys() & holder.keys() if isinstance(holder, dict) else ():
        found, size = holder[key], _IDS[key]
        if isinstance(found, str) and len(found) == 4 * -(-size // 3):
            try:
                decoded = base64.b64decode(found, validate=True)
            except binascii.Error:
                continue
            holder[key] = decoded.hex() if len(decoded) == size else found


def _of_each(documents: list[Any]) -> Read:
    """Decode documents of one form, which stand in a list."""
    request, rejected, reason = ExportTraceServiceRequest(), 0, None
    for document in documents:
        found = read(document)
        if found is not None:
            request.MergeFrom(found.request)
            rejected, reason = rejected + found.rejected, reason or found.reason
    return Read(request, rejected, reason)


# The first that fits decides.
_FORMS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], Read | None]], ...]] = (
    (lambda document: _resources(document) is not None, _otlp),
    (lambda document: _wrapper(document) is not None, lambda document: read(document[_wrapper(document)])),
    (lambda document: any(_has(key)(document) for key in _OTHER_SIGNALS), lambda _: None),
    (_has("spans"), jaeger_json.read),
    (_has("data"), jaeger_json.read),
    (_is_list_of(_has("spans")), jaeger_json.read),
    # A span as Jaeger keeps it in Elasticsearch; and the response of a search there.
    (_has("traceID", "spanID", "process"), lambda document: jaeger_json.read({"spans": [_of_index(document)]})),
    (_has("hits"), lambda document: _of_each(_hits(document))),
    (_is_list_of(lambda one: _resources(one) is not None or _wrapper(one) is not None), _of_each),
)


def _of_index(span: Json) -> Json:
    """Return a span out of an index, where tags may be fields of `tag`, with @ for each dot of a key."""
    process = span["process"]
    return {**_with_tags(span), "process": _with_tags(process) if isinstance(process, dict) else process}


def _with_tags(holder: Json) -> Json:
    fields, tags = holder.get("tag"), holder.get("tags") or []
    if not isinstance(fields, dict) or not isinstance(tags, list):
        return holder
    return {**holder, "tags": [*tags, *({"key": key.replace("@", "."), "value": fields[key]} for key in fields)]}


def _hits(document: Json) -> list[Any]:
    hits = document["hits"]
    found = hits.get("hits") if isinstance(hits, dict) else None
    if not isinstance(found, list):
        raise ValueError("its hits are no list")
    return found


# Forms that are recognised, and not read: how one says so.
_UNREAD: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (_has("traceId", "id"), "a span of Zipkin's JSON; a Collector's zipkin receiver takes it"),
    (_has("context", "start_time"), "a span as OpenTelemetry's console exporter prints it, which is not OTLP"),
    (_has("trace_id", "span_id"), "a span as Elasticsearch keeps it (trace_id, span_id), which is not OTLP"),
    (_has("TraceId", "SpanId"), "a span as a Collector's exporter keeps it in Elasticsearch, which is not OTLP"),
    (_has("@timestamp", "trace"), "a document of Elastic APM, which is not OTLP"),
    (_has("traceId", "spanId"), "a span of OTLP outside of resourceSpans"),
    (_has("traceEvents"), "a trace of Chrome's"),
)


def _named(document: Any) -> str:
    """Return what a document is that is not read."""
    first = document[0] if isinstance(document, list) and document else document
    if _is_list_of(lambda one: isinstance(one, list))(document):
        first = first[0] if first else first  # Zipkin's: a list of traces, each a list of spans
    name = next((name for is_of, name in _UNREAD if is_of(first)), None)
    if name is not None:
        return f"it is {name}"
    if not isinstance(document, dict):
        return f"it is {'a list of no spans' if isinstance(document, list) else 'no JSON object'}"
    keys = ", ".join(map(repr, list(document)[:_KEYS])) + (", ..." if len(document) > _KEYS else "")
    return f"it is an object without resourceSpans{f': its keys are {quoted(keys)}' if keys else ''}"

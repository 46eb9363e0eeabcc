"""`jaeger.storage.v2.TraceReader`: lets a real Jaeger, with its web page, read out of our store.

Jaeger writes to the OTLP port. It adjusts traces for display itself, so they are sent as recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from stagetrace.backend import storage_api
from stagetrace.backend.query import Queries, Query, search_of
from stagetrace.span_attributes import as_text
from stagetrace.store.jaeger import api_v3
from stagetrace.store.rows import value

if TYPE_CHECKING:
    from stagetrace.backend.grpc_calls import Handlers
    from stagetrace.backend.query_calls import QueryCalls, Single
    from stagetrace.store.local.search import Search

# Jaeger 2.13 takes messages of up to 4 MiB from a storage, a fixed limit.
_CHUNK_BYTES: Final = 3 << 20


def storage_handlers(queries: Queries, calls: QueryCalls, services: Single, operations: Single) -> Handlers:
    """Return the handlers of the five methods; `services` and `operations` respond as in api_v3."""

    def get(request: Any, query: Query, _only_found: bool) -> Iterator[TracesData]:
        for one in request.query:
            found = queries.trace(one.trace_id.hex(), raw=True, query=query)
            if found is not None:
                yield from chunks(found)

    def find(request: Any, query: Query, _only_found: bool) -> Iterator[TracesData]:
        for found in queries.find(_search(request.query), query):
            yield from chunks(found)

    def find_ids(request: Any, query: Query) -> Any:
        response = storage_api.FindTraceIDsResponse()
        for found in queries.find(_search(request.query), query):
            starts, ends = zip(*_times(found), strict=True)
            added = response.trace_ids.add(trace_id=found.resource_spans[0].scope_spans[0].spans[0].trace_id)
            added.start.FromNanoseconds(min(starts))
            added.end.FromNanoseconds(max(ends))
        return response

    return {
        storage_api.path("GetTraces"): calls.stream(get, storage_api.GetTracesRequest),
        storage_api.path("FindTraces"): calls.stream(find, storage_api.FindTracesRequest),
        storage_api.path("FindTraceIDs"): calls.single(find_ids, storage_api.FindTracesRequest),
        storage_api.path("GetServices"): calls.single(services, api_v3.GetServicesRequest),
        storage_api.path("GetOperations"): calls.single(operations, api_v3.GetOperationsRequest),
    }


def chunks(trace: TracesData) -> Iterator[TracesData]:
    """Yield one trace in messages small enough for Jaeger, none of them empty."""
    if trace.ByteSize() <= _CHUNK_BYTES:
        yield trace
        return
    part, size = TracesData(), 0
    for resource_spans in trace.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            target = None
            for span in scope_spans.spans:
                length = span.ByteSize()
                if size and size + length > _CHUNK_BYTES:
                    yield part
                    part, size, target = TracesData(), 0, None
                if target is None:
                    around = part.resource_spans.add(schema_url=resource_spans.schema_url)
                    around.resource.CopyFrom(resource_spans.resource)
                    target = around.scope_spans.add(schema_url=scope_spans.schema_url)
                    target.scope.CopyFrom(scope_spans.scope)
                target.spans.append(span)
                size += length
    yield part


def _search(query: Any) -> Search:
    return search_of(query, {one.key: as_text(value(one.value)) for one in query.attributes}, raw=True)


def _times(trace: TracesData) -> Iterator[tuple[int, int]]:
    for resource_spans in trace.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield span.start_time_unix_nano, span.end_time_unix_nano

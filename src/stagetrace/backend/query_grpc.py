"""`jaeger.api_v3.QueryService` over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stagetrace.backend.go_values import trace_id
from stagetrace.backend.query import Queries, Query, QueryError, search_of_request
from stagetrace.backend.query_calls import QueryCalls
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.grpc_calls import Handlers


def query_handlers(queries: Queries, counters: Counters) -> Handlers:
    """Return the handlers of the four methods of api_v3."""
    calls = QueryCalls(counters)

    def services(_request: Any, query: Query) -> Any:
        return api_v3.GetServicesResponse(services=queries.services(query))

    def operations(request: Any, query: Query) -> Any:
        response: Any = api_v3.GetOperationsResponse()
        for name, kind in queries.operations(request.service, request.span_kind, query):
            response.operations.add(name=name, span_kind=kind)
        return response

    def trace(request: Any, query: Query, _only_found: bool) -> Iterator[TracesData]:
        try:
            asked = trace_id(request.trace_id)
        except ValueError as error:
            raise QueryError(f"malform trace ID: {error}") from None
        found = queries.trace(asked, raw=request.raw_traces, query=query)
        if found is not None:
            yield found

    def find(request: Any, query: Query, only_found: bool) -> Iterator[TracesData]:
        return queries.find(search_of_request(request, only_found=only_found), query)

    return {
        api_v3.path("GetServices"): calls.single(services, api_v3.GetServicesRequest),
        api_v3.path("GetOperations"): calls.single(operations, api_v3.GetOperationsRequest),
        api_v3.path("GetTrace"): calls.stream(trace, api_v3.GetTraceRequest),
        api_v3.path("FindTraces"): calls.stream(find, api_v3.FindTracesRequest),
    }

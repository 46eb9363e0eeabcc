"""`jaeger.api_v3.QueryService` over gRPC, beside it remote storage and the health service for load balancers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import grpc

from stagetrace.backend.go_values import trace_id
from stagetrace.backend.grpc_calls import Calls
from stagetrace.backend.query import Queries, QueryError, search_of_request
from stagetrace.backend.storage_grpc import storage_methods
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.backend.counters import Counters

_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


class QueryService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Serves the four methods of api_v3, and the remote storage that a real Jaeger reads from."""

    def __init__(self, queries: Queries, counters: Counters) -> None:
        self._queries = queries
        calls = Calls(counters)
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            api_v3.path("GetServices"): calls.single(self._services, api_v3.GetServicesRequest),
            api_v3.path("GetOperations"): calls.single(self._operations, api_v3.GetOperationsRequest),
            api_v3.path("GetTrace"): calls.stream(self._trace, api_v3.GetTraceRequest),
            api_v3.path("FindTraces"): calls.stream(self._find, api_v3.FindTracesRequest),
            _HEALTH: grpc.unary_unary_rpc_method_handler(lambda _request, _context: _SERVING),
            **storage_methods(queries, calls, self._services, self._operations),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, or None for one that is not here."""
        return self._methods.get(handler_call_details.method)

    def _services(self, _request: Any) -> Any:
        return api_v3.GetServicesResponse(services=self._queries.services())

    def _operations(self, request: Any) -> Any:
        response: Any = api_v3.GetOperationsResponse()
        for name, kind in self._queries.operations(request.service, request.span_kind):
            response.operations.add(name=name, span_kind=kind)
        return response

    def _trace(self, request: Any, _only_found: bool) -> Iterator[TracesData]:
        try:
            asked = trace_id(request.trace_id)
        except ValueError as error:
            raise QueryError(f"malform trace ID: {error}") from None
        found = self._queries.trace(asked, raw=request.raw_traces)
        if found is not None:
            yield found

    def _find(self, request: Any, only_found: bool) -> Iterator[TracesData]:
        return self._queries.find(search_of_request(request, only_found=only_found))

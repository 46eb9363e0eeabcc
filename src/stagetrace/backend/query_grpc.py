"""`jaeger.api_v3.QueryService` over gRPC, beside it remote storage and the health service that load balancers ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from stagetrace import log
from stagetrace.backend.go_values import trace_id
from stagetrace.backend.query import UNKNOWN, Queries, QueryError, search_of
from stagetrace.backend.storage_grpc import storage_methods
from stagetrace.errors import StoreError
from stagetrace.store.jaeger import api_v3 as api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.backend.counters import Counters

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_TRANSPORT: Final = "grpc"


class Calls:
    """Makes handlers of plain functions: counted, and with every failure told apart."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def single(self, answer: Callable[[Any], Any], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method with one answer."""

        def handle(given: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._counters.add("queries", _TRANSPORT)
                return answer(given)
            except Exception as error:  # noqa: BLE001 -- told apart where it ends the call
                self._fail(context, error)

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString, lambda found: found.SerializeToString())

    def stream(
        self, answer: Callable[[Any, bool], Iterator[TracesData]], request: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that answers in a stream; `answer` hears whether ONLY_FOUND is asked for."""

        def handle(given: Any, context: grpc.ServicerContext) -> Iterator[TracesData]:
            try:
                self._counters.add("queries", _TRANSPORT)
                yield from answer(given, api.ONLY_FOUND in context.invocation_metadata())
            except Exception as error:  # noqa: BLE001
                self._fail(context, error)

        return grpc.unary_stream_rpc_method_handler(handle, request.FromString, TracesData.SerializeToString)

    def _fail(self, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        self._counters.add("failed_queries", _TRANSPORT)
        if isinstance(error, QueryError):
            context.abort(_CODES[error.code], str(error))
        if isinstance(error, StoreError):
            context.abort(_CODES[UNKNOWN], str(error))
        log.error(f"a query over gRPC failed: {type(error).__name__}: {error}")
        context.abort(grpc.StatusCode.INTERNAL, "the back end failed on this query; its log says why")
        raise AssertionError("unreachable: abort raises")


class QueryService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Serves the four methods of api_v3, and the remote storage that a real Jaeger reads from."""

    def __init__(self, queries: Queries, counters: Counters) -> None:
        self._queries = queries
        calls = Calls(counters)
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            api.path("GetServices"): calls.single(self._services, api.GetServicesRequest),
            api.path("GetOperations"): calls.single(self._operations, api.GetOperationsRequest),
            api.path("GetTrace"): calls.stream(self._trace, api.GetTraceRequest),
            api.path("FindTraces"): calls.stream(self._find, api.FindTracesRequest),
            _HEALTH: grpc.unary_unary_rpc_method_handler(lambda _request, _context: _SERVING),
            **storage_methods(queries, calls, self._services, self._operations),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, or None for one that is not here."""
        return self._methods.get(handler_call_details.method)

    def _services(self, _request: Any) -> Any:
        return api.GetServicesResponse(services=self._queries.services())

    def _operations(self, request: Any) -> Any:
        response: Any = api.GetOperationsResponse()
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
        return self._queries.find(search_of(request, only_found=only_found))

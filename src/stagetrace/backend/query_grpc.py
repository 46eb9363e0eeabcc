"""`jaeger.api_v3.QueryService` over gRPC: calls are limited and counted, each failure has its status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from stagetrace.backend.grpc_port import CODES, REFUSING, Slot, Slots, abort, read_message
from stagetrace.backend.jaeger_query import Queries, Query, QueryError, search_of_request, trace_id
from stagetrace.backend.refusal import Refused
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.backend.grpc_port import Handlers

# --- Handlers of the query port out of plain functions: calls are limited and counted, each failure has its status.

Single = Callable[[Any, Query], Any]
Stream = Callable[[Any, Query], Iterator["TracesData"]]
_TRANSPORT: Final = "grpc"
_READS: Final = 16
_QUERIES: Final = 16  # at work, or waiting for their clients to read
_AT_WORK: Final = 4
_WAITING: Final = 64
THREADS: Final = _READS + _QUERIES + 2 * _WAITING + REFUSING
_PATIENCE_S: Final = 0.5
_WRITE_S: Final = 30.0  # for a client to make room for a message of ours


class QueryCalls:
    """Makes handlers of plain functions. A call may wait in its thread, one of `THREADS`."""

    def __init__(self, queries: Queries) -> None:
        self._of_store = queries
        self._reads = Slots(_READS, _WAITING, _PATIENCE_S)
        self._queries = Slots(_QUERIES, _WAITING, _PATIENCE_S)
        self._work = Slots(_AT_WORK, _QUERIES)

    def single(self, ask: Single, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method with one response."""

        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            with self._asking(messages, context, request) as (given, query, _slot), self._work.hold(context):
                found: bytes = ask(given, query).SerializeToString()
                return found

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, ask: Stream, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that responds in a stream."""

        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._asking(messages, context, request) as (given, query, slot):
                found = ask(given, query)
                while (message := self._next(context, found)) is not None:
                    with slot.client(_WRITE_S):
                        yield message

        return grpc.stream_stream_rpc_method_handler(handle)

    def _next(self, context: grpc.ServicerContext, found: Iterator[TracesData]) -> bytes | None:
        with self._work.hold(context):
            traces = next(found, None)
            return None if traces is None else traces.SerializeToString()

    @contextmanager
    def _asking(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, request: Any
    ) -> Iterator[tuple[Any, Query, Slot]]:
        """Yield the request of a call, and its query; end the call where that fails."""
        try:
            with self._of_store.counted(_TRANSPORT):
                with self._reads.hold(context) as slot:
                    given = request.FromString(read_message(messages, slot))
                query = Query()
                if not context.add_callback(query.abandon):
                    query.abandon()
                with self._queries.hold(context) as slot:
                    try:
                        yield given, query, slot
                    except GeneratorExit:
                        if slot.lost is not None:
                            self._of_store.failure(_TRANSPORT, slot.lost)
                        raise
        except Refused as refused:
            abort(context, refused)
        except QueryError as error:
            context.abort(CODES[error.code], str(error))


# --- `jaeger.api_v3.QueryService` over gRPC.


def query_handlers(queries: Queries) -> Handlers:
    """Return the handlers of the four methods of api_v3."""
    calls = QueryCalls(queries)

    def services(_request: Any, query: Query) -> Any:
        return api_v3.GetServicesResponse(services=queries.services(query))

    def operations(request: Any, query: Query) -> Any:
        response: Any = api_v3.GetOperationsResponse()
        for name, kind in queries.operations(request.service, request.span_kind, query):
            response.operations.add(name=name, span_kind=kind)
        return response

    def trace(request: Any, query: Query) -> Iterator[TracesData]:
        try:
            asked = trace_id(request.trace_id)
        except ValueError as error:
            raise QueryError(f"malform trace ID: {error}") from None
        found = queries.trace(asked, query)
        if found is not None:
            yield found

    def find(request: Any, query: Query) -> Iterator[TracesData]:
        return queries.find(search_of_request(request), query)

    return {
        api_v3.path("GetServices"): calls.single(services, api_v3.GetServicesRequest),
        api_v3.path("GetOperations"): calls.single(operations, api_v3.GetOperationsRequest),
        api_v3.path("GetTrace"): calls.stream(trace, api_v3.GetTraceRequest),
        api_v3.path("FindTraces"): calls.stream(find, api_v3.FindTracesRequest),
    }

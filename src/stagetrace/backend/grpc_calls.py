"""Handlers of gRPC methods out of plain functions: calls are counted, and each failure has its status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from stagetrace import log
from stagetrace.backend.query import UNKNOWN, QueryError
from stagetrace.errors import StoreError
from stagetrace.store.jaeger.api_v3 import ONLY_FOUND

if TYPE_CHECKING:
    from stagetrace.backend.counters import Counters

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_TRANSPORT: Final = "grpc"


class Calls:
    """Makes handlers of plain functions: counts calls, and maps each failure to its status."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def single(self, query: Callable[[Any], Any], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method with one response."""

        def handle(given: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._counters.add("queries", _TRANSPORT)
                return query(given)
            except Exception as error:  # noqa: BLE001 -- `_fail` ends the call with the right status
                self._fail(context, error)

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString, lambda found: found.SerializeToString())

    def stream(
        self, query: Callable[[Any, bool], Iterator[TracesData]], request: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that responds in a stream; `query` also gets whether ONLY_FOUND is set."""

        def handle(given: Any, context: grpc.ServicerContext) -> Iterator[TracesData]:
            try:
                self._counters.add("queries", _TRANSPORT)
                yield from query(given, ONLY_FOUND in context.invocation_metadata())
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
        context.abort(grpc.StatusCode.INTERNAL, "the back end failed on this query; see its log")
        raise AssertionError("unreachable: abort raises")

"""`jaeger.api_v3` over HTTP: the four routes of Jaeger 2.13, with its parameter names and the newer ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stagetrace.backend import jaeger_query
from stagetrace.backend.jaeger_query import Queries, Query, QueryError
from stagetrace.backend.refusal import Refused
from stagetrace.backend.web import Pages, application, json_fault
from stagetrace.otlp.decode.json import render
from stagetrace.store.local.search import Search

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.http_limits import Threads
    from stagetrace.backend.ports import Access

T = TypeVar("T")
Ask = Callable[["Request", Query], Any]
_TRANSPORT: Final = "http"
# The default of newer Jaegers where the search depth is not given. 2.13 refuses such a search.
_DEPTH: Final = 100


def query_app(
    queries: Queries,
    counters: Counters,
    access: Access,
    threads: Threads,
    metrics: Callable[[], str],
    pages: Pages | None = None,
) -> ASGIApp:
    """Return the app of the query port: the API, and pages for people."""
    asks_by_path: dict[str, Ask] = {
        "/api/v3/services": lambda _request, query: {"services": queries.services(query)},
        "/api/v3/operations": lambda request, query: _operations(queries, request, query),
        "/api/v3/traces": lambda request, query: _merge_traces(queries.find(_search(request), query)),
        "/api/v3/traces/{trace_id}": lambda request, query: _trace(queries, request, query),
    }

    def endpoint(ask: Ask) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            query = Query()
            try:
                with queries.counted(_TRANSPORT):
                    return await threads.run(request, lambda: JSONResponse(ask(request, query)), query.abandon)
            except Refused as refused:
                return json_fault(refused.kind.status, refused.message, request)
            except QueryError as error:
                return json_fault(error.status, str(error), request)

        return handle

    routes = [Route(path, endpoint(ask), methods=["GET"]) for path, ask in asks_by_path.items()]
    return application(routes, json_fault, access, metrics, counters, pages)


def _operations(queries: Queries, request: Request, query: Query) -> Any:
    kind = _parameter(request, "span_kind") or ""
    found = queries.operations(request.query_params.get("service", ""), kind, query)
    return {"operations": [_without_empty(name=name, spanKind=its) for name, its in found]}


def _trace(queries: Queries, request: Request, query: Query) -> Any:
    asked = _parse("trace_id", request.path_params["trace_id"], jaeger_query.trace_id)
    for name, parse in (
        ("start_time", jaeger_query.time_ns),
        ("end_time", jaeger_query.time_ns),
        ("raw_traces", jaeger_query.boolean),
    ):
        if text := _parameter(request, name):
            _parse(name, text, parse)
    found = queries.trace(asked, query)
    return _merge_traces([] if found is None else [found])


def _search(request: Request) -> Search:
    """Return the search in the parameters, checked in Jaeger's order. Raise QueryError."""
    low, high = _parameter(request, "query.start_time_min"), _parameter(request, "query.start_time_max")
    if not low or not high:
        raise QueryError("query.start_time_min and query.start_time_max are required")

    def optional(name: str, parse: Callable[[str], T], default: T) -> T:
        text = _parameter(request, name)
        return _parse(name, text, parse) if text else default

    start_min = _parse("query.start_time_min", low, jaeger_query.time_ns)
    start_max = _parse("query.start_time_max", high, jaeger_query.time_ns)
    depth = optional("query.search_depth", jaeger_query.integer, _DEPTH)
    optional("query.raw_traces", jaeger_query.boolean, default=False)  # traces are given as recorded anyway
    return Search(
        start_min_ns=start_min,
        start_max_ns=start_max,
        depth=optional("query.num_traces", jaeger_query.integer, depth),
        service=_parameter(request, "query.service_name") or "",
        operation=_parameter(request, "query.operation_name") or "",
        attributes=optional("query.attributes", _attributes, {}),
        duration_min_ns=optional("query.duration_min", jaeger_query.duration_ns, 0),
        duration_max_ns=optional("query.duration_max", jaeger_query.duration_ns, 0),
    )


def _attributes(text: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("it is not a JSON object of texts")
    return found


def _parse(name: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise QueryError(f"malformed parameter {name}: {error}") from None


def _parameter(request: Request, name: str) -> str | None:
    """Return a parameter by its snake_case name, or by the camelCase one that newer Jaegers prefer."""
    head, *rest = name.rpartition(".")[2].split("_")
    camel = name.rpartition(".")[0] + name.rpartition(".")[1] + head + "".join(map(str.capitalize, rest))
    return request.query_params.get(name) or request.query_params.get(camel)


def _merge_traces(traces: Iterable[TracesData]) -> Any:
    """Return all traces in one object, as Jaeger does. Raise QueryError for none."""
    together = TracesData()
    for trace in traces:
        together.resource_spans.extend(trace.resource_spans)
    if not together.resource_spans:
        raise QueryError("No traces found", status=jaeger_query.NO_TRACES)
    return {"result": render(together)}


def _without_empty(**fields: Any) -> Any:
    """Return the fields that Protobuf's JSON form writes: not the empty ones."""
    return {name: value for name, value in fields.items() if value}

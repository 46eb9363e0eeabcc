"""Whoever moves from OpenTelemetry's instrumentation of FastAPI to ours finds the same entry spans.

Each request is made to the same service under a real uvicorn twice, once set up as OpenTelemetry's documentation shows,
once with STAGETRACE=1. What differs on purpose stands with the case, as `ours`, and in `like_stock.expected`:

- no query string; our stages and verdict on top;
- `server.address` without the port, which stock puts into it against the semantic conventions;
- the route of what is mounted or found by host is its whole template, not the mount's alone, or none;
- a websocket has no `http.response.status_code`: the response to its handshake is 101, stock says 200;
- an exception is one event, where stock records it twice (no response was complete) or not at all (a mounted app);
- a span whose response is a 5xx stays open for the exception that may follow, and for handlers that see that;
- what a handler says of the status stays, where stock writes over it as a 5xx goes out;
- of a request whose path middleware rewrites, the route is the one that served it;
- bodies have their size on the span, streams and websockets their chunks and messages;
- a background task's span links to the request's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.like_stock import (
    ANSWER_REDACTED,
    CALLER,
    SECRETS_REDACTED,
    SET_UP,
    SHARED,
    SHARED_OF_SET_UP,
    TOKEN_REDACTED,
    Both,
    Case,
    both,
    compare,
    unrecorded,
)
from sink import SERVER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

CASES = [
    *SHARED,
    Case("sync", "/sync"),
    Case("escaped path", "/items/a%20b%2Fc"),
    Case("path convertor", "/files/a/b"),
    Case("404", "/nowhere"),
    Case("405", "/plain", "POST"),
    Case("599", "/status/599"),
    Case("raise in a stream", "/raise-in-stream", once=True),
    Case("raise in middleware", "/plain", headers={"x-early": "raise"}),
    Case("handled", "/handled"),
    Case("a route class of one's own", "/own-class/x"),
    Case("a kind of route of one's own", "/own-kind/x/route"),
    Case("head", "/head", "HEAD"),
    Case("unknown method", "/plain", "BREW"),
    Case("lower case method", "/plain", "get"),
    Case("redirect", "/slash"),
    Case("router", "/api/things/3"),
    Case("router in a router", "/api/things/inner/deep/3"),
    Case("422 of a router", "/api/things/x"),
    Case("405 of a router", "/api/things/3", "DELETE"),
    Case("starlette's route", "/starlette-route/x"),
    Case("docs", "/openapi.json"),
    Case("mounted", "/sub/items/3", ours={"name": "GET /sub/items/{item_id}", "http.route": "/sub/items/{item_id}"}),
    Case("mounted 404", "/sub/nowhere"),
    Case(
        "mounted 405",
        "/sub/items/3",
        "POST",
        ours={"name": "POST /sub/items/{item_id}", "http.route": "/sub/items/{item_id}"},
    ),
    Case(
        "mounted raise",
        "/sub/raise",
        ours={"name": "GET /sub/raise", "http.route": "/sub/raise", "seen by the handler of all": "ValueError"},
        once=True,
    ),
    Case(
        "mounted starlette",
        "/star/hello/you",
        ours={"name": "GET /star/hello/{you}", "http.route": "/star/hello/{you}"},
    ),
    Case("mounted twice", "/star/in/hello", ours={"name": "GET /star/in/hello", "http.route": "/star/in/hello"}),
    Case(
        "mounted on a parameter",
        "/tenants/acme/hello",
        ours={"name": "GET /tenants/{tenant}/hello", "http.route": "/tenants/{tenant}/hello"},
    ),
    Case("static", "/static/file.txt"),
    Case("static 404", "/static/no-file.txt"),
    Case(
        "by host",
        "/by-host/me",
        headers={"Host": "host.example"},
        ours={"name": "GET /by-host/{you}", "http.route": "/by-host/{you}"},
    ),
    Case("background", "/background"),
    Case("background raises", "/background-raises"),
    Case("user says ok", "/user-ok"),
    Case("user's status and 503", "/user-and-503", ours={"status": (2, "says the user")}),
    Case("user's exception", "/user-exception"),
    Case("override", "/override"),
    Case("renamed early", "/plain", headers={"x-early": "rename"}),
    Case(
        "rewritten path",
        "/old/path",
        "PUT",
        headers={"x-early": "rewrite"},
        ours={"name": "PUT /plain", "http.route": "/plain"},
    ),
    Case("proxied", "/plain", headers={"x-early": "proxy"}),
    Case("child before routing", "/items/3", headers={"x-early": "child"}),
    Case("baggage alone", "/context", headers={"baggage": "user=7"}, traced=False),
    Case("two parents", "/plain", headers={"TRACEPARENT": f"00-{'1' * 32}-{CALLER}-01"}),
    Case("user agent in UTF-8", "/plain", headers={"User-Agent": "agent ü"}),
    Case("no host", "/plain", protocol="HTTP/1.0", headers={"Host": ""}),
    Case("websocket", "/ws/a%20room", websocket=["one", "two", "bye"], ours={"http.response.status_code": None}),
    Case("websocket without words", "/ws/room", websocket=["bye"]),
    Case("websocket of a router", "/api/things/inner/ws/room", websocket=[]),
    Case("websocket refused", "/ws-refused", websocket=[]),
    Case("websocket without route", "/ws-nowhere", websocket=[]),
    Case("websocket raises", "/ws-raises", websocket=[], once=True),
]


CASES_OF_SET_UP = [
    *SHARED_OF_SET_UP,
    Case(
        "captured headers",
        "/headers",
        headers={
            "x-asked-one": "shown",
            "X-Asked-Hidden": "h",
            "Authorization": "Bearer abc",
            "Cookie": "a=b",
            "x": "y",
        },
        ours={**SECRETS_REDACTED, **ANSWER_REDACTED},
    ),
    Case("captured twice", "/headers", headers={"x-asked-more": "one\r\nx-asked-more: two"}, ours=ANSWER_REDACTED),
    Case("captured as they came", "/sync", headers={"x-asked-one": "shown", "x-early": "take headers"}),
    Case("captured of a websocket", "/ws-headers", headers={"x-asked-one": "shown"}, websocket=[], ours=TOKEN_REDACTED),
    Case("captured of a broken one", "/raise", headers={"x-asked-utf8": "ü"}),
    Case("left out with a child", "/stream", headers={"x-early": "child"}),
    Case("any method", "/plain", "BREW"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both(tmp_path_factory.mktemp("plain"), CASES, {})


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both(tmp_path_factory.mktemp("set-up"), CASES_OF_SET_UP, SET_UP)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_entry_span_says_what_stock_says(case: Case, plain: Both) -> None:
    compare(case, plain)


@pytest.mark.parametrize("case", CASES_OF_SET_UP, ids=lambda case: case.name)
def test_what_the_environment_asks_for_is_done_as_stock_does_it(case: Case, set_up: Both) -> None:
    """Secret headers apart, which stock records in clear where nobody thought of naming them."""
    compare(case, set_up)


def test_the_cases_record_something(plain: Both, set_up: Both) -> None:
    """Else the comparisons above would show nothing."""
    assert unrecorded(CASES, plain) == ["unsampled"]
    left_out = ["left out", "left out by pattern", "B3 unsampled", "left out with a child"]
    assert unrecorded(CASES_OF_SET_UP, set_up) == left_out


def test_each_event_lies_within_its_span(plain: Both) -> None:
    for span in plain[1].spans:
        for event in span.events:
            if event.name == "exception":
                assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


def test_a_child_hangs_under_a_stage_of_the_entry_span(plain: Both) -> None:
    spans = plain[1].of(next(case for case in CASES if case.name == "child"))
    by_id = {span.span_id: span for span in spans}
    child = next(span for span in spans if span.name == "child")
    stage = by_id[child.parent_span_id]
    assert stage.name == "handler"
    assert by_id[stage.parent_span_id].kind == SERVER


@pytest.mark.parametrize("name", ["http.server.request.duration", "http.server.active_requests"])
def test_metrics_are_those_of_stock(name: str, plain: Both) -> None:
    """But for durations, and the routes, which are as on the spans; counts are exact."""
    stock, own = (one.metric(name) for one in plain)
    theirs, ours = stock["opentelemetry.instrumentation.fastapi"], own.pop("stagetrace")
    assert own == {}  # nobody counts a second time
    assert {k: v for k, v in ours.items() if k != "data"} == {k: v for k, v in theirs.items() if k != "data"}
    assert points(ours) == points(theirs)


def points(metric: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in metric["data"]["data_points"]:
        attributes = {key: value for key, value in point["attributes"].items() if key != "http.route"}
        kept = found.setdefault(json.dumps(attributes, sort_keys=True), [0, point.get("explicit_bounds")])
        kept[0] += point["count"] if "count" in point else point["value"]
    return found


def test_the_general_variable_leaves_out_too(tmp_path: Path) -> None:
    cases = [Case("left out", "/plain"), Case("kept", "/sync")]
    stock, ours = both(tmp_path, cases, {"OTEL_PYTHON_EXCLUDED_URLS": "/plain"})
    for case in cases:
        compare(case, (stock, ours))
    assert ours.of(cases[0]) == []


def test_a_disabled_sdk_records_nothing_and_changes_nothing(tmp_path: Path) -> None:
    cases = [Case("disabled", "/context", headers={"baggage": "user=7"}), Case("disabled child", "/child")]
    stock, ours = both(tmp_path, cases, {"OTEL_SDK_DISABLED": "true"})
    assert ours.answers == stock.answers
    assert ours.spans == stock.spans == []

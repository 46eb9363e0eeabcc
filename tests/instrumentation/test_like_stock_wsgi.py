"""Whoever moves from OpenTelemetry's instrumentation of Flask or Django to ours finds the same entry spans.

As test_like_stock.py, under a real gunicorn with threads. What differs on purpose, beside what stands there:

- the name of a request without a route is its method; stock puts the path into it, of which there are endless many;
- a mounted application's route is the whole template; stock leaves out the mount, and has it out of `url.path` too;
- Django's routes begin with a slash, as all others do, and a regular expression is shown as a template;
- what a view of Django's raises and Django turns into less than a 500 is no error: no event, no status;
- a response's later failure, in its stream, is on the span, which stock has ended by then.
"""

from __future__ import annotations

from typing import Any

import pytest

from instrumentation.like_stock import CALLER, Case, Recorded, both, expected, shown, without_ours
from services import PYTHON
from sink import SERVER

pytestmark = pytest.mark.usefixtures("services")

GUNICORN = [
    *(PYTHON, "-m", "gunicorn", "-k", "gthread", "--threads", "2"),
    *("-b", "127.0.0.1:{port}", "-b", "unix:{socket}", "{app}:app"),
]
JSON = {"Content-Type": "application/json"}
STREAM_ERROR = {"status": (2, "ValueError: in the stream"), "error.type": "ValueError"}

SHARED = [
    Case("plain", "/plain"),
    Case("path parameter", "/items/7"),
    Case("query", "/plain?q=1&token=abc"),
    Case("404", "/nowhere", ours={"name": "GET"}),
    Case("422", "/validated", "POST", JSON, b'{"number": "x"}'),
    Case("201 and a body", "/validated", "POST", JSON, b'{"number": 3}'),
    Case("a broken body", "/validated", "POST", JSON, b"{"),
    Case("409", "/status/409"),
    Case("503", "/status/503"),
    Case("raise", "/raise"),
    Case("raise in a stream", "/raise-in-stream", ours=STREAM_ERROR, once=True),
    Case("head of a get", "/plain", "HEAD"),
    Case("options", "/plain", "OPTIONS"),
    Case("redirect", "/redirect"),
    Case("nested", "/api/things/3"),
    Case("nested 404", "/api/things/x", ours={"name": "GET"}),
    Case("stream", "/stream"),
    Case("user", "/user"),
    Case("child", "/child"),
    Case("trace state", "/context", headers={"tracestate": "a=1,b=2"}),
    Case("baggage", "/context", headers={"baggage": "user=7,tier=gold"}),
    Case("no parent", "/plain", traced=False),
    Case("broken parent", "/plain", headers={"traceparent": "00-zz-1-01"}, traced=False),
    Case("unsampled", "/child", headers={"traceparent": f"00-{'ab' * 16}-{CALLER}-00"}),
    Case("no user agent", "/plain", headers={"User-Agent": ""}),
    Case("robot", "/plain", headers={"User-Agent": "Googlebot/2.1"}),
    Case("HTTP/1.0", "/plain", protocol="HTTP/1.0"),
    Case("unix socket", "/plain", over="unix"),
]
OF_FLASK = [
    *SHARED,
    Case("405", "/plain", "POST", ours={"name": "POST"}),
    Case("override", "/override"),
    Case("path convertor", "/files/a/b"),
    Case("abort", "/abort/409"),
    Case("abort with 503", "/abort/503"),
    Case("handled", "/handled"),
    Case("unknown method", "/plain", "BREW"),
    Case("redirect of a slash", "/slash", ours={"name": "GET"}),
    Case("stream in context", "/stream-in-context"),
    Case("user's exception", "/user-exception"),
    Case("static", "/static/file.txt"),
    Case("static 404", "/static/no-file.txt"),
    Case(
        "mounted",
        "/sub/items/3",
        ours={
            "name": "GET /sub/items/<int:item_id>",
            "http.route": "/sub/items/<int:item_id>",
            "url.path": "/sub/items/3",
        },
    ),
    Case(
        "mounted raise",
        "/sub/raise",
        ours={"name": "GET /sub/raise", "http.route": "/sub/raise", "url.path": "/sub/raise"},
    ),
    Case("mounted 404", "/sub/nowhere", ours={"name": "GET /sub", "http.route": "/sub", "url.path": "/sub/nowhere"}),
]
OLD = {"name": "GET /api/old/<number>/", "http.route": "/api/old/<number>/"}
OF_DJANGO = [
    *SHARED,
    Case("405", "/plain", "POST"),
    Case("override", "/override", ours={"name": "GET /override"}),
    Case("unknown method", "/plain", "BREW", ours={"name": "HTTP /plain"}),
    Case("redirect of a slash", "/slash"),
    Case("raise a 404", "/missing", ours={"events": [], "status": (0, "")}),
    Case("raise a 403", "/denied", ours={"events": [], "status": (0, "")}),
    Case("regular expression", "/api/old/3/", ours=OLD),
    Case(
        "regular expression with parts that may be missing",
        "/regex/abc/",
        ours={"name": "GET /regex/<name>/", "http.route": "/regex/<name>/"},
    ),
]

# Asked for, and set, in the environment: captured headers, B3, a response propagator, urls left out.
SET_UP = {
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-asked.*,Authorization,cookie",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": "X-Answer.*,set-cookie,content-type",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS": ".*hidden.*",
    "OTEL_PYTHON_FLASK_EXCLUDED_URLS": "/stream,/items/[0-9]+$",
    "OTEL_PYTHON_DJANGO_EXCLUDED_URLS": "/stream,/items/[0-9]+$",
    "OTEL_PYTHON_EXCLUDED_URLS": "/plain",
    "OTEL_PROPAGATORS": "b3,tracecontext,baggage",
    "OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS": "1",
    "RESPONSE_PROPAGATOR": "1",
}
REDACTED = ["[REDACTED]"]
ANSWER_REDACTED = {"http.response.header.x_answer_token": REDACTED, "http.response.header.set_cookie": REDACTED}
B3 = f"{'2' * 32}-{CALLER}-1"
OF_SET_UP = [
    Case("left out", "/stream"),
    Case("left out by pattern", "/items/7"),
    Case("kept by pattern", "/items/seven"),
    Case("kept, since the framework's own variable goes before the general one", "/plain"),
    Case(
        "headers", "/headers", headers={"x-asked": "shown", "x-asked-hidden": "h", "x-other": "o"}, ours=ANSWER_REDACTED
    ),
    Case(
        "secret headers",
        "/headers",
        headers={"Authorization": "Basic c2VjcmV0", "Cookie": "session=secret"},
        ours={
            **ANSWER_REDACTED,
            "http.request.header.authorization": REDACTED,
            "http.request.header.cookie": REDACTED,
        },
    ),
    Case("B3", "/context", headers={"b3": B3}, traced=False),
    Case("B3 unsampled", "/context", headers={"b3": B3[:-1] + "0"}, traced=False),
    Case("B3 and W3C", "/context", headers={"b3": B3}),
]
FLASK, DJANGO = ("stock_flask", "semantics_flask"), ("stock_django", "semantics_django")
SEED = {"PYTHONHASHSEED": "0"}  # Flask lists methods out of a set


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    return both(tmp_path_factory.mktemp("flask"), OF_FLASK, SEED, FLASK, GUNICORN)


@pytest.fixture(scope="module")
def django(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    return both(tmp_path_factory.mktemp("django"), OF_DJANGO, SEED, DJANGO, GUNICORN)


@pytest.fixture(scope="module")
def flask_set_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    return both(tmp_path_factory.mktemp("flask-set-up"), OF_SET_UP, SET_UP, FLASK, GUNICORN)


@pytest.fixture(scope="module")
def django_set_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    return both(tmp_path_factory.mktemp("django-set-up"), OF_SET_UP, SET_UP, DJANGO, GUNICORN)


def compare(case: Case, stock: Recorded, ours: Recorded) -> None:
    assert in_any_order(ours.answers[case.name]) == in_any_order(stock.answers[case.name])
    theirs, own = stock.entry(case), ours.entry(case)
    assert (own is None) == (theirs is None)
    if own is not None:
        says, wanted = without_ours(shown(own)), expected(with_slash(shown(theirs)), case)
        if case.once:
            assert [name for name, _ in says["events"]] == ["exception"]
            wanted["events"] = says["events"]
        assert says == wanted
        assert sum(span.kind == SERVER for span in ours.of(case)) == 1
    assert ours.others(case) == stock.others(case)


def with_slash(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span of Django's with a slash before its route, in its name too."""
    route = span.get("http.route", "/")
    if route.startswith("/"):
        return span
    verb, _, rest = span["name"].partition(" ")
    return {**span, "name": f"{verb} /{route}" if rest == route else span["name"], "http.route": f"/{route}"}


def in_any_order(answer: bytes) -> tuple[list[bytes], bytes]:
    """Return the sorted head of a response, and its body: cookies of Django come before or after late headers."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return sorted(head.split(b"\r\n")), body


@pytest.mark.parametrize("case", OF_FLASK, ids=lambda case: case.name)
def test_flask(case: Case, flask: tuple[Recorded, Recorded]) -> None:
    compare(case, *flask)


@pytest.mark.parametrize("case", OF_DJANGO, ids=lambda case: case.name)
def test_django(case: Case, django: tuple[Recorded, Recorded]) -> None:
    compare(case, *django)


@pytest.mark.parametrize("case", OF_SET_UP, ids=lambda case: case.name)
def test_flask_as_the_environment_asks(case: Case, flask_set_up: tuple[Recorded, Recorded]) -> None:
    compare(case, *flask_set_up)


@pytest.mark.parametrize("case", OF_SET_UP, ids=lambda case: case.name)
def test_django_as_the_environment_asks(case: Case, django_set_up: tuple[Recorded, Recorded]) -> None:
    compare(case, *django_set_up)


def test_the_cases_record_something(
    flask: tuple[Recorded, Recorded],
    django: tuple[Recorded, Recorded],
    flask_set_up: tuple[Recorded, Recorded],
    django_set_up: tuple[Recorded, Recorded],
) -> None:
    """Else the comparisons above would show nothing."""
    for cases, (_, ours) in ((OF_FLASK, flask), (OF_DJANGO, django)):
        assert [case.name for case in cases if ours.entry(case) is None] == ["unsampled"]
    for _, ours in (flask_set_up, django_set_up):
        unrecorded = [case.name for case in OF_SET_UP if ours.entry(case) is None]
        assert unrecorded == ["left out", "left out by pattern", "B3 unsampled"]

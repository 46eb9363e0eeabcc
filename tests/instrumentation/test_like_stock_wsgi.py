"""Whoever moves from OpenTelemetry's instrumentation of Flask or Django to ours finds the same entry spans.

As test_like_stock.py, under a real gunicorn with threads. What differs on purpose, beside what stands there:

- the name of a request without a route is its method; stock puts the path into it, of which there are endless many;
- a mounted application's route is the whole template; stock leaves out the mount, and has it out of `url.path` too;
- Django's routes begin with a slash, as all others do, and a regular expression is shown as a template;
- what a view of Django's raises and Django turns into less than a 500 is no error: no event, no status;
- a response's later failure, in its stream, is on the span, which stock has ended by then.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.like_stock import (
    ANSWER_REDACTED,
    SECRETS_REDACTED,
    SET_UP,
    SHARED,
    SHARED_OF_SET_UP,
    Both,
    Case,
    both,
    compare,
    unrecorded,
)
from services import PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("services")

GUNICORN = [
    *(PYTHON, "-m", "gunicorn", "-k", "gthread", "--threads", "2"),
    *("-b", "127.0.0.1:{port}", "-b", "unix:{socket}", "{app}:app"),
]
STREAM_ERROR = {"status": (2, "ValueError: in the stream"), "error.type": "ValueError"}

OF_WSGI = [
    *SHARED,
    Case("404", "/nowhere", ours={"name": "GET"}),
    Case("raise in a stream", "/raise-in-stream", ours=STREAM_ERROR, once=True),
    Case("redirect", "/redirect"),
    Case("nested", "/api/things/3"),
    Case("nested 404", "/api/things/x", ours={"name": "GET"}),
]
OF_FLASK = [
    *OF_WSGI,
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
    *OF_WSGI,
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

OF_SET_UP = [
    *SHARED_OF_SET_UP,
    Case(
        "headers", "/headers", headers={"x-asked": "shown", "x-asked-hidden": "h", "x-other": "o"}, ours=ANSWER_REDACTED
    ),
    Case(
        "secret headers",
        "/headers",
        headers={"Authorization": "Basic c2VjcmV0", "Cookie": "session=secret"},
        ours={**ANSWER_REDACTED, **SECRETS_REDACTED},
    ),
]
SEED = {"PYTHONHASHSEED": "0"}  # Flask lists methods out of a set
CASES = {("flask", "plain"): OF_FLASK, ("django", "plain"): OF_DJANGO}
CASES |= {(framework, "set up"): OF_SET_UP for framework in ("flask", "django")}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Both]:
    """Return what both record, by framework and environment; each of them is asked once."""

    @cache
    def ask(framework: str, how: str) -> Both:
        folder, env = tmp_path_factory.mktemp("like-stock"), SET_UP if how == "set up" else SEED
        return both(folder, CASES[framework, how], env, f"semantics_{framework}", GUNICORN)

    return ask


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


@pytest.mark.parametrize(
    ("framework", "how", "case"),
    [
        pytest.param(*which, case, id=f"{'-'.join(which)}-{case.name}")
        for which, cases in CASES.items()
        for case in cases
    ],
)
def test_the_entry_span_says_what_stock_says(
    framework: str, how: str, case: Case, recorded: Callable[[str, str], Both]
) -> None:
    compare(case, recorded(framework, how), in_any_order, with_slash)


def test_the_cases_record_something(recorded: Callable[[str, str], Both]) -> None:
    """Else the comparisons above would show nothing."""
    left_out = {"plain": ["unsampled"], "set up": ["left out", "left out by pattern", "B3 unsampled"]}
    for which, cases in CASES.items():
        assert unrecorded(cases, recorded(*which)) == left_out[which[1]], which

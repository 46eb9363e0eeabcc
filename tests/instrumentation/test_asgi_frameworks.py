"""Applications of several frameworks under a real uvicorn: routes, verdicts, the whole tree of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from services import Service, asgi_command, new_trace, run_service
from trees import at_its_best

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

MS = 1_000_000
FRAMEWORKS = ["any_starlette", "any_litestar", "any_quart", "any_falcon", "any_blacksheep", "any_django"]
IN_BACKGROUND = pytest.mark.parametrize("framework", FRAMEWORKS[:3], indirect=True)
WITH_WEBSOCKETS = pytest.mark.parametrize("framework", FRAMEWORKS[:-1], indirect=True)
LEFT_OUT_AS = {"any_blacksheep": "ASGI"}  # OpenTelemetry has no instrumentation of it
POLICY = "GET /health excluded; websocket * within 60s; * within 30s"
ERROR = 2

QUARTS = "/inner/items/<item>"
UNLESS_404 = {"any_blacksheep": None, "": "ITEM"}  # for it a path of another method is none
# method and path -> status, route (by framework, where they differ)
ANSWERS: dict[str, tuple[Any, Any]] = {
    "GET /items/3": (200, "ITEM"),
    "GET /items/none": (404, None),
    "POST /items/3": ({"any_django": 200, "any_blacksheep": 404, "": 405}, UNLESS_404),
    "HEAD /items/3": ({"any_litestar": 405, "any_falcon": 405, "any_blacksheep": 404, "": 200}, UNLESS_404),
    "OPTIONS /items/3": ({"any_starlette": 405, "any_litestar": 204, "any_blacksheep": 404, "": 200}, UNLESS_404),
    "GET /broken": (500, "/broken"),
    "GET /nowhere": (404, None),
    "GET /files/file.txt": ({"any_starlette": 200, "": 404}, {"any_starlette": "/files", "": None}),
    "HEAD /files/file.txt": ({"any_starlette": 200, "": 404}, {"any_starlette": "/files", "": None}),
    "GET /sink/x": ({"any_falcon": 200, "": 404}, None),
    "GET /inner/items/z": (
        {"any_litestar": 307, "": 200},  # it adds a slash to what it mounts
        {"any_quart": QUARTS, "any_django": QUARTS, "any_litestar": "/inner", "": "/inner/items/{item}"},
    ),
    "GET /inner/nowhere": (
        404,
        {"any_starlette": "/inner", "any_litestar": "/inner", "any_blacksheep": "/inner", "": None},
    ),
    "GET /filtered/3?kind=own": (
        {"any_blacksheep": 200, "": 404},
        {"any_blacksheep": "/filtered/<item>", "": None},
    ),
}
ITEM = {
    "any_litestar": "/items/{item}",
    "any_blacksheep": "/items/{int:item}",
    "any_quart": "/items/<int:item>",
    "any_django": "/items/<int:item>",
    "": "/items/{item:int}",
}


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def service(framework: str, sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    library = LEFT_OUT_AS.get(framework, framework.removeprefix("any_").upper())
    env = sink.environment(STAGETRACE_SLA=POLICY) | {f"OTEL_PYTHON_{library}_EXCLUDED_URLS": "/left-out"}
    folder = tmp_path_factory.mktemp("service")
    with run_service(folder, argv=asgi_command("uvicorn", framework), env=env) as running:
        yield running
        running.stop()
        assert "fault of stagetrace" not in running.log


@pytest.mark.parametrize("asked", ANSWERS)
def test_the_route_is_the_whole_template(asked: str, framework: str, service: Service, sink: Sink) -> None:
    status, route = (one.get(framework, one[""]) if isinstance(one, dict) else one for one in ANSWERS[asked])
    route = ITEM.get(framework, ITEM[""]) if route == "ITEM" else route
    request, response = sink.traced(service, *asked.split())
    assert response.status_code == status
    entry = request.entry
    assert entry.attributes["http.response.status_code"] == status
    assert entry.attributes.get("http.route") == route
    assert entry.name == f"{asked.split(maxsplit=1)[0]} {route or ''}".strip()
    assert (entry.status == ERROR) is (status == 500)
    assert entry.attributes["sla.verdict"] == "good"


def test_a_health_check_is_excluded_by_the_policy(service: Service, sink: Sink) -> None:
    attributes = sink.traced(service, "GET", "/health")[0].entry.attributes
    assert attributes["sla.verdict"] == "excluded"
    assert attributes["sla.objective"] == "GET /health excluded"
    assert "sla.breached" not in attributes


def test_what_the_frameworks_own_variable_leaves_out_is_not_recorded(service: Service, sink: Sink) -> None:
    left_out, _ = service.call("GET", "/left-out")
    sink.traced(service, "GET", "/items/3")
    assert left_out not in sink.traces()


@pytest.mark.smoke
def test_the_whole_tree_of_a_request(framework: str, service: Service, sink: Sink) -> None:
    """One literal for all frameworks: but for how the application waits for a body, nothing differs."""
    seen = []

    def look() -> list[tuple[str, str]]:
        request, _ = sink.traced(service, "POST", "/tree", content=b"x" * 100, headers={"user-agent": "test"})
        seen.append(request)
        names = {span.span_id: span.name for span in (request.entry, *request.stages)}
        return [(span.name, names[span.parent_id]) for span in (*request.stages, *request.others)]

    wanted = [
        ("handler", "POST /tree"),
        ("network.receive", "POST /tree"),
        ("handler", "POST /tree"),
        ("preprocess", "POST /tree"),
        ("handler", "POST /tree"),
        ("network.send", "POST /tree"),
        ("of the app", "preprocess"),
    ]
    assert at_its_best(look, wanted) == wanted
    entry, attributes = seen[-1].entry, seen[-1].entry.attributes
    assert (entry.name, entry.kind, entry.status, len(entry.parent_id)) == ("POST /tree", 2, 0, 16)
    shown = {key: value for key, value in attributes.items() if not key.startswith("ml.stage.")}
    body = {"any_quart": 12, "any_django": 12}.get(framework, 11)
    assert shown == {
        "url.scheme": "http",
        "url.path": "/tree",
        "http.request.method": "POST",
        "http.request.body.size": 100,
        "http.response.body.size": body,
        "http.response.status_code": 200,
        "http.route": "/tree",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": service.port,
        "user_agent.original": "test",
        "sla.breached": False,
        "sla.verdict": "good",
        "sla.objective": "* within 30s",
        "sla.threshold_ms": 30_000.0,
    }


def test_a_stream_is_counted_and_has_no_span_for_each_piece(service: Service, sink: Sink) -> None:
    attributes = sink.traced(service, "GET", "/stream")[0].entry.attributes
    assert attributes["stagetrace.network.chunks"] == 3
    assert attributes["http.response.body.size"] == 15
    assert attributes["stagetrace.network.first_byte_ms"] >= 9
    assert attributes["stagetrace.network.chunk_gap.max_ms"] >= 9


@IN_BACKGROUND
def test_work_in_the_background_is_a_span_that_links_to_the_request(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/background")
    task = sink.span(request.entry.trace_id, "BackgroundTask later")
    assert task.parent_id == request.entry.span_id
    assert task.end - task.start >= 45 * MS
    (link,) = next(span for span in sink.protos if span.span_id.hex() == task.span_id).links
    assert link.span_id.hex() == request.entry.span_id


@WITH_WEBSOCKETS
def test_a_websocket_is_judged_by_a_rule_that_names_it(framework: str, service: Service, sink: Sink) -> None:
    trace_id, headers = new_trace()
    with connect(f"{service.url.replace('http', 'ws')}/talk/here", additional_headers=headers) as talk:
        talk.send("hello")
        assert talk.recv() == "hello"
    request = sink.tiled(trace_id)
    attributes = request.entry.attributes
    routes = {"any_quart": "/talk/<room>", "any_blacksheep": "/talk/:room"}
    assert attributes["http.route"] == routes.get(framework, "/talk/{room}")
    assert [attributes[f"stagetrace.network.messages.{way}"] for way in ("received", "sent")] == [1, 1]
    assert attributes["sla.objective"] == "WEBSOCKET * within 60s"


@pytest.mark.parametrize("lacks", [(), ("remove_non_capturing_groups", "replace_metacharacters")])
def test_a_regular_expression_is_a_template_in_every_django(
    lacks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 4.1, Django has fewer of the functions that make one of the other."""
    from django.contrib.admindocs import utils

    from stagetrace.patches.django import template

    for name in lacks:
        monkeypatch.delattr(utils, name)
    for route, wanted in {
        "^api/v1/(?P<endpoint_name>.+)/predict$": "/api/v1/<endpoint_name>/predict",
        r"^items/(?P<item>[0-9]+)/$": "/items/<item>/",
        r"^a/(\w+)\Z": "/a/<var>",
        "items/<int:item>": "/items/<int:item>",
    }.items():
        assert template.__wrapped__(route) == wanted

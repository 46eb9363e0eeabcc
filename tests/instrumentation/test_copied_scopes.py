"""Middleware that copies or pickles a scope, or hands it to another process: responses as untraced, and one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from parts import in_full
from services import Service, asgi_command, run_service, wsgi_command
from sink import Sink, assert_tiled
from trees import whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("services"), pytest.mark.xdist_group("copied scopes")]

ARGV = asgi_command("uvicorn", "copied_scopes")
KINDS = [
    *("pickle", "oldest-pickle", "cloudpickle", "another-process"),
    *("deepcopy", "copy", "copied-values", "spread"),
]
ROUTES = {
    "fast": "/items/{item}",
    "any_starlette": "/items/{item:int}",
    "any_litestar": "/items/{item}",
    "any_quart": "/items/<int:item>",
    "any_django": "/items/<int:item>",
}
BREAKABLE = [
    *(
        "request.remote_stages:reference_to",
        "request.remote_stages:named",
        "request.remote_stages:read_reference",
    ),
    *(
        "request.remote_stages:find",
        "protocols.asgi:is_part",
        "protocols.scope:goes_on",
        "protocols.asgi_request:below",
    ),
    "stagetrace_contrib.quart:request_in",
]
PATHS = {"items/3": 200, "broken": 500, "nowhere": 404}


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment()
    with run_service(folder, argv=ARGV, env=env) as running:
        yield running
        running.stop()
        assert "fault of stagetrace" not in running.log


@pytest.fixture(scope="module")
def untraced(folder: Path) -> Iterator[Service]:
    with run_service(folder, argv=ARGV) as running:
        yield running


def answer(service: Service, path: str, **kwargs: Any) -> tuple[int, dict[str, str], bytes]:
    response = service.client.get(path, **kwargs)
    headers = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, headers, response.content


@pytest.mark.parametrize("framework", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_scope_is_served_as_untraced_and_is_one_request(
    kind: str, framework: str, service: Service, untraced: Service, sink: Sink
) -> None:
    for path, status in PATHS.items():
        expected = answer(untraced, f"/{kind}/{framework}/{path}")
        assert expected[0] == status, untraced.log
        assert answer(service, f"/{kind}/{framework}/{path}") == expected, service.log
    request, _ = sink.traced(service, "GET", f"/{kind}/{framework}/items/3")
    assert request.entry.attributes["http.route"] == ROUTES[framework]
    assert not request.others


@pytest.mark.parametrize("framework", ["fast", "any_starlette"])
def test_a_scope_in_another_process_begins_a_request_below_the_stage_that_it_was_pickled_in(
    framework: str, service: Service, untraced: Service, sink: Sink
) -> None:
    for path, status in PATHS.items():
        expected = answer(untraced, f"/worker/{framework}/{path}")
        assert expected[0] == status, untraced.log
        assert answer(service, f"/worker/{framework}/{path}") == expected, service.log
    trace_id, _ = service.call("GET", f"/worker/{framework}/items/3")
    outer, inner = sink.requests(trace_id, 2)
    assert inner.entry.attributes["http.route"] == ROUTES[framework]
    assert "http.route" not in outer.entry.attributes
    parent = next(stage for stage in outer.stages if stage.span_id == inner.entry.parent_id)
    assert parent.name == "handler"
    assert parent.start <= inner.entry.start <= inner.entry.end <= parent.end


def test_a_copied_scope_is_served_as_untraced_whatever_breaks(tmp_path: Path, untraced: Service) -> None:
    paths = ["/pickle/fast/items/3", "/pickle/any_quart/items/3", "/worker/fast/items/3"]
    expected = [answer(untraced, path) for path in paths]
    env = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}
    with run_service(tmp_path, argv=ARGV, env=env) as service:
        for part in BREAKABLE:
            said = service.log.count("fault of stagetrace")
            assert service.client.get(f"/break/{in_full(part)}").is_success
            assert [answer(service, path) for path in paths] == expected, service.log
            assert service.log.count("fault of stagetrace") > said, (part, service.log)
            assert service.client.get("/health").is_success  # which mends it


def test_at_a_provider_of_the_authors_own(sink: Sink, tmp_path: Path) -> None:
    env = {"STAGETRACE": "1", "KIND": "provider", "SINK": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with run_service(tmp_path, argv=ARGV, env=env) as service:
        one, elsewhere = (service.call("GET", f"/{kind}/fast/items/3") for kind in ("pickle", "worker"))
        assert one[1].json() == elsewhere[1].json() == {"item": 3}, service.log
        outer, inner = sink.requests(elsewhere[0], 2)
        assert inner.entry.parent_id in {stage.span_id for stage in outer.stages}
        for request in (inner, sink.tiled(one[0])):
            assert request.entry.attributes["http.route"] == "/items/{item}"
        assert "fault of stagetrace" not in service.log


def test_a_process_without_us_answers_for_one_that_has_us(sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(UNTRACED_WORKER="1")
    with run_service(tmp_path, argv=ARGV, env=env) as service:
        trace_id, response = service.call("GET", "/worker/fast/items/3")
        assert response.json() == {"item": 3}, service.log
        assert_tiled(whole(sink, trace_id))


def test_a_copied_environ_is_served_as_untraced_and_is_one_request(sink: Sink, tmp_path: Path) -> None:
    env = sink.environment()
    argv = wsgi_command("waitress", "copied_environs")
    asked = {"plain/any": None, "flask_light/predict": "/predict", "semantics_django/items/3": "/items/<str:item_id>"}
    with run_service(tmp_path, argv=argv) as untraced, run_service(tmp_path, argv=argv, env=env) as service:
        for kind in ("pickle", "pickled-input", "deepcopy", "copied-values", "spread"):
            for path, route in asked.items():
                method = "GET" if "items" in path else "POST"
                said = {"json": {"inference_s": 0}} if method == "POST" else {}
                _, expected = untraced.call(method, f"/{kind}/{path}", **said)
                trace_id, response = service.call(method, f"/{kind}/{path}", **said)
                assert (response.status_code, response.content) == (200, expected.content), (kind, path, service.log)
                request = sink.tiled(trace_id)
                assert request.entry.attributes.get("http.route") == route
        assert "fault of stagetrace" not in service.log

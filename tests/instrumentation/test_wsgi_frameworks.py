"""WSGI frameworks beside Flask and Django, under real servers: their routes, and responses as untraced."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from services import Service, run_service, wsgi_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

ERROR = 2
# By application, of method and path: the status, and the route.
SHARED: dict[str, tuple[int, str | None]] = {
    "GET /items/none": (404, None),
    "GET /nowhere": (404, None),
    "GET /broken": (500, "/broken"),
    "GET /stream": (200, "/stream"),
}
ANSWERS: dict[str, dict[str, tuple[int, str | None]]] = {
    "wsgi_falcon": {
        **SHARED,
        "GET /items/3": (200, "/items/{item:int}"),
        "POST /items/3": (405, "/items/{item:int}"),
        "OPTIONS /items/3": (200, "/items/{item:int}"),
        "GET /sink/any": (200, None),
        "GET /inner/items/3": (200, "/inner/items/{item:int}"),
        "GET /inner/nowhere": (404, "/inner"),
    },
    "wsgi_bottle": {
        **SHARED,
        "GET /items/3": (200, "/items/<item:int>"),
        "HEAD /items/3": (200, "/items/<item:int>"),
        "POST /items/3": (405, "/items/<item:int>"),
        "GET /inner/items/3": (200, "/inner/items/<item:int>"),
        "GET /inner/nowhere": (404, None),
        "GET /other/items/3": (200, "/other/items/<item:int>"),
        "GET /other/nowhere": (404, "/other"),
        "GET /flask/items/3": (200, "/flask/items/<int:item>"),
        "GET /flask/nowhere": (404, "/flask"),
        "GET /plain/any": (200, "/plain"),
    },
}


@contextmanager
def serve(app: str, sink: Sink, folder: Path, **env: str) -> Iterator[Service]:
    env |= sink.environment()
    with run_service(folder, argv=wsgi_command("waitress", app), env=env) as service:
        yield service
        assert "fault of stagetrace" not in service.log
        assert "cannot patch" not in service.log


@pytest.mark.parametrize("app", ANSWERS)
def test_the_route_is_the_whole_template(app: str, sink: Sink, tmp_path: Path) -> None:
    with serve(app, sink, tmp_path) as traced, run_service(tmp_path, argv=wsgi_command("waitress", app)) as untraced:
        for asked, (status, route) in ANSWERS[app].items():
            trace_id, answer = traced.call(*asked.split())
            expected = untraced.call(*asked.split())[1]
            own, other = (str(one.port).encode() for one in (traced, untraced))
            assert (answer.status_code, answer.content.replace(own, other)) == (status, expected.content)
            request = sink.tiled(trace_id)
            assert request.entry.attributes.get("http.route") == route, asked
            assert request.entry.name == f"{asked.split()[0]} {route or ''}".strip()
            assert (request.entry.status == ERROR) is (status == 500)


@pytest.mark.parametrize("app", ANSWERS)
def test_under_a_server_without_a_patch_the_framework_records(app: str, sink: Sink, tmp_path: Path) -> None:
    with serve(app, sink, tmp_path, STAGETRACE_DISABLED_INSTRUMENTATIONS="waitress") as service:
        request, _ = sink.traced(service, "GET", "/items/3")
    assert request.entry.attributes["http.route"] == ANSWERS[app]["GET /items/3"][1]


@pytest.mark.parametrize("app", ANSWERS)
def test_an_injected_fault_changes_no_response_and_is_logged_once(app: str, tmp_path: Path) -> None:
    part = "stagetrace.protocols.wsgi_request:note_route"
    env = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none", "APP": app, "BREAK": part}
    with run_service(tmp_path, argv=wsgi_command("waitress", "broken"), env=env) as service:
        for asked in (asked for asked in ANSWERS[app] if "flask" not in asked):
            assert service.call(*asked.split())[1].status_code == ANSWERS[app][asked][0]
        assert service.log.count("injected fault") == 1

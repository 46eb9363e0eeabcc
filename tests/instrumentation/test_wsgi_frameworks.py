"""WSGI frameworks beside Flask and Django, under real servers: their routes, and responses as untraced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from backends import free_port
from services import run_service, wsgi_command

if TYPE_CHECKING:
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


@pytest.mark.parametrize("app", ANSWERS)
def test_the_route_is_the_whole_template_whatever_fails_responses_stay(app: str, sink: Sink, tmp_path: Path) -> None:
    control, argv = free_port(), wsgi_command("waitress", "controlled")
    env = sink.environment(APP=app, CONTROL=str(control))
    with (
        run_service(tmp_path, argv=argv, env=env) as traced,
        run_service(tmp_path, argv=wsgi_command("waitress", app)) as untraced,
    ):
        responses = {asked: untraced.call(*asked.split())[1].content for asked in ANSWERS[app]}
        own, other = (str(one.port).encode() for one in (traced, untraced))

        def ask(asked: str) -> str:
            trace_id, answer = traced.call(*asked.split())
            content = answer.content.replace(own, other)
            assert (answer.status_code, content) == (ANSWERS[app][asked][0], responses[asked])
            return trace_id

        for asked, (status, route) in ANSWERS[app].items():
            request = sink.tiled(ask(asked))
            assert request.entry.attributes.get("http.route") == route, asked
            assert request.entry.name == f"{asked.split()[0]} {route or ''}".strip()
            assert (request.entry.status == ERROR) is (status == 500)
        assert "fault of stagetrace" not in traced.log
        assert "cannot patch" not in traced.log
        part = "stagetrace.protocols.wsgi_request:note_route"
        httpx.get(f"http://127.0.0.1:{control}/break/{part}").raise_for_status()
        for asked in (asked for asked in ANSWERS[app] if "flask" not in asked):
            ask(asked)
        assert traced.log.count("injected fault") == 1


@pytest.mark.parametrize("app", ANSWERS)
def test_under_a_server_without_a_patch_the_framework_records(app: str, sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_DISABLED_INSTRUMENTATIONS="waitress")
    with run_service(tmp_path, argv=wsgi_command("waitress", app), env=env) as service:
        request, _ = sink.traced(service, "GET", "/items/3")
        assert "fault of stagetrace" not in service.log
        assert "cannot patch" not in service.log
    assert request.entry.attributes["http.route"] == ANSWERS[app]["GET /items/3"][1]

"""As test_harmless.py, for WSGI: whatever fails in stagetrace, the responses are those without tracing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from parts import parts
from services import Service, run_service, wsgi_command
from test_harmless import (
    CLOSES,
    break_and_ask,
    breakable_service,
    errors_of_the_app,
    keeping_its_connection,
    part_answers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "POST",
        "/predict",
        {"json": {"inference_s": 0.006}, "headers": {"X-Request-Start": "1", "X-Queue-Start": "soon"}},
    ),
    ("POST", "/predict", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("POST", "/echo-length", {"content": b"x" * 70_000}),
    ("POST", "/lines", {"content": b"one\ntwo\n\nthree"}),
    ("GET", "/raise", CLOSES),
    ("GET", "/own-error", {}),
    ("GET", "/plain?a=b", {}),
    ("GET", "/stream?pause_s=0.001", {}),
    ("GET", "/annotate", {}),
    ("GET", "/file", {}),
    ("GET", "/sub/items/3", {}),
    ("GET", "/sub/%C3%BC", {}),
    ("GET", "/plain-wsgi", {}),
    ("GET", "/no-such-path", {"headers": {"x-asked": "ü".encode()}}),
]
# Servers, one line each. A part that all of them use fails in one of them, by turns.
SERVERS = ("gunicorn gthread", "waitress")
PARTS = parts("""
    protocols.wsgi_request: _begin _excluded _url adopts
    protocols.wsgi_request: path_of decoded _carried _fields _headers _in_bytes known _known
    protocols.wsgi_request: time_in_queue_ms note_route note_failure WsgiRequest.__init__ WsgiRequest._come_in
    protocols.wsgi_request: open_entry
    request.request: OwnSpan
    request.context: here.attach here.get_current here.around here.extract
    request.request: Request.rename Request.end_entry Request.release
    protocols.wsgi_request: WsgiRequest._add_rest WsgiRequest._requested
    protocols.wsgi_request: WsgiRequest._note_headers WsgiRequest.enter_framework status_code add_wsgi
    protocols.wsgi_request: WsgiRequest.connection_attributes
    protocols.http_request: HttpRequest.describe HttpRequest._add_rest HttpRequest._failed
    protocols.http_request: HttpRequest._end HttpRequest._template HttpRequest.set_route HttpRequest._rename
    protocols.http_request: HttpRequest.count_in shorten redacted_path
    request.limits: record description_of
    protocols.wsgi_response: Input.__init__ Response.__init__ Transfer.wrap_body
    protocols.wsgi_response: Transfer._for_server Transfer._add_chunk Transfer.transfer_attributes
    sla.entry_recorder: EntryRecorder.end
    sla.plan: Plans.end Plans.make entry_rest encode_request
    causes.in_the_way: of_request
    patches.sklearn: description
""")
# Where a request begins, ends and passes through us: in each server.
PARTS_OF_BOTH = parts("""
    protocols.wsgi_request: WsgiRequest.__init__ WsgiRequest.connection_attributes
    protocols.wsgi_request: _begin
    protocols.wsgi_response: Transfer._for_server Transfer._add_chunk
    sla.entry_recorder: EntryRecorder.end
""")
PARTS_OF_ONE = [part for part in PARTS if part not in PARTS_OF_BOTH]
PARTS_OF_GUNICORN = parts("""
    patches.gunicorn: time_ns Arrival _is_readable
""")
PARTS_OF_WAITRESS = [f"stagetrace_contrib.waitress:{name}" for name in ("time_ns", "Arrival")]
# Where the provider is somebody else's, and where the entry span is.
PARTS_BESIDE = {
    "a provider of one's own": [f"stagetrace.bridge.entry:SdkSpan.{name}" for name in ("__init__", "rename", "end")],
    "an instrumentation of one's own": [
        f"stagetrace.protocols.wsgi_request:AdoptedRequest.{name}" for name in ("__init__", "set_route")
    ],
}


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, tuple[list[Any], list[str]]]]:
    with both(request.param, tmp_path_factory.mktemp("served")) as pair:
        yield pair


@contextmanager
def both(server: str, folder: Path, **more: str) -> Iterator[tuple[Service, tuple[list[Any], list[str]]]]:
    """Serve the application traced; return that, and its responses and log without tracing."""
    argv = wsgi_command(server, "switchable_flask") + ["--keep-alive", "60"] * server.startswith("gunicorn")
    with run_service(folder, argv=argv, env=more) as running, keeping_its_connection(running) as service:
        untraced = part_answers(service, REQUESTS), errors_of_the_app(service.log)
    with breakable_service(folder, "otlp", argv, **more) as service:
        yield service, untraced


@pytest.mark.parametrize("part", ["nothing", *PARTS_OF_BOTH])
@pytest.mark.parametrize("served", SERVERS, indirect=True)
def test_a_part_that_fails_changes_no_answer_no_error_and_is_said_once(part: str, served: Any) -> None:
    break_and_ask(part, served[0], served[1], REQUESTS)


@pytest.mark.parametrize("part", [*PARTS_OF_ONE[::2], *PARTS_OF_GUNICORN])
@pytest.mark.parametrize("served", ["gunicorn gthread"], indirect=True)
def test_nor_does_one_in_gunicorn(part: str, served: Any) -> None:
    break_and_ask(part, served[0], served[1], REQUESTS)


@pytest.mark.parametrize(
    "part",
    [pytest.param(PARTS_OF_ONE[1], marks=pytest.mark.smoke), *PARTS_OF_ONE[3::2], *PARTS_OF_WAITRESS],
)
@pytest.mark.parametrize("served", ["waitress"], indirect=True)
def test_nor_does_one_in_waitress(part: str, served: Any) -> None:
    break_and_ask(part, served[0], served[1], REQUESTS)


@pytest.mark.parametrize("beside", PARTS_BESIDE)
def test_nor_does_a_part_that_works_beside_others(beside: str, tmp_path: Path) -> None:
    with both("gunicorn gthread", tmp_path, BESIDE=beside) as served:
        for part in ("nothing", *PARTS_BESIDE[beside]):
            break_and_ask(part, served[0], served[1], REQUESTS)

"""Every server of ASGI and WSGI applications, asked everything and then ended: what was recorded is what was done.

Each request is tiled and judged, and all of them are delivered as the service ends, for nothing is sent before. That
responses are those of an untraced service is the matter of test_unimportable.py, where all of ours fails besides.
"""

from __future__ import annotations

import secrets
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from e2e.asking import (
    CHUNKS,
    RANDOMISED,
    TRIES,
    Asked,
    asking,
    drive_each,
    drive_further,
    until_begun,
)
from e2e.ending import ask, stop
from services import ASGI_SERVERS, AT_END, PYTHON, WSGI_SERVERS, asgi_command, recorded, run_service, wsgi_command
from sink import SERVER, Received, Request, assert_tiled, request_of, run_sink
from stagetrace.protocols.http_request import announced
from trees import assert_near, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services import Service

pytestmark = pytest.mark.usefixtures("services")

MS = 1_000_000
EARLY = 0.9  # a loop's timer may fire up to a millisecond early
FEW = 48  # stages, however many chunks; a quiet machine makes ten to twenty
WITHIN_MS, CHUNK_MS = 700, 250
POLICY = f"* within {WITHIN_MS}ms first_chunk {CHUNK_MS}ms per_chunk {CHUNK_MS}ms"
FURTHER = ("uvicorn h11", "uvicorn uvloop", "hypercorn", "gunicorn")
OTHERS = [one for one in ASGI_SERVERS if one not in (*FURTHER, "uvicorn", "hypercorn trio")]  # any_bare needs asyncio
GRANIAN = [PYTHON, "-m", "granian", "--interface", "wsgi", "--workers", "2", "--port", "{port}", "flask_light:app"]
LEAVE_SIGTERM = [server for server, argv in WSGI_SERVERS.items() if "wsgi_server.py" in argv]


@contextmanager
def asking_all(folder: Path, argv: list[str]) -> Iterator[tuple[Asked, Service]]:
    """Serve while the block asks; then end the service, and add what was recorded."""
    asked = Asked()
    with run_sink() as sink:
        env = recorded(sink.endpoint, POLICY, STAGETRACE_RECORD_CLIENT="1", **AT_END)
        with run_service(folder, argv=argv, env=env) as service:
            yield asked, service
            asked.code = stop(service)
            asked.log = service.log
        asked.spans = list(sink.spans)


@pytest.fixture(scope="module", params=[*FURTHER, *OTHERS])
def asgi(request: pytest.FixtureRequest, folder: Path) -> Asked:
    with asking_all(folder, asgi_command(request.param, "any_bare")) as (asked, service):
        drive_each(service.url, asked, "asgi")
        if request.param in FURTHER:
            drive_further(service.url, asked)
    return asked


@pytest.fixture(scope="module", params=[*WSGI_SERVERS, "granian"])
def wsgi(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Asked]:
    argv = GRANIAN if request.param == "granian" else wsgi_command(request.param, "flask_light")
    with asking_all(folder, argv) as (asked, service):
        drive_each(service.url, asked, "wsgi")
        asked.answers["predictions"] = ask(service, 20)
    return request.param, asked


# --- each server


def assert_good(asked: Asked, name: str) -> None:
    entry = asked.request(name).entry
    assert "stagetrace.network.disconnect" not in entry.attributes
    assert entry.attributes["sla.verdict"] == ("breach" if is_over(entry) else "good")
    assert entry.status != 2


def assert_few(request: Request, sends: int, name: str = "network.send") -> None:
    """The stages of a request are few, and their visits and sums are those of all chunks."""
    assert len(request.stages) <= FEW
    visits = [stage.attributes.get("ml.stage.coalesced", 1) for stage in request.stages if stage.name == name]
    assert sends / 2 <= sum(visits) <= sends + 4  # those with less than 50 us between them are one
    for stage in request.stages:
        if "ml.stage.coalesced" in stage.attributes:
            assert 0 < stage.attributes["ml.stage.coalesced.longest_ms"] <= (stage.end - stage.start) / 1e6


@pytest.mark.smoke
def test_a_wsgi_server_delivers_all_as_it_ends(wsgi: tuple[str, Asked]) -> None:
    """Each request is tiled. To SIGTERM a server ends as it does untraced; in gevent's, a greenlet gets the signal."""
    server, asked = wsgi
    assert "fault of stagetrace" not in asked.log
    assert len(asked.answers["predictions"]) == 20
    for trace in asked.answers["predictions"]:
        request = asked.of_trace(trace)
        assert request.entry.name == "POST /predict"
        assert request.entry.service == ("wsgi_server" if server in LEAVE_SIGTERM else "flask_light")
        assert "handler" in request.names
    assert asked.code == (-signal.SIGTERM if server in LEAVE_SIGTERM else 0)


@pytest.mark.parametrize("name", ["all", "head alone"])
def test_a_client_with_the_whole_response_has_not_disconnected(name: str, wsgi: tuple[str, Asked]) -> None:
    """It may close the connection. Cheroot takes nothing of a response to HEAD but its head."""
    assert_good(wsgi[1], name)


def test_a_client_without_the_whole_response_has_disconnected(wsgi: tuple[str, Asked]) -> None:
    assert wsgi[1].request("half").entry.attributes["stagetrace.network.disconnect"] == "client"


def test_a_stream_is_a_few_spans(wsgi: tuple[str, Asked]) -> None:
    request = wsgi[1].request("chunks")
    assert_few(request, CHUNKS)
    assert request.entry.attributes["stagetrace.network.chunks"] == CHUNKS


@pytest.mark.parametrize("name", ["all", "nothing to read", "head alone", "cancelled after all"])
def test_an_asgi_client_with_the_whole_response_has_not_disconnected(name: str, asgi: Asked) -> None:
    assert_good(asgi, name)
    if name == "cancelled after all":
        assert asgi.request(name).entry.attributes["http.response.body.size"] == 1000


@pytest.mark.parametrize("name", ["half", "half of much"])
def test_an_asgi_client_without_the_whole_response_has_disconnected(name: str, asgi: Asked) -> None:
    attributes = asgi.request(name).entry.attributes
    assert attributes["stagetrace.network.disconnect"] == "client"
    assert attributes["sla.verdict"] == "excluded"


def test_an_asgi_stream_is_a_few_spans(asgi: Asked) -> None:
    request, slow = asgi.request("chunks"), asgi.request("chunks and a pause")
    assert_few(request, CHUNKS)
    assert request.entry.attributes["stagetrace.network.chunks"] == CHUNKS
    assert request.entry.attributes["http.response.body.size"] == 10 * CHUNKS
    assert_few(slow, 303)
    single = [one for one in slow.stages if "ml.stage.coalesced" not in one.attributes]
    assert any(one.name == "handler" and one.end - one.start >= 300 * MS * EARLY for one in single)


@pytest.mark.parametrize("value", ["x", "", "1, 1", b"\xff", None])
def test_an_invalid_length_announces_nothing(value: Any) -> None:
    """It is no fault of ours, for which a part would be switched off."""
    assert announced("GET", 200, [("Content-Length", value)]) is None
    assert announced("GET", 200, [("Content-Length", "5"), ("x", value)]) == 5


# --- ASGI servers, compared with the clocks of the application and the client

in_four = pytest.mark.parametrize("asgi", FURTHER, indirect=True)


@in_four
def test_a_websocket_of_many_messages_is_a_few_spans(asgi: Asked) -> None:
    request = asgi.request("websocket of many")
    assert asgi.answers["websocket of many"] == ["hello"] * 2 * CHUNKS
    assert_few(request, CHUNKS, "network.receive")
    assert request.entry.attributes["stagetrace.network.messages.received"] == CHUNKS


@in_four
def test_waiting_for_a_slow_body_is_network_receive(asgi: Asked) -> None:
    asked = asgi.each("slow upload")
    assert [(answer["bytes"], answer["waited_s"] > 1) for _, answer in asked] == [(3000, True)] * TRIES
    assert_near([(request.total_ns("network.receive"), answer["waited_s"] * 1e9) for request, answer in asked])
    assert {request.entry.attributes["http.request.body.size"] for request, _ in asked} == {3000}


@in_four
def test_a_slow_reader_is_network_send(asgi: Asked) -> None:
    asked = asgi.each("slow reader")
    assert all(took > 1 for _, took in asked)
    assert_near([(request.total_ns("network.send"), took * 1e9) for request, took in asked])
    assert all(request.entry.attributes["http.response.body.size"] > 30_000_000 for request, _ in asked)


@in_four
def test_a_stream_is_judged_by_its_pieces(asgi: Asked) -> None:
    """0.3 s to the first, 0.4 s between two: the first broke its promise, the duration would have, too."""
    asked = [(request.entry.attributes, answer) for request, answer in asgi.each("stream")]
    assert_near([(said["stagetrace.network.first_byte_ms"] * MS, times[0] * 1e9) for said, times in asked])
    gap = "stagetrace.network.chunk_gap"
    assert_near([(said[f"{gap}.max_ms"] * MS, (times[2] - times[1]) * 1e9) for said, times in asked])
    for attributes, _ in asked:
        assert attributes["stagetrace.network.chunks"] == 4
        assert attributes[f"{gap}.max_ms"] <= attributes[f"{gap}.p99_ms"] * 1.0000001
        assert attributes["sla.verdict"] == "breach"


@in_four
def test_the_wait_for_a_thread_is_queue(asgi: Asked) -> None:
    """One of 41 waits until a thread is free; none is said to have waited longer than it measured itself.

    What it measured ends when the interpreter lets the new thread go on, so it may be longer.
    """
    longest: list[tuple[float, float]] = []
    for which in ("first", "second"):
        waits = {name: asgi.answers[name] * 1e9 for name in asgi.answers if name.startswith(f"{which} thread")}
        assert len(waits) == 41
        assert max(waits.values()) > 200 * MS
        queued = {name: asgi.request(name).total_ns("queue") for name in waits}
        assert all(queued[name] <= waited + 2 * MS for name, waited in waits.items())
        last = max(waits, key=lambda name: waits[name])
        longest.append((queued[last], waits[last]))
    assert_near(longest)


@in_four
def test_a_blocked_loop_is_time_of_whom_it_blocks(asgi: Asked) -> None:
    blocking, waiting = asgi.request("blocking"), asgi.request("waiting")
    assert_near([(blocking.total_ns("handler"), asgi.answers["blocking"] * 1e9)])
    assert waiting.total_ns("handler") >= 1_400 * MS
    assert waiting.entry.attributes["sla.breach.stage"] == "handler"


@in_four
@pytest.mark.parametrize("name", ["gone", "gone in the stream", "gone unheard"])
def test_a_client_that_goes_away_is_marked(name: str, asgi: Asked) -> None:
    attributes = asgi.request(name).entry.attributes
    assert attributes["stagetrace.network.disconnect"] == "client"
    assert attributes["sla.verdict"] in ("excluded", "breach")


@in_four
def test_an_answer_that_was_not_completed_is_an_error(asgi: Asked) -> None:
    entry = asgi.request("nothing").entry
    assert (entry.status, entry.attributes.get("stagetrace.network.disconnect")) == (2, None)


@in_four
def test_a_websocket_is_one_span_with_its_messages_counted_and_no_verdict(asgi: Asked) -> None:
    entry = asgi.request("websocket").entry
    assert asgi.answers["websocket"] == ["hello"] * 6
    assert entry.attributes["stagetrace.network.messages.received"] == 3
    assert entry.attributes["stagetrace.network.messages.sent"] == 6
    assert "sla.verdict" not in entry.attributes


@in_four
def test_the_whole_tree_of_a_request(asgi: Asked) -> None:
    """One literal for all servers."""
    request = asgi.request("tree")
    assert tree(request) == ("POST", ["handler", "network.receive", "handler", "network.send"])
    entry = request.entry
    assert (entry.kind, entry.status, len(entry.parent_id)) == (SERVER, 0, 16)
    varying = ("ml.stage.", "client.port", "server.port", "http.response.body.size")
    assert {key: value for key, value in entry.attributes.items() if not key.startswith(varying)} == {
        "url.scheme": "http",
        "url.path": "/read",
        "http.request.method": "POST",
        "http.request.body.size": 100,
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "sla.breached": False,
        "sla.verdict": "good",
        "sla.objective": POLICY,
        "sla.threshold_ms": float(WITHIN_MS),
    }


@pytest.mark.parametrize("server", [["uvicorn", "--timeout-graceful-shutdown"], ["hypercorn", "--graceful-timeout"]])
def test_a_request_that_its_server_stops_is_marked(server: list[str], tmp_path: Path) -> None:
    """As it shuts down and waits no longer: `cancelled`, which is no good request, though it had a second left."""
    if server[0] == "hypercorn" and sys.version_info >= (3, 13):
        pytest.skip("hypercorn 0.18 does not end then, untraced neither")
    port = {"uvicorn": ["--port", "{port}"], "hypercorn": ["--bind", "127.0.0.1:{port}"]}[server[0]]
    argv = [PYTHON, "-m", server[0], "any_bare:app", *port, server[1], "1"]
    trace = secrets.token_hex(16)
    with run_sink() as sink:
        env = recorded(sink.endpoint, "* within 1m", **AT_END)
        with run_service(tmp_path, argv=argv, env=env) as service, asking(service.url, "/hang", trace):
            until_begun(service.url)
            service.stop()
            assert "fault of stagetrace" not in service.log
        request = request_of([span for span in sink.spans if span.trace_id == trace])
    assert_tiled(request)
    attributes = request.entry.attributes
    assert (attributes["stagetrace.network.disconnect"], attributes["sla.verdict"]) == ("cancelled", "excluded")


@in_four
@pytest.mark.heavier(f"{RANDOMISED:,} requests")
def test_whatever_is_asked_there_is_one_entry_span_tiled_and_truly_judged(asgi: Asked) -> None:
    assert len(asgi.randomised) == RANDOMISED
    by_trace: dict[str, list[Received]] = {}
    for span in asgi.spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    for trace, kind in asgi.randomised.items():
        request = request_of(by_trace[trace])
        assert_tiled(request)
        check(kind, request.entry)


def is_over(entry: Received) -> bool:
    """Return whether a request took longer than POLICY allows, as one may on a busy machine."""
    pauses = [entry.attributes.get(f"stagetrace.network.{one}", 0) for one in ("first_byte_ms", "chunk_gap.max_ms")]
    return entry.end - entry.start > WITHIN_MS * MS or max(pauses) > CHUNK_MS


def check(kind: str, entry: Received) -> None:
    attributes, over = entry.attributes, is_over(entry)
    left = "stagetrace.network.disconnect" in attributes
    assert attributes["sla.verdict"] == ("breach" if over else "excluded" if left else "good"), (kind, entry)
    assert attributes.get("sla.breached") == (True if over else None if left else False)
    assert left is (kind in ("gone", "gone midway", "cut")), (kind, entry)
    raised = kind in ("before", "within")
    status = attributes.get("http.response.status_code", 0)
    assert (entry.status == 2) is (raised or status >= 500), (kind, entry)
    if kind == "before":
        assert status == 500
    if kind == "stream":
        assert attributes["stagetrace.network.chunks"] > 1
    elif kind != "gone midway":  # which may go before the second piece
        assert "stagetrace.network.chunks" not in attributes


def test_nothing_of_ours_failed(asgi: Asked) -> None:
    assert "fault of stagetrace" not in asgi.log, asgi.log

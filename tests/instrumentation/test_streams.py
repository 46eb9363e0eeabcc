"""Streams of hundreds of chunks, messages or parts of a body, by each kind of server: a few spans, with exact sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import connect

from instrumentation.grpc_client import run_service as run_grpc
from instrumentation.grpc_traced import APPS, EARLY, environment
from services import asgi_command, new_trace, run_service, wsgi_command
from sink import Request, Sink, assert_tiled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

CHUNKS = 300
FEW = 48  # stages, however many chunks; a quiet machine makes ten to twenty
SLA = "* within 60s"


def assert_few(request: Request, sends: int, name: str = "network.send") -> None:
    """The request is tiled by a few stages, whose visits and sums are those of all chunks."""
    assert_tiled(request)
    assert len(request.stages) <= FEW
    visits = [stage.attributes.get("ml.stage.coalesced", 1) for stage in request.stages if stage.name == name]
    assert sends / 2 <= sum(visits) <= sends + 4  # those with less than 50 us between them are one
    for one in {stage.name for stage in request.stages}:
        assert request.entry.attributes[f"ml.stage.{one}.ms"] == request.total_ns(one) / 1e6
    for stage in request.stages:
        if "ml.stage.coalesced" in stage.attributes:
            assert 0 < stage.attributes["ml.stage.coalesced.longest_ms"] <= (stage.end - stage.start) / 1e6


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_a_stream_is_a_few_spans(server: str, sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_SLA=SLA)
    with run_service(tmp_path, argv=asgi_command(server, "any_bare"), env=env, ready="/answer") as service:
        trace_id, response = service.call("GET", f"/answer?chunks={CHUNKS}&pause_s=0.001")
        assert len(response.content) == 10 * CHUNKS
        request = sink.request(trace_id)
        assert_few(request, CHUNKS)
        assert request.entry.attributes["stagetrace.network.chunks"] == CHUNKS
        slow = sink.request(service.call("GET", "/stream?pauses=" + "0.001," * 150 + "0.3" + ",0.001" * 150)[0])
        assert_few(slow, 303)
        single = [one for one in slow.stages if "ml.stage.coalesced" not in one.attributes]
        assert any(one.name == "handler" and one.end - one.start >= 300_000_000 * EARLY for one in single)


@pytest.mark.parametrize("server", ["waitress", "gunicorn", "gunicorn gthread", "werkzeug"])
def test_a_wsgi_stream_is_a_few_spans(server: str, sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_SLA=SLA)
    with run_service(tmp_path, argv=wsgi_command(server, "flask_ml"), env=env) as service:
        trace_id, _ = service.call("GET", f"/stream?chunks={CHUNKS}&pause_s=0.001")
        request = sink.request(trace_id)
        assert_few(request, CHUNKS)
        assert request.entry.attributes["stagetrace.network.chunks"] == CHUNKS


@pytest.mark.parametrize("app", APPS)
def test_a_stream_of_messages_is_a_few_spans(app: str, sink: Sink, tmp_path: Path) -> None:
    with run_grpc(tmp_path, app, environment(sink)) as service:
        trace_id, got = service.call("Count", {"to": CHUNKS, "step_s": 0.001}, kind="unary_stream")
        assert len(got.answers) == CHUNKS
        request = sink.tiled(trace_id)
        assert len(request.stages) <= FEW
        for stage in {stage.name for stage in request.stages}:
            assert request.entry.attributes[f"ml.stage.{stage}.ms"] == request.total_ns(stage) / 1e6


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_a_websocket_of_many_messages_is_a_few_spans(server: str, sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_SLA=SLA)
    with run_service(tmp_path, argv=asgi_command(server, "any_bare"), env=env, ready="/answer") as service:
        trace_id, headers = new_trace()
        with connect(service.url.replace("http", "ws") + "/talk", additional_headers=headers) as socket:
            for _ in range(CHUNKS):
                socket.send("x")
                assert (socket.recv(), socket.recv()) == ("x", "x")
        request = sink.request(trace_id)
        assert_few(request, CHUNKS, "network.receive")
        assert request.entry.attributes["stagetrace.network.messages.received"] == CHUNKS

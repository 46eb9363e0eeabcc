"""Beside other people's OpenTelemetry each RPC has exactly one entry span, with our stages and verdict on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.beside import environment
from instrumentation.grpc_client import Service, run_service
from instrumentation.grpc_traced import APPS
from sink import Sink, assert_tiled

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

SLA = "ml.Scorer/Predict within 10ms; * within 20s"
KINDS: list[tuple[str, str, list[Any]]] = [
    ("Predict", "unary_unary", [{"inference_s": 0.02}]),
    ("Count", "unary_stream", [{"to": 2}]),
    ("Sum", "stream_unary", [{"value": 1}, {"value": 2}]),
    ("Double", "stream_stream", [{"value": 1}, {"value": 2}]),
]


NAMED = {
    "provider": "own-provider",
    "instrumentor": "from-environment",
    "provider, instrumentor": "own-provider",
    "provider, interceptor": "own-provider",
    # These export nothing: what is recorded is sent all the same.
    "silent provider": "own-provider",
    "silent provider, interceptor": "own-provider",
    "silent interceptor": "from-environment",
}
Beside = tuple[str, Service]
BESIDE = [f"{app} {own}" for app in APPS for own in NAMED]


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Beside]:
    app, _, own = request.param.partition(" ")
    with run_service(folder, app, environment(sink, SLA, OWN=own)) as service:
        yield own, service


def with_own(*names: str) -> pytest.MarkDecorator:
    """Run a test beside these set-ups of an author's own, in both kinds of servers."""
    chosen = [one for one in BESIDE if one.partition(" ")[2] in names]
    return pytest.mark.parametrize("beside", chosen, indirect=True)


@with_own(*NAMED)
def test_one_entry_span_beside_the_authors_own(beside: Beside, sink: Sink) -> None:
    own, service = beside
    for method, kind, sent in KINDS:
        trace_id, got = service.call(method, *sent, kind=kind)
        assert got.code == "OK"
        request = sink.tiled(trace_id)
        attributes = request.entry.attributes
        assert request.entry.service == NAMED[own]
        assert attributes["sla.breached"] is (method == "Predict")
        if own in ("provider", "silent provider", "silent interceptor"):  # ours, started there
            assert request.entry.name == attributes["rpc.method"] == f"ml.Scorer/{method}"
            assert attributes["rpc.response.status_code"] == "OK"
            assert "client.address" not in attributes
        else:
            assert attributes["rpc.service"] == "ml.Scorer"
    trace_id, got = service.call("See")
    request = sink.request(trace_id)
    assert got.answers[0]["trace_id"] == trace_id
    (child,) = request.others
    if own == "silent interceptor":  # whose span, which nobody gets, is current in the handler: ours has its id
        assert child.parent_id == request.entry.span_id
    else:
        assert request.entry.attributes["set.by.handler"] == "yes"
        assert child.parent_id in {stage.span_id for stage in request.stages}


@pytest.mark.parametrize("timeout", [0.5, None])
@with_own("provider", "instrumentor")
def test_a_caller_that_gives_up_is_no_good_request(timeout: float | None, beside: Beside, sink: Sink) -> None:
    """Whoever made the entry span, and whether it cancels or its deadline passes."""
    trace_id, call = beside[1].begin_sleep(0.8, timeout)
    if timeout is None:
        call.cancel()
    assert call.code().name == ("CANCELLED" if timeout is None else "DEADLINE_EXCEEDED")
    attributes = sink.request(trace_id).entry.attributes
    assert (attributes["stagetrace.network.disconnect"], attributes["sla.verdict"]) == ("cancelled", "excluded")


@with_own("provider")
def test_errors_at_a_provider_of_ones_own(beside: Beside, sink: Sink) -> None:
    for method, code, status in (("Raise", "UNKNOWN", 2), ("Abort", "NOT_FOUND", 0), ("Nope", "UNIMPLEMENTED", 2)):
        entry = sink.request(beside[1].call(method)[0]).entry
        assert entry.attributes["rpc.response.status_code"] == code
        assert entry.status == status
        assert entry.name == ("_OTHER" if method == "Nope" else f"ml.Scorer/{method}")


@pytest.mark.parametrize("app", APPS)
def test_beside_opentelemetry_instrument(app: str, sink: Sink, tmp_path: Path) -> None:
    """Old names then, as that wrapper's user knows them; ours are on the same span."""
    argv = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable]
    with run_service(tmp_path, app, environment(sink, SLA), argv) as service:
        request = sink.request(service.call("Predict", {"inference_s": 0.02})[0])
    assert_tiled(request)
    assert "inference" in request.names
    attributes = request.entry.attributes
    assert (attributes["rpc.service"], attributes["rpc.method"]) == ("ml.Scorer", "Predict")
    assert attributes["sla.objective"] == "ml.Scorer/Predict within 10ms"
    assert attributes["sla.breached"] is True
    assert attributes["sla.breach.stage"] == "inference"

"""Beside other people's OpenTelemetry, and within others' servers, a WSGI request has one entry span: tiled, judged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from instrumentation.beside import environment
from services import PYTHON, Service, new_trace, run_service

if TYPE_CHECKING:
    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

GTHREAD = ["-m", "gunicorn", "-k", "gthread", "--threads", "2", "-b", "127.0.0.1:{port}", "wsgi_beside:app"]
SYNC = ["-m", "gunicorn", "-b", "127.0.0.1:{port}", "wsgi_beside:app"]
UVICORN = ["-m", "uvicorn", "--port", "{port}", "wsgi_beside:app"]
OURS = "stagetrace"
SLA = "POST /predict within 40s; GET /child within 40s; * within 40s"


@pytest.mark.parametrize(
    ("kind", "argv", "scope"),
    [
        pytest.param("nothing", SYNC, OURS, marks=pytest.mark.smoke),
        ("a provider of one's own", GTHREAD, OURS),
        ("Flask instrumented", GTHREAD, "opentelemetry.instrumentation.flask"),
        ("Flask instrumented before", SYNC, "opentelemetry.instrumentation.flask"),
        ("Flask instrumented and hidden", SYNC, OURS),
        ("WSGI middleware within", GTHREAD, "opentelemetry.instrumentation.wsgi"),
        ("WSGI middleware around", SYNC, "opentelemetry.instrumentation.wsgi"),
        ("several middlewares", GTHREAD, OURS),
        ("in FastAPI by Starlette", UVICORN, OURS),
        ("in FastAPI by a2wsgi", UVICORN, OURS),
        ("opentelemetry-instrument", SYNC, "opentelemetry.instrumentation.flask"),
        ("a provider of one's own, without exporter", SYNC, OURS),
        ("Flask instrumented, without exporter", GTHREAD, OURS),
        ("Flask instrumented before, without exporter", SYNC, OURS),
        ("Flask instrumented and hidden, without exporter", SYNC, OURS),
        ("WSGI middleware around, without exporter", SYNC, OURS),
    ],
)
def test_one_entry_span(kind: str, argv: list[str], scope: str, sink: Sink, tmp_path: Path) -> None:
    wrapper = [str(Path(PYTHON).with_name(kind))] if kind == "opentelemetry-instrument" else []
    env = environment(sink, SLA) | {"KIND": kind}
    with (
        run_service(tmp_path, argv=[*wrapper, PYTHON, *argv], env=env) as service,
        httpx.Client(base_url=service.url, timeout=30) as service.client,  # which does not close at once
    ):
        for _ in range(2):
            trace_id, response = service.call("POST", "/predict", json={"inference_s": 0.02})
            assert response.json() == [0.02]
            child, _ = service.call("GET", "/child-span")
            request = sink.tiled(trace_id)
            assert "inference" in request.names
            assert request.entry.scope == scope
            assert request.entry.attributes["sla.breached"] is False
            assert request.entry.attributes["sla.objective"] == "POST /predict within 40s"
            assert request.entry.name == "POST /predict"
            request = sink.request(child)
            spans = {span.span_id: span for span in (*request.stages, *request.others)}
            (found,) = [span for span in request.others if span.name == "child"]
            parent = spans[found.parent_id]
            hidden = kind.startswith("Flask instrumented and hidden")
            assert parent.name == "handler" or (hidden and spans[parent.parent_id].name == "handler")
        assert "failed (" not in service.log
        assert "Traceback" not in service.log
        if kind.startswith(("WSGI middleware around", "in FastAPI by a2wsgi")):
            assert_that_a_client_that_goes_away_is_never_good(service, sink)


def assert_that_a_client_that_goes_away_is_never_good(service: Service, sink: Sink) -> None:
    """Nor is an exception within the answer taken for a client that went away."""
    gone, headers = new_trace()
    with service.client.stream("GET", "/stream?chunks=60", headers=headers) as response:
        next(response.iter_raw())
    broken, headers = new_trace()
    with suppress(httpx.TransportError):  # cut off, where a server has begun to answer
        service.client.get("/raise-in-stream", headers=headers)
    attributes = sink.request(gone).entry.attributes
    assert (attributes["stagetrace.network.disconnect"], attributes["sla.verdict"]) == ("client", "excluded")
    assert "stagetrace.network.disconnect" not in sink.request(broken).entry.attributes


@pytest.mark.parametrize("instrumented", [pytest.param("", marks=pytest.mark.smoke), "1", "without exporter"])
def test_one_entry_span_in_django(instrumented: str, sink: Sink, tmp_path: Path) -> None:
    argv = [PYTHON, *SYNC[:-1], "semantics_django:app"]
    with run_service(tmp_path, argv=argv, env=environment(sink, SLA) | {"INSTRUMENTED": instrumented}) as service:
        request, _ = sink.traced(service, "GET", "/child")
        scope = "opentelemetry.instrumentation.django" if instrumented == "1" else OURS
        assert request.entry.scope.startswith(scope)
        assert request.entry.attributes["sla.objective"] == "GET /child within 40s"
        (child,) = request.others
        assert child.parent_id in {stage.span_id for stage in request.stages}
        assert "failed (" not in service.log

"""Real servers judge by all that a policy file can ask of a request: headers, baggage, segments, deadlines, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from instrumentation.grpc_client import run_service as run_grpc
from services import PYTHON, asgi_command, run_service, wsgi_command

if TYPE_CHECKING:
    from pathlib import Path

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

POLICY = """
version: 1
objectives:
  - name: of gold
    match: {attributes: {"header:x-plan": "gold*", "baggage:region": eu}}
    within: 40s
    segments: {by: ["header:x-region", ml.model.name], max: 2}
    deadline: {from: [grpc-timeout, x-request-timeout-ms]}
    stages: {inference: 1ms, queue: 10s}
    continue: true
  - name: of all
    within: 50s
    target: 99.9%
    errors: bad
  - {name: never reached, within: 1ms}
"""
GOLD = {"x-plan": "gold-1", "baggage": "region=eu,other=1"}
WORK = {"inference_s": 0.02}


class Asked(NamedTuple):
    """Headers of a request, and what its entry span says of the verdict."""

    headers: dict[str, str]
    word: str
    objective: str
    verdicts: str | None
    segment: str | None = None
    source: str | None = None


def gold(word: str = "good", other: str = "good") -> str:
    return f"{word}: of gold (99% over 28d); {other}: of all (99.9% over 28d)"


# In this order: the segments are the first ones that come.
HTTP = [
    Asked({}, "good", "of all", None),
    Asked({"x-plan": "silver", "baggage": "region=eu"}, "good", "of all", None),
    Asked({**GOLD, "baggage": "region=us"}, "good", "of all", None),
    Asked({**GOLD, "x-region": "north"}, "good", "of gold", gold(), "north, {model}"),
    Asked(GOLD, "good", "of gold", gold(), "(none), {model}"),
    Asked({**GOLD, "x-region": "south"}, "good", "of gold", gold(), "other"),
    Asked(
        {**GOLD, "x-region": "north", "x-request-timeout-ms": "5"},
        *("breach", "of gold", gold("breach"), "north, {model}", "x-request-timeout-ms"),
    ),
    Asked({**GOLD, "grpc-timeout": "5m"}, "breach", "of gold", gold("breach"), "(none), {model}", "grpc-timeout"),
    Asked({**GOLD, "x-request-timeout-ms": "-5"}, "good", "of gold", gold(), "(none), {model}"),
]
SERVERS: dict[str, tuple[str, dict[str, str], list[str], str, dict[str, Any]]] = {
    "uvicorn": ("ml", {}, asgi_command("uvicorn", "ml"), "/predict", WORK),
    "uvicorn, instrumented": ("asgi_beside", {"KIND": "provider"}, [], "/predict", WORK),
    "gunicorn": ("flask_ml", {}, wsgi_command("gunicorn gthread", "flask_ml"), "/predict", WORK),
    "gunicorn, instrumented": (
        *("wsgi_beside", {"KIND": "Flask instrumented"}),
        *(wsgi_command("gunicorn gthread", "wsgi_beside"), "/predict", WORK),
    ),
    "aiohttp": ("server_aiohttp", {}, [PYTHON, "server_aiohttp.py"], "/predict/7", {"seconds": 0.02}),
}


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "sla.yaml"
    file.write_text(POLICY)
    return str(file)


def check(asked: Asked, found: dict[str, Any], model: str) -> None:
    assert (found["sla.verdict"], found["sla.objective"]) == (asked.word, asked.objective), asked
    assert found.get("sla.verdicts") == asked.verdicts
    segment = None if asked.segment is None else asked.segment.format(model=model)
    assert found.get("sla.segment") == segment, asked
    assert found.get("sla.deadline.source") == asked.source
    threshold_ms = 50_000 if asked.objective == "of all" else 40_000 if asked.source is None else 5
    assert found["sla.threshold_ms"] == threshold_ms
    assert found.get("sla.over_budget") == ("inference" if asked.objective == "of gold" else None)
    if asked.word == "breach":
        assert found["sla.breach.stage"] == "inference"


def check_error(found: dict[str, Any]) -> None:
    assert (found["sla.verdict"], found["sla.objective"]) == ("breach", "of all")
    assert (found["sla.breach.cause"], found["sla.breach.promise"]) == ("error", "error")


@pytest.mark.parametrize("server", [pytest.param("uvicorn", marks=pytest.mark.smoke), *list(SERVERS)[1:]])
def test_a_server_of_http_judges_by_headers_baggage_segments_deadlines_and_errors(
    server: str, sink: Sink, tmp_path: Path, policy: str
) -> None:
    app, more, argv, path, body = SERVERS[server]
    env = sink.environment(STAGETRACE_SLA=policy, SINK=sink.endpoint, **more)
    with run_service(tmp_path, app, env=env, argv=argv or None) as service:
        for asked in HTTP:
            trace_id, response = service.call("POST", path, json=body, headers=asked.headers)
            assert response.status_code == 200
            found = sink.request(trace_id).entry.attributes
            check(asked, found, found["ml.model.name"])
        trace_id, response = service.call("GET", "/raise")
        assert response.status_code == 500
        check_error(sink.request(trace_id).entry.attributes)
        assert service.log.count("no usable time in x-request-timeout-ms") == 1


@pytest.mark.parametrize(
    ("app", "own"), [("grpc_threads", ""), ("grpc_aio", ""), ("grpc_threads", "provider, interceptor")]
)
def test_a_grpc_server_judges_by_metadata_baggage_segments_and_its_own_deadline(
    app: str, own: str, sink: Sink, tmp_path: Path, policy: str
) -> None:
    more = {"OWN": own} if own else {}
    with run_grpc(tmp_path, app, sink.environment(STAGETRACE_SLA=policy, SINK=sink.endpoint, **more)) as service:
        for timeout, (headers, _, objective, verdicts, segment, _) in zip((90, 30, 90, 30, 90, 30), HTTP, strict=False):
            trace_id, got = service.call("Predict", WORK, metadata=tuple(headers.items()), timeout=timeout)
            assert got.code == "OK"
            found = sink.request(trace_id).entry.attributes
            model = found["ml.model.name"]
            assert (found["sla.objective"], found.get("sla.verdicts")) == (objective, verdicts)
            assert found.get("sla.segment") == (None if segment is None else segment.format(model=model))
            is_tightened = objective == "of gold" and timeout == 30
            assert found.get("sla.deadline.source") == ("grpc-timeout" if is_tightened else None)
            if is_tightened:
                assert 25_000 < found["sla.threshold_ms"] <= 30_300
        if not own:  # OpenTelemetry's interceptor gives the span of an exception no status
            trace_id, got = service.call("Raise")
            assert got.code == "UNKNOWN"
            check_error(sink.request(trace_id).entry.attributes)

"""The rows of docs/environment.md about OpenTelemetry's variables, for services with an SDK, the API alone, neither."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from services import PYTHON, new_trace, run_service
from stagetrace.request.context import Surroundings
from stagetrace.settings import exporters, otlp
from stagetrace.tracing.propagation import BAGGAGE, FIELDS, PAIRS, TRACEPARENT, TRACESTATE
from stagetrace.tracing.span_context import SAMPLED, SpanContext

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from services import Service
    from sink import Sink

# `/`: a span of its own with five of each. `/out/LIBRARY`: a call of `/in` by that library.
APP = """
import os, sys
if os.environ["MODE"] != "none":
    from opentelemetry import trace
if os.environ["MODE"] == "sdk":
    import opentelemetry.sdk.trace

async def out(library):
    url = f"http://127.0.0.1:{os.environ['PORT']}/in"
    if library == "httpx":
        import httpx
        async with httpx.AsyncClient() as client:
            await client.get(url)
    elif library == "aiohttp":
        import aiohttp
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await response.read()
    else:
        import anyio.to_thread, urllib3
        await anyio.to_thread.run_sync(urllib3.PoolManager().request, "GET", url)

def five():
    at = [trace.SpanContext(number + 1, number + 1, is_remote=False) for number in range(5)]
    pairs = {f"a{number}": "x" * 50 for number in range(5)}
    links = [trace.Link(one, pairs) for one in at]
    with trace.get_tracer("mine").start_as_current_span("mine", links=links) as span:
        for name, value in pairs.items():
            span.set_attribute(name, value)
            span.add_event(name, pairs)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    if scope["path"].startswith("/out/"):
        await out(scope["path"][5:])
    elif os.environ["MODE"] != "none" and scope["path"] == "/":
        five()
    met = str("opentelemetry.trace" in sys.modules).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": met})
"""
SERVER, CLIENT = 2, 3  # kinds of spans
MODES = ("none", "api", "sdk")


def serve(folder: Path, sink: Sink, mode: str, **more: str) -> AbstractContextManager[Service]:
    (folder / "variables.py").write_text(APP)
    argv = [PYTHON, "-m", "uvicorn", "variables:app", "--port", "{port}", "--app-dir", str(folder)]
    env = sink.environment(STAGETRACE_STATUS="0", MODE=mode, **more)
    return run_service(folder, argv=argv, env=env)


def mine(sink: Sink, trace_id: str) -> Any:
    """Return the span of the service's own, as it arrived."""
    span_id = sink.span(trace_id, "mine").span_id
    return next(one for one in sink.protos if one.span_id.hex() == span_id)


def counts(span: Any) -> dict[str, int]:
    """Return how many of each a span has and has lost."""
    own = [one for one in span.attributes if one.key.startswith("a")]
    return {
        "attributes": len(own),
        "of an event": len(span.events[0].attributes),
        "of a link": len(span.links[0].attributes),
        "events": len(span.events),
        "links": len(span.links),
        "characters": len(own[0].value.string_value),
        "lost": span.dropped_attributes_count + span.dropped_events_count + span.dropped_links_count,
    }


ALL = {"attributes": 5, "of an event": 5, "of a link": 5, "events": 5, "links": 5, "characters": 50, "lost": 0}
OF_ALL = {"OTEL_ATTRIBUTE_COUNT_LIMIT": "3", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "30"}


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", ["api", "sdk"])
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ALL),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "2"}, {"attributes": 2, "lost": 3}),
        ({"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "1"}, {"of an event": 1}),
        ({"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "4"}, {"of a link": 4}),
        ({"OTEL_SPAN_EVENT_COUNT_LIMIT": "3", "OTEL_SPAN_LINK_COUNT_LIMIT": "1"}, {"events": 3, "links": 1, "lost": 6}),
        (OF_ALL, {"attributes": 3, "of an event": 3, "of a link": 3, "characters": 30, "lost": 2}),
        (
            {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "30", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "20"},
            {"characters": 20},
        ),
    ],
)
def test_limits(variables: dict[str, str], expected: dict[str, int], mode: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, **variables) as service:
        trace_id, _ = service.call("GET", "/")
        assert counts(mine(sink, trace_id)) == {**ALL, **expected}
        service.stop()
    assert "failed (" not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("mode", "variable", "value"),
    [
        ("api", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),  # with it, an SDK cannot be imported
        ("api", "OTEL_SPAN_LINK_COUNT_LIMIT", "-4"),
        ("sdk", "OTEL_SPAN_LINK_COUNT_LIMIT", "-4"),
    ],
)
def test_a_limit_that_cannot_be_used(mode: str, variable: str, value: str, sink: Sink, tmp_path: Path) -> None:
    """It is logged once, and the default holds."""
    with serve(tmp_path, sink, mode, **{variable: value}) as service:
        trace_id, _ = service.call("GET", "/")
        assert counts(mine(sink, trace_id)) == ALL
        assert sink.request(trace_id).entry
        service.stop()
    assert service.log.count(f"{variable}={value} is not a whole number from 0 on; using 128.") == 1
    assert "failed (" not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", MODES)
def test_a_disabled_sdk_records_nothing_and_says_so(mode: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, OTEL_SDK_DISABLED="true") as service:
        trace_id, response = service.call("GET", "/")
        assert response.text == str(mode != "none")
        service.stop()
    assert trace_id not in sink.traces()
    assert service.log.count("records nothing in process") == 1
    assert "OTEL_SDK_DISABLED=true. Unset it to record." in service.log
    assert "recording in process" not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", MODES)
def test_a_config_file_that_cannot_be_used_leaves_a_service_as_untraced(mode: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, OTEL_CONFIG_FILE=str(tmp_path / "none.yaml")) as service:
        trace_id, response = service.call("GET", "/")
        assert (response.status_code, response.text) == (200, str(mode != "none"))
        service.stop()
    assert trace_id not in sink.traces()
    assert service.log.count("none.yaml: No such file or directory") == 1
    assert "recording in process" not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", MODES)
def test_excluded_urls_are_not_recorded(mode: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, OTEL_PYTHON_EXCLUDED_URLS="/ready,/li[fv]e") as service:
        excluded = {service.call("GET", path)[0] for path in ("/ready", "/live", "/live/deep")}
        assert sink.request(service.call("GET", "/alive-not")[0]).entry
        service.stop()
    assert not excluded & sink.traces()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("library", "name"), [("httpx", "HTTPX"), ("aiohttp", "AIOHTTP_CLIENT"), ("urllib3", "URLLIB3")]
)
def test_excluded_calls_carry_no_context(library: str, name: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, "none") as service:
        trace_id, _ = service.call("GET", f"/out/{library}")
        assert len(sink.requests(trace_id, 2)) == 2
    with serve(tmp_path, sink, "none", **{f"OTEL_PYTHON_{name}_EXCLUDED_URLS": "/in$"}) as service:
        trace_id, _ = service.call("GET", f"/out/{library}")
        request = sink.request(trace_id)
        service.stop()
    assert [span.kind for span in request.others if span.kind == CLIENT] == []
    assert sum(span.trace_id == trace_id and span.kind == SERVER for span in sink.spans) == 1


# --- OTEL_PROPAGATORS.


def headers_of(kind: str) -> tuple[str, dict[str, str]]:
    """Return a new trace id, and the header by which a request belongs to that trace."""
    trace_id, w3c = new_trace()
    span_id = w3c["traceparent"].split("-")[2]
    made = {
        "tracecontext": w3c,
        "b3": {"b3": f"{trace_id}-{span_id}-1"},
        "jaeger": {"uber-trace-id": f"{trace_id}:{span_id}:0:1"},
    }
    return trace_id, made[kind]


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("propagators", "follows"),
    [("tracecontext", ["tracecontext"]), ("baggage", []), ("none", []), ("b3,baggage", ["b3"]), ("jaeger", ["jaeger"])],
)
def test_propagators(propagators: str, follows: list[str], mode: str, sink: Sink, jaeger: str, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, OTEL_PROPAGATORS=propagators, PYTHONPATH=jaeger) as service:
        sent = {kind: headers_of(kind) for kind in ("tracecontext", "b3", "jaeger")}
        for _, headers in sent.values():
            service.client.get("/other", headers=headers).raise_for_status()
        service.stop()
    assert [kind for kind, (trace_id, _) in sent.items() if trace_id in sink.traces()] == follows
    assert "cannot" not in service.log


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with the package of Jaeger's propagator."""
    folder = str(tmp_path_factory.mktemp("jaeger"))
    package = f"opentelemetry-propagator-jaeger=={version('opentelemetry-api')}"
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", folder, package]
    subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", MODES)
def test_a_propagator_without_its_package_is_named(mode: str, sink: Sink, tmp_path: Path) -> None:
    with serve(tmp_path, sink, mode, OTEL_PROPAGATORS="jaeger") as service:
        assert service.call("GET", "/other")[1].status_code == 200
        service.stop()
    assert service.log.count("OpenTelemetry cannot use OTEL_PROPAGATORS=jaeger") == 1
    assert "Correct it, or install what it names" in service.log


@pytest.mark.parametrize(
    ("fields", "read", "written"),
    [
        (FIELDS, True, {TRACEPARENT, BAGGAGE}),
        (frozenset((TRACEPARENT, TRACESTATE)), True, {TRACEPARENT}),
        (frozenset((BAGGAGE,)), False, {BAGGAGE}),
        (frozenset(), False, set()),
    ],
)
def test_contexts_without_opentelemetry(fields: frozenset[str], read: bool, written: set[str]) -> None:
    here = Surroundings()
    here.fields = fields
    sent = {TRACEPARENT: f"00-{7:032x}-{8:016x}-01", BAGGAGE: "a=b"}
    found = here.extract(sent)
    assert (here.span_in(found) is not None) == read
    assert (PAIRS in found) == (BAGGAGE in fields)

    class Entry:
        parent_context = found if BAGGAGE in fields else {PAIRS: {"a": "b"}}

    span = SpanContext(7, 8, is_remote=False, trace_flags=SAMPLED)
    assert set(here.headers(Entry(), span)) == written  # type: ignore[arg-type]


# --- OTEL_PYTHON_TRACER_PROVIDER, and the metrics' own variables.

PROVIDER = """
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

def theirs():
    return TracerProvider(resource=Resource({"service.name": "theirs"}))
"""


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("mode", ["none", "api"])
def test_a_tracer_provider_by_its_entry_point(mode: str, sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "their_provider.py").write_text(PROVIDER)
    info = tmp_path / "their_provider-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-provider\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[opentelemetry_tracer_provider]\ntheirs = their_provider:theirs\n")
    env = {"OTEL_PYTHON_TRACER_PROVIDER": "theirs", "PYTHONPATH": str(tmp_path)}
    with serve(tmp_path, sink, mode, **env) as service:
        trace_id, _ = service.call("GET", "/other")
        assert sink.request(trace_id).entry.service == "theirs"


@pytest.mark.parametrize(
    "name",
    ["ENDPOINT", "HEADERS", "COMPRESSION", "TIMEOUT", "INSECURE", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"],
)
def test_metrics_have_variables_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "all")
    assert (otlp(name, "METRICS"), otlp(name, "TRACES")) == ("all", "all")
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_METRICS_{name}", "metrics")
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "traces")
    assert (otlp(name, "METRICS"), otlp(name, "TRACES")) == ("metrics", "traces")


def test_each_signal_has_a_protocol_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    assert exporters("METRICS", "otlp") == ["otlp_proto_http"]
    assert exporters("TRACES", "otlp") == ["otlp_proto_grpc"]

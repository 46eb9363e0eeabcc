"""Beside other people's OpenTelemetry there is exactly one entry span a request, with our stages and verdict on it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instrumentation.beside import environment, untraced
from services import PYTHON, Service, asgi_command, run_service
from sink import Sink, run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")


SLA = "POST /predict within 30s; POST /v1* within 30s"
# By what the author has done, the name of the service. The first one has another test below.
BESIDE = {
    "instrumentor": "from-environment",
    "provider": "own-provider",
    "provider in the lifespan": "own-provider",
    "provider, the program inside a span": "own-provider",
    "inside a span of an unknown provider": "from-environment",
    "middleware": "from-environment",
    "middleware around": "from-environment",
    "FastAPI's telemetry": "own-provider",
    "subclass": "from-environment",
    # Providers that export nothing: what is recorded is sent all the same.
    "silent provider": "silent-provider",
    "silent provider in the lifespan": "silent-provider",
    "silent middleware": "from-environment",
    "silent FastAPI's telemetry": "from-environment",
}
SILENT = [name for name in BESIDE if name.startswith("silent")]


@contextmanager
def serving(kind: str, env: dict[str, str], folder: Path) -> Iterator[Service]:
    with run_service(folder, "asgi_beside", env=env | {"KIND": kind}) as service:
        yield service


@pytest.fixture(scope="module", params=BESIDE)
def beside(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[tuple[str, Service]]:
    with serving(request.param, environment(sink, SLA), folder) as running:
        yield request.param, running


def test_one_entry_span_beside_the_authors_own(beside: tuple[str, Service], sink: Sink) -> None:
    kind, service = beside
    for _ in range(2):  # the first request may find a stack that is not built yet
        request, response = sink.traced(service, "POST", "/predict", json={"inference_s": 0.02})
        assert response.json() == [0.02]
        assert "inference" in request.names
        assert request.entry.service == BESIDE[kind]
        assert request.entry.attributes["sla.breached"] is False


@pytest.mark.parametrize("beside", SILENT, indirect=True)
def test_a_provider_that_exports_nothing_loses_nothing(beside: tuple[str, Service], sink: Sink) -> None:
    """Ids that the service's code sees are those that are sent, and what it sets on its span is there."""
    kind, service = beside
    for _ in range(2):
        request = sink.tiled(service.client.get("/seen").json()["trace_id"])
        (child,) = [span for span in request.others if span.name == "child"]
        if kind != "silent FastAPI's telemetry":  # whose own spans, which nobody gets, are current in the handler
            assert child.parent_id in {stage.span_id for stage in request.stages}
            assert request.entry.attributes["set.by"] == "handler"
    assert "fault of stagetrace" not in service.log


@pytest.mark.parametrize("rate", ["0", "0.5"])
def test_what_a_middleware_samples_for_nobody_is_no_sampling(rate: str, sink: Sink, tmp_path: Path) -> None:
    """All that was judged was sent, and the callee of a service knows that its caller records."""
    with serving("silent middleware", environment(sink, SLA, RATE=rate), tmp_path) as service:
        traces = [service.client.get("/seen").json()["trace_id"] for _ in range(4)]
        posted = [service.call("POST", "/predict", json={})[0] for _ in range(4)]
        for trace_id in (*traces, *posted):
            sink.tiled(trace_id)
        service.stop()
        assert "judged 4 requests, 0 missed their objective" in service.log


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("silent middleware", "patches.opentelemetry:is_silent"),
        ("silent middleware", "patches.opentelemetry:StandIn"),
        ("silent FastAPI's telemetry", "request.own_span:Entry.take_ids"),
        ("silent provider", "bridge.provider:joined"),
        ("silent provider", "bridge.processor:exports"),
    ],
)
def test_a_part_that_fails_beside_a_silent_provider_changes_no_answer(
    kind: str, part: str, sink: Sink, tmp_path: Path
) -> None:
    env = environment(sink, SLA, APP="asgi_beside", KIND=kind, BREAK=f"stagetrace.{part}")
    with run_service(tmp_path, "broken", env=env) as service:
        for _ in range(2):
            assert service.call("POST", "/predict", json={"inference_s": 0.01})[1].json() == [0.01]
            assert service.call("GET", "/raise")[1].status_code == 500
        assert service.call("POST", "/export")[1].status_code == 200 or kind != "silent provider"
        said = [
            line for line in service.log.splitlines() if line.startswith("stagetrace:") and "injected fault" in line
        ]
        assert said
        assert len(said) == len(set(said))


def test_what_a_silent_middleware_does_besides_is_done_once(sink: Sink, tmp_path: Path) -> None:
    """It counts requests and announces the trace."""
    env = environment(sink, SLA, OTEL_SEMCONV_STABILITY_OPT_IN="http")
    with (
        serving("silent middleware", env, tmp_path) as service,
        serving("silent middleware", untraced(env), tmp_path) as plain,
    ):
        for one in (service, plain):
            trace_id, response = one.call("GET", "/plain")
            (announced,) = response.headers.get_list("traceresponse")
            assert announced.split("-")[1] == trace_id
        counts = [sorted(one.client.get("/counted").json()) for one in (service, plain)]
        assert counts[0] == counts[1]


def test_an_exporter_that_comes_later_has_all_from_then_on(sink: Sink, tmp_path: Path) -> None:
    with (
        run_sink() as own,
        serving("silent provider", environment(sink, SLA) | {"SINK": own.endpoint}, tmp_path) as it,
    ):
        before, _ = it.call("POST", "/predict", json={})
        sink.tiled(before)
        it.call("POST", "/export")
        after, _ = it.call("POST", "/predict", json={})
        own.tiled(after)
        it.stop()
        assert before not in own.traces()
        assert after not in sink.traces()
        assert it.log.count("has an exporter from now on") == 1


def test_beside_a_provider_without_exporter_nothing_is_sent_where_nobody_wants_it(sink: Sink, tmp_path: Path) -> None:
    with serving("silent provider", environment(sink, SLA, OTEL_TRACES_EXPORTER="none"), tmp_path) as service:
        trace_id, _ = service.call("POST", "/predict", json={})
        service.stop()
        assert trace_id not in sink.traces()
        assert "spans to nowhere" in service.log


@pytest.mark.parametrize("beside", list(BESIDE)[:1], indirect=True)
def test_what_the_authors_instrumentation_does_besides_is_done_once(beside: tuple[str, Service], sink: Sink) -> None:
    """It excludes what an argument names, and announces the trace in the response."""
    _, service = beside
    left_out, response = service.call("GET", "/plain")
    assert response.json() == {"ok": True}
    traced, response = service.call("POST", "/predict", json={"inference_s": 0.02})
    (announced,) = response.headers.get_list("traceresponse")
    assert announced.split("-")[1] == traced == sink.request(traced).entry.trace_id
    service.stop()
    assert "fault of stagetrace" not in service.log
    assert left_out not in sink.traces()


@pytest.mark.parametrize("wrapper", ["opentelemetry-instrument", "stagetrace run inside it"])
def test_beside_opentelemetry_instrument(wrapper: str, sink: Sink, tmp_path: Path) -> None:
    """Old HTTP names then, as that wrapper's user knows them; ours are on the same span."""
    ours = ["-m", "stagetrace.cli.main", "run", "--", PYTHON] if "inside" in wrapper else []
    argv = [str(Path(PYTHON).with_name("opentelemetry-instrument")), PYTHON, *ours, *asgi_command("uvicorn", "ml")[1:]]
    with run_service(tmp_path, argv=argv, env=environment(sink, SLA)) as service:
        request, _ = sink.traced(service, "POST", "/predict", json={"inference_s": 0.02})
        assert "inference" in request.names
        assert request.entry.attributes["sla.breached"] is False
        assert request.entry.attributes["http.method"] == "POST"


def test_what_the_authors_processor_raises_is_raised_as_untraced(sink: Sink, tmp_path: Path) -> None:
    """To who ends or starts a span of the author's; a span of ours ends without, whatever the processor says of it."""
    env, kind = environment(sink, SLA), "processor that raises"
    paths = ("/own/fine", "/own/refused at its end", "/own/refused at its start", "/plain")
    with serving(kind, env, tmp_path) as service, serving(kind, untraced(env), tmp_path) as plain:
        answers = [(service.call("GET", path), plain.call("GET", path)[1]) for path in paths]
        assert [(a.status_code, a.text) for (_, a), _ in answers] == [(b.status_code, b.text) for _, b in answers]
        assert [b.status_code for _, b in answers] == [200, 500, 500, 200]
        for (trace_id, _), _ in answers:
            sink.tiled(trace_id)
        assert service.log.count("asgi_beside.Strict, which this service has added, failed") == 1
        assert "fault of stagetrace" not in service.log


def test_a_mounted_app_has_one_entry_span(sink: Sink, tmp_path: Path) -> None:
    with serving("mounted", environment(sink, SLA), tmp_path) as service:
        for _ in range(2):
            request, response = sink.traced(service, "POST", "/v1/predict", json={"inference_s": 0.02})
            assert response.json() == [0.02]
            assert "inference" in request.names
            assert request.others == []


def test_an_app_that_was_there_before_us_is_traced(sink: Sink, tmp_path: Path) -> None:
    """Without the variable: `activate()` by hand, after FastAPI, the app and the models."""
    with serving("activated late", untraced(environment(sink, SLA)), tmp_path) as service:
        request, _ = sink.traced(service, "POST", "/predict", json={"inference_s": 0.02})
        assert {"queue", "inference"} <= set(request.names)
        assert request.entry.attributes["sla.breached"] is False


def test_recording_stays_off_without_the_variable(sink: Sink, tmp_path: Path) -> None:
    with run_service(tmp_path, env=untraced(environment(sink, SLA))) as service:
        trace_id, _ = service.call("POST", "/predict", json={})
        service.stop()
        assert trace_id not in sink.traces()
        assert "stagetrace" not in service.log


def test_the_interpreter_under_test_reads_the_activation_file() -> None:
    """Else the tests above would show nothing."""
    import site

    folders = [Path(folder) for folder in [*site.getsitepackages(), site.getusersitepackages()]]
    assert any((folder / "stagetrace.pth").exists() for folder in folders), sys.prefix

"""Whatever breaks in stagetrace, the service answers byte for byte as it does untraced."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from services import Service, run_service
from sink import run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/predict", {"json": {"inference_s": 0.01}}),
    ("POST", "/async-predict", {"json": {}}),
    ("POST", "/predict", {"json": {"inference_s": "no number"}}),
    ("POST", "/predict", {"content": b"{"}),
    ("POST", "/pipeline", {"json": ["good day", "bad bad"]}),
    ("POST", "/transform", {"json": ["good day"]}),
    ("POST", "/echo-length", {"content": b"x" * 200_000}),
    ("GET", "/raise", {}),
    ("GET", "/refuse", {}),
    ("GET", "/stream", {}),
    ("GET", "/stream-inference", {}),
    ("GET", "/overlap", {}),
    ("GET", "/child-span", {}),
    ("GET", "/background", {}),
    ("GET", "/no-such-path", {}),
    ("HEAD", "/plain", {}),
    ("GET", "/openapi.json", {}),
]

TWINS = [
    "stagetrace.recording.timeline:Timeline._switch",
    "stagetrace.recording.timeline:Timeline.close",
    "stagetrace.recording.timeline:SpanContext",
    "stagetrace.recording.spans:SpanContext",
    "stagetrace.instrumentation.fastapi:Timeline",
    "stagetrace.recording.context:RequestSpan.__init__",
    "stagetrace.instrumentation.fastapi:recording",
    "stagetrace.instrumentation.fastapi:_has_entry_span",
    "stagetrace.instrumentation.anyio:_Wait",
    "stagetrace.recording.context:recording",
    "stagetrace.instrumentation.model:description",
    "stagetrace.instrumentation.sklearn:_wrap",
    "stagetrace.instrumentation.otel_sdk:policy",
    "stagetrace.sla.policy:Policy.objective",
    "stagetrace.sla.processor:judge",
    "stagetrace.sla.processor:stage_span",
    "stagetrace.sla.processor:FinishedSpan",
    "stagetrace.sla.processor:dropped",
    "stagetrace.sla.sampling:SamplingResult",
    "stagetrace.otlp.encoder:_span",
    "stagetrace.distro:_set_tracer_provider",
    "stagetrace.distro:_report",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor.instrument_app",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter:OTLPSpanExporter.export",
    "stagetrace.otlp.processor:_encode",
    "stagetrace.otlp.processor:resource_spans",
    "stagetrace.otlp.processor:EncodingSpanProcessor.on_end",
]


def answer(response: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = [(name, value) for name, value in response.headers.items() if name != "date"]
    return response.status_code, response.content, sorted(headers)


def answers(service: Service) -> list[tuple[int, bytes, list[tuple[str, str]]]]:
    return [answer(service.call(method, path, **kwargs)[1]) for method, path, kwargs in REQUESTS]


@pytest.fixture(scope="module")
def untraced(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, bytes, list[tuple[str, str]]]]:
    with run_service(tmp_path_factory.mktemp("untraced"), "broken") as service:
        return answers(service)


def environment(endpoint: str, **more: str) -> dict[str, str]:
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 5ms",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        **more,
    }


def test_traced_answers_are_the_untraced_ones(untraced: list[Any], tmp_path: Path) -> None:
    with run_sink() as sink, run_service(tmp_path, "broken", env=environment(sink.endpoint)) as service:
        assert answers(service) == untraced


@pytest.mark.parametrize("twin", TWINS)
def test_a_failing_part_changes_no_answer_and_is_said_once(twin: str, untraced: list[Any], tmp_path: Path) -> None:
    env = environment("", BREAK=twin, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    with run_sink() as sink:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.endpoint
        with run_service(tmp_path, "broken", env=env) as service:
            for _ in range(2):
                assert answers(service) == untraced
            service.stop()
            said = [line for line in service.log.splitlines() if "the twin is broken" in line]
    assert said, service.log
    ours = Counter(line for line in said if line.startswith("stagetrace:"))
    assert ours, service.log
    assert set(ours.values()) == {1}


@contextmanager
def _black_hole() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connections.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in connections:
            connection.close()


@contextmanager
def _rubbish() -> Iterator[str]:
    """Answer whatever comes with something that is no protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(b"220 mail.example ESMTP\r\n" * 10)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def _nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("collector", [_black_hole, _rubbish, _nobody])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_down_hangs_or_answers_rubbish(
    collector: Any, protocol: str, untraced: list[Any], tmp_path: Path
) -> None:
    """Answers are the same, the end comes, and what is said is said once, in at most three lines."""
    with collector() as endpoint:
        env = environment(endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        with run_service(tmp_path, "broken", env=env) as service:
            assert answers(service) == untraced
            service.stop()
            log = service.log
    assert "Traceback (most recent call last)" not in log.replace(traceback_of_the_app(log), "")
    said = [line for line in log.splitlines() if "cannot deliver spans to" in line or "not all spans were" in line]
    assert 1 <= len(said) <= 3, log
    assert all(endpoint in line for line in said if "cannot deliver" in line)


def traceback_of_the_app(log: str) -> str:
    """Return the part of the log that uvicorn wrote about /raise."""
    start = log.find("ERROR:    Exception in ASGI application")
    end = log.find("ValueError: the app's own error")
    return log[start:end] if start >= 0 else "\0"


@pytest.mark.parametrize(
    ("sla", "said"),
    [
        ("POST /predict within 50", "the duration '50' has no unit (us, ms, s, m)"),
        ("no sense at all", "the word `within` is missing"),
        ("GET /nowhere within 5ms", "matched none of"),
    ],
)
def test_a_bad_policy_is_said_and_changes_no_answer(sla: str, said: str, untraced: list[Any], tmp_path: Path) -> None:
    with run_sink() as sink:
        env = environment(sink.endpoint, STAGETRACE_SLA=sla)
        with run_service(tmp_path, "broken", env=env) as service:
            assert answers(service) == untraced
            service.stop()
            log = service.log
    assert log.count(said) == 1, log


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_TRACES_EXPORTER", "otpl", "there is no exporter 'otpl'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "there is no exporter 'otlp (http/json)'"),
        ("STAGETRACE_LOG", "loud", "STAGETRACE_LOG=loud is not a level"),
    ],
)
def test_a_bad_setting_is_said_and_changes_no_answer(
    name: str, value: str, said: str, untraced: list[Any], tmp_path: Path
) -> None:
    with run_service(tmp_path, "broken", env=environment("http://127.0.0.1:1", **{name: value})) as service:
        assert answers(service)[:3] == untraced[:3]
        service.stop()
        log = service.log
    assert log.count(said) == 1, log


def test_the_log_can_be_switched_off(tmp_path: Path) -> None:
    with run_service(tmp_path, "broken", env=environment("http://127.0.0.1:1", STAGETRACE_LOG="off")) as service:
        answers(service)
        service.stop()
        assert "stagetrace:" not in service.log

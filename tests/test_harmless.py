"""Whatever fails in stagetrace, the responses of the service are byte for byte those without tracing."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services import PYTHON, Service, run_service
from sink import run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

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

# Parts that work as a service starts, or where the entry span is somebody else's; those of one line fail together.
STARTING = [
    "stagetrace.instrumentation.frameworks.fastapi:_has_entry_span,stagetrace.runtime.runtime:_log_start",
    pytest.param("stagetrace.instrumentation.asgi.application:around", marks=pytest.mark.smoke),
    "stagetrace.instrumentation.models.sklearn:_wrap,stagetrace.instrumentation.opentelemetry.sdk:policy",
    "stagetrace.runtime.provider:set_tracer_provider",
    "stagetrace.runtime.provider:_entry_recorder",
    "stagetrace.otlp.export.sender:Sender.start",
]
# Parts on the path of a request, broken one after another in one service.
PARTS = [
    *("stagetrace.instrumentation.models.sklearn:description", "stagetrace.sla.policy:Policy.objective"),
    *(
        "stagetrace.sources.socket_wait:waited_ms",
        "stagetrace.recording.loop_blockers:get_ident",
        "stagetrace.sources.tcp_info:read_connection",
    ),
    *(
        "stagetrace.instrumentation.connection.tcp_attributes:transport_of",
        "stagetrace.sla.baseline:connection_evidence",
    ),
    "stagetrace.sources.thread_cpu:read_sample",
    *("stagetrace.instrumentation.models.base:_attributes_of_call", "stagetrace.instrumentation.models.base:between"),
    *("stagetrace.sla.finish:breakdown_of", "stagetrace.sla.baseline:cause_of", "stagetrace.sla.breakdown:overlap"),
    "stagetrace.sla.baseline:Baselines.wants",
    "stagetrace.instrumentation.asgi.serve:_url",
    *(
        f"stagetrace.instrumentation.asgi.request:{name}"
        for name in (
            *("with_span", "template_of", "AsgiRequest.__init__"),
            *("OwnSpan.__init__", "OwnSpan.rename", "OwnSpan.end_request", "OwnSpan.release", "RequestRecord.release"),
            *("AsgiRequest._finish", "AsgiRequest._template", "AsgiRequest._requested", "AsgiRequest.accept"),
            *("AsgiRequest.begin_response", "AsgiRequest.end_response", "AsgiRequest.enter_mount"),
            *("AsgiRequest.add_chunk", "AsgiRequest._is_disconnected"),
            *("AsgiRequest.transfer_attributes", "AsgiRequest.connection_attributes", "AsgiRequest.add_received"),
        )
    ),
    *(
        f"stagetrace.instrumentation.http.request:{name}"
        for name in (
            *(f"HttpRequest.{name}" for name in ("describe", "_result", "_add_rest", "_failed", "_end")),
            *(f"HttpRequest.{name}" for name in ("set_route", "_rename", "_short_agent", "count_in")),
            *("longest", "shorten"),
        )
    ),
    *(
        f"stagetrace.instrumentation.http.attributes:{name}"
        for name in (
            *("known", "request_block", "client_block", "route_block", "span_name", "read_headers", "excluded"),
            "asked_for",
            *(
                "_fields",
                "_carrier",
                "decoded",
                "shared",
                "AskedFor.attributes",
            ),
        )
    ),
    *(f"stagetrace.instrumentation.http.metrics:{name}" for name in ("HttpMetrics.__init__", "_only")),
    *(
        f"stagetrace.recording.{name}"
        for name in (
            *(
                "own_span:OwnSpan._draw",
                "own_span:OwnSpan.identity",
                "own_span:OwnSpan.status",
            ),
            *("own_span:_tracer", "record:SpanContext"),
            *("record:RequestRecord._settle", "record:RequestRecord._shorten", "record:RequestRecord.abandon"),
            *("record:RequestRecord.close", "record:RequestRecord.freeze"),
            *("record:RequestRecord.stage_context", "record:Tiler", "stages:Stages.totals"),
            *("tiler:Segment", "tiler:Tiler.close", "tiler:Tiler.take", "tiler:_tiles"),
        )
    ),
    *(
        f"stagetrace.sla.entry_recorder:{name}"
        for name in (
            *("EntryRecorder.end", "EntryRecorder.identify", "EntryRecorder._drops"),
            *("EntryRecorder._rest", "EntryRecorder._send", "EntryRecorder._encoded", "encode_request", "finish"),
            *("_give_way", "_given", "_without", "encode_notes", "entry_rest"),
        )
    ),
    *(f"stagetrace.sla.finish:{name}" for name in ("_tiled", "_cause", "_explained", "_breakdown", "judge", "decide")),
    *(
        *(f"stagetrace.sla.head_sampler:HeadSampler.{name}" for name in ("identify", "can_draw", "draw")),
        "stagetrace.sla.finish:Decided.block",
        "stagetrace.sla.processor:decided",
        "stagetrace.sla.processor:Baselines.add",
    ),
    *(f"stagetrace.sla.verdict_counter:VerdictCounter.{name}" for name in ("add", "add_cause")),
    *("stagetrace.sla.processor:SLASpanProcessor.hold", "stagetrace.sla.processor:SLASpanProcessor.release"),
    *(
        "stagetrace.sla.processor:dropped",
        "stagetrace.sla.processor:bounded",
        "stagetrace.sla.entry_recorder:bounded",
        "stagetrace.recording.limits:plain",
        "stagetrace.recording.limits:cut",
        "stagetrace.otlp.export.batch_processor:_encode",
    ),
    *(
        "stagetrace.otlp.encode.span_encoder:_append_attributes",
        "stagetrace.otlp.encode.span_encoder:_append_rest",
        "stagetrace.otlp.encode.span_encoder:_span",
    ),
    *(
        "stagetrace.otlp.export.batch_processor:EncodingSpanProcessor.put",
        "stagetrace.otlp.export.batch_processor:_is_breach",
    ),
    *(
        f"stagetrace.instrumentation.thread_pools.executors:{name}"
        for name in ("Job.__init__", "Job._leave", "Job.begin_wait", "_enter", "_otel_context", "wait", "carry_into")
    ),
    *(f"stagetrace.instrumentation.thread_pools.anyio:{name}" for name in ("_default_limiter", "wait")),
    *(
        f"stagetrace.instrumentation.batching.queues:{name}"
        for name in ("future_in", "Item.__init__", "note_taken", "_await_result")
    ),
    *(
        f"stagetrace.instrumentation.batching.queued_items:{name}"
        for name in ("Item._is_waiter", "Item.note_taken", "Item._report", "Item.forget")
    ),
    *(f"stagetrace.instrumentation.batching.consumer:{name}" for name in ("_work_for", "_only_fetches")),
    *(
        f"stagetrace.instrumentation.batching.gathered_batch:{name}"
        for name in (
            "GatheredBatch.__init__",
            "GatheredBatch.add",
            "GatheredBatch._close",
            "GatheredBatch.stages_for",
            "_origins",
        )
    ),
    *("stagetrace.sources.socket_wait:tcp_info", "stagetrace.sources.tcp_info:tcp_info"),
    *(f"stagetrace.api.carrier:{name}" for name in ("_propagators", "_Block.__init__", "_Block._end_span")),
    *(f"stagetrace.recording.remote_stages:{name}" for name in ("hand_on", "find", "is_here")),
    "stagetrace.sla.sampling:SamplingResult",
    # In the thread that sends, which pauses after a failure.
    *("stagetrace.otlp.export.queue:resource_spans", "stagetrace.otlp.export.client:ExportClient.send"),
    "stagetrace.otlp.export.transport:GrpcTransport.send",
    "stagetrace.otlp.export.sender:Sender._round",
]

# Parts that work where their twins in C do not.
PARTS_IN_PYTHON = [
    *(f"stagetrace.recording.marks:{name}" for name in ("prepared", "recording", "_Marks._now", "_Marks.enter")),
    *(f"stagetrace.recording.marks:_Marks.{name}" for name in ("leave", "begin_mark", "end_mark")),
    *(
        f"stagetrace.instrumentation.asgi.{name}"
        for name in ("channels:Send._sent", "request:AsgiRequest.begin_response")
    ),
    *(
        "stagetrace.instrumentation.asgi.request:AsgiRequest.end_response",
        "stagetrace.otlp.encode.request_encoder:encode_stages",
    ),
    *(f"stagetrace.instrumentation.asgi.request:AsgiRequest.{name}" for name in ("__init__", "_come_in")),
    "stagetrace.instrumentation.http.request:HttpRequest.describe",
    *(f"stagetrace.recording.pool_task:PoolTask.{name}" for name in ("__init__", "_begin", "_leave")),
]
# Parts that work where others besides us want to see the spans.
PARTS_FOR_OTHERS = [
    *("stagetrace.recording.own_span:OwnSpan.readable", "stagetrace.recording.own_span:FinishedSpan"),
    "stagetrace.sla.entry_recorder:EntryRecorder.begin",
    *("stagetrace.recording.own_span:OwnSpan.attributes", "stagetrace.recording.spans:SpanContext"),
    *(f"stagetrace.sla.entry_recorder:{name}" for name in ("EntryRecorder._hand_on", "request_spans", "mark_breach")),
    *(f"stagetrace.sla.finish:{name}" for name in ("FinishedSpan", "sampled", "stage_span", "judge")),
    "stagetrace.otlp.encode.span_encoder:_event",
]
# Servers close the connection after an exception, and say so only where they are asked to.
CLOSES = {"headers": {"connection": "close"}}
PART_REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/predict", {"json": {"inference_s": 0.006}}),
    ("POST", "/predict", {"content": b"{"}),
    ("POST", "/async-predict", {"json": {"inference_s": 0.006}}),
    ("POST", "/echo-length", {"content": b"x" * 70_000}),
    ("GET", "/raise", CLOSES),
    ("GET", "/own-error", {}),
    ("GET", "/plain", {}),
    ("GET", "/stream?pause_s=0.001", {}),
    ("GET", "/annotate", {}),
    ("GET", "/sub/items/3", {}),
    ("GET", "/no-such-path", {"headers": {"x-asked": "ü".encode()}}),
    ("GET", "/many-stages", {}),
    ("GET", "/give-away", {}),
    ("GET", "/batched", {}),
]
UVICORN = [
    *(PYTHON, "-m", "uvicorn", "switchable:app", "--port", "{port}", "--loop", "asyncio", "--http", "h11"),
    *("--timeout-keep-alive", "60"),
]
PARENTS = [f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-00", "none"]


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
        "STAGETRACE_SOCKET_WAIT": "1",
        "STAGETRACE_WIRE": "1",
        "STAGETRACE_SLA": "* within 5ms",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        **more,
    }


def test_traced_answers_are_the_untraced_ones(untraced: list[Any], tmp_path: Path) -> None:
    with run_sink() as sink, run_service(tmp_path, "broken", env=environment(sink.endpoint)) as service:
        assert answers(service) == untraced


@pytest.mark.parametrize("parts", STARTING)
def test_a_part_that_fails_as_a_service_starts_changes_no_answer_and_is_said_once(
    parts: str, untraced: list[Any], tmp_path: Path
) -> None:
    with run_sink() as sink:
        env = environment(sink.endpoint, BREAK=parts, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
        with run_service(tmp_path, "broken", env=env) as service:
            assert answers(service) == untraced
            service.stop()
            said = [line for line in service.log.splitlines() if "injected fault" in line]
    ours = Counter(line for line in said if line.startswith("stagetrace:"))
    assert len(ours) >= parts.count(",") + 1, service.log
    assert set(ours.values()) == {1}


def part_answers(service: Service, requests: Any = PART_REQUESTS, first: int = 0) -> list[Any]:
    """Return the responses, in turn to callers that are sampled, not sampled, and not traced, from the `first` on."""
    return [
        answer(
            service.client.request(
                method,
                path,
                **{**kwargs, "headers": {"traceparent": PARENTS[turn % len(PARENTS)], **kwargs.get("headers", {})}},
            )
        )
        for turn, (method, path, kwargs) in enumerate(requests, first)
    ]


@contextmanager
def keeping_its_connection(service: Service) -> Iterator[Service]:
    """Send requests over one connection, which is closed before the service has to stop."""
    with httpx.Client(base_url=service.url, timeout=60) as service.client:
        yield service


def errors_of_the_app(log: str) -> list[str]:
    """Return the last line of each traceback in a log, and its frames in the app's own file."""
    lines = log.splitlines()
    return [
        line
        for line in lines
        if (line.startswith("  File ") and re.search("apps/[a-z_]*ml.py", line)) or line.startswith("ValueError")
    ]


@pytest.fixture(scope="module")
def untraced_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[str]]:
    folder = tmp_path_factory.mktemp("untraced-parts")
    with run_service(folder, "switchable", argv=UVICORN) as running, keeping_its_connection(running) as service:
        return part_answers(service), errors_of_the_app(service.log)


@contextmanager
def breakable_service(folder: Path, exporters: str, argv: list[str] | None = None, **more: str) -> Iterator[Service]:
    with run_sink() as sink:
        env = environment(
            sink.endpoint,
            OTEL_TRACES_EXPORTER=exporters,
            OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0.5",
            OTEL_METRICS_EXPORTER="console",
            OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="/health,/break,/mend",
            OTEL_PYTHON_FLASK_EXCLUDED_URLS="/health,/break,/mend",
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST="x-asked",
            STAGETRACE_RECORD_QUERY="1",
            # So that two keep it, however busy the machine.
            STAGETRACE_SLA="GET /plain within 1m; GET /annotate within 1m; * within 5ms",
            **more,
        )
        with (
            run_service(folder, "switchable", env=env, argv=argv or UVICORN) as running,
            keeping_its_connection(running) as service,
        ):
            yield service


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with breakable_service(tmp_path_factory.mktemp("breakable"), "otlp") as service:
        yield service


@pytest.fixture(scope="module")
def breakable_in_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with breakable_service(tmp_path_factory.mktemp("in-python"), "otlp", STAGETRACE_NATIVE="0") as service:
        yield service


@pytest.fixture(scope="module")
def breakable_for_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with breakable_service(tmp_path_factory.mktemp("breakable-for-others"), "otlp,console") as service:
        yield service


@pytest.mark.parametrize("part", ["nothing", *PARTS])
def test_a_part_that_fails_on_the_path_changes_no_answer_no_error_and_is_said_once(
    part: str, breakable: Service, untraced_parts: tuple[list[Any], list[str]]
) -> None:
    break_and_ask(part, breakable, untraced_parts)


@pytest.mark.parametrize("part", ["nothing", *PARTS_IN_PYTHON])
def test_nor_does_one_that_has_a_twin_in_c(
    part: str, breakable_in_python: Service, untraced_parts: tuple[list[Any], list[str]]
) -> None:
    break_and_ask(part, breakable_in_python, untraced_parts)


@pytest.mark.parametrize("part", ["nothing", *PARTS_FOR_OTHERS])
def test_nor_does_a_part_that_makes_spans_for_others(
    part: str, breakable_for_others: Service, untraced_parts: tuple[list[Any], list[str]]
) -> None:
    break_and_ask(part, breakable_for_others, untraced_parts)


def break_and_ask(
    part: str, breakable: Service, untraced_parts: tuple[list[Any], list[str]], requests: Any = PART_REQUESTS
) -> None:
    """Send requests while a part fails, until it has been used: some need a certain caller and request."""
    begun = len(breakable.log)
    said: list[str] = []
    if part != "nothing":
        assert breakable.client.get(f"/break/{part}").status_code == 200
    try:
        for first in range(len(PARENTS)):
            before = len(breakable.log)
            assert part_answers(breakable, requests, first) == untraced_parts[0]
            assert errors_of_the_app(breakable.log[before:]) == untraced_parts[1]
            last = first == len(PARENTS) - 1
            if part != "nothing":
                said = wait_for_said(breakable, begun, within_s=30 if last else 0.2)
            if said:
                break
    finally:
        assert breakable.client.get("/mend").status_code == 200
    assert bool(said) is (part != "nothing"), breakable.log[begun:]
    assert set(Counter(said).values()) <= {1}, said


def wait_for_said(service: Service, before: int, within_s: float) -> list[str]:
    """Return the log of stagetrace about the broken part: mostly at once, sometimes from another thread."""
    deadline = time.monotonic() + within_s
    while True:
        said = [
            line
            for line in service.log[before:].splitlines()
            if "injected fault" in line and line.startswith("stagetrace:")
        ]
        if said or time.monotonic() > deadline:
            return said
        time.sleep(0.01)


@contextmanager
def _black_hole() -> Iterator[str]:
    """Accept connections and never respond."""
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
    """Respond to everything with bytes of no protocol."""
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


@pytest.mark.parametrize(
    ("collector", "protocol"),
    [
        (_black_hole, "grpc"),
        (_black_hole, "http/protobuf"),
        (_rubbish, "grpc"),
        (_rubbish, "http/protobuf"),
        (_nobody, "grpc"),
    ],
)
def test_a_collector_that_is_down_hangs_or_answers_rubbish(
    collector: Any, protocol: str, untraced: list[Any], tmp_path: Path
) -> None:
    """Responses are the same, the process ends, and each message is logged once, in at most three lines."""
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
    "settings",
    [
        {
            "STAGETRACE_SLA=POST /predict within 50": "the duration '50' has no unit (us, ms, s, m)",
            "OTEL_TRACES_EXPORTER=otpl": "there is no exporter 'otpl'",
        },
        {
            "STAGETRACE_SLA=no sense at all": "the word `within` is missing",
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/json": "there is no exporter 'otlp (http/json)'",
        },
        {
            "STAGETRACE_SLA=GET /nowhere within 5ms": "matched none of",
            "STAGETRACE_LOG=loud": "STAGETRACE_LOG=loud is not a level",
        },
    ],
    ids=", ".join,
)
def test_bad_settings_are_said_and_change_no_answer(
    settings: dict[str, str], untraced: list[Any], tmp_path: Path
) -> None:
    given = dict(setting.split("=") for setting in settings)
    with run_sink() as sink, run_service(tmp_path, "broken", env=environment(sink.endpoint, **given)) as service:
        assert answers(service) == untraced
        service.stop()
        log = service.log
    assert {said: log.count(said) for said in settings.values()} == dict.fromkeys(settings.values(), 1), log


def test_the_log_can_be_switched_off(tmp_path: Path) -> None:
    with run_service(tmp_path, "broken", env=environment("http://127.0.0.1:1", STAGETRACE_LOG="off")) as service:
        assert service.call("POST", "/predict", json={"inference_s": 0.01})[1].json() == [0.01]
        service.stop()
        assert "stagetrace:" not in service.log

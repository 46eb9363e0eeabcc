"""Whatever fails in stagetrace, the responses of the service are byte for byte those without tracing."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from backends import free_port
from otlp.receiver import run_no_receiver
from parts import parts
from services import PYTHON, Service, run_service
from sink import Sink, run_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
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
    "stagetrace.patches.fastapi:_has_entry_span,stagetrace.runtime.runtime:_log_start",
    pytest.param("stagetrace.protocols.asgi:around", marks=pytest.mark.smoke),
    "stagetrace.patches.sklearn:_wrap,stagetrace.runtime.provider:policy",
    "stagetrace.runtime.provider:set_up",
    "stagetrace.runtime.provider:own_recorder",
    "stagetrace.bridge.provider:meet",
    "stagetrace.request.context:here.within,stagetrace.bridge.entry:ApiSpan.__init__",
    "stagetrace.otlp.export.sender:Sender.start",
]
# Parts on the path of a request, broken one after another in one service; last, those in the thread that sends, which
# pauses after a failure.
PARTS = parts("""
    patches.sklearn: description
    policy.policy: Policy.candidates Policy.applying
    causes.bounds: ShortestBounds.of Shortest.for_request may_judge
    sources.socket_wait: waited_ms tcp_info
    request.loop_blockers: get_ident
    sources.tcp_info: read_connection tcp_info
    protocols.connection: transport_of
    causes.baseline: connection_evidence Baselines.wants
    causes.cause: cause_of
    sources.thread_cpu: read_sample
    sources.process_cpu: process_time_ns
    instrumentation.models.marked: attributes_of_call between
    sla.finish: _cause _explained _breakdown _placed
    sla.decision: judge decide Decided.block Decided.with_culprit
    causes.breakdown: breakdown_of overlap
    causes.in_the_way: waited_behind of_threads Look
    causes.stall_sampler: StallSampler.look StallSampler._watch
    request.in_flight: InFlight.begin InFlight.end InFlight.set_timer InFlight.take
    causes.code: code_of events_of short_path printable
    causes.code: order_of
    protocols.asgi: _url
    protocols.asgi_request: open_entry template_of AsgiRequest.__init__ AsgiRequest._finish AsgiRequest._sent
    protocols.asgi_request: AsgiRequest.end_bytes
    request.request: OwnSpan
    request.context: here.attach here.get_current here.around here.extract
    bridge.entry: span_context SeenSpan.__init__
    request.request: Request.__init__ Request.rename Request.end_entry Request.release
    protocols.asgi_request: AsgiRequest._template AsgiRequest._requested
    protocols.asgi_request: AsgiRequest.begin_response AsgiRequest.enter_mount
    protocols.asgi_request: AsgiRequest.add_bytes AsgiRequest._is_disconnected AsgiRequest.transfer_attributes
    protocols.asgi_request: AsgiRequest.connection_attributes AsgiRequest.add_received
    protocols.http_request: HttpRequest.describe HttpRequest._add_rest HttpRequest._failed
    protocols.http_request: HttpRequest._end HttpRequest.set_route HttpRequest._rename
    protocols.http_request: HttpRequest.count_in shorten
    protocols.http: known request_block client_block route_block span_name read_headers excluded
    protocols.http: asked_for _fields _carrier decoded shared AskedFor.attributes
    bridge.metrics: HttpMetrics.__init__ _only
    request.own_span: Entry._draw Entry.identity Entry.status Entry.note Span span_limits
    request.request: child Request.close Request.freeze Request.stage_context
    request.request: Request._catch_up Request._confirm_tentative Request.abandon Request.cuts
    sla.entry_recorder: EntryRecorder.end EntryRecorder.identify EntryRecorder._drops EntryRecorder._rest
    sla.entry_recorder: EntryRecorder._finish EntryRecorder._send EntryRecorder._encoded encode_request finish _give_way
    sla.entry_recorder: _given _without encode_notes entry_rest bounded
    sla.head_sampler: HeadSampler.identify HeadSampler.draw
    sla.plan: Plans.end Plans.make entry_rest encode_request
    sla.processor: decided Baselines.add Judge.hold Judge.release dropped bounded
    sla.verdict_counter: VerdictCounter.add VerdictCounter.add_cause
    sources.loops: _set
    request.limits: plain cut longest
    request.limits: record name_of
    protocols.http_request: redacted_path
    otlp.export.batch_processor: encode_span EncodingSpanProcessor.put _is_breach
    otlp.encode: _append_attributes _append_rest _span
    patches.concurrent_futures: Job.__init__ Job._leave Job.begin_wait _enter wait
    patches.concurrent_futures: carry_into this_worker take_up
    request.working: this_worker take_up put_down
    api.carrier: worker_here take_up put_down
    causes.in_the_way: of_coroutine of_frame waits_for_thread workers_of
    instrumentation.batching.gathered_batch: worker_here take_up put_down
    patches.anyio: _default_limiter wait
    patches.anyio: _Followed
    patches.queues: future_in Item.__init__ note_taken _await_result
    instrumentation.batching.queued_items: Item._is_waiter Item.note_taken Item._report Item.forget
    instrumentation.batching.consumer: _work_for _only_fetches
    instrumentation.batching.gathered_batch: GatheredBatch.__init__ GatheredBatch.add GatheredBatch._close
    instrumentation.batching.gathered_batch: GatheredBatch.stages_for _origins
    api.carrier: _Block.__init__ _Block._end_span
    request.context: here.carrier here.current_span here.around_span
    request.remote_stages: hand_on find is_here
    otlp.export.queue: resource_spans
    otlp.export.client: ExportClient.send
    otlp.export.transport: GrpcTransport.send
    otlp.export.sender: Sender._round
""")

# Parts that work where the native implementation is off.
PARTS_IN_PYTHON = parts("""
    request.stage: prepared recording
    request.marks: _Marks._now _Marks.enter _Marks.leave _Marks.begin_mark _Marks.end_mark
    request.marks: _Marks.open_context _Marks.tile _Marks._work_out Tiler
    request.tiler: Segment Tiler.close Tiler.take _tiles Stages
    request.stages: Stages.totals Stages.segments
    protocols.asgi_request: AsgiRequest.begin_response AsgiRequest.end_bytes AsgiRequest.__init__ AsgiRequest._sent
    otlp.encode: encode_stages
    protocols.http_request: HttpRequest.describe
    request.working: PoolTask.__init__ PoolTask._leave
""")
# Parts that work where others besides us want to see the spans.
PARTS_FOR_OTHERS = parts("""
    request.own_span: Entry.attributes
    sla.entry_recorder: EntryRecorder.begin EntryRecorder._hand_on mark_breach
    request.spans: SpanContext
    bridge.spans: entry readable stage_span request_spans sampled
    bridge.sampling: SamplingResult
    sla.decision: judge
    otlp.encode: _event
""")
# Parts that work where the policy asks for more of a request than method and route.
PARTS_OF_POLICY = parts("""
    sla.decision: _bounded_by_its_own _segment Decided.besides Values
    sla.decision: Values.__call__ _value _header _baggage _attributes as_text is_secret
    sla.decision: Segments.of redacted
    protocols.asgi_request: AsgiRequest.header AsgiRequest.deadline_ns
    causes.bounds: deadlines deadline_ns
    sla.finish: _over_budget
    policy.objective: Objective.bounded_by Condition.holds
    causes.bounds: Shortest.for_request
    sla.verdict_counter: VerdictCounter.add_segment_overflow
""")
# Servers close the connection after an exception, and say so only where they are asked to.
CLOSES = {"headers": {"connection": "close"}}
PART_REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/predict", {"json": {"inference_s": 0.006}, "headers": {"x-request-timeout-ms": "60000"}}),
    ("POST", "/predict", {"content": b"{"}),
    ("POST", "/async-predict", {"json": {"inference_s": 0.006}}),
    ("POST", "/echo-length", {"content": b"x" * 70_000}),
    ("GET", "/raise", CLOSES),
    ("GET", "/own-error", {}),
    ("GET", "/plain", {}),
    ("GET", "/stream?pause_s=0.001", {}),
    ("GET", "/annotate", {}),
    ("GET", "/plain", {}),  # by the plan that the first one has left, from the same caller
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
    sources = {"STAGETRACE_SOCKET_WAIT": "1", "STAGETRACE_WIRE": "1"}
    return Sink(endpoint).environment(**{"STAGETRACE_SLA": "* within 5ms", **sources, **more})


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


def test_a_sampler_of_late_requests_that_hangs_delays_none(untraced: list[Any], tmp_path: Path) -> None:
    with run_sink() as sink:
        env = environment(sink.endpoint, HANG="stagetrace.causes.in_the_way:of_threads")
        with run_service(tmp_path, "broken", env=env) as service:
            assert answers(service) == untraced
            service.stop()
            assert "stagetrace.sources.stacks" not in service.log


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
            **{"STAGETRACE_SLA": "GET /plain within 1m; GET /annotate within 1m; * within 5ms", **more},
        )
        with (
            run_service(folder, "switchable", env=env, argv=argv or UVICORN) as running,
            keeping_its_connection(running) as service,
        ):
            yield service


# By how the service is started, its exporters and more variables, and the parts that fail there.
BREAKABLE: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "in C": ("otlp", {}, PARTS),
    "in Python": ("otlp", {"STAGETRACE_NATIVE": "0"}, PARTS_IN_PYTHON),
    "for others": ("otlp,console", {}, PARTS_FOR_OTHERS),
    "by a policy file": ("otlp", {"STAGETRACE_SLA": "policy.yaml"}, PARTS_OF_POLICY),
}


@pytest.fixture(scope="module")
def breakable(folder: Path) -> Iterator[Callable[[str], Service]]:
    """Give a service that is started in one of these ways: the same one, until another way is asked for.

    As a parameter, pytest would start it anew for each part.
    """
    running: dict[str, Service] = {}
    with ExitStack() as stack:

        def started(how: str) -> Service:
            if how not in running:
                stack.close()
                running.clear()
                exporters, more, _ = BREAKABLE[how]
                running[how] = stack.enter_context(breakable_service(folder, exporters, None, **more))
            return running[how]

        yield started


@pytest.mark.parametrize(
    ("how", "part"), [(how, part) for how, (_, _, some) in BREAKABLE.items() for part in ("nothing", *some)]
)
def test_a_part_that_fails_on_the_path_changes_no_answer_no_error_and_is_said_once(
    breakable: Callable[[str], Service], how: str, part: str, untraced_parts: tuple[list[Any], list[str]]
) -> None:
    """Nor does one with the native implementation off, nor one that makes spans for other processors."""
    break_and_ask(part, breakable(how), untraced_parts)


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


COLLECTORS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "hangs": lambda: run_no_receiver(b""),
    "rubbish": lambda: run_no_receiver(b"220 mail.example ESMTP\r\n" * 10),
    "down": lambda: nullcontext(f"http://127.0.0.1:{free_port()}"),
}


@pytest.mark.parametrize(
    ("collector", "protocol"),
    [*((one, protocol) for one in ("hangs", "rubbish") for protocol in ("grpc", "http/protobuf")), ("down", "grpc")],
)
def test_a_collector_that_is_down_hangs_or_answers_rubbish(
    collector: str, protocol: str, untraced: list[Any], tmp_path: Path
) -> None:
    """Responses are the same, the process ends, and each message is logged once, in at most three lines."""
    with COLLECTORS[collector]() as endpoint:
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
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/json": "there is no exporter of http/json",
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

"""The processor that encodes at once: everything arrives, once, as the official exporter would have sent it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from sink import Sink, run_sink
from stagetrace import guard
from stagetrace.instrumentation import otlp_exporter
from stagetrace.otlp import encoder, processor
from stagetrace.otlp.encoder import EncodedSpans
from stagetrace.otlp.processor import EncodingSpanProcessor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@pytest.fixture(autouse=True)
def _hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the encoder in place, as the hook of an activated process does, for the length of a test."""
    import opentelemetry.exporter.otlp.proto.grpc.trace_exporter as grpc_module
    import opentelemetry.exporter.otlp.proto.http.trace_exporter as http_module

    for module in (grpc_module, http_module):
        monkeypatch.setattr(module, "encode_spans", module.encode_spans)
        otlp_exporter.hook(module)
    guard.failures.clear()


@pytest.fixture
def sink() -> Iterator[Sink]:
    with run_sink() as running:
        yield running


class Keeping(SpanExporter):
    """Keeps what it is given; takes its time, or fails, as told."""

    def __init__(self, pause_s: float = 0, error: Exception | None = None) -> None:
        self.requests: list[EncodedSpans] = []
        self._pause_s = pause_s
        self._error = error
        self.ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        time.sleep(self._pause_s)
        if self._error is not None:
            raise self._error
        assert isinstance(spans, EncodedSpans)
        self.requests.append(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.ended = True

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in encoder.encode_spans(request).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def provider_of(exporter: SpanExporter, **kwargs: Any) -> tuple[TracerProvider, EncodingSpanProcessor]:
    made = EncodingSpanProcessor(exporter, **kwargs)
    provider = TracerProvider(resource=Resource({"service.name": "encoded"}), shutdown_on_exit=False)
    provider.add_span_processor(made)
    return provider, made


def test_spans_arrive_through_the_official_grpc_exporter(sink: Sink) -> None:
    provider, made = provider_of(OTLPSpanExporter(endpoint=sink.endpoint, insecure=True))
    tracers = [provider.get_tracer("one"), provider.get_tracer("two")]
    for number in range(1000):
        tracers[number % 2].start_span(f"span {number % 7}", attributes={"number": number}).end()
    assert made.force_flush()
    spans = sink.wait_for(lambda all_: len(all_) >= 1000)
    assert sorted(span.attributes["number"] for span in spans) == list(range(1000))
    assert {(span.scope, span.service) for span in spans} == {("one", "encoded"), ("two", "encoded")}
    provider.shutdown()


def test_the_official_http_exporter_takes_them_too() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider, _ = provider_of(HttpExporter(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces"))
    provider.get_tracer("t").start_span("over http").end()
    provider.shutdown()
    server.shutdown()
    server.server_close()
    assert b"over http" in b"".join(bodies)


def test_what_is_not_sampled_is_not_sent() -> None:
    exporter = Keeping()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(EncodingSpanProcessor(exporter))
    provider.get_tracer("t").start_span("x").end()
    provider.shutdown()
    assert exporter.requests == []
    assert exporter.ended


def test_a_full_queue_drops_counts_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    exporter = Keeping(pause_s=0.3)
    provider, made = provider_of(exporter, max_spans=10)
    tracer = provider.get_tracer("t")
    for number in range(200):
        tracer.start_span(str(number)).end()
    provider.shutdown()
    assert made.dropped > 0
    assert len(exporter.spans) + made.dropped == 200
    assert capfd.readouterr().err.count("spans were dropped so far") == 1


def test_bytes_are_bounded_as_spans_are() -> None:
    exporter = Keeping(pause_s=0.2)
    provider, made = provider_of(exporter, max_bytes=10_000)
    for _ in range(50):
        provider.get_tracer("t").start_span("x", attributes={"text": "x" * 1000}).end()
        assert made._bytes <= 10_000
    provider.shutdown()
    assert len(exporter.spans) + made.dropped == 50


def test_many_threads_lose_nothing() -> None:
    exporter = Keeping()
    provider, made = provider_of(exporter)
    tracer = provider.get_tracer("t")

    def work() -> None:
        for _ in range(500):
            tracer.start_span("x").end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.force_flush()
    assert len({span.span_id for span in exporter.spans}) == 4000
    provider.shutdown()


def test_an_exporter_that_raises_does_not_end_the_thread() -> None:
    exporter = Keeping(error=RuntimeError("no"))
    provider, made = provider_of(exporter)
    for _ in range(2):
        provider.get_tracer("t").start_span("x").end()
        assert made.force_flush()
    exporter._error = None
    provider.get_tracer("t").start_span("arrives").end()
    provider.shutdown()
    assert [span.name for span in exporter.spans] == ["arrives"]
    assert guard.failures == {"stagetrace.otlp.processor": 2}


def test_an_encoder_that_fails_is_replaced_by_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> bytes:
        raise RuntimeError("the encoder is broken")

    monkeypatch.setattr(processor, "encode_span", fails)
    exporter = Keeping()
    provider, _ = provider_of(exporter)
    provider.get_tracer("t").start_span("x", attributes={"a": 1}).end()
    provider.shutdown()
    (span,) = exporter.spans
    assert (span.name, span.attributes[0].key, span.attributes[0].value.int_value) == ("x", "a", 1)


def test_a_hanging_exporter_bounds_the_flush() -> None:
    exporter = Keeping(pause_s=30)
    provider, made = provider_of(exporter)
    provider.get_tracer("t").start_span("x").end()
    assert made.force_flush(timeout_millis=100) is False


def test_a_forked_child_sends_its_own_spans_and_not_its_parents(sink: Sink) -> None:
    """As under gunicorn --preload, had the parent recorded something before."""
    import subprocess
    import sys

    code = f"""
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
import stagetrace.instrumentation.otlp_exporter as hook, opentelemetry.exporter.otlp.proto.grpc.trace_exporter as module
hook.hook(module)
from stagetrace.otlp.processor import EncodingSpanProcessor
provider = TracerProvider(shutdown_on_exit=False)
made = EncodingSpanProcessor(None)
provider.add_span_processor(made)
provider.get_tracer("t").start_span("parent").end()
child = os.fork()
made._exporter = module.OTLPSpanExporter(endpoint={sink.endpoint!r}, insecure=True)
if child == 0:
    provider.get_tracer("t").start_span("child").end()
    made.force_flush()
    os._exit(0)
os.waitpid(child, 0)
made.force_flush()
"""
    env = {**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    spans = sink.wait_for(lambda all_: len(all_) >= 2)
    assert sorted(span.name for span in spans) == ["child", "parent"]


def test_the_variables_of_the_batch_processor_are_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "soon")
    made = EncodingSpanProcessor(Keeping())
    assert (made._max_spans, made._batch, made._delay_s) == (100, 100, 1.0)
    assert "OTEL_BSP_SCHEDULE_DELAY=soon is not a whole number" in capfd.readouterr().err

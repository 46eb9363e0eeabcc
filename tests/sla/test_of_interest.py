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
from stagetrace.request.current import current
from stagetrace.request.own_span import OwnSpan
from stagetrace.request.record import RequestRecord
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


class Adapter:
    """An exchange whose connection is read at the end."""

    def __init__(self, record: RequestRecord) -> None:
        record.exchange = self
        self.known = {"http.request.method": "GET", "http.route": "/x"}

    def method_and_route(self) -> tuple[str | None, str]:
        return "GET", "/x"

    def time_in_kernel_ns(self) -> int:
        return 0

    def fits_buffer(self, activity: str) -> bool:  # noqa: ARG002
        return True

    def has_unacked(self) -> bool:
        return False

    def header(self, name: str) -> str | None:  # noqa: ARG002
        return None

    def deadline_ns(self) -> int | None:
        return None

    def known_attributes(self) -> dict[str, Any]:
        return self.known

    def describe(self) -> Any:
        return [], Block({}), dict(self.known)

    def transfer_attributes(self, start: int) -> dict[str, Any]:  # noqa: ARG002
        return {}

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
        record = RequestRecord(start=start)
        end(provider, processor, record, Adapter(record), start + duration_ms * MS)
    return ["stagetrace.network.rtt_ms" in attributes for attributes in spans.attributes]


def own(
    provider: TracerProvider, processor: SLASpanProcessor, record: RequestRecord, adapter: Adapter, end: int
) -> None:
    """End an entry span of ours."""
    recorder = EntryRecorder(provider, processor, [])
    OwnSpan(record, adapter, "GET /x", recorder, Context()).end_request(end, "GET", "/x", failed=False)


def theirs(
    provider: TracerProvider, _processor: SLASpanProcessor, record: RequestRecord, adapter: Adapter, end: int
) -> None:
    """End an entry span of the service's own provider."""
    current.set(record)
    span = provider.get_tracer("t").start_span(
        "GET /x", Context(), SpanKind.SERVER, adapter.known, start_time=record.started
    )
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

"""Entry spans that somebody else makes are sampled like our own: with the processor alone, and no adapter of ours."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer

from stagetrace import SLASpanProcessor, semconv
from stagetrace.causes.stall_sampler import stall_sampler
from stagetrace.request.current import entries
from stagetrace.sources import stacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(stacks.SOURCE.lacks is not None, reason="this interpreter shows no stacks"),
]
WITHIN_S = 30  # until the sampler has looked
HTTP = {"http.request.method": "GET", "http.route": "/predict"}


class Setup:
    """A tracer of somebody's own SDK set-up, and what it exports."""

    def __init__(self, policy: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = SLASpanProcessor(policy, SimpleSpanProcessor(self.exporter))
        provider = TracerProvider()
        provider.add_span_processor(self.processor)
        self.tracer: Tracer = provider.get_tracer("theirs")

    def entry(self, attributes: Mapping[str, str] = HTTP, context: Context | None = None) -> Any:
        return self.tracer.start_as_current_span("GET", context, SpanKind.SERVER, attributes)

    def codes(self) -> list[str]:
        """Return the line of each entry span that has ended, "" of none."""
        entry_spans = [one for one in self.exporter.get_finished_spans() if one.kind is SpanKind.SERVER]
        return [str((one.attributes or {}).get(semconv.SLA_BREACH_CODE, "")) for one in entry_spans]


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup("GET /predict within 1ms; my.Scorer/Predict within 1ms; GET /unhurried within 60m")
    yield made
    stall_sampler.remove(made.processor.learned)


def wait_until_sampled() -> None:
    *_, record = entries.values()
    deadline = time.monotonic() + WITHIN_S
    while not record.stalls and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_thread(setup: Setup) -> None:
    with setup.entry():
        wait_until_sampled()
    assert setup.codes()[0].endswith("in wait_until_sampled")


def test_an_rpc(setup: Setup) -> None:
    with setup.entry({"rpc.system": "grpc", "rpc.service": "my.Scorer", "rpc.method": "Predict"}):
        wait_until_sampled()
    assert setup.codes()[0].endswith("in wait_until_sampled")


def test_a_task(setup: Setup) -> None:
    """The request awaits while its event loop serves something else."""

    async def serve() -> None:
        with setup.entry():
            await awaits()

    async def awaits() -> None:
        await asyncio.gather(deep(), asyncio.sleep(0))

    async def deep() -> None:
        await asyncio.to_thread(wait_until_sampled)

    async def main() -> None:
        served = asyncio.create_task(serve())
        await asyncio.sleep(0)
        await served

    asyncio.run(main())
    assert setup.codes()[0].endswith(("in deep", "in wait_until_sampled"))


def test_a_route_with_time_left_is_not_sampled(setup: Setup) -> None:
    """While one that is late is."""
    with setup.entry({**HTTP, "http.route": "/unhurried"}):
        (record,) = entries.values()
        with setup.entry(context=Context()):
            wait_until_sampled()
        assert record.stalls == ()
    assert [code for code in setup.codes() if code] == setup.codes()[:1]

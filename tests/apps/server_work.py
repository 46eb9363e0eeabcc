"""What the handlers of `server_aiohttp`, `server_tornado` and `server_sanic` do; MODEL=none spares the import of one."""

import asyncio
import os
import time
from typing import Any

from opentelemetry import trace

PORT = int(os.environ.get("PORT", "8080"))
WORKERS = int(os.environ.get("WORKERS", "1"))
CHUNKS = (b"one,", b"two,", b"three")
FILE = __file__
if os.environ.get("MODEL") == "none":

    def predict(seconds: float = 0) -> list[float]:
        time.sleep(seconds)
        return [seconds]
else:
    from sleepy import SleepyModel

    model = SleepyModel()

    def predict(seconds: float = 0) -> list[float]:
        return model.predict([seconds])


async def in_a_thread() -> list[float]:
    return await asyncio.to_thread(predict)


async def in_a_task() -> list[float]:
    return await asyncio.create_task(_predict())


async def _predict() -> list[float]:
    await asyncio.sleep(0)
    return predict()


def child() -> None:
    with trace.get_tracer("app").start_as_current_span("lookup"):
        time.sleep(0.001)


def instrumented(instrumentor: Any) -> None:
    """Instrument by OpenTelemetry, as KIND says: with a provider of the service's own, or with that of stagetrace."""
    kind = os.environ.get("KIND")
    if kind == "provider":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        made = TracerProvider()
        made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["SINK"], insecure=True)))
        trace.set_tracer_provider(made)
    if kind and instrumentor is not None:
        instrumentor().instrument()

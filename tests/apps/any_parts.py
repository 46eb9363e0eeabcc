"""What the `any_*` applications do: work in a stage, a stream, and work in the background."""

import asyncio
import time
from collections.abc import AsyncIterator

from opentelemetry import trace

import stagetrace


async def preprocess() -> None:
    with stagetrace.stage("preprocess"), trace.get_tracer("app").start_as_current_span("of the app"):
        await asyncio.sleep(0.002)


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        await asyncio.sleep(0.01)
        yield b"piece"


def later() -> None:
    time.sleep(0.05)

"""Receives the body of a request over HTTP, as fast as its client may be slow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from stagetrace.backend.inflate import too_large
from stagetrace.backend.intake import STALLED
from stagetrace.backend.refusal import ABANDONED, BUSY, SLOW, Refused

if TYPE_CHECKING:
    from starlette.requests import Request

    from stagetrace.backend.intake import Intake, RequestLimits

STEP: Final = 64 << 10  # bytes that count as progress


@dataclass(frozen=True)
class BodyDeadlines:
    """Seconds that a client may take for a body as a whole, and for each `STEP` of it."""

    whole: float = 60
    step: float = 30


DEADLINES: Final = BodyDeadlines()


async def receive_body(request: Request, intake: Intake, limits: RequestLimits, deadlines: BodyDeadlines) -> bytes:
    """Return the body as received. Raise Refused at the limit, before more of it is held, and at a deadline."""
    most = intake.limits.request
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)
    end = anyio.current_time() + deadlines.whole
    scope = anyio.CancelScope(deadline=min(end, anyio.current_time() + deadlines.step))
    stop_receiving = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
    with limits.receiving(stop_receiving), scope:
        chunks: list[bytes] = []
        fresh = 0
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Refused(ABANDONED, "the client disconnected before the end of the body")
            chunk = message.get("body", b"")
            intake.counters.add("received_bytes", "http", len(chunk))
            limits.grow(len(chunk))
            if limits.held > most:
                raise too_large(most)
            chunks.append(chunk)
            fresh += len(chunk)
            if fresh >= STEP:
                fresh = 0
                limits.progress()
                scope.deadline = min(end, anyio.current_time() + deadlines.step)
            more = message.get("more_body", False)
        return b"".join(chunks)
    if limits.was_stopped:
        raise Refused(BUSY, STALLED)
    raise Refused(
        SLOW,
        f"the body was not received within {deadlines.whole} s, or {STEP} bytes of it not within {deadlines.step} s",
    )

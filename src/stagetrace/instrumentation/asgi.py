"""Time what passes between an ASGI server and an application: the body in, the answer out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stagetrace.recording.timeline import Timeline

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]


def timed_receive(timeline: Timeline, receive: Receive) -> Receive:
    """Return `receive` that marks `network.receive` until the body is complete.

    After that, a pending `receive` only listens for the client going away and is no stage.
    """
    complete = False

    async def wrapped() -> Any:
        nonlocal complete
        if complete:
            return await receive()
        timeline.begin(NETWORK_RECEIVE)
        try:
            message = await receive()
        finally:
            timeline.end(NETWORK_RECEIVE)
        complete = not _more_body(message)
        return message

    return wrapped


def timed_send(timeline: Timeline, send: Send) -> Send:
    """Return `send` that marks `network.send`, in which the server lets a slow client hold us back."""

    async def wrapped(message: Any) -> None:
        timeline.begin(NETWORK_SEND)
        try:
            await send(message)
        finally:
            timeline.end(NETWORK_SEND)

    return wrapped


@guarded
def _more_body(message: Any) -> bool:
    return bool(message.get("more_body", False))

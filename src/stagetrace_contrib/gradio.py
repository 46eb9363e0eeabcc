"""Gradio's queue: each event is a request of its own, from its place in the queue until its result was handed over.

The request that puts an event into the queue gets the event's id at once, and ends. What the event needs is done later,
in a task of Gradio's own, and its results go to another request, a stream of server-sent events. The event's entry span
hangs under the first of them.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, patching
from stagetrace.instrumentation.served_call import ServedCall, ServedTogether, ending
from stagetrace.request.current import recording
from stagetrace.runtime.runtime import runtime

PUSHED = "_stagetrace_pushed"  # on an event: a reference to the request that has pushed it, and when
CALL = "_stagetrace_call"  # on an event that is processed
DISCONNECTED = "client"
REASON = "worker"


def _pushing(original: Any) -> Any:
    @functools.wraps(original)
    async def push(self: Any, *args: Any, **kwargs: Any) -> Any:
        since = time.time_ns()
        pushed = await original(self, *args, **kwargs)
        _note_pushed(self, pushed, since)
        return pushed

    return push


@guarded
def _note_pushed(queue: Any, pushed: Any, since: int) -> None:
    from stagetrace.request.remote_stages import reference_to

    event = queue.event_ids_to_events.get(pushed[1]) if pushed[0] else None
    request = recording()
    if event is not None and request is not None:
        vars(event)[PUSHED] = reference_to(request) or "", since


def _processing(original: Any) -> Any:
    @functools.wraps(original)
    async def process_events(self: Any, events: Any, *args: Any, **kwargs: Any) -> Any:
        work = _begin(events)
        if work is None:
            return await original(self, events, *args, **kwargs)
        with ending(work):
            return await original(self, events, *args, **kwargs)

    return process_events


@guarded
def _begin(events: Any) -> _Events | None:
    if not runtime.ready:
        return None
    return _Events(events)


class _Events:
    """Events that are processed together."""

    def __init__(self, events: Any) -> None:
        self._events = list(events)
        self._calls = [_call_of(event) for event in self._events]
        self._together = ServedTogether(self._calls)

    def fail(self, error: Exception) -> None:
        """Note an exception of Gradio's own: it handles those of the function itself."""
        for call in self._calls:
            call.fail(error)

    def cancel(self) -> None:
        """Note that the processing was cancelled."""
        for call in self._calls:
            call.cancel()

    @guarded_end
    def end(self) -> None:
        """End the entry spans, and restore the context."""
        self._together.leave()
        for event, call in zip(self._events, self._calls, strict=True):
            if not event.alive and call.request.disconnect is None:
                call.request.disconnect = DISCONNECTED
            vars(event).pop(CALL, None)
            call.end()


def _call_of(event: Any) -> ServedCall:
    from stagetrace.protocols.scope import below
    from stagetrace.tracing.propagation import NO_CONTEXT

    reference, since = vars(event).pop(PUSHED, ("", None))
    method = f"gradio/{event.fn.api_name or event.fn.name}"
    attributes = {"rpc.system.name": "gradio", "rpc.method": method}
    call = vars(event)[CALL] = ServedCall(method, attributes, below(reference, NO_CONTEXT), since=since, reason=REASON)
    return call


def _note_message(_: Any, _queue: Any, event: Any, message: Any) -> None:
    """Note a result as a chunk of the response, the last one with its outcome."""
    call, kind = vars(event).get(CALL), type(message).__name__
    if call is None or kind not in {"ProcessGeneratingMessage", "ProcessCompletedMessage"}:
        return
    call.note_chunk()
    if not message.success:
        from stagetrace.request.limits import details

        call.mark_failed(details(message.title) if message.title else None)


# Where an event comes into the queue, where it is processed, and where its results are handed over.
patch_queueing = patching(
    {"Queue.push": _pushing, "Queue.process_events": _processing, "Queue.send_message": after(_note_message)}
)

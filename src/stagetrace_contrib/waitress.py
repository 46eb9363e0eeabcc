"""waitress: one thread receives whole requests, which then wait for a worker thread."""

from __future__ import annotations

from time import time_ns
from typing import Any

from stagetrace.instrumentation.base import before, patching, then
from stagetrace.instrumentation.servers import keeping, serving_loop
from stagetrace.protocols.connection import Arrival, arriving
from stagetrace.semconv import NETWORK_RECEIVE, QUEUE, QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS

BEGAN, COMPLETED = "_stagetrace_began", "_stagetrace_completed"  # on a request, in nanoseconds
WAITING = "_stagetrace_waiting"  # on a channel: the attributes of its wait for a thread


def _note_beginning(request: Any) -> None:
    setattr(request, BEGAN, time_ns())


def _note_completion(request: Any) -> None:
    if request.completed:
        setattr(request, COMPLETED, time_ns())


def _note_waiting(dispatcher: Any, channel: Any) -> None:
    attributes = {
        QUEUE_REASON: "server_threads",
        QUEUE_POOL_SIZE: len(dispatcher.threads),
        QUEUE_WAITERS: len(dispatcher.queue),
    }
    setattr(channel, WAITING, attributes)


def _note_taken(channel: Any) -> None:
    arriving.set(None)
    noted = vars(channel.requests[0])
    if BEGAN in noted and COMPLETED in noted:
        began, completed = noted[BEGAN], noted[COMPLETED]
        waits = ((NETWORK_RECEIVE, None, began, completed), (QUEUE, getattr(channel, WAITING, None), completed, 0))
        arriving.set(Arrival(began, waits))


# The servers: of one socket, and of several.
patch_server = patching(
    {
        "BaseWSGIServer.__init__": keeping("application"),
        "BaseWSGIServer.run": serving_loop,
        "MultiSocketServer.run": serving_loop,
    }
)
# The parser makes a request of the bytes received, the dispatcher queues it for a thread, a channel serves it there.
patch_parser = patching(
    {"HTTPRequestParser.__init__": then(_note_beginning), "HTTPRequestParser.received": then(_note_completion)}
)
patch_task = patching({"ThreadedTaskDispatcher.add_task": before(_note_waiting)})
patch_channel = patching({"HTTPChannel.service": before(_note_taken)})

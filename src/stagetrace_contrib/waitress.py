"""waitress: one thread receives whole requests, which then wait for a worker thread."""

from __future__ import annotations

import functools
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation import wsgi_servers as base
from stagetrace.protocols.connection import Arrival, arriving
from stagetrace.semconv import NETWORK_RECEIVE, QUEUE, QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS

if TYPE_CHECKING:
    from types import ModuleType

BEGAN, COMPLETED = "_stagetrace_began", "_stagetrace_completed"  # on a request, in nanoseconds
WAITING = "_stagetrace_waiting"  # on a channel: the attributes of its wait for a thread


def patch_server(module: ModuleType) -> None:
    """Wrap the servers: of one socket, and of several."""
    base.patch_server(module.BaseWSGIServer, "run", "application")
    base.patch_server(module.MultiSocketServer, "run")


def patch_parser(module: ModuleType) -> None:
    """Wrap the parser, which makes a request of the bytes received."""
    parser = module.HTTPRequestParser
    parser.__init__ = _after(parser.__init__, _note_beginning)
    parser.received = _after(parser.received, _note_completion)


def patch_task(module: ModuleType) -> None:
    """Wrap the dispatcher, which queues a request for a worker thread."""
    dispatcher = module.ThreadedTaskDispatcher
    dispatcher.add_task = _before(dispatcher.add_task, _note_waiting)


def patch_channel(module: ModuleType) -> None:
    """Wrap what a worker thread does with a request."""
    channel = module.HTTPChannel
    channel.service = _before(channel.service, _note_taken)


def _after(original: Any, note: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        note(self)
        return result

    return method


def _before(original: Any, note: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(self, *args)
        return original(self, *args, **kwargs)

    return method


@guarded
def _note_beginning(request: Any) -> None:
    setattr(request, BEGAN, time_ns())


@guarded
def _note_completion(request: Any) -> None:
    if request.completed:
        setattr(request, COMPLETED, time_ns())


@guarded
def _note_waiting(dispatcher: Any, channel: Any) -> None:
    attributes = {
        QUEUE_REASON: "server_threads",
        QUEUE_POOL_SIZE: len(dispatcher.threads),
        QUEUE_WAITERS: len(dispatcher.queue),
    }
    setattr(channel, WAITING, attributes)


@guarded
def _note_taken(channel: Any) -> None:
    arriving.set(None)
    noted = vars(channel.requests[0])
    if BEGAN in noted and COMPLETED in noted:
        began, completed = noted[BEGAN], noted[COMPLETED]
        waits = ((NETWORK_RECEIVE, None, began, completed), (QUEUE, getattr(channel, WAITING, None), completed, 0))
        arriving.set(Arrival(began, waits))

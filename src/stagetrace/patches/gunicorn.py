"""gunicorn's WSGI workers: their application, how long a connection waited for a thread, and the end of a worker."""

from __future__ import annotations

import functools
import select
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import before, then, wrap_all
from stagetrace.instrumentation.servers import deliver, prepare
from stagetrace.protocols.connection import Arrival, arriving
from stagetrace.protocols.wsgi import traced
from stagetrace.semconv import NETWORK_RECEIVE, QUEUE, QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from stagetrace.instrumentation.base import Patch

SIGNALLED = ("handle_exit", "handle_quit", "handle_abort")
END_MODULES = ("stagetrace.protocols.wsgi_request", "stagetrace.protocols.wsgi_response")
END_CALLBACKS = ("close", "closed", "__del__")  # methods of responses, in these modules
ENQUEUED = "_stagetrace_enqueued"  # on a connection: when its wait for a thread began, and the attributes of that wait


def _patch_of(name: str) -> Patch:
    """Return the patch of a worker. gunicorn's base class stays: the workers of ASGI derive from it."""

    def patch(module: ModuleType) -> None:
        worker = getattr(module, name)
        wraps = {"load_wsgi": then(_trace), "run": _then_deliver, **dict.fromkeys(SIGNALLED, _ending_after_request)}
        if hasattr(worker, "enqueue_req"):
            wraps |= {"enqueue_req": before(_note_enqueued), "handle": before(_note_taken)}
        wrap_all((worker, method, wrap) for method, wrap in wraps.items())

    return patch


def _trace(worker: Any) -> None:
    worker.wsgi = traced(worker.wsgi)
    prepare()  # in the worker itself, and after the service's own start-up code


def _then_deliver(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any) -> Any:
        try:
            return original(self)
        finally:
            deliver()

    return run


def _ending_after_request(original: Any) -> Any:
    @functools.wraps(original)
    def handle(self: Any, *args: Any, **kwargs: Any) -> Any:
        _deliver_immediately()
        try:
            return original(self, *args, **kwargs)
        except SystemExit:
            # Raised now, it would lose a request whose response was sent and that is about to be queued for delivery.
            # The worker's loop ends after this request anyway, since `alive` is false. gunicorn itself drops the
            # exception while a response is being sent (`SyncWorker.handle_request`).
            if self.alive or not _ends_request(*args):
                raise
        return None

    return handle


@guarded
def _ends_request(_number: int, frame: FrameType | None) -> bool:
    """Return whether the signal came while the end of a request is recorded, up to the queue for delivery."""
    only_ours = True  # false once the application's own `close` runs within ours
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        only_ours = only_ours and module.startswith("stagetrace.")
        if module in END_MODULES and (
            frame.f_code.co_name == "finish" or (only_ours and frame.f_code.co_name in END_CALLBACKS)
        ):
            return True
        frame = frame.f_back
    return False


@guarded
def _deliver_immediately() -> None:
    """Deliver each request that ends from now on immediately: gunicorn kills a worker that ends too slowly."""
    from stagetrace.runtime.runtime import runtime

    runtime.schedule_immediate_delivery()


def _note_enqueued(worker: Any, conn: Any, *_: Any, **__: Any) -> None:
    pool = worker.tpool
    attributes = {
        QUEUE_REASON: "server_threads",
        QUEUE_POOL_SIZE: pool._max_workers,
        QUEUE_WAITERS: pool._work_queue.qsize(),
    }
    setattr(conn, ENQUEUED, (time_ns(), attributes))


def _note_taken(_worker: Any, conn: Any, *_: Any, **__: Any) -> None:
    """Let the request begin when its connection began to wait, if its first bytes arrived meanwhile.

    A client may open a connection and send its request later: that is the client's time.
    """
    arriving.set(None)
    noted = vars(conn).pop(ENQUEUED, None)
    if noted is not None and _is_readable(conn.sock):
        taken, (enqueued, attributes) = time_ns(), noted
        waits = ((QUEUE, attributes, enqueued, taken), (NETWORK_RECEIVE, None, taken, 0))
        arriving.set(Arrival(enqueued, waits))


def _is_readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


patch_sync = _patch_of("SyncWorker")
patch_gthread = _patch_of("ThreadWorker")
patch_ggevent = _patch_of("GeventWorker")
patch_geventlet = _patch_of("EventletWorker")

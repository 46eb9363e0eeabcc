"""Celery: each task that a worker runs has an entry span, with its wait for the worker as `queue`.

It begins when it was sent, if the process that sent it is recorded, too: that adds headers to the message, as a client
does to its call, with the time. Nearly all is done in receivers of Celery's own signals.
"""

from __future__ import annotations

import time
from datetime import timezone
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, wrap_all
from stagetrace.request.current import recording

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.served_call import ServedCall

SENT: Final = "stagetrace-sent"  # header of a message: when it was sent, in nanoseconds since the epoch
CALL: Final = "_stagetrace_call"  # on a task's request
REASON: Final = "worker"


def patch_signals(module: ModuleType) -> None:
    """Be told of each message that is sent, of each task, and of the start and the end of each worker process."""
    receivers = (
        (module.before_task_publish, _send),
        (module.task_prerun, _begin),
        (module.task_failure, _fail),
        (module.task_postrun, _end),
        (module.worker_process_shutdown, _deliver),
    )
    for signal, receiver in receivers:
        signal.connect(receiver, weak=False)
    # After all receivers: there OpenTelemetry's documentation has services of Celery set their provider.
    wrap_all([(module.worker_process_init, "send", after(_prepare))])


@guarded
def _send(headers: Any = None, **_: Any) -> None:
    if isinstance(headers, dict):
        headers[SENT] = str(time.time_ns())
        request = recording()
        if request is not None:
            from stagetrace.request.context import here

            headers.update(here.carrier(request))


def _prepare(*_: Any, **__: Any) -> None:
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()


@guarded
def _begin(task: Any = None, **_: Any) -> None:
    request = task.request
    if request.is_eager or recording() is not None:  # a call of whoever runs it
        return
    from stagetrace.runtime.runtime import runtime

    if not runtime.ready:  # in a pool of threads or greenlets, which has no process of its own
        runtime.prepare_now()
    if runtime.ready:
        vars(request)[CALL] = call = _call(task.name, request)
        call.enter()


def _call(name: str, request: Any) -> ServedCall:
    from stagetrace.instrumentation.served_call import ServedCall
    from stagetrace.tracing import propagation

    method = f"celery/{name}"
    carrier = {field: value for field in propagation.FIELDS if isinstance(value := request.get(field), str)}
    attributes = {"rpc.system.name": "celery", "rpc.method": method}
    return ServedCall(method, attributes, propagation.extract(carrier), since=_due(request), reason=REASON)


def _due(request: Any) -> int | None:
    """Return since when a task could have run, in nanoseconds since the epoch: it was sent, and its time had come."""
    text = str(request.get(SENT))
    if not (text.isascii() and text.isdigit()):  # its sender is not recorded, or is none of ours
        return None
    sent = int(text)
    if request.eta is None:
        return sent
    from celery.utils.time import maybe_iso8601

    eta = maybe_iso8601(request.eta)  # of clients in other languages, too
    return max(sent, int((eta if eta.tzinfo else eta.replace(tzinfo=timezone.utc)).timestamp() * 1e9))


@guarded
def _fail(sender: Any = None, exception: Any = None, **_: Any) -> None:
    call = _of(sender)
    if call is not None and isinstance(exception, Exception):
        call.fail(exception)


@guarded_end
def _end(task: Any = None, state: str | None = None, **_: Any) -> None:
    call = _of(task)
    if call is not None:
        if state is None:  # its worker ends within it
            call.cancel()
        call.end()


def _of(task: Any) -> ServedCall | None:
    call: ServedCall | None = vars(task.request).get(CALL)
    return call


@guarded_end
def _deliver(**_: Any) -> None:
    from stagetrace.runtime.runtime import runtime

    runtime.flush_now()

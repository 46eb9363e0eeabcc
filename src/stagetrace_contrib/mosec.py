"""mosec: its worker processes have an entry span for each task, from when they have received it until it was sent back.

The HTTP server, in front of them, is not in Python: its queue, and the headers of the request, are not seen. A task
that goes through several workers is one trace: what one worker sends to the next ends with a trailer that says so.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, patching
from stagetrace.instrumentation.served_call import ServedCall, ServedTogether
from stagetrace.runtime.runtime import runtime
from stagetrace.tracing import propagation

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS = "_stagetrace_tasks"  # on a protocol: those that are being served
PICKLES = "_stagetrace_pickles"  # on a protocol: whether its worker sends pickles to the next one
MAGIC = b"\x00stagetrace\x00\x8f\x1d\x52\xe4"
TRACEPARENT = 55  # bytes of W3C's header
TRAILER = len(MAGIC) + TRACEPARENT + 8  # and when it was sent, in nanoseconds since the epoch
INGRESS, EGRESS = 0b1, 0b10  # of a task's state: its first worker, its last one
OK, STREAM_EVENT = 1, 32768
REASON = "worker"


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any) -> Any:
        _prepare(self)
        try:
            return original(self)
        finally:
            _deliver()

    return run


patch_coordinator = patching({"Coordinator.run": _running})  # until the end of a worker process


@guarded
def _prepare(coordinator: Any) -> None:
    """Prepare the process; pickles alone get a trailer, which whoever reads them ignores."""
    worker = type(coordinator.worker)
    plain = sys.modules["mosec.worker"].Worker
    vars(coordinator.protocol)[PICKLES] = worker.serialize_ipc is plain.serialize_ipc
    runtime.prepare_now()


@guarded_end
def _deliver() -> None:
    runtime.flush_now()


def _receive(received: Any, protocol: Any) -> Any:
    """Begin the tasks that a worker has received; return them without their trailers."""
    flag, ids, states, payloads = received
    split = _without_trailers(states, payloads)
    payloads, trailers = split or (payloads, [None] * len(ids))
    _begin(protocol, ids, trailers)
    return flag, ids, states, payloads


@guarded_end
def _without_trailers(states: Any, payloads: Any) -> tuple[list[Any], list[Any]]:
    """Return what another worker has sent without its trailers, and these, None where there is none."""
    split = [_split(payload, state) for payload, state in zip(payloads, states, strict=True)]
    return [payload for payload, _ in split], [trailer for _, trailer in split]


def _split(payload: Any, state: int) -> tuple[Any, bytes | None]:
    at = len(payload) - TRAILER
    if state & INGRESS or at < 0 or payload[at : at + len(MAGIC)] != MAGIC:
        return payload, None
    return payload[:at], bytes(payload[at + len(MAGIC) :])


@guarded
def _begin(protocol: Any, ids: Any, trailers: Sequence[bytes | None]) -> None:
    if runtime.ready and ids:
        stage = protocol.name.strip("<>").partition("|")[0]
        vars(protocol)[TASKS] = _Tasks(stage, ids, trailers)


class _Tasks:
    """The tasks that a worker serves at once."""

    def __init__(self, stage: str, ids: Sequence[bytes], trailers: Sequence[bytes | None]) -> None:
        calls = [_call(f"mosec/{stage}", trailer) for trailer in trailers]
        self._together: ServedTogether = ServedTogether(calls)
        self.calls: dict[bytes, ServedCall] = dict(zip(ids, calls, strict=True))

    def trailer(self, task: bytes) -> bytes:
        """Return what the next worker has to know of a task."""
        carrier = propagation.headers(self.calls[task].stage_context())
        return MAGIC + carrier[propagation.TRACEPARENT].encode("ascii") + time.time_ns().to_bytes(8, "big")

    def end(self, status: int) -> None:
        """End them, with the status of their response."""
        ended_at = time.time_ns()
        self._together.leave()
        for call in self.calls.values():
            if status != OK:
                call.mark_failed(getattr(status, "name", str(status)))
            call.end(ended_at)


def _call(method: str, trailer: bytes | None) -> ServedCall:
    attributes = {"rpc.system.name": "mosec", "rpc.method": method}
    if trailer is None:
        return ServedCall(method, attributes, propagation.NO_CONTEXT)
    carrier = {"traceparent": trailer[:TRACEPARENT].decode("ascii")}
    parent = propagation.extract(carrier)
    since = int.from_bytes(trailer[TRACEPARENT:], "big")
    return ServedCall(method, attributes, parent, since=since, reason=REASON)


def _sending(original: Any) -> Any:
    @functools.wraps(original)
    def send(self: Any, flag: Any, ids: Any, states: Any, payloads: Any) -> Any:
        tasks = getattr(self, TASKS, None)
        if tasks is None:
            return original(self, flag, ids, states, payloads)
        if flag == STREAM_EVENT:
            _note_chunks(tasks, ids)
            return original(self, flag, ids, states, payloads)
        if flag == OK and getattr(self, PICKLES, False):
            payloads = _with_trailers(tasks, ids, states, payloads) or payloads
        try:
            return original(self, flag, ids, states, payloads)
        finally:
            _end(self, tasks, flag)

    return send


@guarded
def _note_chunks(tasks: _Tasks, ids: Sequence[bytes]) -> None:
    for task in ids:
        tasks.calls[task].note_chunk()


@guarded
def _with_trailers(tasks: _Tasks, ids: Any, states: Any, payloads: Any) -> list[Any]:
    given = zip(ids, states, payloads, strict=True)
    return [payload if state & EGRESS else bytes(payload) + tasks.trailer(task) for task, state, payload in given]


@guarded_end
def _end(protocol: Any, tasks: _Tasks, status: int) -> None:
    vars(protocol).pop(TASKS, None)
    tasks.end(status)


# The two ends of what a worker does for its tasks.
patch_protocol = patching({"Protocol.receive": after(_receive, guarded_end), "Protocol.send": _sending})

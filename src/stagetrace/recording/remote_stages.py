"""What is done for a request elsewhere, in another process of the service or in a batch, as its own timeline learns it.

A key names a request of a process: that process's random word, a number, the entry span's id. It travels with the
request, and comes back with the stages: directly within a process, else by the side channel.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from opentelemetry.trace import SpanContext, TraceFlags

from stagetrace.guard import guarded, guarded_end
from stagetrace.recording import remote_socket as channel
from stagetrace.semconv import ML_WORKER_LOST, QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.segments import Segment

    # stage, start and end (None: it goes on), attributes, span id or None, link as trace id, span id and flags or None
    Told = tuple[str, int, int | None, dict[str, Any], int | None, tuple[int, int, int] | None]

# What was handed on, by its key, as long as it lives without us.
_timelines: WeakValueDictionary[str, RequestRecord] = WeakValueDictionary()
_word = os.urandom(8).hex()  # this process's: its id others may have, in other containers and after it
_numbers = itertools.count(1)
_starting = threading.Lock()  # guards the making of _listener
_listener: channel.Listener | None = None


def hand_on(
    timeline: RequestRecord,
    reason: str = "",
    at: int | None = None,
    *,
    is_server: bool = False,
    conclude: Callable[[], None] | None = None,
) -> str:
    """Return the key of a request that is handed on, from when on it waits, for what `reason` says.

    `at` is when, by default now. `is_server`: it is handed on by a server of which we note when the response is there,
    by `RemoteStages.answered`. `conclude` adds, as the request ends, what is known by then of what stays in this
    process.
    """
    if _listener is None and channel.WORKS and conclude is None:
        _start()
    key = named(timeline)
    if timeline.remote_stages is None:
        timeline.remote_stages = RemoteStages()
    timeline.remote_stages.add(key, _Errand(reason, at or time.time_ns(), conclude, is_server=is_server))
    return key


def named(timeline: RequestRecord) -> str:
    """Return a key by which a request of this process is found."""
    entry = timeline.entry
    key = f"{_word}-{next(_numbers)}-{entry.span_id if entry is not None else 0:016x}"
    _timelines[key] = timeline
    return key


@guarded
def _start() -> None:
    """Begin to listen."""
    global _listener  # noqa: PLW0603
    with _starting:
        if _listener is None:
            _listener = channel.Listener(_word)
            atexit.register(_listener.close)


def _start_anew() -> None:
    """Take another word, in a fork: the parent's requests do not go on there."""
    global _word, _listener, _starting  # noqa: PLW0603
    _word, before, _listener = os.urandom(8).hex(), _listener, None
    _starting = threading.Lock()  # a thread that there is not any more may have had it
    if before is not None:
        before.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def entry_of(key: str, span: SpanContext) -> SpanContext:
    """Return the entry span of a request, of which `span` is another."""
    span_id = int(key.rpartition("-")[2], 16)
    return SpanContext(span.trace_id, span_id, is_remote=True, trace_flags=span.trace_flags)


def is_here(key: str) -> bool:
    """Return whether a key is of this process."""
    return key.startswith(f"{_word}-")


def find(key: str) -> RequestRecord | None:
    """Return the request of this process that has a key, while there is one."""
    return _timelines.get(key)


def tell(key: str, reason: str, taken_at: int, stages: Sequence[Told], *, is_over: bool) -> None:
    """Tell the process whose request has `key` what was done for it here, `reason` being what it had waited for.

    It was taken up at a time in nanoseconds. Until it `is_over` the last stage may go on, and will be told again.
    """
    message = key, reason, taken_at, stages, is_over
    if is_here(key):
        _note(message, 0)
    else:
        channel.say(key.partition("-")[0], message)


@guarded
def hear() -> None:
    """Learn what other processes have told until now."""
    if _listener is not None:
        _listener.hear(_note)


def _note(message: Any, process: int) -> None:
    key, reason, taken_at, stages, is_over = message
    timeline = _timelines.get(key)
    if timeline is not None and timeline.remote_stages is not None and not timeline.closed:
        timeline.remote_stages.told(timeline, key, (reason, taken_at, stages), None if is_over else process)


class _Errand:
    """One of a request's, since it was handed on."""

    def __init__(self, reason: str, since: int, conclude: Callable[[], None] | None, *, is_server: bool) -> None:
        self.since = since
        self.conclude = conclude
        self.reason = reason
        self.is_open = True
        self.is_server = is_server
        self.is_taken = False
        self.process = 0  # that is at it
        self.taken_at = 0
        self.stages: Sequence[Told] = ()

    def note(self, reason: str, taken_at: int, stages: Sequence[Told]) -> None:
        """Note what was done until now."""
        self.reason = reason or self.reason
        self.is_taken, self.taken_at, self.stages = True, taken_at, stages


class RemoteStages:
    """All that is done for one request elsewhere."""

    def __init__(self) -> None:
        self._by_key: dict[str, _Errand] = {}

    @property
    def count(self) -> int:
        """How many there have been."""
        return len(self._by_key)

    def add(self, key: str, errand: _Errand) -> None:
        """Begin to wait for what `key` stands for."""
        self._by_key[key] = errand

    def were_taken_up_since(self, at: int) -> bool:
        """Return whether any was."""
        return any(errand.taken_at >= at for errand in self._by_key.values())

    def told(
        self, timeline: RequestRecord, key: str, done: tuple[str, int, Sequence[Told]], process: int | None
    ) -> None:
        """Note what was done; `process` is who is still at it, None if it is over."""
        errand = self._by_key.get(key)
        if errand is not None and errand.is_open:
            errand.note(*done)
            if process is None:
                _lay(timeline, errand)
            else:
                errand.process = process

    def answered(self, key: str) -> None:
        """Note that the response is there: if nothing has been told by now, there is nobody who would."""
        errand = self._by_key.get(key)
        if errand is not None:
            errand.is_server = False

    def hear(self) -> None:
        """Learn what was told until now, of whatever request."""
        hear()

    @guarded_end
    def conclude(self, timeline: RequestRecord) -> None:
        """Note what can be said of what is not over as the request ends."""
        hear()
        for errand in list(self._by_key.values()):
            if errand.is_open and errand.conclude is not None:
                errand.conclude()
            if not errand.is_open:
                continue
            if errand.is_taken:
                _lay(timeline, errand)
                if _listener is not None and errand.process in _listener.gone:
                    timeline.besides = {ML_WORKER_LOST: True}
            elif errand.is_server and _listener is not None and _listener.has_heard:
                errand.is_open = False
                timeline.visit(QUEUE, (errand.since, None), {QUEUE_REASON: errand.reason})


def _lay(timeline: RequestRecord, errand: _Errand) -> None:
    """Lay what was done, and the wait for it, on the request's timeline."""
    errand.is_open = False
    if errand.taken_at > errand.since:
        wait = {QUEUE_REASON: errand.reason} if errand.reason else None
        timeline.visit(QUEUE, (errand.since, errand.taken_at), wait)
    entry = timeline.entry
    for stage, start, end, attributes, span_id, link in errand.stages:
        context = None
        if span_id is not None and entry is not None:
            context = SpanContext(
                entry.trace_id,
                span_id,
                is_remote=False,
                trace_flags=entry.trace_flags,
                trace_state=entry.trace_state,
            )
        timeline.visit(stage, (start, end), attributes or None, context, _context(link))


def _context(link: Iterable[int] | None) -> SpanContext | None:
    if link is None:
        return None
    trace_id, span_id, flags = link
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def told(segment: Segment, attributes: dict[str, Any], link: SpanContext | None, *, is_open: bool = False) -> Told:
    """Return a segment as it is told."""
    return (
        segment.stage,
        segment.start,
        None if is_open else segment.end,
        attributes,
        segment.context.span_id if segment.context is not None else None,
        (link.trace_id, link.span_id, int(link.trace_flags)) if link is not None else None,
    )

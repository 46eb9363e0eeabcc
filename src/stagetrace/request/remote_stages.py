"""Stages of a request in another process of the service or in a batch, reported to the request.

A key names a request of a process: that process's random word, a number, when the request is late if that is known,
the entry span's id. It travels with the request, and comes back with the stages and the stalls: directly within a
process, else by the side remote_socket.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from stagetrace.guard import guarded, guarded_end
from stagetrace.request import remote_socket
from stagetrace.request.exchange import RemoteThread
from stagetrace.request.in_flight import NEVER, Bounds, in_flight
from stagetrace.request.request import Request
from stagetrace.request.stalls import MOST_KEPT, RemoteStalls
from stagetrace.semconv import INFERENCE, ML_WORKER_LOST, QUEUE, QUEUE_REASON
from stagetrace.sources.thread_cpu import AT, UNKNOWN, Share, between
from stagetrace.tracing.span_context import SpanContext, TraceFlags, TraceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from stagetrace.request.details import Report
    from stagetrace.request.exchange import RemoteSection
    from stagetrace.request.stages import Segment
    from stagetrace.request.stalls import Stall, StallReporter

if TYPE_CHECKING:
    # stage, start and end (None: it is open), attributes, span id or None, link as trace id, span id and flags or None
    StageReport = tuple[str, int, int | None, dict[str, Any], int | None, tuple[int, int, int] | None]
    # begin and end of what one thread did without a break, a number for the thread, and how its time divides
    SectionReport = tuple[int, int, int, Share]

MAX_KEY = 256  # characters
MAX_KEYS = 256  # in a message: those of a batch
MAX_SECTIONS = 100  # of a request, in other processes
# The requests that were handed on, by their key, as long as other code refers to them.
_requests: WeakValueDictionary[str, Request] = WeakValueDictionary()
_word = os.urandom(8).hex()  # this process's: its id others may have, in other containers and after it
_numbers = itertools.count(1)
_starting = threading.Lock()  # guards the making of _listener
_listener: remote_socket.Listener | None = None


def hand_on(
    request: Request,
    reason: str = "",
    at: int | None = None,
    *,
    is_server: bool = False,
    conclude: Callable[[], None] | None = None,
) -> str:
    """Return the key of a request that is handed on; from then on it waits, for what `reason` names.

    `at` is when, by default now. `is_server`: it is handed on by a server of which we note when the response is there,
    by `RemoteStages.response_arrived`. `conclude` adds, as the request ends, what is known of the work that stays in
    this process.
    """
    if _listener is None and remote_socket.WORKS and conclude is None:
        _start()
    is_late_elsewhere = in_flight.is_watched and conclude is None
    key = named(request, in_flight.bounds_of(request) if is_late_elsewhere else None)
    if request.remote_stages is None:
        request.remote_stages = RemoteStages()
    request.remote_stages.add(key, _RemoteWork(reason, at or time.time_ns(), conclude, is_server=is_server))
    return key


def named(request: Request, bounds: Bounds | None = None) -> str:
    """Return a key by which a request of this process is found, and which has these bounds."""
    entry = request.entry
    late = "" if bounds is None else "{:x}.{:x}.{:x}-".format(*bounds)
    key = f"{_word}-{next(_numbers)}-{late}{entry.span_id if entry is not None else 0:016x}"
    _requests[key] = request
    return key


@guarded
def _start() -> None:
    """Begin to listen."""
    global _listener  # noqa: PLW0603
    with _starting:
        if _listener is None:
            _listener = remote_socket.Listener(_word)
            atexit.register(_listener.close)


def _start_anew() -> None:
    """Take another word in a forked child, which has none of the parent's requests."""
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


def bounds_of(key: str) -> Bounds | None:
    """Return when the request with a key is late; None where the key does not have that, as one of an older process.

    A key comes with a message, and so may be anything.
    """
    try:
        _, _, text, _ = key[:MAX_KEY].split("-")
        start, late, bound = (int(one, 16) for one in text.split("."))
    except ValueError:
        return None
    return Bounds(start, late, bound) if 0 <= start < NEVER - bound and 0 < late <= bound else None


def is_here(key: str) -> bool:
    """Return whether a key is of this process."""
    return key.startswith(f"{_word}-")


def find(key: str) -> Request | None:
    """Return the request of this process that has a key, while there is one."""
    return _requests.get(key)


def report_stages(
    key: str,
    reason: str,
    taken_at: int,
    stages: Sequence[StageReport],
    *,
    is_over: bool,
    details: Report | None = None,
    sections: Sequence[SectionReport] = (),
) -> None:
    """Report the work that was done here to the process whose request has `key`, which had waited for `reason`.

    The work was taken up at a time in nanoseconds. Until it `is_over`, the last stage may be open, and is sent again.
    `sections` are those of its threads; within this process they are known as CPU samples.
    """
    here = is_here(key)
    message = key, reason, taken_at, stages, is_over, details, () if here else sections
    if here:
        _note(message, 0)
    else:
        remote_socket.send(key.partition("-")[0], message)


def report_stalls(
    keys: Sequence[str], stalls: Sequence[Stall], reporter: StallReporter, until: int | None = None
) -> None:
    """Report the stacks of the work done here to the processes whose requests have these `keys`.

    The work ended at `until`, nanoseconds since the epoch; None while it runs.
    """
    by_word: dict[str, list[str]] = {}
    for key in keys:
        if is_here(key):
            _take_stalls(key, stalls, until)
        else:
            by_word.setdefault(key.partition("-")[0], []).append(key)
    reports = reporter.reports(stalls) if by_word else []
    for word, theirs in by_word.items():
        for at in range(0, len(theirs), MAX_KEYS):
            remote_socket.send(word, (theirs[at : at + MAX_KEYS], reports, until), is_optional=True)


@guarded
def _take_stalls(key: str, stalls: Sequence[Stall], until: int | None) -> None:
    request = _requests.get(key)
    if request is None or request.remote_stages is None or request.closed:
        return
    request.remote_stages.stalls_of(key).add(stalls, until)
    request.pass_on_stalls(stalls)


@guarded
def read_reports() -> None:
    """Take in what other processes have reported until now."""
    if _listener is not None:
        _listener.read(_note)


def _note(message: Any, process: int) -> None:
    if len(message) == 3:  # noqa: PLR2004
        _read_stalls(*message)
        return
    key, reason, taken_at, stages, is_over, details, sections = message
    request = _requests.get(key)
    if request is not None and request.remote_stages is not None and not request.closed:
        if details is not None:
            from stagetrace.request.details import take_details

            take_details(request, details)
        request.remote_sections = [*request.remote_sections, *_sections(sections)][:MAX_SECTIONS]
        request.remote_stages.add_report(request, key, (reason, taken_at, stages), None if is_over else process)


def _read_stalls(keys: Sequence[str], reports: Sequence[Any], until: int | None) -> None:
    for key in keys:
        request = _requests.get(key)
        if request is not None and request.remote_stages is not None and not request.closed:
            _take_stalls(key, request.remote_stages.stalls_of(key).read(reports), until)


@guarded
def section_reports(work: Request) -> list[SectionReport]:
    """Return how the time of the sections of work divides, as it is reported: those of which it is known."""
    shares = ((first, last, between(first, last)) for first, last in work.cpu_samples)
    own = [
        (first[AT], last[AT], id(first[0]), share)
        for first, last, share in shares
        if share is not None and share.waited != UNKNOWN
    ]
    return own + [(start, end, id(thread), share) for start, end, thread, share in work.remote_sections]


def _sections(reports: Iterable[SectionReport]) -> Iterator[RemoteSection]:
    """Yield reported sections, each with what stands for its thread: no other report has a section of that."""
    threads: dict[int, RemoteThread] = {}
    for start, end, thread, share in reports:
        yield start, end, threads.setdefault(thread, RemoteThread()), Share(*share)


class _RemoteWork:
    """Work for a request, since it was handed on."""

    def __init__(self, reason: str, since: int, conclude: Callable[[], None] | None, *, is_server: bool) -> None:
        self.since = since
        self.conclude = conclude
        self.reason = reason
        self.is_open = True
        self.is_server = is_server
        self.is_taken = False
        self.process = 0  # that works on it
        self.taken_at = 0
        self.stages: Sequence[StageReport] = ()
        self.stalls: RemoteStalls | None = None

    def note(self, reason: str, taken_at: int, stages: Sequence[StageReport]) -> None:
        """Note what was done until now."""
        self.reason = reason or self.reason
        self.is_taken, self.taken_at, self.stages = True, taken_at, stages


class RemoteStages:
    """All that is done for one request elsewhere."""

    def __init__(self) -> None:
        self._by_key: dict[str, _RemoteWork] = {}
        self._inferences: list[tuple[int, int]] = []  # of the work that is over: start and end

    @property
    def count(self) -> int:
        """How many pieces of work there have been."""
        return len(self._by_key)

    @property
    def is_open(self) -> bool:
        """Whether there is work of which the stages are not complete."""
        return any(work.is_open for work in self._by_key.values())

    def add(self, key: str, work: _RemoteWork) -> None:
        """Begin to wait for the work that `key` stands for."""
        self._by_key[key] = work

    def were_taken_up_since(self, at: int) -> bool:
        """Return whether any work was taken up since then."""
        return any(work.taken_at >= at for work in self._by_key.values())

    def add_report(
        self, request: Request, key: str, done: tuple[str, int, Sequence[StageReport]], process: int | None
    ) -> None:
        """Note what was done; `process` still works on it, None if it is over."""
        work = self._by_key.get(key)
        if work is not None and work.is_open:
            work.note(*done)
            if process is None:
                _add_stages(request, work)
            else:
                work.process = process

    def stalls_of(self, key: str) -> RemoteStalls:
        """Return the stalls of the work that `key` stands for."""
        work = self._by_key[key]
        if work.stalls is None:
            work.stalls = RemoteStalls()
        return work.stalls

    @property
    def have_stalls(self) -> bool:
        """Whether it is known where work stands that is not over."""
        return any(work.is_open and work.stalls is not None for work in self._by_key.values())

    def response_arrived(self, key: str) -> None:
        """Note that the response has arrived: no further report will follow."""
        work = self._by_key.get(key)
        if work is not None:
            work.is_server = False

    def begin_of(self, stage: str, start: int, end: int | None) -> int:
        """Return when a stage of work that is over begins for the request: no wait begins within an inference of it."""
        if stage == INFERENCE and end is not None:
            self._inferences.append((start, end))
        if stage != QUEUE:
            return start
        return max([start, *(until for since, until in self._inferences if since <= start < until)])

    def read_reports(self) -> None:
        """Take in all reports until now, those of other requests too."""
        read_reports()

    @guarded_end
    def conclude(self, request: Request) -> None:
        """Note what is known of the work that is not over as the request ends."""
        read_reports()
        for work in list(self._by_key.values()):
            if work.is_open and work.conclude is not None:
                work.conclude()
            if not work.is_open:
                continue
            if work.is_taken:
                _add_stages(request, work)
                if _listener is not None and work.process in _listener.gone:
                    request.besides = {**request.besides, ML_WORKER_LOST: True}
                continue
            _add_stalls(request, work)
            if work.is_server and _listener is not None and _listener.has_read:
                work.is_open = False
                request.visit(QUEUE, (work.since, None), {QUEUE_REASON: work.reason})


def _add_stages(request: Request, work: _RemoteWork) -> None:
    """Add the work, its stacks and the wait for it to the request.

    A mark that begins later wins over one that is open, so a wait must not begin within the inference of other work.
    """
    work.is_open = False
    _add_stalls(request, work)
    if work.taken_at > work.since:
        wait = {QUEUE_REASON: work.reason} if work.reason else None
        request.visit(QUEUE, (work.since, work.taken_at), wait)
    entry, all_work = request.entry, request.remote_stages
    for stage, start, end, attributes, span_id, link in work.stages:
        context = None
        if span_id is not None and entry is not None:
            context = SpanContext(
                entry.trace_id,
                span_id,
                is_remote=False,
                trace_flags=entry.trace_flags,
                trace_state=entry.trace_state,
            )
        begins = start if all_work is None else all_work.begin_of(stage, start, end)
        if end is None or begins < end:
            request.visit(stage, (begins, end), attributes or None, context, _context(link))


@guarded
def _add_stalls(request: Request, work: _RemoteWork) -> None:
    if work.stalls is not None:
        request.stalls = work.stalls.among(request.stalls, work.taken_at, time.time_ns())[-MOST_KEPT:]


def _context(link: Iterable[int] | None) -> SpanContext | None:
    if link is None:
        return None
    trace_id, span_id, flags = link
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def stage_report(
    segment: Segment, attributes: dict[str, Any], link: SpanContext | None, *, is_open: bool = False
) -> StageReport:
    """Return a segment as it is reported."""
    return (
        segment.stage,
        segment.start,
        None if is_open else segment.end,
        attributes,
        segment.context.span_id if segment.context is not None else None,
        (link.trace_id, link.span_id, int(link.trace_flags)) if link is not None else None,
    )


# --- A short text that names a request and its stage to the process that takes up the work for it.


class RequestRef(NamedTuple):
    """A request that work is done for: its key, and the span that stands for it."""

    key: str
    context: SpanContext
    is_batch: bool = False  # it stands for several, whose span is that of their inference


def hand_on_reference(request: Request, reason: str) -> str | None:
    """Return a short text that names a request which is handed on now, for `read_reference` in any process.

    None where it has no entry span.
    """
    context = request.entry
    if context is None or not context.is_valid:
        return None
    return _text(hand_on(request, reason, is_server=True), request, context)


@guarded
def reference_to(request: Request) -> str | None:
    """Return a short text that names a request and, as its span, the stage that it is in, for `read_reference`.

    None where it has no entry span.
    """
    context = request.stage_context()
    return _text(named(request), request, context) if context is not None and context.is_valid else None


def _text(key: str, request: Request, context: SpanContext) -> str:
    kind = "batch" if request.is_batch else "request"
    flags = int(context.trace_flags)
    return f"{key} {kind} {context.trace_id:032x}-{context.span_id:016x}-{flags:02x} {context.trace_state.to_header()}"


@guarded
def read_reference(text: str) -> RequestRef:
    """Return the request that such a text names."""
    key, kind, ids, *state = text.split(" ", 3)
    trace_id, span_id, flags = (int(part, 16) for part in ids.split("-"))
    trace_state = TraceState.from_header(state) if any(state) else None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=trace_state)
    return RequestRef(key, context, kind == "batch")


Request.reference_to = staticmethod(lambda request: reference_to(request))  # noqa: PLW0108 -- looked up each time

"""One request: begin and end marks come in, stages that tile the request come out; and what else is known of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from stagetrace.guard import guarded, guarded_end, report
from stagetrace.request.chunk_times import LONG_NS
from stagetrace.request.context import here
from stagetrace.request.in_flight import in_flight
from stagetrace.request.loop_blockers import blocker
from stagetrace.request.marks import Mark, Marks
from stagetrace.request.own_span import NOBODY, Entry, OwnSpan
from stagetrace.request.spans import child
from stagetrace.request.stages import NOTHING
from stagetrace.request.stalls import MOST_KEPT
from stagetrace.semconv import NETWORK_DISCONNECT, NETWORK_RECEIVE, NETWORK_SEND, QUEUE
from stagetrace.sources import loops
from stagetrace.sources.thread_cpu import (
    AT,
    DIVIDED_NS,
    UNKNOWN,
    end_section,
    is_of_this_thread,
    last_sample,
    sample,
    sample_since,
)
from stagetrace.system.threads import get_ident

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.request.chunk_times import Stream
    from stagetrace.request.exchange import Caller, LateReadings, RemoteSection
    from stagetrace.request.generation import Generation
    from stagetrace.request.in_flight import Bounds
    from stagetrace.request.stages import Segment, Stages
    from stagetrace.request.stalls import Stall
    from stagetrace.sources.thread_cpu import CpuSample, Share
    from stagetrace.tracing.span_context import SpanContext

MAX_CALLS = 100
NO_STAGES = Marks().tile(0, 0)  # of either implementation
LAIN_NS = 4_000_000  # data that waited for so long may have waited for the loop: the kernel knows


class Request(Entry):
    """A request: marks from any of its threads and tasks, its entry span, and what else is known of it.

    The adapter of a protocol is a class of its requests, which fills the fields. After `close` marks do nothing.
    """

    # Until something happens these are the class's: each request makes one.
    stages: Stages = NO_STAGES  # until it is closed
    method: str | None = None  # as the policy names it
    route = ""  # as the policy names it, as far as it is known by now
    _entry: SpanContext | None = None  # of the request's entry span, where another instrumentation made it
    protocol: str | None = None  # of the adapter that records it; None where another instrumentation does, or none
    caller: Caller | None = None  # what is known of the peer, where another instrumentation made the entry span
    baggage: Mapping[str, object] = NOTHING  # of the request, where another instrumentation made its entry span
    remote_stages: Any = None  # `remote_stages.RemoteStages`: what is done for the request elsewhere
    late: LateReadings | None = None  # of calls of the request
    _tentative: tuple[str, Mapping[str, Any] | None, int] | None = None  # an activity that may have begun, and when
    besides: Mapping[str, Any] = NOTHING  # more attributes for the entry span
    generation: Generation | None = None  # what generative models have generated for it
    disconnect: str | None = None  # why the response did not get to its end
    stream: Stream | None = None  # the chunks of a response in several
    is_batch = False
    bounds: Bounds | None = None  # of the request that it is a part of
    is_part = False  # whether this is work for one or several requests, and no request itself
    adopted: Any = None  # the entry span, where another instrumentation has started it
    cpu_samples: Sequence[tuple[CpuSample, CpuSample]] = ()  # of a thread, around sections that stayed on it
    computed: Sequence[tuple[int, int, int, int]] = ()  # in a stage marked by hand: begin, end, computed ns, thread
    remote_sections: Sequence[RemoteSection] = ()  # of threads of other processes
    wakeups: Sequence[tuple[int, int, int]] = ()  # to a free thread, or back: begin, end, how long it had no CPU
    suspended_at = 0  # when the last step of any of its tasks ended
    step: CpuSample | None = None  # as the step of a task began, or the call, that is the request's
    behind: Sequence[tuple[int, int, str]] = ()  # when other work blocked the loop that was to resume it, and which
    calls: Sequence[tuple[str, int, int]] = ()  # to other services: the peer, begin and end
    reports: Mapping[int, Mapping[str, Any]] = {}  # by place in `calls`, what the peer reports of its time
    details: Any = None  # library calls inside its stages: `details.Details`
    work: Any = None  # the innermost coroutine that does its work, where it is known
    greenlet: Any = None  # that it came in on, where there are greenlets
    batch: Request | None = None  # that a consumer of the service's own works for, and in which it is
    pools: Sequence[Any] = ()  # for one of which it waits now: sets of threads; WORKER_THREADS for anyio's
    stalls: Sequence[Stall] = ()  # stacks that were sampled while it was late
    skipped_stalls = 0  # times at which it was late, and none was sampled
    # When a send or a receive waited for the other side of the connection, begin and end. The rest of such a stage is
    # the process's own time. None where the server does not report waits.
    peer_waits: Sequence[tuple[int, int]] | None = None
    socket_waits: Sequence[tuple[int, int, bool]] = ()  # of a body: begin, end, whether it is known what was in the way

    # The text that names it for other processes. `protocols.scope` and `remote_stages`, which it imports, set it.
    reference_to: ClassVar[Callable[[Any], str | None]] = staticmethod(lambda _: None)

    def __init__(self, clock: Callable[[], int] = time.time_ns, start: int | None = None) -> None:
        if clock is not time.time_ns:
            self.clock = clock
        self.lock = threading.Lock()  # guards the entry span's identity
        self.started = clock() if start is None else start
        self.thread = get_ident()  # the one that it came in on
        if in_flight.is_watched and not self.is_part:
            try:
                in_flight.begin(self)
            except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
                report("stagetrace.request.in_flight.InFlight.begin", error)

    def __copy__(self) -> Request:
        """Return itself: it is in the request's scope, and so is in copies that the application makes of that."""
        return self

    def __deepcopy__(self, _memo: Any) -> Request:
        """Do the same."""
        return self

    def __reduce__(self) -> Any:
        """Be a text in a pickle of the scope: any process can read it, stagetrace or not."""
        return str, (self.reference() or "",)

    @guarded
    def reference(self) -> str | None:
        """Return a text that names this request and the stage that it is in."""
        return type(self).reference_to(self)

    def wait_since(self, since: int, until: int, attributes: Mapping[str, Any]) -> None:
        """Move the begin back to the wait in a queue: the request had been handed on before it was seen here."""
        self.started = min(since, until)
        in_flight.began_earlier(self)
        self.enter(QUEUE, attributes, at=self.started)
        self.leave(QUEUE, at=until)

    @property
    def entry(self) -> SpanContext | None:
        """The entry span's own context."""
        return self.identity.context if self.own else self._entry  # another thread may release it meanwhile; so below

    def gives_way(self, parent: SpanContext | None) -> bool:
        """Return whether this may still tile an entry span of another instrumentation that has this parent."""
        return self.may_give_way and self.may_be(parent) if self.own else self._entry is None

    def bind(self, entry: SpanContext, start: int) -> None:
        """Begin the first stage where another instrumentation's entry span begins."""
        self.started = start
        if self.own:
            self.give_way(entry)
        else:
            self._entry = entry
        self.bound = True

    # --- The entry span, for adapters: ours, or one at the service's own provider.

    @property
    def seen_span(self) -> Any:
        """The entry span as the request's code sees it."""
        return OwnSpan(self) if self.backend is None else self.backend.seen

    @property
    def entry_span(self) -> Any:
        """The entry span itself, on which exceptions and the status are set."""
        if self.backend is not None:
            return self.backend.entry
        return OwnSpan(NOBODY if self.recorder is None else self)

    @property
    def gave_way(self) -> bool:
        """Whether another instrumentation has made the entry span of this request."""
        return self.adopted is not None if self.backend is None else self.backend.gave_way

    def record_error(self, error: BaseException, at: int | None = None, *, fails: bool = True) -> None:
        """Record an exception on the entry span, at a time in nanoseconds; `fails`: the request ends with it."""
        from stagetrace.request import limits

        span = self.entry_span
        limits.record(span, error, at)
        if fails:
            here.set_error(span, limits.description_of(error))

    def rename(self, name: str) -> None:
        """Name the entry span, unless the request's code has."""
        if self.backend is not None:
            self.backend.rename(name)
        elif self.name == self.label:
            self.name = self.label = name

    def end_entry(self, ended_at: int) -> None:
        """End the entry span at a time in nanoseconds: judge and send the request."""
        self.end = ended_at
        if self.recorder is not None:
            self.recorder.end(self)
        elif self.backend is not None:
            self.backend.end()

    def discard(self) -> None:
        """Send nothing of the request, whose entry span was not seen yet."""
        self.abandon()
        if self.backend is not None:
            self.backend.forget()

    def known_attributes(self) -> dict[str, Any]:
        """Return the attributes that are known when the request is received, for samplers of the service."""
        return {}

    def late_attributes(self) -> Mapping[str, Any]:
        """Return what is known when the request has ended, and was not before."""
        return {}

    def release(self) -> None:
        """Drop the references to what refers to this, as its request has ended: no work for the garbage collector."""
        if self.own:
            self._entry, self.own = self.identity.context if self.ids is not None else None, False
        if self.backend is not None:
            self.backend.is_released, self.backend = True, None
        if self.is_over:
            in_flight.requests.discard(self)
        elif in_flight.is_watched:
            in_flight.end(self)  # a request that is not judged is not abandoned either

    def begin_tentative(self, activity: str, attributes: Mapping[str, Any] | None, at: int) -> None:
        """Note that an activity tentatively begins. It counts if stages are worked out before it is cancelled."""
        if not self.closed and self._tentative is None:
            self._tentative = activity, attributes, at

    def cancel_tentative(self, activity: str) -> None:
        """Cancel a tentative activity; if stages were worked out with it meanwhile, it ends now."""
        if self._tentative is not None:
            self._tentative = None
        else:
            self.leave(activity)

    def end_tentative(self, activity: str) -> None:
        """Note that a tentative activity ends; nothing is noted if it was cancelled."""
        self._confirm_tentative()
        self.leave(activity)

    def _confirm_tentative(self) -> None:
        if self._tentative is not None:
            begun, self._tentative, self.is_unsorted = self._tentative, None, True
            self.enter(*begun)

    def keep(self, name: str, what: Any) -> None:
        """Note one more in the list of this name, unless that is full.

        In `cpu_samples` a section that stayed on one thread: that thread's CPU samples before and after it.
        """
        if self.closed:
            return
        kept = getattr(self, name)
        if len(kept) < MAX_CALLS:
            setattr(self, name, [*kept, what])
        if self.stream is not None:
            self.stream.note(name, what)

    def was_behind(self, start: int, end: int, other: str) -> None:
        """Note that `other` work blocked the event loop, which resumed the request at `end`."""
        self.keep("behind", (start, end, other))

    @guarded_end
    def divide(self, first: CpuSample | None) -> CpuSample | None:
        """Note the section from this CPU sample of the calling thread until now, unless it was short.

        Return the sample at its end, None where none was taken.
        """
        last = None
        if first is not None and time.time_ns() - first[AT] >= DIVIDED_NS:
            last = sample_since(first)
            if last is not None:
                self.keep("cpu_samples", (first, last))
        end_section()
        return last

    def end_section_of(self, first: CpuSample | None) -> None:
        """Note that an outermost section of the calling thread ends, which began with this CPU sample. Never raises."""
        if first is not None and time.time_ns() - first[AT] >= DIVIDED_NS:
            self.divide(first)
        else:
            end_section()

    @guarded_end
    def divide_rest(self) -> None:
        """Note what the calling thread has done for this request since its last CPU sample as a section."""
        first = last_sample()
        if first is None or first[AT] < self.started:
            first = self.step  # it may have been taken before the request, which does no harm
            if first is None or not is_of_this_thread(first):
                return
        self.divide(first)

    @guarded
    def add_wakeup(self, start: int, end: int, lacked: int = UNKNOWN) -> None:
        """Note that a pool's thread, free at `start`, took up the request at `end`; it lacked a CPU for `lacked` ns.

        The event loop that takes the request back is noted in the same way; its lack of a CPU is not known.
        """
        self.keep("wakeups", (start, end, lacked))

    def add_chunk_on_loop(self, stream: Stream, now: int, size: int) -> None:
        """Add a chunk that a task has handed over at `now`, with readings of the time before it."""
        first = self.step
        if first is not None and now - first[AT] >= DIVIDED_NS:
            self.divide(first)  # the step is not over
            self.step = sample(now)
        is_long = now - stream.last >= LONG_NS  # so the first one
        stream.add(now, size)
        loops.record(now)
        if is_long:
            stream.keep_shares(self.started, loops.recent_shares)

    def leave_pool(self, pool: Any) -> None:
        """Note that the request has waited for a thread of a pool."""
        pools = list(self.pools)
        if pool in pools:
            pools.remove(pool)
            self.pools = pools

    @guarded
    def waited_for_peer(self, activity: str, since: int) -> None:
        """Note that a send or receive, the `activity`, has waited since then and until now."""
        until = time.time_ns()
        if activity == NETWORK_RECEIVE:
            until = self._lay(since, until)
        if activity == NETWORK_SEND and until - since >= LAIN_NS and not self.has_unacked():
            return  # nothing is unacknowledged: the loop has resumed the task late
        waits = self.peer_waits or ()
        if self.stream is not None:
            self.stream.note("peer_waits", (since, until))
        if len(waits) < MAX_CALLS:
            self.peer_waits = [*waits, (since, until)]
        else:  # all further waits are one
            self.peer_waits = [*waits[:-1], (waits[-1][0], until)]

    def _lay(self, since: int, until: int) -> int:
        """Note how long the data received from `since` to `until` lay in the kernel; return when they arrived."""
        if until - since < LAIN_NS or not (lain := self.time_in_kernel_ns()):
            return until
        arrived = max(until - lain, since)
        if len(self.socket_waits) < MAX_CALLS:
            self.socket_waits = [*self.socket_waits, (arrived, until, blocker(arrived, until) is not None)]
        return arrived

    @guarded_end
    def has_data(self, since: int) -> None:
        """Note that a thread has waited for data since then, and has some."""
        if not self.closed:
            self._lay(since, time.time_ns())

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""
        return self.method, self.route

    def add_stalls(self, stalls: Sequence[Stall]) -> None:
        """Note the stacks of the request while it was late; equal stacks are one object."""
        for one in stalls:
            same = next((known.stack for known in reversed(self.stalls) if known.stack == one.stack), one.stack)
            self.stalls = (*self.stalls, one._replace(stack=same))[-MOST_KEPT:]

    def pass_on_stalls(self, stalls: Sequence[Stall]) -> None:
        """Report stacks to the requests that this work is done for, if it is such work."""

    def time_in_kernel_ns(self) -> int:
        """Return for how long the data that the request has received last lay in the kernel, 0 if that is unknown."""
        return 0

    def loop_shares(self, start: int, end: int) -> Sequence[tuple[int, int, Share]]:
        """Return what the calling thread did, if it runs an event loop: see `loops.recent_shares`."""
        return loops.recent_shares(start, end)

    def fits_buffer(self, activity: str) -> bool:  # noqa: ARG002
        """Return whether so few bytes passed in all sends or receives that none waited for the other side."""
        return False

    def has_unacked(self) -> bool:
        """Return whether the peer has not acknowledged all bytes of a response yet; True where that is unknown."""
        return True

    def called(self, peer: str, start: int, end: int, report: Mapping[str, Any] = NOTHING) -> None:
        """Note a call to another service that has ended; `report`: what that reported of its time."""
        if not self.closed:
            if report and len(self.calls) < MAX_CALLS:
                self.reports = {**self.reports, len(self.calls): report}
            self.keep("calls", (peer, start, end))

    def visit(
        self,
        stage: str,
        times: tuple[int, int | None],
        attributes: Mapping[str, Any] | None = None,
        context: SpanContext | None = None,
        link: SpanContext | None = None,
    ) -> None:
        """Note a stage that happened elsewhere, with begin and end; without an end it lasts until the request ends."""
        mark = Mark(stage, attributes, context, link)
        self.is_unsorted = True
        self.begin_mark(mark, times[0])
        if times[1] is not None:
            self.end_mark(mark, times[1])

    @guarded
    def stage_context(self) -> SpanContext | None:
        """Return the open stage's span context, under which a span that starts now belongs."""
        entry = self.entry
        if entry is None or self.closed:
            return entry
        self._catch_up()
        return self.open_context(entry, child) or entry

    def so_far(self) -> list[Segment]:
        """Return the segments until now, the last of which is open; one without a name may get any yet."""
        self._catch_up()
        return super().so_far()

    def totals_until(self, now: int) -> dict[str, int] | None:
        """Return the nanoseconds by stage until now; None while what happened until now may not be known yet."""
        if self.remote_stages is not None:
            self.remote_stages.read_reports()
            if self.remote_stages.is_open:
                return None
        if self._tentative is not None or self.closed:
            return None
        from stagetrace.request.tiler import Tiler

        return Tiler.totals_until(self.so_far(), now) or None

    def _catch_up(self) -> None:
        """Note what has been reported, read and presumed until now."""
        if self.remote_stages is not None:
            self.remote_stages.read_reports()
        if self.late is not None:
            self.late.read(self)
        self._confirm_tentative()

    def freeze(self) -> None:
        """Take no more marks; `close` will give the stages that there are."""
        if self.remote_stages is not None:
            self.remote_stages.conclude(self)
        if self.late is not None:
            self.late.conclude(self)
        self._confirm_tentative()
        self.closed = True

    def close(self, start: int, end: int) -> Stages:
        """Take no more marks, and return the stages that tile [start, end) to the nanosecond; none if that is empty.

        Until `abandon`, further calls return the same.
        """
        if self.stages is NO_STAGES:
            if self.remote_stages is not None or self.late is not None or self._tentative is not None:
                self.freeze()
            stages: Stages = self.tile(start, end)
            if self.besides:
                known = {**stages.model, **self.besides}
                stages.model = {name: value for name, value in known.items() if value is not None}
            self.stages = stages
        return self.stages

    def abandon(self) -> None:
        """Release the stages, which are not needed any more."""
        if self.remote_stages is not None:
            self.remote_stages.read_reports()  # lest reports fill up
        if self.late is not None:
            self.late.conclude(self)
            self.late = None
        self.drop()
        self.details = self.work = self.greenlet = self.batch = self.caller = None
        self.stalls = self.pools = ()
        self.stages = NO_STAGES  # a context of the service may keep this request for long
        if in_flight.is_watched:
            in_flight.end(self)

    @property
    def cuts(self) -> Sequence[int]:
        """The times across which no visits are summed."""
        return () if self.stream is None else self.stream.cuts()

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how request and response passed."""
        return self.response(start)

    def connection_attributes(self) -> dict[str, Any]:
        """Return what the kernel reports of the connection now, as the request ends: it explains, and is not free."""
        return {}

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if it is not known."""
        return None if self.caller is None else self.caller.header(name)

    def deadline_ns(self) -> int | None:
        """Return for how long from its start the caller waits, where the protocol itself says so."""
        return None if self.caller is None else self.caller.deadline_ns()

    def response(self, start: int) -> dict[str, Any]:
        """Return what every protocol's entry span carries of its response."""
        attributes: dict[str, Any] = {} if self.stream is None else self.stream.attributes(start)
        if self.disconnect is not None:
            attributes[NETWORK_DISCONNECT] = self.disconnect
        return attributes

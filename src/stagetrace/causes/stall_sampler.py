"""The sampler of late requests: where each stood while it was late, within a budget of CPU (docs/stalls.md)."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.causes.bounds import ShortestBounds
from stagetrace.guard import guarded, guarded_end
from stagetrace.policy.entry_span import request_of
from stagetrace.request.in_flight import NEVER, NO_CLOCKS, Bounds, holder_meanwhile, in_flight
from stagetrace.request.stalls import RAN, REQUEST, UNKNOWN, WAITED, Stall
from stagetrace.request.working import task_here
from stagetrace.sources import gc_pauses
from stagetrace.sources.stacks import SOURCE
from stagetrace.system.threads import get_ident, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.causes.baseline import Baselines
    from stagetrace.causes.in_the_way import Look, RequestStacks
    from stagetrace.policy.policy import Policy
    from stagetrace.request.in_flight import Holder, Timer
    from stagetrace.request.request import Request

# --- How much CPU the sampler of late requests may use, whatever happens in the service.

ONE_OF: Final = 64  # of so many nanoseconds the sampler may use one: 1.6 % of one CPU
SAVED_NS: Final = 30_000_000  # that it may use at once, after it has used none for a while
MOST_OF_LOOK_NS: Final = 2_000_000  # it keeps the GIL meanwhile


class Budget:
    """CPU time of one thread, in nanoseconds: what is not used is saved, up to a bound. Its wake-ups count, too.

    A garbage collection within a look does not count: another thread's next allocation would have triggered it.
    """

    def __init__(self) -> None:
        self._saved = SAVED_NS
        self._counted_at = time.monotonic_ns()
        self._counted: int | None = None  # of the thread's CPU time
        self._began = 0  # the look, by the thread's CPU time
        self._began_at = 0  # nanoseconds since the epoch

    def begin(self) -> None:
        """Begin a look."""
        self._began, self._began_at = time.thread_time_ns(), time.time_ns()
        if self._counted is None:
            self._counted = self._began

    def leave_out(self) -> None:
        """Count nothing of what the look has taken until now."""
        began = time.thread_time_ns()
        self._counted = (self._counted or began) + began - self._began
        self._began = began

    def is_left(self) -> bool:
        """Return whether this look may continue."""
        return time.thread_time_ns() - self._began < MOST_OF_LOOK_NS

    def is_short(self) -> bool:
        """Return whether more than half of what may be saved is used: then what is needed least is left out."""
        return self._saved - (time.thread_time_ns() - self._began) < SAVED_NS // 2

    def end(self) -> int:
        """End the look; return when the next one may begin, by the clock of time.monotonic_ns."""
        now, computed = time.monotonic_ns(), time.thread_time_ns()
        collected = gc_pauses.paused_ns(self._began_at, time.time_ns())
        saved = min(self._saved + (now - self._counted_at) // ONE_OF, SAVED_NS)
        took = computed - (self._counted or self._began)
        self._saved = saved - took + min(collected, computed - self._began)
        self._counted_at, self._counted = now, computed
        return now - min(self._saved, 0) * ONE_OF


# --- The sampler of late requests: where each stood while it was late (docs/stalls.md).
#
# A request is late as soon as it has missed a bound of its objective, or takes longer than its route's p99, once that
# is learned. Until then nothing looks at it. Then the stack of the thread or coroutine that does its work is sampled at
# growing distances.

MOST_SAMPLES: Final = 8  # of a request, or of the wait for a chunk
MOST_LATE: Final = 200  # requests that are sampled at the same time
BEFORE: Final = 3  # samples between the p99 of the route and the objective
LOOKS_BEFORE: Final = 6  # at a request that is in time, while it has a thread for which others may wait
NOT_BEFORE: Final = 8  # no request is late before so small a part of its objective
BOUND_KNOWN_NS: Final = 1_000_000_000  # for so long the shortest of all bounds is not worked out again
FIRST_PART: Final = 16  # the first distance after the objective is so small a part of it; each later one doubles


class Judge(NamedTuple):
    """Decides when a request is late: by the bounds of a policy, and the baselines of routes."""

    bounds: ShortestBounds
    learned: Baselines


class Late(NamedTuple):
    """A request that the sampler watches. Times in nanoseconds, since the epoch unless they are bounds."""

    request: Request
    times: tuple[int, ...]  # at which it is to be looked at
    since: int = 0  # when it is late; earlier samples of its thread are for requests that may wait for that
    gap: int = 0  # the bound of the time between two chunks; 0: none
    chunk: int = 0  # the chunk after which `times` are


class StallSampler:
    """Samples late requests, in a thread that the first request of the process starts."""

    def __init__(self) -> None:
        self._judges: list[Judge] = []
        self._late: list[Late] = []  # the thread's alone
        self._bound_ns, self._bound_at = NEVER, 0
        self._budget = Budget()  # the thread's alone
        self.skipped = 0  # times at which a request was late, and no stack of it was sampled

    @guarded
    def add(self, policy: Policy, learned: Baselines) -> None:
        """Sample the requests that are late by this policy from now on."""
        if not SOURCE.is_used or not any(not one.excludes for one in policy.objectives):
            return
        self._judges.append(Judge(ShortestBounds(policy), learned))
        self._bound_at = 0
        in_flight.watch(self._bound, self._start, self.bounds_of)
        in_flight.look_back = look_back

    @guarded
    def replace(self, policy: Policy, learned: Baselines) -> None:
        """Sample by this policy from now on in place of the one that was added with these."""
        if not any(one.learned is learned for one in self._judges):
            self.add(policy, learned)
        elif all(one.excludes for one in policy.objectives):
            self.remove(learned)
        else:
            new = Judge(ShortestBounds(policy), learned)
            self._judges = [new if one.learned is learned else one for one in self._judges]
            self._bound_at = 0

    @guarded
    def remove(self, learned: Baselines) -> None:
        """Sample no request from now on that is late by the policy which was added with these."""
        self._judges = [one for one in self._judges if one.learned is not learned]
        self._bound_at = 0
        if not self._judges:
            in_flight.stop()

    def _start(self, timer: Timer) -> None:
        self._late, self._budget = [], Budget()
        try:
            start(lambda: self._run(timer), "stagetrace-stalls")
        except Exception as error:
            SOURCE.silent = f"no thread could be started: {error}"
            raise

    @guarded_end
    def _run(self, timer: Timer) -> None:
        try:
            while SOURCE.is_used and timer is in_flight.timer:
                self._wait_and_look(timer)
        finally:
            if SOURCE.is_used:  # the next request gets another one, with a thread
                in_flight.lose(timer)
            else:
                in_flight.stop()
            timer.close()

    def _wait_and_look(self, timer: Timer) -> None:
        try:
            late = timer.wait()
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, OSError):  # else the service has closed its descriptor
                SOURCE.failed(error)
            in_flight.lose(timer)
        if timer is in_flight.timer:
            try:
                self.look(time.time_ns(), late.gil_ns, late.computed, late.holder)
            except Exception as error:  # noqa: BLE001 -- the tenth switches it off
                SOURCE.failed(error)
                self._look_again()

    @guarded
    def _look_again(self) -> None:
        in_flight.set_timer(time.time_ns())

    def look(
        self, now: int, gil_ns: int = 0, computed: Mapping[int, int] = NO_CLOCKS, holder: Holder | None = None
    ) -> None:
        """Sample the requests that are late at `now`; the caller has waited `gil_ns` for the GIL (`timer.Late`)."""
        self._budget.begin()
        try:
            late = [*self._late, *self._new(now)]
            self._late = self._sample_late(late, lambda: self._look_around(now, gil_ns, computed, holder), now)
        finally:
            in_flight.rest_until = self._budget.end()
        in_flight.due = min((one.times[0] for one in self._late), default=NEVER)
        in_flight.set_timer(now)

    def _look_around(
        self, now: int, gil_ns: int, computed: Mapping[int, int], holder: Holder | None
    ) -> tuple[Look, RequestStacks]:
        """Return what all threads and tasks do now; the first time, what that needs is imported, beside the budget."""
        is_first = "stagetrace.causes.in_the_way" not in sys.modules
        from stagetrace.causes.in_the_way import Look, RequestStacks

        if is_first:
            self._budget.leave_out()
        return Look(now, gil_ns, computed, holder), RequestStacks()

    def _new(self, now: int) -> list[Late]:
        """Return the requests that may be late since now."""
        found: list[Late] = []
        for request in in_flight.take(now):
            if request.closed:
                continue
            if len(self._late) + len(found) >= MOST_LATE:
                self.skip(request, 1)
                continue
            try:
                found.append(self._watch(request))
            except Exception as error:  # noqa: BLE001 -- the tenth switches all off
                SOURCE.failed(error)
        return found

    def skip(self, request: Request, times: int) -> None:
        """Count so many times at which a request was late and was not sampled."""
        request.skipped_stalls += times
        self.skipped += times

    def _sample_late(self, late: list[Late], look: Callable[[], tuple[Look, RequestStacks]], now: int) -> list[Late]:
        """Sample requests; return those that are to be sampled again, first those for which there was no time now."""
        seen: tuple[Look, RequestStacks] | None = None  # let go of with this call
        kept: list[Late] = []
        skipped: list[Late] = []
        for one in late:
            try:
                if one.request.closed or not (later := _after_chunk(one)).times:
                    continue
                due = sum(later.since <= at <= now for at in later.times)
                if seen is not None and not self._budget.is_left():
                    self.skip(later.request, due)
                    skipped.append(later._replace(times=tuple(at for at in later.times if at > now)))
                    continue
                if later.times[0] <= now:
                    self.skip(later.request, max(due - 1, 0))
                    seen = seen or look()
                    if later.since <= now:
                        _sample(later.request, *seen)
                    next_at = now + 1 if later.since <= now or seen[0].has_its_thread(later.request) else later.since
                    times = tuple(at for at in later.times if at >= next_at)
                    # Requests that have no sample yet come first.
                    is_dear = later.since <= now and self._budget.is_short()
                    later = later._replace(times=times[1::2] if is_dear else times)
                if later.times:
                    kept.append(later)
            except Exception as error:  # noqa: BLE001 -- as above
                SOURCE.failed(error)
        return [*(one for one in skipped if one.times), *kept]

    def _bound(self, now: int) -> int:
        """Return how long a request takes at least that is late at `now`, whichever its route."""
        if not 0 <= now - self._bound_at < BOUND_KNOWN_NS:
            self._bound_ns, self._bound_at = min(map(_shortest, self._judges), default=NEVER), now
        return self._bound_ns

    def _watch(self, request: Request) -> Late:
        """Return when to sample a request, or what is done for one; never where no objective is about it."""
        if request.is_part:
            return Late(request, () if request.bounds is None else _times_of_part(request.bounds, request.started))
        bounds, gap = self._bounds(request)
        times = () if bounds is None else sample_times(bounds.start, bounds.bound, bounds.late)
        since = times[0] if times else NEVER
        of_all = (judge.bounds.of_all for judge in self._judges)
        shortest = min((one.first for one in of_all if one is not None), default=NEVER)
        before = (request.started + shortest * 2**step for step in range(LOOKS_BEFORE))
        return Late(request, (*(at for at in before if at < since), *times), since, gap)

    @guarded
    def bounds_of(self, request: Request) -> Bounds | None:
        """Return when a request is late, as far as that is known by now; None for never."""
        return request.bounds if request.is_part else self._bounds(request)[0]

    def _bounds(self, request: Request) -> tuple[Bounds | None, int]:
        """Return the first bounds of those of all judges, and the bound of the time between two chunks, 0 for none."""
        if request.protocol is not None:
            method, route = request.method_and_route()
        else:
            method, route = request_of(getattr(request.adopted, "attributes", None) or {})
        found: Bounds | None = None
        chunks = 0
        for judge in self._judges:
            shortest = judge.bounds.of(method, route)
            if shortest is None and not route:  # not known yet
                bound, gap = _shortest(judge), 0
            elif shortest is None:
                continue
            else:
                bound, gap = shortest.for_request(request), shortest.gap
            late = _late_ns(bound, judge.learned.slow_ns((method, route)))
            one = Bounds(request.started, late, bound)
            found, chunks = min(found or one, one), gap or chunks
        return found, chunks


def sample_times(start: int, bound: int, late: int) -> tuple[int, ...]:
    """Return when to sample a request that began at `start`, is late after `late` ns and a breach after `bound`.

    From `late` to `bound` distances grow by the same factor; after that each is twice as long as the one before.
    """
    after = [int(late * (bound / late) ** (step / BEFORE)) for step in range(BEFORE)] if late < bound else []
    distance = bound // FIRST_PART
    beyond = [bound + distance * (2**step - 1) for step in range(MOST_SAMPLES - len(after))]
    return tuple(start + one for one in (*after, *beyond))


def _times_of_part(bounds: Bounds, began: int) -> tuple[int, ...]:
    """Return when to sample what is done since `began` for a request with these bounds, which may be late before."""
    waited = began - bounds.start
    return sample_times(bounds.start, max(bounds.bound, waited), max(bounds.late, waited))


def _after_chunk(late: Late) -> Late:
    """Return a request whose response has got a chunk meanwhile as one that is late again when the next one is."""
    stream = late.request.stream
    if not late.gap or stream is None or not stream.count or stream.last == late.chunk:
        return late
    times = sample_times(stream.last, late.gap, late.gap)
    return late._replace(times=times, since=times[0], chunk=stream.last)


def _late_ns(bound: int, usual: int | None) -> int:
    """Return after how long a request is late, by its bound, and its route's p99 if that is known.

    Not long before its bound: routes that take a millisecond would have the sampler look at each request of others.
    """
    return bound if usual is None else min(bound, max(usual, bound // NOT_BEFORE))


def _shortest(judge: Judge) -> int:
    """Return the shortest time after which a request is late, of those whose route is known and of others."""
    of_all, learned = judge.bounds.of_all, judge.learned
    bounds = [] if of_all is None else [of_all.first]
    for route, usual in learned.slow_routes().items():
        shortest = judge.bounds.of(*route)
        if shortest is not None:
            bounds.append(_late_ns(shortest.first, usual))
    return min(*bounds, NEVER)


def _sample(request: Request, seen: Look, stacks: RequestStacks) -> None:
    """Note on a late request its stack, and the stacks of the work that it waits for."""
    from stagetrace.causes.in_the_way import of_holder

    if request.remote_stages is not None:
        request.remote_stages.read_reports()
    own, runs, thread = stacks.of(request)
    stalls = []
    if seen.held is not None and request.started <= seen.held_at and (held := of_holder(request, seen.held)):
        stalls.append(Stall(seen.held_at, REQUEST, held, state=RAN))
    if own:
        state = UNKNOWN if request.greenlet is not None else seen.state_of(thread) if runs else WAITED
        held_ns = seen.held_ns(thread) if runs else 0
        stalls.append(Stall(seen.now, REQUEST, own, seen.gil_ns, held_ns=held_ns, state=state))
    stalls += seen.in_the_way_of(request, runs=runs)
    if stalls and not request.closed:
        request.add_stalls(stalls)


@guarded
def look_back(request: Request) -> None:
    """Note the stack of a request that ends now and has held the GIL for as long as the sampler has waited for it."""
    holder = holder_meanwhile()
    if holder is None or holder.thread != get_ident():
        return
    from stagetrace.causes.in_the_way import LONG_NS, of_holder

    if holder.ago_ns < LONG_NS:
        return
    at = time.time_ns() - holder.ago_ns
    if request.started <= at and (stack := of_holder(request, holder, in_task=task_here())):
        request.add_stalls([Stall(at, REQUEST, stack, state=RAN)])


stall_sampler: Final = StallSampler()


# --- Why a breach has no line of code: its evidence has the reason, and the process counts reasons (docs/stalls.md).

OFF: Final = "off"
NOT_LATE: Final = "not_late"
SKIPPED: Final = "skipped"
NOT_REACHED: Final = "not_reached"
LIBRARIES: Final = "libraries"
AFTER_WAIT: Final = "after_wait"
ELSEWHERE: Final = "elsewhere"
PHRASES: Final = {
    OFF: "stacks are not sampled here",
    NOT_LATE: "it was never late by a bound that is known before it ends",
    SKIPPED: "the sampler had used its share of a CPU, or watched 200 requests already",
    NOT_REACHED: "the sampler's thread got no CPU, or not the GIL, in the {late:.0f} ms for which it was late",
    LIBRARIES: "only libraries were on the stacks that were sampled",
    AFTER_WAIT: "it was sampled only after the wait",
    ELSEWHERE: "it was sampled only before or after what the cause is about",
}
counts: Final[Counter[str]] = Counter()  # breaches of this process without a line, by the words above


class Why(NamedTuple):
    """Why there is no line: a word, and the end of the evidence."""

    word: str
    evidence: str


def why(request: Request, stalls: Sequence[Stall], late_at: int | None, end: int, *, is_over: bool) -> Why:
    """Return why a breach that ended at `end` has no line, and count it; times in nanoseconds since the epoch.

    `stalls` are those of the time in which it was missed, `late_at` is when it was late, None for never; `is_over`:
    those that could say the line were sampled after the wait that is the cause.
    """
    late_ns = 0 if late_at is None else end - late_at
    word = _word(request, stalls, late_ns, is_over=is_over)
    counts[word] += 1
    return Why(word, f"; no line of code: {PHRASES[word].format(late=late_ns / 1e6)}")


def _word(request: Request, stalls: Sequence[Stall], late_ns: int, *, is_over: bool) -> str:
    if is_over:
        return AFTER_WAIT
    if stalls:
        from stagetrace.causes.code import application_place

        return ELSEWHERE if any(application_place(one.stack) is not None for one in stalls) else LIBRARIES
    if not SOURCE.is_used or late_ns <= 0:
        return NOT_LATE if SOURCE.is_used else OFF
    if not request.skipped_stalls and in_flight.rest_until > time.monotonic_ns() - late_ns:
        stall_sampler.skip(request, 1)  # the sampler rested, and has not seen it
    return SKIPPED if request.skipped_stalls else NOT_REACHED

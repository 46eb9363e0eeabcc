"""The requests in flight: each that is late is found, and nobody wakes up while none is."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.request import in_flight as module
from stagetrace.request import in_flight as timers
from stagetrace.request.in_flight import CLEARS, NEVER, InFlight, Late, PythonTimer
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.request.in_flight import Timer

MS = 1_000_000
BOUND = 50 * MS
HOUR = 3_600_000 * MS
GENEROUS_S = 60.0


class Record:
    """What a request is to this module."""

    def __init__(self, started: int) -> None:
        self.started = started


class Clock:
    """Both clocks of the module, and its timer."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000 * MS  # of the wall
        self.ran = 0  # since the start
        self.ends_at: int | None = None  # the timer, by `ran`
        self.settings = 0

    def time_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.ran

    def set(self, after_ns: int) -> None:
        self.ends_at = self.ran + after_ns
        self.settings += 1

    def clear(self) -> None:
        self.ends_at = None
        self.settings += 1

    def wait(self) -> Late:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Simulated:
    """Requests in flight, by clocks that stand still between two events; the sampler takes the late ones at once."""

    def __init__(self, patch: pytest.MonkeyPatch, bound: int = BOUND) -> None:
        self.clock = Clock()
        patch.setattr(module, "time", self.clock)
        patch.setattr(module, "make", self.make)
        self.in_flight = InFlight()
        self.bound = bound
        self.in_flight.watch(lambda _: self.bound, lambda _: None, lambda _: None)
        self.wake_ups = 0
        self.found: dict[Any, int] = {}  # by record, after how long

    def make(self) -> Clock:
        return self.clock

    def advance(self, to: int) -> None:
        """Let time pass, until `to` by the clock that never steps."""
        clock = self.clock
        while clock.ends_at is not None and clock.ends_at <= to:
            self._pass(max(clock.ends_at - clock.ran, 0))
            clock.ends_at = None
            self.wake_ups += 1
            for record in self.in_flight.take(clock.now):
                self.found[record] = clock.now - record.started
            if self.in_flight.due <= clock.now:
                self.in_flight.due = NEVER
            self.in_flight.set_timer(clock.now)
        self._pass(to - clock.ran)

    def _pass(self, nanoseconds: int) -> None:
        self.clock.ran += nanoseconds
        self.clock.now += nanoseconds

    def begin(self) -> Any:
        record: Any = Record(self.clock.now)
        self.in_flight.begin(record)
        return record

    def run(self, requests: Iterable[tuple[int, int]]) -> list[tuple[Any, int]]:
        """Run requests, each with the time of its begin since now and how long it takes; return their records."""
        first = self.clock.ran
        events = sorted(
            (first + at + (took if is_end else 0), is_end, one)
            for one, (at, took) in enumerate(requests)
            for is_end in (False, True)
        )
        records: dict[int, Any] = {}
        for at, is_end, one in events:
            self.advance(at)
            if is_end:
                self.in_flight.end(records[one])
            else:
                records[one] = self.begin()
        return [(records[one], took) for one, (_, took) in enumerate(requests)]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    return Simulated(monkeypatch)


IN_TIME = {
    "one after the other": [(one * MS, MS) for one in range(2_000)],
    "seldom": [(one * 3 * BOUND, 5 * MS) for one in range(100)],
    "hardly more often than the bound": [(one * (BOUND + MS), 5 * MS) for one in range(100)],
    "hardly less often than the bound": [(one * (BOUND - MS), 5 * MS) for one in range(100)],
    "short bursts": [(burst * 4 * BOUND + one * MS, MS // 2) for burst in range(50) for one in range(CLEARS)],
    "bursts that overlap": [(burst * 4 * BOUND + one * MS, 40 * MS) for burst in range(50) for one in range(500)],
    "many at once": [(one * MS // 10, 30 * MS) for one in range(5_000)],
    "nearly late": [(one * MS // 10, 46 * MS) for one in range(5_000)],
    "nearly late, and few": [(one * 20 * MS, 46 * MS) for one in range(500)],
    "of many lengths": [(one * MS, (one * 7 % 45 + 1) * MS) for one in range(2_000)],
}


@pytest.mark.parametrize("requests", IN_TIME.values(), ids=IN_TIME)
@pytest.mark.parametrize("bound", [BOUND, 200 * BOUND])
def test_nobody_wakes_up_while_no_request_is_late(
    monkeypatch: pytest.MonkeyPatch, bound: int, requests: list[tuple[int, int]]
) -> None:
    simulated = Simulated(monkeypatch, bound)
    simulated.run(requests)
    assert simulated.wake_ups == 0
    assert not simulated.in_flight.requests
    simulated.advance(simulated.clock.ran + 1_000 * bound)
    assert simulated.wake_ups <= 1  # as requests end that were not seldom


def test_a_long_burst_costs_one_wake_up_at_most(simulated: Simulated) -> None:
    simulated.run([(burst * 4 * BOUND + one * MS, MS // 2) for burst in range(50) for one in range(100)])
    assert simulated.wake_ups <= 50


@pytest.mark.parametrize("distance", [MS // 10, MS, 5 * MS])
def test_the_timer_is_set_twice_in_a_bound_at_most(simulated: Simulated, distance: int) -> None:
    count = 100 * BOUND // distance
    simulated.run([(one * distance, distance // 2) for one in range(count)])
    assert simulated.clock.settings <= 2 * 100 + 2 * CLEARS + 2


def test_each_late_request_is_found_at_once_whatever_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(300):
        chance = random.Random(seed)
        simulated = Simulated(monkeypatch, chance.choice([MS, BOUND, 40 * BOUND]))
        bound = simulated.bound
        distance = bound * chance.choice([0.01, 0.3, 1, 5])
        begins = [0.0]
        while len(begins) < 200:
            begins.append(begins[-1] + chance.expovariate(1 / distance))
        requests = [(int(at), int(bound * chance.choice([0.01, 0.5, 0.9, 1.01, 3]))) for at in begins]
        for record, took in simulated.run(requests):
            assert simulated.found.get(record) == (bound if took > bound else None)


@pytest.mark.parametrize("step", [-HOUR, -BOUND // 3, BOUND // 3, HOUR])
def test_a_step_of_the_wall_clock_hides_no_request_that_begins_after_it(simulated: Simulated, step: int) -> None:
    requests = [(one * MS, 2 * MS) for one in range(20)]
    for _ in range(3):
        old = simulated.begin()
        simulated.run(requests)
        simulated.clock.now += step
        ((late, _),) = simulated.run([(0, 2 * BOUND)])
        assert simulated.found[late] == BOUND
        simulated.in_flight.end(old)


def test_what_turns_out_to_have_begun_earlier_is_found(simulated: Simulated) -> None:
    """It had waited in a queue before it was seen."""
    simulated.run([(one * MS, 2 * MS) for one in range(20)])
    record = simulated.begin()
    simulated.advance(simulated.clock.ran + MS)
    record.started -= 40 * MS
    simulated.in_flight.began_earlier(record)
    simulated.advance(simulated.clock.ran + 9 * MS)
    assert simulated.found[record] == BOUND


def test_a_shorter_bound_holds_for_what_begins_then(simulated: Simulated) -> None:
    simulated.run([(one * MS, 2 * MS) for one in range(20)])
    simulated.bound = 5 * MS
    ((late, _),) = simulated.run([(0, BOUND)])
    assert simulated.found[late] == 5 * MS


def test_the_wish_of_the_sampler_is_kept(simulated: Simulated) -> None:
    """Though requests come and go, and none is left."""
    record = simulated.begin()
    simulated.in_flight.due = simulated.clock.now + 2 * BOUND
    simulated.in_flight.end(record)
    simulated.run([(one * MS, MS // 2) for one in range(20)])
    assert simulated.wake_ups == 0
    simulated.advance(simulated.clock.ran + 2 * BOUND)
    assert simulated.in_flight.due == NEVER


def test_the_sampler_is_let_rest(simulated: Simulated) -> None:
    simulated.in_flight.rest_until = 3 * BOUND
    record = simulated.begin()
    simulated.advance(10 * BOUND)
    assert simulated.found == {record: 3 * BOUND}


def test_the_thread_is_there_before_the_first_request_where_any_is_watched() -> None:
    in_flight = InFlight()
    started: list[Timer] = []
    in_flight.prepare()
    assert in_flight.timer is None
    in_flight.watch(lambda _: BOUND, started.append, lambda _: None)
    in_flight.prepare()
    assert started == [in_flight.timer]
    in_flight.begin(Request())
    in_flight.prepare()
    assert started == [in_flight.timer]
    in_flight.stop()


def test_nothing_is_kept_once_the_thread_cannot_start(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: Timer) -> None:
        raise RuntimeError("can't start new thread")

    in_flight = InFlight()
    in_flight.watch(lambda _: BOUND, fails, lambda _: None)
    record: Any = Record(time.time_ns())
    in_flight.begin(record)
    assert not in_flight.is_watched
    assert not in_flight.requests
    assert in_flight.timer is None
    assert "can't start new thread" in capsys.readouterr().err


@pytest.fixture(params=[timers.make, PythonTimer])
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[InFlight, list[Any]]]:
    """Requests in flight with a real thread that takes the late ones, and those."""
    in_flight, taken, threads = InFlight(), [], []
    module_timer = pytest.MonkeyPatch()
    module_timer.setattr(timers, "make", request.param)

    def run(timer: Timer) -> None:
        while in_flight.timer is timer:
            try:
                timer.wait()
            except OSError:
                in_flight.lose(timer)
                return
            now = time.time_ns()
            for record in in_flight.take(now):
                taken.append(record)
                record.is_taken.set()
            in_flight.set_timer(now)

    def start(timer: Timer) -> None:
        threads.append(threading.Thread(target=run, args=(timer,), daemon=True))
        threads[-1].start()

    in_flight.watch(lambda _: MS, start, lambda _: None)
    yield in_flight, taken
    module_timer.undo()
    timer = in_flight.timer
    in_flight.is_watched = False
    if timer is not None:
        in_flight.timer = None
        timer.set(0)
        threads[-1].join(GENEROUS_S)
        timer.close()


class Waiting(Record):
    def __init__(self) -> None:
        super().__init__(time.time_ns())
        self.is_taken = threading.Event()


def test_no_race_hides_a_late_request(watched: tuple[InFlight, list[Any]]) -> None:
    """Each of several threads has requests in time, and one at last that stays until it is found; then none begins."""
    in_flight, _ = watched
    missed = []

    def work(chance: random.Random) -> None:
        for _ in range(chance.randrange(40)):
            record: Any = Waiting()
            in_flight.begin(record)
            if chance.random() < 0.2:
                time.sleep(chance.random() / 1_000)
            in_flight.end(record)
        late: Any = Waiting()
        in_flight.begin(late)
        if not late.is_taken.wait(GENEROUS_S):
            missed.append(late)
        in_flight.end(late)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for seed in range(60):
            threads = [threading.Thread(target=work, args=(random.Random(seed * 10 + one),)) for one in range(4)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
    finally:
        sys.setswitchinterval(interval)
    assert not missed
    assert not in_flight.requests


def test_work_for_a_request_is_found_when_that_is_late(simulated: Simulated) -> None:
    """Which may be sooner than a request of this process would be, or later; and not what has ended before."""
    now = simulated.clock.now
    soon, ended, later = Record(now), Record(now), Record(now)
    for record, late_ns in ((later, 3 * BOUND), (soon, BOUND // 4), (ended, BOUND)):
        simulated.in_flight.begin_part(record, now + late_ns)
    simulated.in_flight.end_part(ended)
    simulated.advance(simulated.clock.ran + 10 * BOUND)
    assert simulated.found == {soon: BOUND // 4, later: 3 * BOUND}
    assert simulated.clock.ends_at is None


def test_a_busy_worker_that_is_in_time_is_not_woken(simulated: Simulated) -> None:
    clock = simulated.clock
    for _ in range(1_000):
        record = Record(clock.now)
        simulated.in_flight.begin_part(record, clock.now + BOUND)
        simulated.advance(clock.ran + BOUND // 10)
        simulated.in_flight.end_part(record)
    assert simulated.wake_ups == 0
    assert clock.settings < 1_000 // 2


def test_a_timer_whose_descriptor_the_service_has_closed_has_a_successor(watched: tuple[InFlight, list[Any]]) -> None:
    in_flight, _ = watched
    first: Any = Waiting()
    in_flight.begin(first)
    assert first.is_taken.wait(GENEROUS_S)
    lost = in_flight.timer
    if not isinstance(lost, timers.KernelTimer):
        return  # it has no descriptor
    os.close(lost._number)
    late: list[Any] = [Waiting(), Waiting()]
    for record in late:
        in_flight.begin(record)
    assert all(record.is_taken.wait(GENEROUS_S) for record in late)
    assert in_flight.timer is not lost

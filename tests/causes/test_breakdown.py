"""The parts of a request are together its duration: nothing counts twice."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from at_once import in_a_thread
from stagetrace.causes.breakdown import breakdown_of
from stagetrace.request.chunk_times import Stream
from stagetrace.request.request import MAX_CALLS, Request
from stagetrace.request.stages import Segment
from stagetrace.sla.finish import Within, clipped
from stagetrace.sources import gc_pauses, loops
from stagetrace.sources.thread_cpu import UNKNOWN, CpuSample, Descriptor, Share
from stagetrace.system.import_hooks import PostImportFinder
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS = 1_000_000
POOL = {"queue.reason": "thread_pool"}
SOCKET = {"queue.reason": "socket"}


@pytest.fixture
def collect() -> Iterator[Callable[..., None]]:
    """Return what notes a run of the garbage collector from one ms to another: by this thread, or by a rival."""
    before = list(gc_pauses.recent_pauses)
    gc_pauses.recent_pauses.clear()

    def note(begin: int, end: int, *, elsewhere: bool = False) -> None:
        thread = threading.get_native_id()
        gc_pauses.recent_pauses.append((begin * MS, end * MS, thread + 1 if elsewhere else thread))

    yield note
    gc_pauses.recent_pauses.clear()
    gc_pauses.recent_pauses.extend(before)


def reading(
    own: Descriptor,
    at: float,
    computed: float,
    waited: float,
    process: float | None = None,
    turns: int = 1,
    natives: float | None = None,
    seen: int = 0,
) -> CpuSample:
    whole = computed if process is None else process
    look = None if natives is None else (int(at * MS), int(whole * MS), {7: int(natives * MS)})
    return own, int(at * MS), int(computed * MS), f"0 {int(waited * MS)} {turns}".encode(), int(whole * MS), look, seen


def section(
    since: int,
    until: int,
    computed: float,
    waited: float = 0,
    rivals: float = 0,
    turns: int = 100,
    natives: float | None = None,
    for_threads: float | None = None,
) -> tuple[CpuSample, CpuSample]:
    """Return a thread's cpu_samples around a section; `rivals` is what others of the process computed meanwhile.

    It had as many `turns` as one that waits for the GIL. `natives` is what native threads computed, of that of rivals.
    In a share `for_threads` of the time blocked it was seen to wait for other threads.
    """
    own = Descriptor(threading.get_native_id())
    before = None if natives is None else 0
    seen = 0 if for_threads is None else int(100 * for_threads) << 32 | int(100 - 100 * for_threads)
    first = reading(own, since, 0, 0, natives=before)
    return first, reading(own, until, computed, waited, computed + rivals, 1 + turns, natives, seen)


def segment(stage: str, start: int, end: int, attributes: dict[str, Any] | None = None) -> Segment:
    made = Segment(stage, start * MS)
    made.attributes = attributes or {}
    made.end = end * MS
    return made


def noted(cpu_samples: Any = (), handed: Any = ()) -> Request:
    record = Request()
    record.cpu_samples = cpu_samples
    record.wakeups = [
        (since * MS, until * MS, lacked if lacked < 0 else lacked * MS) for since, until, lacked in handed
    ]
    return record


def in_ms(*args: Any) -> dict[str, float]:
    return {part: took / MS for part, took in breakdown_of(*args).times.items()}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_section_within_another_counts_once_also_where_one_reading_begins_both(order: tuple[int, ...]) -> None:
    own, other = (Descriptor(threading.get_native_id()) for _ in range(2))
    begin, middle, end = reading(own, 0, 0, 0), reading(own, 80, 60, 15), reading(own, 100, 70, 20)
    elsewhere = reading(other, 100, 0, 0), reading(other, 110, 10, 0)
    sections = [(begin, middle), (begin, end), elsewhere]
    segments = [segment("handler", 0, 80), segment("inference", 80, 110)]
    found = in_ms(segments, noted([sections[place] for place in order]))
    assert found == {"compute": 80, "cpu_wait": 20, "io_wait": 10}


def test_what_another_process_did_is_as_it_reports_and_else_unknown() -> None:
    cpu = {"stagetrace.cpu.time_ms": 60.0, "stagetrace.cpu.wait_ms": 10.0, "stagetrace.cpu.blocked_ms": 30.0}
    segments = [segment("handler", 0, 20), segment("inference", 20, 120, cpu)]
    parts = breakdown_of(segments, noted([section(0, 20, 20)]))
    assert {part: took / MS for part, took in parts.times.items()} == {"compute": 80, "cpu_wait": 10, "unknown": 30}
    assert parts.by_stage["compute"] == {"handler": 20 * MS, "inference": 60 * MS}


def test_a_batch_of_another_process_that_reports_nothing_is_unknown() -> None:
    batch = segment("inference", 0, 100)
    batch.link = SpanContext(1, 1, is_remote=True)
    assert in_ms([batch], noted()) == {"unknown": 100}


def test_a_call_of_which_there_are_accounts_counts_once() -> None:
    call = segment("inference", 0, 100, {"stagetrace.cpu.time_ms": 90.0})
    assert in_ms([call], noted([section(0, 100, 90, 10)])) == {"compute": 90, "cpu_wait": 10}


def test_what_a_thread_was_blocked_by_is_a_lock_where_others_computed_meanwhile_and_else_io() -> None:
    handler = [segment("handler", 0, 100)]
    assert in_ms(handler, noted([section(0, 100, 40, rivals=58)])) == {"compute": 40, "lock_wait": 60}
    assert in_ms(handler, noted([section(0, 100, 40, rivals=20)])) == {"compute": 40, "io_wait": 60}


def test_what_a_section_waits_for_in_another_stage_counts_there() -> None:
    """As the body of a WSGI request that its handler reads."""
    segments = [segment("handler", 0, 20), segment("network.receive", 20, 80), segment("handler", 80, 100)]
    found = in_ms(segments, noted([section(0, 100, 30)]))
    assert found == {"compute": 30, "slow_upload": 60, "io_wait": 10}
    found = in_ms(segments, noted([section(0, 100, 30, 20)]))  # 10 of the 20 for a CPU were in that wait, at least
    assert found == {"compute": 30, "slow_upload": 60, "cpu_wait": 10}


def test_a_lock_whose_holder_lacks_a_cpu_as_this_thread_does_is_a_lack_of_cpus() -> None:
    """This thread has waited twice as long as it has computed; so has who computed for 10 ms while it was blocked."""
    found = in_ms([segment("handler", 0, 120)], noted([section(0, 120, 30, 60, rivals=10)]))
    assert found == {"compute": 30, "cpu_wait": 80, "lock_wait": 10}


def test_a_wait_for_a_thread_that_was_free_is_none_for_the_pool() -> None:
    """It could not run: it lacked a CPU, and else was kept out by what its section was kept out by."""
    segments = [segment("queue", 0, 50, POOL), segment("handler", 50, 100)]
    free = [(-1, 50, 30)]  # asked for just before the stage begins
    assert in_ms(segments, noted([section(50, 100, 50)], free)) == {"cpu_wait": 30, "compute": 50, "unknown": 20}
    assert in_ms(segments, noted([section(50, 100, 20, rivals=30)], free)) == {
        "cpu_wait": 30,
        "compute": 20,
        "lock_wait": 50,
    }
    assert in_ms(segments, noted([section(50, 100, 50)])) == {"pool_wait": 50, "compute": 50}


def test_a_wait_for_a_full_pool_is_the_pools_until_a_thread_is_free() -> None:
    segments = [segment("queue", 0, 50, POOL), segment("handler", 50, 100)]
    found = in_ms(segments, noted([section(50, 100, 50)], [(40, 50, 10)]))
    assert found == {"pool_wait": 40, "cpu_wait": 10, "compute": 50}


def test_the_event_loop_that_takes_a_request_back_late_was_kept_out_like_its_thread() -> None:
    segments = [segment("handler", 0, 60), segment("postprocess", 60, 100)]
    late = [(60, 90, UNKNOWN)]
    assert in_ms(segments, noted([section(0, 60, 20, rivals=40)], late)) == {
        "compute": 20,
        "lock_wait": 70,
        "unknown": 10,
    }
    assert in_ms(segments, noted([section(0, 60, 20, 40)], late)) == {"compute": 20, "cpu_wait": 70, "unknown": 10}
    assert in_ms(segments, noted([section(0, 60, 60)], late)) == {"compute": 60, "unknown": 40}


def test_an_event_loop_that_is_late_counts_no_more_than_what_is_left() -> None:
    segments = [segment("handler", 0, 60), segment("postprocess", 60, 100)]
    assert in_ms(segments, noted([section(0, 60, 60)], [(50, 95, UNKNOWN)])) == {"compute": 60, "unknown": 40}


@pytest.mark.parametrize(
    ("attributes", "rivals", "found"),
    [
        (SOCKET, 60, {"lock_wait": 160, "compute": 40}),  # the loop was kept out like the thread
        (SOCKET, 0, {"socket_wait": 100, "compute": 40, "io_wait": 60}),
        ({**SOCKET, "queue.blocked_by": "GET /hold"}, 60, {"socket_wait": 100, "compute": 40, "lock_wait": 60}),
    ],
)
def test_a_wait_in_the_socket_that_nobody_held_up_is_the_contention_that_the_request_met_itself(
    attributes: dict[str, Any], rivals: int, found: dict[str, float]
) -> None:
    segments = [segment("queue", 0, 100, attributes), segment("handler", 100, 200)]
    assert in_ms(segments, noted([section(100, 200, 40, rivals=rivals)])) == found


def test_each_part_has_its_place_in_the_stages() -> None:
    """A model's call within a handler's section takes its own share out of that."""
    own = Descriptor(threading.get_native_id())
    handler = reading(own, 10, 0, 0), reading(own, 110, 55, 10)
    model = reading(own, 60, 5, 0), reading(own, 110, 55, 0)
    segments = [
        segment("queue", 0, 10, POOL),
        segment("preprocess", 10, 60),
        segment("inference", 60, 110),
        segment("network.send", 110, 120),
    ]
    request = noted([handler, model])
    request.calls = [("other", 20 * MS, 30 * MS)]
    by_stage = breakdown_of(segments, request).by_stage
    assert by_stage["pool_wait"] == {"queue": 10 * MS}
    assert by_stage["compute"] == {"preprocess": 5 * MS, "inference": 50 * MS}
    assert by_stage["cpu_wait"] == {"preprocess": 10 * MS}
    assert by_stage["downstream"] == {"preprocess": 10 * MS}
    assert max(by_stage["io_wait"], key=lambda stage: by_stage["io_wait"][stage]) == "preprocess"
    assert by_stage["slow_download"] == {"network.send": 10 * MS}
    assert breakdown_of(segments, request).stages["preprocess"] == 50 * MS


def test_a_stage_marked_by_hand_has_what_its_thread_computed_in_it() -> None:
    """One section goes through all of the handler: its stages would have the same share of each part."""
    segments = [segment("handler", 0, 50), segment("tokenize", 50, 100), segment("handler", 100, 110)]
    request = noted([section(0, 110, 60)])
    assert breakdown_of(segments, request).by_stage["compute"]["tokenize"] > 20 * MS
    request.computed = [(50 * MS, 100 * MS, 1 * MS, threading.get_native_id()), (50 * MS, 100 * MS, 40 * MS, 1)]
    found = breakdown_of(segments, request)
    assert found.by_stage["compute"] == pytest.approx({"handler": 59 * MS, "tokenize": 1 * MS}, abs=MS)
    assert found.by_stage["io_wait"] == pytest.approx({"handler": 1 * MS, "tokenize": 49 * MS}, abs=MS)
    assert found.times == {"compute": 60 * MS, "io_wait": 50 * MS}


def test_of_a_send_or_receive_the_client_has_what_waited_for_it() -> None:
    """The rest is the process's own, or lay in the socket."""
    segments = [segment("network.receive", 0, 100), segment("handler", 100, 110), segment("network.send", 110, 200)]
    request = noted([section(100, 110, 10), section(110, 150, 20, rivals=20)])
    request.peer_waits = [(10 * MS, 40 * MS), (160 * MS, 190 * MS)]
    request.socket_waits = [(40 * MS, 95 * MS, True)]
    assert in_ms(segments, request) == {
        "slow_upload": 30,
        "socket_wait": 55,
        "slow_download": 30,
        "compute": 30,
        "lock_wait": 20,
        "unknown": 35,
    }
    request.peer_waits = ()
    assert not {"slow_upload", "slow_download"} & set(in_ms(segments, request))


def test_where_nobody_tells_the_whole_stage_is_the_clients_but_for_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What lay in the socket, and what is too short to have waited for anybody."""
    segments = [segment("network.receive", 0, 50), segment("handler", 50, 60), segment("network.send", 60, 100)]
    request = noted([section(60, 100, 40)])
    assert in_ms(segments, request)["slow_upload"] == 50
    assert in_ms(segments, request)["slow_download"] == 40
    request.socket_waits = [(20 * MS, 50 * MS, True)]
    monkeypatch.setattr(request, "fits_buffer", lambda activity: activity == "network.send")
    assert in_ms(segments, request) == {"slow_upload": 20, "socket_wait": 30, "compute": 40, "unknown": 10}


def test_a_body_that_lay_in_the_socket_without_a_known_reason_is_the_contention_of_the_request() -> None:
    segments = [segment("network.receive", 0, 100), segment("handler", 100, 200)]
    request = noted([section(100, 200, 40, rivals=60)])
    request.peer_waits, request.socket_waits = [(0, 0)], [(0, 100 * MS, False)]
    assert in_ms(segments, request) == {"lock_wait": 160, "compute": 40}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what says how the loop's thread divided its time, in ms: begin, end, computed, waited, rivals, turns."""

    def tell(*told: tuple[int, int, int, int, int, int]) -> None:
        shares = [
            (
                begin * MS,
                end * MS,
                Share((end - begin) * MS, computed * MS, waited * MS, blocked * MS, rivals * MS, turns),
            )
            for begin, end, computed, waited, rivals, turns in told
            for blocked in [end - begin - computed - waited]
        ]
        monkeypatch.setattr(loops, "recent_shares", lambda *_: shares)

    return tell


def test_a_suspended_task_waits_for_io_as_long_as_the_loop_is_idle(loop: Callable[..., None]) -> None:
    handler = [segment("handler", 0, 100)]
    loop((-5, 100, 5, 0, 0, 1))
    assert in_ms(handler, noted()) == {"io_wait": 95, "unknown": 5}  # it may have computed within
    loop((0, 100, 30, 0, 0, 1))
    assert in_ms(handler, noted()) == {"io_wait": 70, "unknown": 30}  # for others, or for tasks of its own
    loop((0, 50, 0, 0, 0, 1), (50, 100, 10, 40, 0, 1))
    assert in_ms(handler, noted()) == {"io_wait": 50, "cpu_wait": 40, "unknown": 10}


def test_a_loop_that_waits_for_the_gil_is_not_idle(loop: Callable[..., None]) -> None:
    handler = [segment("handler", 0, 100)]
    loop((0, 100, 0, 0, 100, 4))
    assert in_ms(handler, noted()) == {"io_wait": 80, "lock_wait": 20}
    loop((0, 100, 0, 0, 100, 40))
    assert in_ms(handler, noted()) == {"lock_wait": 100}


def test_what_a_thread_does_for_a_request_leaves_the_loop_idle_for_no_other_reason(loop: Callable[..., None]) -> None:
    """It computed for 50 ms, and the loop for as long after that."""
    loop((0, 100, 50, 0, 50, 2))
    found = in_ms([segment("handler", 0, 100)], noted([section(0, 50, 50)]))
    assert found == {"compute": 50, "lock_wait": 5, "unknown": 45}


def test_little_contention_explains_no_long_wait_in_the_socket() -> None:
    segments = [segment("queue", 0, 100, SOCKET), segment("handler", 100, 120)]
    assert in_ms(segments, noted([section(100, 120, 2, rivals=18)]))["socket_wait"] == 100


def test_garbage_collected_by_the_thread_that_was_to_read_the_socket_is_what_the_request_waits_for(
    collect: Callable[..., None],
) -> None:
    collect(10, 40)
    segments = [segment("queue", 0, 50, SOCKET), segment("handler", 50, 60)]
    assert in_ms(segments, noted([section(50, 60, 10)])) == {"gc": 30, "socket_wait": 20, "compute": 10}
    segments[0].attributes = {**SOCKET, "queue.blocked_by": "GET /hold"}
    assert in_ms(segments, noted([section(50, 60, 10)])) == {"gc": 30, "socket_wait": 20, "compute": 10}


def test_garbage_collected_elsewhere_delays_a_loop_as_long_as_that_wants_the_gil(
    collect: Callable[..., None], loop: Callable[..., None]
) -> None:
    """While it sleeps in a blocking call it does not; nor where nothing is known of it."""
    collect(10, 90, elsewhere=True)
    segments = [segment("queue", 0, 100, SOCKET), segment("handler", 100, 110)]
    request = noted([section(100, 110, 10)])
    loop((0, 100, 5, 0, 90, 16))
    assert in_ms(segments, request) == {"gc": 80, "socket_wait": 20, "compute": 10}
    loop((0, 100, 5, 0, 90, 1))
    assert in_ms(segments, request) == {"gc": 5, "socket_wait": 95, "compute": 10}
    loop()
    assert in_ms(segments, request) == {"socket_wait": 100, "compute": 10}


def test_garbage_collected_beside_a_wait_is_no_cause_of_it(
    collect: Callable[..., None], loop: Callable[..., None]
) -> None:
    """Nobody would have run: the pool is full of sleepers, the thread sleeps, the client sends, the task awaits."""
    collect(10, 90, elsewhere=True)
    pool = [segment("queue", 0, 100, POOL), segment("handler", 100, 110)]
    assert in_ms(pool, noted([section(100, 110, 10)])) == {"pool_wait": 100, "compute": 10}
    sleeps = noted([section(0, 100, 40, rivals=80, turns=1, for_threads=0)])
    assert in_ms([segment("handler", 0, 100)], sleeps) == {"compute": 40, "io_wait": 60}
    assert in_ms([segment("network.receive", 0, 100)], noted()) == {"slow_upload": 100}
    loop((0, 100, 2, 0, 80, 2))
    assert in_ms([segment("handler", 0, 100)], noted()) == {"io_wait": 88, "gc": 12}  # it wanted the GIL then
    called = noted()
    called.calls = [("other", 0, 100 * MS)]
    assert in_ms([segment("handler", 0, 100)], called) == {"downstream": 100}


def test_garbage_collected_while_a_free_thread_wants_to_take_the_request_up_is_what_it_waits_for(
    collect: Callable[..., None],
) -> None:
    collect(10, 90, elsewhere=True)
    segments = [segment("queue", 0, 100, POOL), segment("handler", 100, 110)]
    found = in_ms(segments, noted([section(100, 110, 10)], [(60, 100, 5)]))
    assert found == {"pool_wait": 60, "gc": 30, "cpu_wait": 5, "unknown": 5, "compute": 10}


def test_a_wait_in_the_socket_that_was_all_garbage_collection_is_no_other_wait(
    collect: Callable[..., None], loop: Callable[..., None]
) -> None:
    collect(0, 50)
    loop((0, 60, 55, 5, 0, 1))
    segments = [segment("queue", 0, 50, SOCKET), segment("handler", 50, 60)]
    assert in_ms(segments, noted([section(50, 60, 10)])) == {"gc": 50, "compute": 10}


def test_garbage_collected_counts_once(collect: Callable[..., None]) -> None:
    handler = [segment("handler", 0, 100)]
    collect(10, 90)
    assert in_ms(handler, noted([section(0, 100, 95, 5)])) == {"gc": 80, "compute": 15, "cpu_wait": 5}
    assert in_ms(handler, noted([section(0, 100, 60, 40)])) == {"gc": 60, "cpu_wait": 40}  # it lacked a CPU, too
    assert in_ms(handler, noted()) == {"gc": 80, "unknown": 20}


def test_garbage_collected_elsewhere_is_what_kept_the_gil(collect: Callable[..., None]) -> None:
    handler = [segment("handler", 0, 100)]
    collect(10, 90, elsewhere=True)
    assert in_ms(handler, noted([section(0, 100, 5, rivals=95)])) == {"gc": 80, "compute": 5, "lock_wait": 15}
    assert in_ms(handler, noted([section(0, 100, 22, rivals=78)])) == {"gc": 78, "compute": 22}


@pytest.mark.parametrize(
    ("turns", "explained"),
    [(1, 5), (6, 30), (12, 60), (100, 60)],  # 60 ms blocked; whoever waits for the GIL wakes up each 5 ms
)
def test_how_much_the_gil_explains_is_how_often_the_thread_woke_and_the_rest_is_another_wait(
    turns: int, explained: float
) -> None:
    """As that for a database, while a thread in the background computes."""
    found = breakdown_of([segment("handler", 0, 100)], noted([section(0, 100, 40, rivals=58, turns=turns)]))
    assert found.times["lock_wait"] == found.for_gil == explained * MS
    assert found.times.get("io_wait", 0) == (60 - explained) * MS


@pytest.mark.parametrize(
    ("natives", "found"),
    [
        (0, {"compute": 40, "lock_wait": 60}),
        (20, {"compute": 40, "lock_wait": 60}),  # those of Python have computed for 40 of the 60 ms
        (40, {"compute": 40, "io_wait": 60}),
        (60, {"compute": 40, "io_wait": 60}),
    ],
)
def test_native_threads_that_compute_keep_nobody_from_the_gil(natives: int, found: dict[str, float]) -> None:
    """As those of a BLAS do, for the request itself or for another one."""
    cpu_samples = [section(0, 100, 40, rivals=60, natives=natives)]
    assert in_ms([segment("handler", 0, 100)], noted(cpu_samples)) == found


@pytest.mark.parametrize(
    ("for_threads", "given", "found"),
    [
        (1, {"rivals": 58, "turns": 1}, {"compute": 40, "lock_wait": 60}),  # a lock that a thread holds that computes
        (1, {"rivals": 0, "turns": 1}, {"compute": 40, "io_wait": 60}),  # that sleeps
        (1, {"rivals": 60, "turns": 1, "natives": 60}, {"compute": 100}),  # it waits for threads of a BLAS
        (0, {"rivals": 58, "turns": 100}, {"compute": 40, "io_wait": 60}),  # a database that answers in many pieces
        (0.5, {"rivals": 58, "turns": 100}, {"compute": 40, "lock_wait": 30, "io_wait": 30}),
        (0.5, {"rivals": 58, "turns": 2}, {"compute": 40, "lock_wait": 30, "io_wait": 30}),
    ],
)
def test_what_a_thread_was_seen_to_wait_for_is_what_it_waited_for(
    for_threads: float, given: dict[str, Any], found: dict[str, float]
) -> None:
    cpu_samples = [section(0, 100, 40, for_threads=for_threads, **given)]
    assert in_ms([segment("handler", 0, 100)], noted(cpu_samples)) == found


def test_who_waits_for_something_else_beside_rivals_says_nothing_of_who_was_late() -> None:
    """Neither the event loop that took the request up, nor the free thread, waits for what its section waits for."""
    segments = [segment("queue", 0, 100, SOCKET), segment("queue", 100, 150, POOL), segment("handler", 150, 250)]
    cpu_samples = [section(150, 250, 40, rivals=58, turns=1)]
    parts = breakdown_of(segments, noted(cpu_samples, [(100, 150, 0)]))
    expected = {"socket_wait": 100, "compute": 40, "lock_wait": 5, "io_wait": 55, "unknown": 50}
    assert {part: took / MS for part, took in parts.times.items()} == expected
    assert parts.for_gil == 5 * MS


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([(100, 200, 10, 0, 90, 50)], {"socket_wait": 10, "lock_wait": 90}),
        ([(100, 200, 20, 0, 90, 4)], {"socket_wait": 80, "lock_wait": 20}),
        ([(100, 200, 10, 80, 0, 50)], {"socket_wait": 20, "cpu_wait": 80}),
        ([(100, 200, 5, 0, 0, 1)], {"socket_wait": 100}),  # it slept, as in a blocking call
        ([(100, 200, 98, 0, 0, 1)], {"socket_wait": 100}),
        ([(150, 200, 5, 0, 45, 50)], {"socket_wait": 10, "lock_wait": 90}),  # of the rest nothing is known
        ([(50, 150, 0, 0, 100, 50), (150, 200, 10, 40, 0, 50)], {"socket_wait": 10, "lock_wait": 50, "cpu_wait": 40}),
    ],
)
def test_a_wait_in_the_socket_is_what_kept_the_event_loops_thread(
    told: Any, found: dict[str, float], loop: Callable[..., None]
) -> None:
    """However this request's own sections went."""
    segments = [segment("queue", 100, 200, SOCKET), segment("handler", 200, 300)]
    record = noted([section(200, 300, 100)])
    loop(*told)
    assert in_ms(segments, record) == {**found, "compute": 100}
    segments[0].attributes = {**SOCKET, "queue.blocked_by": "GET /hold"}
    assert in_ms(segments, record) == {"socket_wait": 100, "compute": 100}


@pytest.mark.parametrize(
    ("rivals", "found"), [(40, {"lock_wait": 50, "io_wait": 50}), (10, {"unknown": 50, "io_wait": 50})]
)
def test_a_free_thread_that_is_late_waits_for_the_gil_where_that_is_in_demand(
    rivals: float, found: dict[str, float], loop: Callable[..., None]
) -> None:
    """Whatever its section waits for then."""
    segments = [segment("queue", 0, 50, POOL), segment("handler", 50, 100)]
    loop((0, 50, 0, 0, rivals, 1), (50, 100, 0, 0, 0, 1))
    assert in_ms(segments, noted([section(50, 100, 0, for_threads=0)], [(0, 50, 0)])) == found


def test_without_a_gil_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    found = breakdown_of([segment("handler", 0, 100)], noted([section(0, 100, 40, rivals=58, turns=100)]))
    assert found.times == {"compute": 40 * MS, "io_wait": 60 * MS}


def test_the_longest_gap_of_a_long_stream_has_its_readings() -> None:
    """Though the lists of its record were full before, and much was noted after."""
    record = Request(start=0)
    record.stream = Stream()

    def chunk(since: int, until: int, computed: int) -> None:
        record.keep("cpu_samples", section(since, until, computed))
        assert record.stream is not None
        record.stream.add(until * MS, 1)

    for number in range(MAX_CALLS + 50):
        chunk(10 * number, 10 * number + 9, 9)
    chunk(2_000, 2_300, 290)
    for number in range(50):
        chunk(2_301 + 10 * number, 2_310 + 10 * number, 9)
    start, end = record.stream.widest
    assert end == 2_300 * MS
    within = Within(record, start, end)
    stages = clipped([segment("handler", 0, 3_000)], start, end)
    assert breakdown_of(stages, within, {}, (start, end)).times["compute"] == 290 * MS


def test_a_section_that_begins_before_the_interval_counts_in_part() -> None:
    record = noted([section(0, 100, 60, 20)])
    stages = clipped([segment("handler", 0, 100)], 50 * MS, 100 * MS)
    found = breakdown_of(stages, Within(record, 50 * MS, 100 * MS), {}, (50 * MS, 100 * MS))
    assert {part: took / MS for part, took in found.times.items() if part in ("compute", "cpu_wait")} == {
        "compute": 30,
        "cpu_wait": 10,
    }


def test_what_other_threads_import_meanwhile_is_not_the_requests() -> None:
    """As the exporter that is made, or the parts of stagetrace that only a breach needs."""
    finder = PostImportFinder()
    began = time.time_ns()
    finder.find_spec("re", None)
    in_a_thread(lambda: finder.find_spec("json", None))
    ended = time.time_ns()
    own, other = threading.get_native_id(), 0
    assert finder.imported_in([(began, ended, own), (began, ended, own)])[0] == 1
    assert finder.imported_in([(began, ended, other)])[0] == 0
    assert finder.imported_in([]) == (0, 0)

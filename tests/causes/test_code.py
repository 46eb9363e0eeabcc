"""The line of code of a breach, and its events, from stacks that were sampled."""

from __future__ import annotations

import os
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import semconv
from stagetrace.causes import cause, code
from stagetrace.causes.cause import COMPUTE
from stagetrace.causes.code import (
    MOST_BYTES,
    MOST_OF_NAME,
    MOST_OF_PATH,
    MOST_OF_STACK,
    code_of,
    code_of_collections,
    events_of,
    evidence,
    is_over,
)
from stagetrace.request import limits
from stagetrace.request.stages import Segment
from stagetrace.request.stalls import BLOCKER, POOL, RAN, REQUEST, RIVAL, WAITED, Stall
from stagetrace.sources import stacks

if TYPE_CHECKING:
    from types import CodeType

    from stagetrace.sources.stacks import Place, Stack

HERE = os.getcwd()  # noqa: PTH109 -- of which paths are shortened
SITE = f"{sysconfig.get_paths()['purelib']}/sqlalchemy/engine/base.py"
OURS = f"{stacks._OURS}request/working.py"
template = (lambda: None).__code__


def made(path: str, name: str) -> CodeType:
    """Return a code object as the compiler gives a file and a function."""
    names: Any = {"co_name": name, "co_qualname": name} if hasattr(template, "co_qualname") else {"co_name": name}
    return template.replace(co_filename=path, **names)


PREDICT = made(f"{HERE}/app.py", "predict")
LOAD = made(f"{HERE}/app.py", "load")
EXECUTE = made(SITE, "_execute")
JOB = made(OURS, "__call__")


def at(line: int, *, function: CodeType = PREDICT, below: tuple[Place, ...] = ()) -> Stack:
    return (*below, (function, line), (JOB, 1))


def stalls(*samples: tuple[int, Stack], of: str = REQUEST) -> list[Stall]:
    return [Stall(when, of, stack) for when, stack in samples]


def visits(*stages: tuple[str, int, int]) -> list[Segment]:
    found = [Segment(name, start) for name, start, _ in stages]
    for segment, (_, _, end) in zip(found, stages, strict=True):
        segment.end = end
    return found


def line_of(
    samples: list[Stall],
    *stages: tuple[str, int, int],
    stage: str = "handler",
    word: str = COMPUTE,
    end: int = 100,
) -> str | None:
    found = code_of(samples, visits(*(stages or (("handler", 0, 100),))), stage, word, end)
    return None if found is None else found.line


def test_the_line_at_which_most_time_passed_is_the_one_not_that_of_most_samples() -> None:
    """The samples at 10, 11 and 12 stand for two units of time and the rest of one; that at 40 for sixty."""
    samples = stalls((10, at(1)), (11, at(1)), (12, at(2)), (13, at(1)), (14, at(3)))
    assert line_of(samples) == "app.py:3 in predict"


def test_a_tie_is_for_the_line_that_was_seen_first() -> None:
    assert line_of(stalls((10, at(7)), (20, at(5)), (30, at(6))), end=40) == "app.py:7 in predict"


def test_the_last_sample_stands_for_the_time_until_the_request_ended() -> None:
    samples = stalls((10, at(1)), (50, at(2)))
    assert line_of(samples, end=80) == "app.py:1 in predict"
    assert line_of(samples, end=100) == "app.py:2 in predict"


def test_a_sample_after_a_hold_of_the_gil_stands_for_the_hold() -> None:
    """The request held it at line 1 from 10 on, and was sampled at 70: it stood at line 2 for less."""
    first, then = Stall(70, REQUEST, at(1), 60, held_ns=60), Stall(75, REQUEST, at(2))
    assert line_of([first, then]) == "app.py:1 in predict"
    assert line_of([first._replace(held_ns=0), then]) == "app.py:2 in predict"
    before = Stall(5, REQUEST, at(3))  # not for what the hold took
    assert line_of([before, first, then]) == "app.py:1 in predict"


def test_only_another_thread_is_said_to_have_held_the_gil() -> None:
    own, rival = Stall(70, REQUEST, at(1), 60_000_000), Stall(70, RIVAL, at(3), 60_000_000)
    assert "; the GIL was held for 60 ms by another thread, at app.py:3 in predict; " in said_of([own, rival], COMPUTE)
    assert "; it held the GIL for 60 ms; " in said_of([own._replace(held_ns=60_000_000)], COMPUTE)
    assert "; the GIL was held for 60 ms; " in said_of([own], COMPUTE)


def test_a_sample_from_after_the_wait_is_withheld() -> None:
    ran, waited = Stall(80, REQUEST, at(1), state=RAN), Stall(90, REQUEST, at(2), state=WAITED)
    assert line_of([ran, waited], word=cause.IO_WAIT) == "app.py:2 in predict"
    assert line_of([ran], word=cause.IO_WAIT) is None
    handler = visits(("handler", 0, 100))
    assert is_over([ran], handler, "handler", cause.IO_WAIT)
    assert not is_over([ran, waited], handler, "handler", cause.IO_WAIT)
    assert not is_over([], handler, "handler", cause.IO_WAIT)


def test_a_line_at_which_it_waited_is_none_of_computing_unless_that_is_said() -> None:
    ran, waited = Stall(80, REQUEST, at(1), state=RAN), Stall(10, REQUEST, at(2), state=WAITED)
    assert line_of([waited, ran]) == "app.py:1 in predict"
    assert said_of([waited], COMPUTE).startswith("; it was sampled only as it waited; at app.py:2 in predict")


def test_our_own_wrappers_and_instructions_of_no_line_are_not_shown() -> None:
    wrapper = made("<stagetrace.instrumentation.models.signature>", "<lambda>")
    stack = ((EXECUTE, 0), (PREDICT, 0), (wrapper, 1), (LOAD, 7), (JOB, 1))
    assert said_of(stalls((10, stack)), COMPUTE) == "; at app.py:7 in load (1 of 1 samples)"
    ((event,), _) = events_of(stalls((10, stack)))
    assert (event.attributes or {})[semconv.CODE_STACKTRACE] == '  File "app.py", line 7, in load'


def test_samples_of_other_stages_do_not_count() -> None:
    stages = ("preprocess", 0, 50), ("inference", 50, 60), ("preprocess", 60, 100)
    samples = stalls((10, at(1)), (51, at(2)), (59, at(2)), (60, at(3)))
    assert line_of(samples, *stages, stage="inference") == "app.py:2 in predict"
    assert line_of(samples, *stages, stage="preprocess") == "app.py:1 in predict"
    assert line_of(samples, *stages, stage="postprocess") is None
    assert line_of(samples[1:3], *stages, stage="preprocess") is None


def test_in_a_queue_the_line_is_of_what_is_in_the_way_never_of_the_request() -> None:
    stage = ("queue", 0, 100)
    own, blocker, rival = stalls((10, at(1))), stalls((10, at(2)), of=BLOCKER), stalls((10, at(3)), of=RIVAL)
    pool = stalls((10, at(4)), of=POOL)
    assert line_of(own, stage, stage="queue") is None
    assert line_of([*own, *rival], stage, stage="queue") == "app.py:3 in predict"
    assert line_of([*own, *rival, *blocker], stage, stage="queue") == "app.py:2 in predict"
    assert line_of([*own, *rival, *blocker, *pool], stage, stage="queue") == "app.py:4 in predict"
    assert line_of([*own, *blocker, *pool]) == "app.py:1 in predict"


@pytest.mark.parametrize("word", [*cause.WORDS])
def test_whose_line_it_is_depends_on_the_cause(word: str) -> None:
    """A request that awaits may be kept by its event loop; one that waits in a queue by what has the thread."""
    own, blocker, rival = stalls((10, at(1))), stalls((10, at(2)), of=BLOCKER), stalls((10, at(3)), of=RIVAL)
    pool = stalls((10, at(4)), of=POOL)
    every = [*own, *rival, *blocker, *pool]
    handled = {
        cause.SOCKET_WAIT: 2,
        cause.POOL_WAIT: 4,
        cause.BATCH_WAIT: 4,
        cause.IO_WAIT: 2,
        cause.MIXED: 2,
        cause.UNKNOWN: 2,
    }
    assert line_of(every, word=word) == f"app.py:{handled.get(word, 1)} in predict"
    queued = 2 if word == cause.SOCKET_WAIT else 4
    assert line_of(every, ("queue", 0, 100), stage="queue", word=word) == f"app.py:{queued} in predict"


def test_a_request_that_waits_for_a_pool_stands_where_it_asked_for_a_thread() -> None:
    """So where the pool's threads are not known, or run C alone."""
    samples = [*stalls((10, at(1))), *stalls((10, ((JOB, 1),)), of=POOL)]
    assert line_of(samples, ("queue", 0, 100), stage="queue", word=cause.POOL_WAIT) == "app.py:1 in predict"


def test_an_event_loop_that_was_blocked_for_the_lesser_part_is_not_the_line() -> None:
    samples = [*stalls((10, at(1)), (50, at(1))), *stalls((10, at(2)), of=BLOCKER)]
    assert line_of(samples, word=cause.IO_WAIT) == "app.py:1 in predict"
    assert line_of(samples, word=cause.IO_WAIT, end=60) == "app.py:2 in predict"


def said_of(samples: list[Stall], word: str, stage: str = "handler") -> str:
    found = code_of(samples, visits((stage, 0, 100)), stage, word, 100)
    assert found is not None
    return evidence(found)


def test_the_threads_of_a_pool_are_counted_by_line() -> None:
    samples = [
        Stall(10, POOL, at(9), threads=38, out_of=40),
        Stall(10, POOL, at(7), threads=2, out_of=40),
        Stall(30, POOL, at(7), threads=40, out_of=40),
        Stall(31, POOL, at(9), threads=40, out_of=40),
    ]
    assert said_of(samples, cause.POOL_WAIT, "queue") == (
        "; the pool's threads stood at app.py:9 in predict (78 of 120 samples)"
    )
    events, _ = events_of(samples)
    assert [
        ((event.attributes or {})[semconv.STALL_SAMPLES], (event.attributes or {})[semconv.STALL_OUT_OF])
        for event in events
    ] == [(78, 120), (42, 120)]


async def _coroutine() -> None: ...


def test_the_evidence_says_whether_an_event_loop_or_a_thread_was_blocked() -> None:
    names: Any = {"co_filename": f"{HERE}/app.py", "co_name": "blocked"}
    on_loop = stalls((10, ((_coroutine.__code__.replace(**names), 17),)), of=BLOCKER)
    assert said_of(on_loop, cause.SOCKET_WAIT, "queue") == (
        "; the event loop stood at app.py:17 in blocked (1 of 1 samples)"
    )
    on_thread = stalls((10, at(17)), of=BLOCKER)
    assert said_of(on_thread, cause.SOCKET_WAIT, "queue") == (
        "; its thread stood at app.py:17 in predict (1 of 1 samples)"
    )


def test_the_rival_of_a_lock_wait_is_in_the_evidence_and_for_how_long_the_gil_was_held() -> None:
    samples = [
        *stalls((10, at(1)), (20, at(1))),
        *stalls((20, at(9)), of=RIVAL),
        Stall(30, REQUEST, at(1), 61_000_000),
        Stall(30, RIVAL, at(9), 61_000_000),
    ]
    assert said_of(samples, cause.LOCK_WAIT) == (
        "; another thread computed at app.py:9 in predict (2 of 2 samples)"
        "; the GIL was held for 61 ms by another thread, at app.py:9 in predict"
        "; at app.py:1 in predict (3 of 3 samples)"
    )
    assert "another thread computed" not in said_of(samples, cause.COMPUTE)
    own = [one for one in samples if one.of == REQUEST]
    assert said_of(own, cause.COMPUTE) == "; the GIL was held for 61 ms; at app.py:1 in predict (3 of 3 samples)"


def test_garbage_was_collected_where_most_of_the_time_was() -> None:
    runs = [
        Stall(10, RIVAL, at(1), 5_000_000),
        Stall(20, REQUEST, at(2), 4_000_000),
        Stall(30, RIVAL, at(2), 4_000_000),
    ]
    found = code_of_collections(runs)
    assert found is not None
    assert found.line == "app.py:2 in predict"
    assert evidence(found) == "; garbage was collected for 8 ms at app.py:2 in predict (2 of 3 samples)"
    assert code_of_collections([]) is None


def test_the_evidence_has_the_library_below_and_the_share_of_samples() -> None:
    deep = at(41, below=((EXECUTE, 1967),))
    samples = stalls((10, deep), (20, at(40)), (30, deep))
    found = code_of(samples, visits(("handler", 0, 100)), "handler", COMPUTE, 100)
    assert found is not None
    assert (
        evidence(found) == "; at app.py:41 in predict, in sqlalchemy/engine/base.py:1967 in _execute (2 of 3 samples)"
    )
    alone = code_of(samples[1:2], visits(("handler", 0, 100)), "handler", COMPUTE, 100)
    assert alone is not None
    assert evidence(alone) == "; at app.py:40 in predict (1 of 1 samples)"


def test_without_code_of_the_application_there_is_a_library_alone() -> None:
    samples = stalls((10, ((EXECUTE, 1967), (JOB, 1))))
    found = code_of(samples, visits(("handler", 0, 100)), "handler", COMPUTE, 100)
    assert found is not None
    assert (found.line, found.library) == ("sqlalchemy/engine/base.py:1967 in _execute", None)


def test_of_our_own_code_alone_there_is_no_line_and_no_event() -> None:
    samples = stalls((10, ((JOB, 1),)), (20, ()))
    assert line_of(samples) is None
    assert events_of(samples) == ([], 0)


def test_an_event_for_each_distinct_stack_at_its_first_sample() -> None:
    deep = at(41, below=((EXECUTE, 1967),))
    samples = [*stalls((30, at(5)), (10, deep), (20, deep)), Stall(15, RIVAL, deep, 27_500_000)]
    events, dropped = events_of(sorted(samples))
    assert dropped == 0
    assert [(event.name, event.timestamp) for event in events] == [("stall", 10), ("stall", 15), ("stall", 30)]
    own, rival, other = (dict(event.attributes or {}) for event in events)
    expected = {
        semconv.STALL_OF: "request",
        semconv.STALL_SAMPLES: 2,
        semconv.STALL_OUT_OF: 3,
        semconv.CODE_FILE_PATH: "app.py",
        semconv.CODE_LINE_NUMBER: 41,
        semconv.CODE_FUNCTION_NAME: "predict",
        semconv.CODE_STACKTRACE: (
            '  File "app.py", line 41, in predict\n  File "sqlalchemy/engine/base.py", line 1967, in _execute'
        ),
    }
    assert own.items() >= expected.items()
    assert semconv.STALL_GIL_MS not in own
    assert (rival[semconv.STALL_OF], rival[semconv.STALL_GIL_MS]) == ("rival", 27.5)
    assert (other[semconv.STALL_SAMPLES], other[semconv.CODE_LINE_NUMBER]) == (1, 5)


def test_the_same_code_in_two_files_is_two_stacks() -> None:
    """Python takes their code objects for equal."""
    first, second = (((made(f"{HERE}/{version}/app.py", "predict"), 3),) for version in ("v1", "v2"))
    assert first == second
    events, _ = events_of(stalls((10, first), (20, second)))
    assert [(event.attributes or {})[semconv.CODE_FILE_PATH] for event in events] == ["v1/app.py", "v2/app.py"]


def deep_stack(number: int) -> Stack:
    """Return a stack of many frames, which no other number gives."""
    return tuple((made(f"{HERE}/{'long/' * 20}{number}.py", f"f{depth}"), depth) for depth in range(64))


def size_of(samples: list[Stall]) -> int:
    events, _ = events_of(samples)
    return sum(
        len(key) + len(str(value).encode()) for event in events for key, value in (event.attributes or {}).items()
    )


def test_all_events_of_a_request_are_bounded_and_what_is_dropped_is_counted() -> None:
    samples = stalls(*((number, deep_stack(number)) for number in range(40)))
    events, dropped = events_of(samples)
    assert 1 < len(events) < 40
    assert len(events) + dropped == 40
    assert size_of(samples) <= MOST_BYTES


def test_the_stacks_that_were_seen_most_are_kept() -> None:
    rare = [(number, deep_stack(number)) for number in range(10)]
    frequent = [(number, deep_stack(99)) for number in range(10, 20)]
    events, dropped = events_of(stalls(*rare, *frequent))
    assert dropped > 0
    assert (events[-1].attributes or {})[semconv.STALL_SAMPLES] == 10


def test_of_a_long_stack_the_innermost_frames_are_kept_as_whole_lines() -> None:
    ((event,), _) = events_of(stalls((1, deep_stack(1))))
    text = str((event.attributes or {})[semconv.CODE_STACKTRACE])
    assert len(text) <= MOST_OF_STACK
    assert text.startswith('  File "')
    assert text.endswith('1.py", line 1, in f1')


HOSTILE = {
    "escapes": "\x1b[31mred\x1b[0m",
    "lines": "one\ntwo\r\nthree",
    "surrogates": "caf\udce9",
    "turned": "a\u202eb",
    "long": "x" * 1_000_000,
    "long and wide": "\U0010ffff" * 1_000_000,
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_of_code_are_plain_short_text(name: str) -> None:
    """A path or a name that code was compiled with is one line that shows, in the code, the evidence and the events."""
    odd = made(f"{HERE}/{name}", name)
    library = made(f"{SITE}/{name}", name)
    samples = stalls((10, ((library, 2), (odd, 1))))
    found = code_of(samples, visits(("handler", 0, 100)), "handler", COMPUTE, 100)
    assert found is not None
    longest = MOST_OF_PATH + MOST_OF_NAME + 30
    assert found.line.isprintable()
    assert evidence(found).isprintable()
    assert len(found.line) <= longest
    ((event,), _) = events_of(samples)
    lines = str((event.attributes or {})[semconv.CODE_STACKTRACE]).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) <= longest for line in lines)
    for key in (semconv.CODE_FILE_PATH, semconv.CODE_FUNCTION_NAME):
        text = str((event.attributes or {}).get(key, ""))
        assert text.isprintable()
        assert len(text) <= MOST_OF_PATH
    assert size_of(samples) <= MOST_BYTES


def test_no_path_begins_at_the_root_of_the_machine() -> None:
    """What is neither of a package nor below the working directory keeps two parts of its path."""
    secret = made("/home/somebody/secret-project/src/jobs/run.py", "run")
    found = code_of(stalls((10, ((secret, 3),))), visits(("handler", 0, 100)), "handler", COMPUTE, 100)
    assert found is not None
    assert found.line == "jobs/run.py:3 in run"


@pytest.fixture
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "100")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    for cached in (limits.longest, limits.span_limits):
        monkeypatch.setattr(limits, cached.__name__, cached.__wrapped__)
        monkeypatch.setattr(code, cached.__name__, cached.__wrapped__)


@pytest.mark.usefixtures("_limits")
def test_limits_of_the_environment_hold() -> None:
    samples = stalls((10, at(1, below=((EXECUTE, 2),))), (20, at(2)), (30, at(3)), (40, deep_stack(4)))
    events, dropped = events_of(samples)
    assert (len(events), dropped) == (2, 2)
    for event in events_of(samples[3:])[0]:
        assert {len(str(value)) <= 100 for value in (event.attributes or {}).values()} == {True}

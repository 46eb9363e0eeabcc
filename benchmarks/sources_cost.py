"""Measure what one reading of each source of unseen time costs (`src/stagetrace/sources`).

In one process, on one thread, each source in turn, round by round; CPU time of the thread, so that other work on the
machine hardly shows. Once in a loop, and once after each call of a model, less that call: as in a service, whose own
work has replaced the contents of the caches since the last reading. A source that is read only after a breach, or every
few seconds, has a note.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.app import model, rows
from benchmarks.measure import Spread, Table, parser, show
from stagetrace.sources import gc_pauses, machine, page_faults, socket_wait, tcp_info, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = "nothing"
COLD_SHARE = 5  # of the readings in a loop, one is made after a call of the model, which takes a hundred times as long
IN_TURN = 40


@dataclass(frozen=True)
class SourcesCost:
    """By reading, one figure a round: nanoseconds of CPU in a loop, and between calls of a model."""

    readings: int
    cpu_ns: dict[str, list[float]]
    cold_ns: dict[str, list[float]]


def _cases(stack: ExitStack) -> dict[str, Callable[[], Any]]:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(server.getsockname()))
    connection = stack.enter_context(server.accept()[0])
    now = time.time_ns()
    gc_pauses.recent_pauses.extend(
        (now + at * 1_000_000, now + at * 1_000_000 + 200_000, 0) for at in range(gc_pauses.MAX_KEPT)
    )
    stack.callback(gc_pauses.recent_pauses.clear)
    first = thread_cpu.read_sample()
    return {
        "wait in the socket": lambda: socket_wait.waited_ms(connection),
        "account of a thread": thread_cpu.read_sample,
        "the same, worked out between two readings": lambda: thread_cpu.between(first, thread_cpu.read_sample()),
        "a pause of the garbage collector noted": _note_pause,
        "pauses within a request (after a breach)": lambda: gc_pauses.paused_ns(now, now + 10**12),
        "wire behind a connection": lambda: tcp_info.read_connection(connection),
        "page faults (after a breach)": page_faults.count_major_faults,
        "pressure (after a breach)": machine.pressure_ns,
        "throttling (after a breach)": machine.throttled_ns,
        NOTHING: lambda: None,
    }


def _note_pause() -> None:
    gc_pauses.record("start", {})
    gc_pauses.record("stop", {})


def measure(rounds: int, readings: int) -> SourcesCost:
    """Read each `readings` times a round."""
    with ExitStack() as stack:
        cases = _cases(stack)
        result = SourcesCost(readings, {name: [] for name in cases}, {name: [] for name in cases if name != NOTHING})
        for _ in range(rounds):
            for name, read in cases.items():
                result.cpu_ns[name].append(_cpu_ns(lambda: None, read, readings))
            cold = dict.fromkeys(cases, 0.0)
            for _ in range(IN_TURN):  # so that what else the machine does meets all alike
                for name, read in cases.items():
                    cold[name] += _cpu_ns(score, read, max(1, readings // COLD_SHARE // IN_TURN)) / IN_TURN
            for name, figures in result.cold_ns.items():
                figures.append(cold[name] - cold[NOTHING])
    return result


def score() -> None:
    """Do what a service does between two readings."""
    model.predict_proba(rows[:1])


def _cpu_ns(work: Callable[[], None], read: Callable[[], Any], times: int) -> float:
    began = time.thread_time_ns()
    for _ in range(times):
        work()
        read()
    return (time.thread_time_ns() - began) / times


def tables(result: SourcesCost) -> list[Table]:
    """Return the table for people."""
    shown = [
        [name, *(Spread.of([ns / 1e3 for ns in column[name]]).text(2) for column in (result.cpu_ns, result.cold_ns))]
        for name in result.cold_ns
    ]
    rounds = len(next(iter(result.cpu_ns.values())))
    title = f"{rounds} rounds of {result.readings} readings; median (least to greatest)"
    return [Table(title, ["reading", "CPU us, in a loop", "between calls of a model"], shown)]


def reading(result: SourcesCost) -> list[str]:
    """Return what the figures mean."""
    wait, account = (Spread.of(result.cold_ns[name]).median for name in ("wait in the socket", "account of a thread"))
    return [f"Each request pays {wait / 1e3:.1f} us for its wait in the socket, and {account / 1e3:.1f} us an account."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/sources_cost.py --rounds 9")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--readings", type=int, default=2_000, help="in each round, of each source")
    args = arguments.parse_args()
    show(measure(args.rounds, args.readings), tables, reading, args.json)


if __name__ == "__main__":
    main()

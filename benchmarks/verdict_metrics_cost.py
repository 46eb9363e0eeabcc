"""Measure what the metrics of a verdict cost a request: its count, and the histograms of its duration and its stages.

In one process, on one thread, each case in turn, round by round, each with a requests's own end where a ratio is shown;
CPU time of the thread, so that other work on the machine hardly shows. Sending, every 10 s in another thread, is
measured for each message.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON

from benchmarks.measure import Spread, Table, parser, show
from stagetrace import KeepBreaches, SLASpanProcessor
from stagetrace.otlp.encode import Block
from stagetrace.request.context import open_entry
from stagetrace.request.request import NO_STAGES, Request
from stagetrace.sla import verdict_counter
from stagetrace.sla.entry_recorder import EntryRecorder
from stagetrace.sla.metric_points import NUMBERS, TIMES
from stagetrace.sla.metrics_sender import message
from stagetrace.sla.process import counter
from stagetrace.sla.verdict_counter import VerdictCounter
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTIVE = "* within 10s"
NOTHING = "nothing"
WHOLE, WITHOUT = "end of a request", "the same without metrics"
COUNTED = "count, duration and five stages"
SENT = "a message of ten objectives, as it is made"
MESSAGES_OF = 200  # calls for one message, which is made in another thread


@dataclass(frozen=True)
class MetricsCost:
    """By case, one figure a round: nanoseconds of CPU a call; and which implementation it was."""

    calls: int
    cpu_ns: dict[str, list[float]]
    native: bool


class Nothing(VerdictCounter):
    """Counts nothing."""

    def add(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


class Described(Request):
    """A request that describes itself as those of protocols do."""

    method, route = "GET", "/predict"
    block, client = Block({"http.request.method": "GET"}), Block({})

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        """Return what is the same for each request."""
        return [self.block], self.client, {}


class Sender:
    """Takes what is to be sent, and lets it go."""

    def put(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def _record() -> Request:
    start = time.time_ns() - 30_000_000
    record = Described(start=start)
    for number, stage in enumerate(("network.receive", "queue", "inference")):
        record.enter(stage, at=start + 10_000_000 * number + 1_000)
        record.leave(stage, at=start + 10_000_000 * number + 9_000_000)
    return record


def _ending(counted: VerdictCounter) -> Callable[[], None]:
    provider = TracerProvider(KeepBreaches(DEFAULT_ON), Resource({}), shutdown_on_exit=False)
    processor = SLASpanProcessor(OBJECTIVE, provider._active_span_processor, counter=counted)  # noqa: SLF001
    processor.has_others = False
    recorder = EntryRecorder(provider, processor, [Sender()])  # type: ignore[list-item]

    def end() -> None:
        request = _record()
        open_entry(request, "GET /predict", Context(), recorder)
        request.end_entry(time.time_ns())

    return end


def _cases() -> dict[str, Callable[[], Any]]:
    record = _record()
    stages = record.close(record.started, record.started + 30_000_000)
    add, context = VerdictCounter().add, SpanContext(1, 2, is_remote=False)
    took = iter(range(1_000_000, 1_000_000_000))
    for number in range(10):
        for _ in range(10_000):
            counter().add(f"objective {number}", "good", "/predict", None, None, next(took) * 7, stages, context)
    provider = Resource({"service.name": "measured"})
    return {
        "count alone (excluded)": lambda: add("o", "excluded", "/predict", None, None, next(took), stages),
        "count and duration (dropped)": lambda: add("o", "good", "/predict", None, None, next(took), NO_STAGES),
        COUNTED: lambda: add("o", "good", "/predict", None, None, next(took), stages),
        "the same, and exemplars": lambda: add("o", "good", "/predict", None, None, next(took), stages, context),
        WHOLE: _ending(VerdictCounter()),
        WITHOUT: _ending(Nothing()),
        SENT: lambda: message(provider, NUMBERS, TIMES, 1, time.time_ns()),
        NOTHING: lambda: next(took),
    }


def measure(rounds: int, calls: int) -> MetricsCost:
    """Call each case so often in a round."""
    cases = _cases()
    result = MetricsCost(calls, {name: [] for name in cases}, verdict_counter.NATIVE)
    for number in range(rounds):
        names = list(cases)
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            times = calls // MESSAGES_OF if name == SENT else calls
            result.cpu_ns[name].append(_cpu_ns(cases[name], times))
    return result


def _cpu_ns(work: Callable[[], Any], times: int) -> float:
    began = time.thread_time_ns()
    for _ in range(times):
        work()
    return (time.thread_time_ns() - began) / times


def _less(result: MetricsCost, name: str, other: str = NOTHING) -> Spread:
    pairs = zip(result.cpu_ns[name], result.cpu_ns[other], strict=True)
    return Spread.of([(one - two) / 1e3 for one, two in pairs])


def tables(result: MetricsCost) -> list[Table]:
    """Return the table for people."""
    rows = [[name, _less(result, name).text(2)] for name in result.cpu_ns if name != NOTHING]
    rows.append(["of the end of a request, the metrics", _less(result, WHOLE, WITHOUT).text(2)])
    pairs = zip(result.cpu_ns[WHOLE], result.cpu_ns[WITHOUT], strict=True)
    rows.append(["end of a request, with metrics over without", Spread.of([one / two for one, two in pairs]).text(3)])
    rounds, how = len(result.cpu_ns[NOTHING]), "in C" if result.native else "in Python"
    title = f"{rounds} rounds of {result.calls} calls, {how}; median (least to greatest)"
    return [Table(title, ["what", "CPU us"], rows)]


def reading(result: MetricsCost) -> list[str]:
    """Return what the figures mean."""
    return [f"A request pays {_less(result, COUNTED).median:.2f} us for its metrics; the aim is at most 1."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/verdict_metrics_cost.py --rounds 9")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--calls", type=int, default=20_000, help="in each round, of each case")
    args = arguments.parse_args()
    show(measure(args.rounds, args.calls), tables, reading, args.json)


if __name__ == "__main__":
    main()

"""Measure what questions to the local store cost, over a day of realistic traffic.

The store is filled first (`benchmarks/traffic.py`, evenly over 24 hours, 2 % of requests with a slow inference), then
opened by a reader of its own, as a command does. Each question is asked several times; the first answer of a new
process is measured with the real command, from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import BIN, Spread, Table, clean_environment, parser, progress, show
from benchmarks.traffic import SPANS_PER_TRACE, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stagetrace.store.local import LocalReader

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
START_NS = 1_790_000_000_000_000_000
STAGE_COLUMNS = ("network_receive", "queue", "preprocess", "inference", "postprocess", "network_send")


@dataclass(frozen=True)
class Queries:
    """By question, milliseconds of each repetition, and of CPU, which other work on the machine affects less."""

    spans: int
    megabytes: float
    answers: dict[str, int] = field(default_factory=dict)
    ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)


def measure(spans: int, repeat: int, folder: Path | None) -> Queries:
    """Ask each question `repeat` times over about `spans` spans, kept in `folder` for the next time if one is given."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store"
        if not folder.exists():
            fill(folder, spans)
        return _ask_all(folder, repeat)


def fill(folder: Path, spans: int) -> None:
    """Store spans of a day in a folder."""
    from stagetrace.store.local import LocalStore

    progress(f"filling {folder} with {spans} spans")
    with LocalStore.open(folder) as store:
        for request in day(spans):
            store.append(request)


def day(spans: int) -> Iterator[bytes]:
    """Yield requests of about `spans` spans that are spread over 24 hours."""
    return Traffic(START_NS, DAY_NS * SPANS_PER_TRACE // spans).copies(spans)


def _ask_all(folder: Path, repeat: int) -> Queries:
    from stagetrace.store.base import Selection
    from stagetrace.store.local import LocalReader

    with LocalReader.open(folder) as reader:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with reader.relations(Selection(0, 2**62)) as all_time:
            ((spans, last),) = all_time.select("SELECT count(*), max(start_unix_nano) FROM spans")[1]
        result = Queries(spans, size / 1e6)
        hour = Selection(last - HOUR_NS, last + 1)
        newest = reader.breaches(Selection(last - HOUR_NS, last + 1, limit=50)).breaches
        oldest = reader.breaches(Selection(START_NS, START_NS + HOUR_NS, limit=50)).breaches
        ids = [entry.trace_id for entry in (*newest, *oldest)]

        def ask(name: str, question: Callable[[int], int]) -> None:
            progress(name)
            result.ms[name], result.cpu_ms[name] = [], []
            for number in range(repeat):
                began, cpu = time.perf_counter(), _cpu_s()
                result.answers[name] = question(number)
                result.ms[name].append(1000 * (time.perf_counter() - began))
                result.cpu_ms[name].append(1000 * (_cpu_s() - cpu))

        ask("breaches of the last hour, newest 20", lambda _: len(reader.breaches(replace(hour, limit=20)).breaches))
        ask("breaches of the last hour, all", lambda _: len(reader.breaches(hour).breaches))
        ask("a trace by its id", lambda number: len(reader.trace(ids[number % len(ids)]).spans))
        ask("exact p99 of one stage, everything", lambda _: _p99(reader, STAGE_COLUMNS[3:4]))
        ask("exact p99 of six stages, everything", lambda _: _p99(reader, STAGE_COLUMNS))
        ask("exact p99 by stage over all stage spans", lambda _: _p99_of_spans(reader))
        ask("services", lambda _: len(reader.services()))
        ask("cold command: breaches --since 1h", lambda _: _cold(folder, last))
    return result


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _p99(reader: LocalReader, stages: Sequence[str]) -> int:
    from stagetrace.store.base import Selection

    columns = ", ".join(f"quantile_cont({stage}_ms, 0.99)" for stage in stages)
    with reader.relations(Selection(0, 2**62)) as relations:
        return len(next(relations.select(f"SELECT {columns} FROM requests")[1]))  # noqa: S608 -- ours


def _p99_of_spans(reader: LocalReader) -> int:
    from stagetrace.store.base import Selection

    query = "SELECT stage, quantile_cont(duration_ms, 0.99) FROM spans WHERE stage IS NOT NULL GROUP BY stage"
    with reader.relations(Selection(0, 2**62)) as relations:
        return len(list(relations.select(query)[1]))


def _cold(folder: Path, last_ns: int) -> int:
    """Run the command in a process of its own; return the length of its answer."""
    window = ("--since", iso(last_ns - HOUR_NS), "--until", iso(last_ns + 1))
    argv = [str(BIN / "stagetrace"), "breaches", "--each", "--store", str(folder), *window, "--limit", "20", "--json"]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env={**os.environ, **clean_environment()})
    return len(done.stdout)


def iso(moment_ns: int) -> str:
    """Return a time as commands and the page take it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_ns // 10**9))


def tables(result: Queries) -> Sequence[Table]:
    """Return the figures."""
    rows = [
        (
            name,
            f"{result.answers[name]}",
            Spread.of(times).text(1, " ms"),
            f"{times[0]:.1f} ms",
            Spread.of(result.cpu_ms[name]).text(0, " ms"),
        )
        for name, times in result.ms.items()
    ]
    title = f"{result.spans:,} spans of 24 hours, {result.megabytes:,.0f} MB on disk"
    return [Table(title, ("question", "rows", "median (least to greatest)", "first", "CPU"), rows)]


def reading(result: Queries) -> Sequence[str]:
    """Return what the figures mean."""
    return [f"{result.megabytes * 1e6 / result.spans:.1f} bytes a span."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/queries.py --spans 10000000 --folder /tmp/day")
    arguments.add_argument("--spans", type=int, default=1_000_000, help="spans in the store (1000000)")
    arguments.add_argument("--repeat", type=int, default=15, help="how often each question is put (15)")
    arguments.add_argument("--folder", type=Path, help="keep the store here, or use the one that is here")
    args = arguments.parse_args()
    show(measure(args.spans, args.repeat, args.folder), tables, reading, args.json)


if __name__ == "__main__":
    main()

"""`stagetrace bench`: put load on a service, and report what latency it keeps and where the time goes above it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments import next_command, selection, store_url
from stagetrace.cli.ask import print_answer
from stagetrace.cli.bench import options
from stagetrace.cli.output import Progress
from stagetrace.cli.registry import UsageError
from stagetrace.errors import StagetraceError
from stagetrace.output.units import utc
from stagetrace.store import open_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stagetrace.cli.bench.baseline import Baseline
    from stagetrace.output.answer import Answer
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = """Send requests to a service, each when it is due whether or not earlier ones were answered, and
report the latency from when they were due, whether they were enough for that, and in which of the server's stages the
time lies (out of the store that gets its spans). Only a service on this machine is loaded, unless --i-own-this.

Exit code 0: valid, and the objective is kept. 1: the objective is broken, the gate failed, or the run is not valid (too
few requests, or the load generator was late). 2: wrong usage, or nothing answers there."""
EXAMPLE: Final = "stagetrace bench http://localhost:8000/predict --body @request.json --find p99:50ms"
OPTIONS: Final = options.OPTIONS
_MOST_REPLAYED: Final = 1_000_000


def run(args: argparse.Namespace) -> int:
    """Send the load, join the server's spans, print the answer and return the exit code."""
    options.check(args)
    options.check_installed()
    from stagetrace.cli.bench import baseline, view
    from stagetrace.cli.bench.load_run import Bench, busy, join, queue_reasons, rate_of

    rate = args.rate or (options.RATE if args.find is None else options.START)
    arrivals = "replay" if args.replay else args.arrivals
    url = _store(args)
    notes: list[str] = []
    due_s = _replayed_starts(args, url, notes) if args.replay else None
    kept = baseline.load(args.against) if args.against else None
    if kept is not None:
        baseline.check(kept, rate if due_s is None else rate_of(due_s), arrivals)
    progress = Progress("requests")
    begun_ns = time.time_ns()
    try:
        result = Bench(args, options.sender(args), progress, due_s).run(rate)
        if not result.steps:
            raise StagetraceError("interrupted before a request was sent")
        joined = join(url, result, args.wait, progress)
        report = view.Report(result, args.find or args.objective, joined)
        if url is not None and report.excess is not None and "queue" in report.excess.shares:
            report.queue_ms = queue_reasons(url, report.over())
    finally:
        progress.end()
    notes += [note for note in (busy(result.steps), joined.note) if note]
    comparison = None if kept is None else baseline.compare(kept, report.main.latency_ms, args.gate)
    if args.save:
        last = result.steps[-1]
        latency_ms = [round(value, 6) if isfinite(value) else None for value in last.latency_ms.tolist()]
        made = baseline.Baseline(args.save, args.url, last.step.rate, arrivals, begun_ns, time.time_ns(), latency_ms)
        notes.append(f"saved as baseline {args.save}: {baseline.save(made)}")
    found = view.answer(report, {"url": args.url, "arrivals": arrivals}, comparison, notes)
    steps = _steps(args, kept, begun_ns) if found.keys["joined"] else ()
    return print_answer(args, replace(found, steps=tuple(steps)))


def _steps(args: argparse.Namespace, kept: Baseline | None, begun_ns: int) -> Iterator[str]:
    """Yield the commands about this run: its requests against those of the baseline, and why some are late."""
    begun = _time(begun_ns)
    if kept is not None:
        a = f"period={_time(kept.begun_unix_nano)}..{_time(kept.saved_unix_nano)}"
        b = f"period={begun}..{_time(time.time_ns())}"
        yield next_command(args, "compare", "--a", a, "--b", b, since=None, until=None)
    yield next_command(args, "why", since=begun, until=None)


def _time(ns: int) -> str:
    return f"{utc(ns).replace(' ', 'T')}Z"


def answer(_reader: Reader, _wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what was measured before: the baselines of this machine. Asking alone puts no load on anything."""
    from stagetrace.cli.bench import baseline

    return baseline.answer(args.tz)


def _store(args: argparse.Namespace) -> str | None:
    """Return the store that the server's spans come to; None where there is none and none is named."""
    try:
        url = store_url(args)
    except UsageError:
        if args.store is not None or args.replay:
            raise
        return None
    if args.store is not None:  # what is named must be there; another one's lack is a note
        with open_store(url) as reader:
            reader.services()
    return url


def _replayed_starts(args: argparse.Namespace, url: str | None, notes: list[str]) -> NDArray[np.float64]:
    """Return the recorded starts that --replay replays, in seconds from the first."""
    import numpy as np

    from stagetrace.load import generator

    assert url is not None  # noqa: S101 -- `_store` has raised
    with open_store(url) as reader, reader.relations(selection(args, url)) as relations:
        rows = relations.reduce("starts", most=_MOST_REPLAYED + 1)
    if not rows:
        raise UsageError("there is no request to replay\nselect others: --since, --service, --route")
    if len(rows) > _MOST_REPLAYED:
        raise UsageError(f"there are more than {_MOST_REPLAYED:,} requests to replay\nselect fewer: --since, --until")
    due_s = generator.replay([row["start_unix_nano"] for row in rows], args.speed or 1.0)
    if args.duration is not None:
        due_s = due_s[: max(1, int(np.searchsorted(due_s, args.duration)))]
    if any(row["weight"] != 1 for row in rows):
        notes.append("the store holds a sample of the recorded requests: fewer come here than came then")
    if not relations.complete:
        notes.append(f"not all recorded requests are replayed: {relations.reason}")
    return due_s

"""Measure how long the threads that send spans keep the rest of the process from running, at 5,000 spans a second.

`probe.py` hands on spans of real requests at that rate, and wakes five thousand times a second to see how late it is.
Two figures are told of each set-up: how late it woke, which includes what else the machine did ("nothing handed on"
shows how much that is); and how much CPU the sending threads had between two wakes, than which they cannot have held
the interpreter (the GIL) for longer at a stretch. The second is too high rather than too low: on one core, or a busy
machine, it also counts work for which they had released the interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    CORES,
    SERVER_CORE,
    STAGETRACE,
    STOCK,
    UNTRACED,
    Spread,
    Table,
    parser,
    progress,
    rotated,
    run,
    run_receiver,
    show,
)

QUIET = "nothing handed on"
# By set-up: its variant, and where it takes the spans of a request that has ended.
SETUPS = {
    QUIET: (UNTRACED, ""),
    STOCK.name: (STOCK, "opentelemetry.sdk.trace.export:BatchSpanProcessor.on_end"),
    STAGETRACE.name: (STAGETRACE, "stagetrace.otlp.processor:EncodingSpanProcessor.put"),
}
PLACES = {"one core": [SERVER_CORE], "all cores": CORES}


@dataclass(frozen=True)
class ExportThread:
    """By place and set-up, one of `probe.py`'s results a round."""

    seconds: float
    spans_per_s: float
    rounds: dict[str, dict[str, list[dict[str, Any]]]]


def measure(rounds: int, seconds: float, spans_per_s: float = 5000) -> ExportThread:
    """Run all set-ups in all places `rounds` times."""
    result = ExportThread(seconds, spans_per_s, {place: {name: [] for name in SETUPS} for place in PLACES})
    with run_receiver() as receiver:
        for place, cores in PLACES.items():
            for number in range(rounds):
                for name in rotated(list(SETUPS), number):
                    variant, where = SETUPS[name]
                    options = ("--hand-on", where, "--spans", str(spans_per_s), "--seconds", str(seconds))
                    one = run(variant, receiver, "probe.py", *options, cores=cores)
                    result.rounds[place][name].append({**one, "received": receiver.take()})
                    kept = f"kept {one['kept_us']['max']:6.0f} us at most"
                    progress(f"{place}, round {number + 1}/{rounds}  {name:18} {kept}")
    return result


def tables(result: ExportThread) -> list[Table]:
    """Return the tables for people."""
    return [_table(place, result) for place in result.rounds]


def _table(place: str, result: ExportThread) -> Table:
    rows = []
    for name, rounds in result.rounds[place].items():
        late = [Spread.of([one["late_us"][q] for one in rounds]).text() for q in ("p99", "p99.9", "max")]
        kept = ["", "", ""]
        if name != QUIET:
            kept = [Spread.of([one["kept_us"][q] for one in rounds]).text() for q in ("p99.9", "max")]
            kept.append(Spread.of([one["cpu_us_per_span"] for one in rounds]).text(1))
        rate = f"{Spread.of([one['spans_per_s'] for one in rounds]).median:.0f}"
        rows.append([name, rate, *late, *kept])
    many = len(next(iter(result.rounds[place].values())))
    title = f"Microseconds, {place}: {many} rounds of {result.seconds:g} s; median (least to greatest)"
    kept_columns = ("CPU of senders between wakes: p99.9", "max", "their CPU per span")
    return Table(title, ("set-up", "spans/s", "late by: p99", "p99.9", "max", *kept_columns), rows)


def reading(result: ExportThread) -> list[str]:
    """Say what the figures mean."""
    said = []
    for place, by_setup in result.rounds.items():
        most = {
            name: Spread.of([one["kept_us"]["max"] / 1e3 for one in by_setup[name]]).text(2, " ms")
            for name in (STAGETRACE.name, STOCK.name)
        }
        said.append(
            f"On {place} the threads that send kept the interpreter for at most {most[STAGETRACE.name]} at a stretch "
            f"with stagetrace, {most[STOCK.name]} with stock."
        )
    return said


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/export_thread.py --rounds 5 --seconds 20 --json thread.json")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=10, help="measured in each round, set-up and place")
    arguments.add_argument("--spans", type=float, default=5000, help="a second")
    args = arguments.parse_args()
    show(measure(args.rounds, args.seconds, args.spans), tables, reading, args.json)


if __name__ == "__main__":
    main()

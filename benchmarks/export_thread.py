"""Measure how long the threads that send spans keep the rest of the process from running, at 5,000 spans a second.

`probe.py` hands over spans of real requests at that rate, and wakes five thousand times a second to measure how late it
wakes. Each set-up has two figures. The first is how late it woke, which includes other work of the machine ("nothing
handed on" shows how much). The second is the CPU time of the sending threads between two wakes: they cannot have held
the interpreter (the GIL) for longer at a stretch. It is too high rather than too low: on one core, or a busy machine,
it includes work for which they had released the interpreter.

Where `perf` may set probes (`gil.py`), separate runs measure how long they did hold it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gil
from benchmarks.measure import (
    CORES,
    SERVER_CORE,
    STAGETRACE,
    STOCK,
    UNTRACED,
    Spread,
    Table,
    Variant,
    parser,
    progress,
    quantile,
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
    STAGETRACE.name: (STAGETRACE, "stagetrace.otlp.export.batch_processor:EncodingSpanProcessor.put"),
}
PLACES = {"one core": [SERVER_CORE], "all cores": CORES}


@dataclass(frozen=True)
class ExportThread:
    """By place and set-up, one of `probe.py`'s results a round, and for how long the GIL was held (microseconds).

    `unseen` has the reason if that is not known.
    """

    seconds: float
    spans_per_s: float
    rounds: dict[str, dict[str, list[dict[str, Any]]]]
    held: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    unseen: str = ""


def measure(rounds: int, seconds: float, spans_per_s: float = 5000) -> ExportThread:
    """Run all set-ups in all places `rounds` times."""
    result = ExportThread(seconds, spans_per_s, {place: {name: [] for name in SETUPS} for place in PLACES})
    with run_receiver() as receiver, gil.probes() as unseen, TemporaryDirectory() as folder:
        if unseen:
            progress(f"how long the interpreter is held cannot be seen here: {unseen}")
        seen = () if unseen else PLACES
        watched: dict[str, dict[str, list[list[float]]]] = {
            place: {name: [] for name in SETUPS if name != QUIET} for place in seen
        }
        result = replace(result, held=watched, unseen=unseen)
        for place, cores in PLACES.items():
            for number in range(rounds):
                for name in rotated(list(SETUPS), number):
                    variant, where = SETUPS[name]
                    options = ("--hand-on", where, "--spans", str(spans_per_s), "--seconds", str(seconds))
                    one = run(variant, receiver, "probe.py", *options, cores=cores)
                    result.rounds[place][name].append({**one, "received": receiver.take()})
                    done = f"kept {one['kept_us']['max']:6.0f} us at most"
                    if name in watched.get(place, ()):
                        file = Path(folder) / "perf.data"
                        one = run(_watched(variant, file), receiver, "probe.py", *options, cores=cores)
                        held = gil.holds_us(file, set(map(int, one["threads"])), *one["between_s"])
                        watched[place][name].append(held)
                        done += f", held {max(held):6.0f} us"
                    progress(f"{place}, round {number + 1}/{rounds}  {name:18} {done}")
    return result


def _watched(variant: Variant, file: Path) -> Variant:
    return replace(variant, wrapper=(*gil.recording(file), *variant.wrapper))


def tables(result: ExportThread) -> list[Table]:
    """Return the tables for people."""
    return [_table(place, result) for place in result.rounds] + [_held(place, result) for place in result.held]


def _held(place: str, result: ExportThread) -> Table:
    rows = []
    for name, rounds in result.held[place].items():
        ordered = [sorted(held) for held in rounds]
        columns = [[quantile(held, share) for held in ordered] for share in (0.5, 0.99, 1.0)]
        often = Spread.of([len(held) / result.seconds for held in ordered]).text()
        rows.append([name, often, *(Spread.of(column).text() for column in columns)])
    title = f"Microseconds for which they held the interpreter at a stretch, {place}"
    return Table(title, ("set-up", "times a second", "p50", "p99", "max"), rows)


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
    """Return what the figures mean."""
    lines = []
    for place, by_setup in result.rounds.items():
        most = {
            name: Spread.of([one["kept_us"]["max"] / 1e3 for one in by_setup[name]]).text(2, " ms")
            for name in (STAGETRACE.name, STOCK.name)
        }
        lines.append(
            f"On {place} the threads that send kept the interpreter for at most {most[STAGETRACE.name]} at a stretch "
            f"with stagetrace, {most[STOCK.name]} with stock."
        )
    for place, by_name in result.held.items():
        ours, stock = (
            Spread.of([max(held) / 1e3 for held in by_name[name]]).text(2, " ms")
            for name in (STAGETRACE.name, STOCK.name)
        )
        lines.append(f"Seen by perf on {place}, they held it for at most {ours} with stagetrace, {stock} with stock.")
    if result.unseen:
        lines.append(f"How long they did hold it cannot be measured here: {result.unseen}.")
    return lines


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

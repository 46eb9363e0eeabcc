"""Predict each changed run of the grid from a run as it is, and compare with what it then recorded.

Each prediction is from one run alone. Reports the error at p50, p95, p99 and of attainment, how often 90 % intervals
hold what was recorded, and how many predictions are refused; writes a row for each to a Parquet file.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.analysis.what_if import prediction
from stagetrace.analysis.what_if.changes import Change
from stagetrace.analysis.what_if.model import Model, fit
from stagetrace.analysis.what_if.recorded import Recorded, read
from stagetrace.errors import StagetraceError
from stagetrace.store import open_store
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

LIGHT: Final = 0.45  # the share of its capacity at which it is measured how much faster a stage has become
MEASURES: Final = ("p50", "p95", "p99", "attainment")
RATES: Final = ((0.45, 0.6), (0.45, 0.8), (0.6, 0.45), (0.6, 0.8), (0.7, 0.45), (0.7, 0.8), (0.8, 0.6))


@cache
def recorded(folder: Path) -> tuple[Recorded, list[dict[str, Any]], dict[str, Any]]:
    """Return what a run recorded, once it was warm."""
    cell = json.loads((folder / "cell.json").read_text())
    wanted = Selection(cell["since_unix_nano"], cell["until_unix_nano"], service=cell["service"])
    with open_store(str(folder / "data")) as reader, reader.relations(wanted) as relations:
        rows = relations.reduce("recorded_requests", ("path", "method"), service=cell["service"], most=20_000)
        rows = [row for row in rows if cell["since_unix_nano"] <= row["start_unix_nano"]]
        times = {"since": cell["since_unix_nano"], "until": cell["until_unix_nano"]}
        pools = relations.reduce("pools", service=cell["service"], one_in=1, **times)
    return read(rows), pools, cell


@cache
def model_of(folder: Path) -> Model:
    """Return the model of a run."""
    found, pools, cell = recorded(folder)
    return fit(found, pools, found.cpus or cell["cores"])


@cache
def faster(folder: Path, service: str) -> dict[str, float]:
    """Return which part of its main stage a faster service takes, by the medians at a rate at which few wait."""
    percent = round(100 * LIGHT)
    before, after = (recorded(folder / f"{service}-{name}-{percent}")[0] for name in ("base", "faster"))
    main = before.path == mode(before.path.tolist())
    stage = max(before.work_s, key=lambda one: float(before.work_s[one].sum()))
    also = after.path == mode(after.path.tolist())
    return {stage: float(np.median(after.work_s[stage][also]) / np.median(before.work_s[stage][main]))}


def change_of(folder: Path, base: dict[str, Any], cell: dict[str, Any]) -> Change:
    """Return how a run differs from one as it is."""
    now, then = base["configuration"], cell["configuration"]
    return Change(
        workers=then["workers"] if then["workers"] != now["workers"] else None,
        threads=then["threads"] if then["threads"] != now["threads"] else None,
        batch_size=then["batch_size"] if then["batch_size"] != now["batch_size"] else None,
        batch_wait_s=then["batch_wait_ms"] / 1e3 if then["batch_wait_ms"] != now["batch_wait_ms"] else None,
        rate=cell["rate"] / base["rate"] if cell["rate"] != base["rate"] else None,
        stages=faster(folder, cell["service"]) if cell["main_stage_factor"] != 1 else {},
    )


def pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield runs as they are, each with one that is predicted from it."""
    cells = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/cell.json"))}
    for name, cell in cells.items():
        service, percent = cell["service"], round(cell["fraction"] * 100)
        base = f"{service}-base-{percent}"
        measures_the_change = cell["change"] == "faster" and cell["fraction"] == LIGHT
        if cell["change"] != "base" and base in cells and not measures_the_change:
            yield folder / base, folder / name
        if cell["change"] == "base":
            for at, other in RATES:
                a = f"{service}-base-{round(at * 100)}"
                if other == cell["fraction"] and a in cells:
                    yield folder / a, folder / name


def compared(a: Path, b: Path, runs: int) -> dict[str, Any]:
    """Return a prediction beside what was recorded."""
    (_, _, base), (actual, _, cell) = recorded(a), recorded(b)
    row: dict[str, Any] = {
        "service": cell["service"],
        "change": cell["change"] if cell["change"] != "base" else "rate",
        "from_fraction": base["fraction"],
        "fraction": cell["fraction"],
        "more_workers_than_cores": cell["more_workers_than_cores"],
        "requests": len(actual.start_s),
        "refusal": None,
    }
    took = actual.duration_s * 1e3
    row |= {f"{name}_actual": float(np.percentile(took, int(name[1:]))) for name in MEASURES[:3]}
    row["attainment_actual"] = float(np.mean(actual.duration_s <= actual.within_s))
    try:
        found = prediction.predict(cell["service"], model_of(a), [change_of(a.parent, base, cell)], runs=runs)
    except StagetraceError as error:
        return row | {"refusal": str(error)}
    if found.recorded is not None:
        row |= {f"{name}_before": found.recorded.measure(name) for name in MEASURES[:3]}
    if found.modelled is not None:
        row |= {f"{name}_modelled": found.modelled.measure(name) for name in MEASURES[:3]}
    if found.refusal is not None:
        return row | {"refusal": found.refusal}
    ((_, outcome),) = found.changes
    for name in MEASURES[:3]:
        value = outcome.percentiles_ms[name]
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    if outcome.breaches is not None:
        value = outcome.breaches
        row |= {"attainment": 1 - value.value, "attainment_low": 1 - value.high, "attainment_high": 1 - value.low}
    return row


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return what the comparison shows, a line for each measure."""
    told = [row for row in rows if row["refusal"] is None]
    lines = [f"{len(rows)} predictions, {len(rows) - len(told)} refused"]
    for name in MEASURES if told else ():
        pairs = [(row[name], row[f"{name}_actual"]) for row in told]
        off = [abs(p - a) if name == "attainment" else abs(p / a - 1) for p, a in pairs]
        held = [row[f"{name}_low"] <= row[f"{name}_actual"] <= row[f"{name}_high"] for row in told]
        unit = "points" if name == "attainment" else "%"
        lines.append(
            f"{name}: median error {100 * np.median(off):.1f} {unit}, 90 % below {100 * np.quantile(off, 0.9):.1f} "
            f"{unit}; interval holds {100 * np.mean(held):.0f} %"
        )
    return lines


def main() -> None:
    """Compare all pairs of a folder that `record` has filled."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("--output", type=Path, help="the Parquet file")
    arguments.add_argument("--runs", type=int, default=prediction.RUNS)
    arguments.add_argument("--each", action="store_true", help="print each prediction")
    given = arguments.parse_args()
    rows = [compared(a, b, given.runs) for a, b in pairs(given.folder)]
    for row in rows if given.each else ():
        name = f"{row['service']:15} {row['change']:9} {row['from_fraction']:.2f}>{row['fraction']:.2f}"
        shown = row["refusal"] or "  ".join(
            f"{one} {row[one]:7.1f} [{row[f'{one}_low']:.1f},{row[f'{one}_high']:.1f}] was {row[f'{one}_actual']:7.1f}"
            for one in MEASURES[:3]
        )
        print(name, shown)
    for service in dict.fromkeys(row["service"] for row in rows):
        print(f"\n{service}")
        print(*summary([row for row in rows if row["service"] == service]), sep="\n")
    print("\nall", *summary(rows), sep="\n")
    if given.output:
        pq.write_table(pa.Table.from_pylist(rows), given.output)


if __name__ == "__main__":
    main()

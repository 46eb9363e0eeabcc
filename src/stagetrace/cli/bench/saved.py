"""The baselines that `bench --save` keeps on this machine, as an answer: what a service kept up with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.base import UsageError
from stagetrace.cli.bench import baseline
from stagetrace.output.answer import Answer
from stagetrace.output.chart import Bars
from stagetrace.output.table_layout import Column, Table, numeric
from stagetrace.output.times import Zone, shown
from stagetrace.output.units import milliseconds
from stagetrace.redaction import redacted

if TYPE_CHECKING:
    from stagetrace.cli.bench.baseline import Baseline

_TITLE: Final = "Benchmark"
_MOST: Final = 20  # baselines, the newest
_QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def answer(zone: Zone) -> Answer:
    """Return the newest baselines, or how to make one."""
    paths = sorted(baseline.folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for path in paths[:_MOST]:
        _add(path.stem, rows, reasons)
    if len(paths) > _MOST:
        reasons.append(f"the newest {_MOST} of {len(paths)} baselines are shown")
    if not rows:
        remedy = "stagetrace bench http://localhost:8000/predict --save NAME keeps the result here"
        return Answer(
            _TITLE,
            f"No load was put on a service from this machine: {remedy}.",
            {"baselines": []},
            reason="; ".join(reasons) or None,
        )
    newest = rows[0]
    at = f"{shown(newest['saved_unix_nano'], zone, 0)} {zone.name}"
    p99 = _ms(newest["quantiles"]["p99"])
    sentence = f"{newest['url']} had a p99 of {p99} at {newest['rate']:g} requests/s ({newest['name']}, {at})."
    bars = [
        (f"{one['name']}, {one['rate']:g}/s", one["quantiles"]["p99"], _ms(one["quantiles"]["p99"])) for one in rows
    ]
    return Answer(
        _TITLE, sentence, {"baselines": rows}, [Bars("p99 of each baseline", bars), _table(rows, zone)],
        reason="; ".join(reasons) or None,
    )  # fmt: skip


def _add(name: str, rows: list[dict[str, Any]], reasons: list[str]) -> None:
    """Add a baseline, or the reason why it is missing."""
    try:
        rows.append(_row(baseline.load(name)))
    except UsageError as error:
        reasons.append(str(error).partition("\n")[0])


def _row(kept: Baseline) -> dict[str, Any]:
    import numpy as np

    from stagetrace.analysis.bench import quantile

    latency_ms = np.sort(np.array([np.inf if one is None else one for one in kept.latency_ms], dtype=np.float64))
    return {
        "name": kept.name,
        "url": redacted(kept.url),
        "rate": kept.rate,
        "arrivals": kept.arrivals,
        "saved_unix_nano": kept.saved_unix_nano,
        "requests": len(latency_ms),
        "failed": int(np.isinf(latency_ms).sum()),
        "quantiles": {name: quantile(latency_ms, q) for name, q in _QUANTILES.items()},
    }


def _table(rows: list[dict[str, Any]], zone: Zone) -> Table:
    columns = [
        Column("baseline"),
        Column("URL"),
        *(numeric(one) for one in ("requests/s", "requests", "failed", *_QUANTILES)),
    ]
    cells = [
        [
            one["name"], one["url"], f"{one['rate']:g}", f"{one['requests']:,}", f"{one['failed']:,}",
            *(_ms(one["quantiles"][name]) for name in _QUANTILES), shown(one["saved_unix_nano"], zone, 0),
        ]
        for one in rows
    ]  # fmt: skip
    return Table([*columns, Column(f"saved ({zone.name})")], cells)


def _ms(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)

"""Baselines of `stagetrace bench`: the latencies of a run in a file of their own, and the comparison with them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.registry import UsageError
from stagetrace.output.answer import Answer, join_reasons
from stagetrace.output.chart import Bars
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.units import Zone, milliseconds, shown
from stagetrace.text import redacted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stagetrace.cli.bench.options import Gate

_ALPHA: Final = 0.05

# --- The baselines that `bench --save` keeps on this machine, as an answer: what a service kept up with.

_QUANTILES: Final = (0.5, 0.95, 0.99)
_SAME: Final = 0.01  # rates that differ by less are one
_FAILED_MS: Final = 1e15
_UNKNOWN: Final = 1e6  # a relative difference beyond this is that of a failed request, or no bound


@dataclass(frozen=True)
class Baseline:
    """The contents of a `--save` file, without headers and bodies."""

    name: str
    url: str
    rate: float
    arrivals: str
    begun_unix_nano: int
    saved_unix_nano: int
    latency_ms: Sequence[float | None]  # None: failed
    format: int = 1


def folder() -> Path:
    """Return where baselines are: beside the local store, in a folder of its own."""
    from stagetrace.store.base import default_folder

    store = default_folder()
    return store.with_name(f"{store.name}-bench")


def save(kept: Baseline) -> Path:
    """Write a baseline whole or not at all, and return its file."""
    path = folder() / f"{kept.name}.json"
    content = json.dumps(asdict(kept), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".bench-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(part).replace(path)
    except OSError as error:
        raise UsageError(f"cannot save the baseline {path}: {error.strerror}") from None
    return path


def load(name: str) -> Baseline:
    """Return a baseline. Raise UsageError where there is none of this name, or it is damaged."""
    path = folder() / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made = Baseline(**found)
        _ = [float(one) for one in made.latency_ms if one is not None]
    except FileNotFoundError:
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.json"))) or "none yet"
        raise UsageError(f"there is no baseline {name!r}; there is: {known}\nmake it: --save {name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read the baseline {path}: {error}\nmake it anew: --save {name}") from None
    return made


def check(kept: Baseline, rate: float, arrivals: str) -> None:
    """Raise UsageError where a run at this rate is not to be compared with a baseline."""
    if abs(kept.rate - rate) > _SAME * kept.rate or kept.arrivals != arrivals:
        of = f"{kept.rate:g} requests/s, {kept.arrivals}"
        raise UsageError(
            f"the baseline {kept.name} is of {of}, and this run of {rate:g} requests/s, {arrivals}\n"
            f"what differs would be the load: give --rate {kept.rate:g} --arrivals {kept.arrivals}"
        )


def compare(kept: Baseline, latency_ms: NDArray[np.float64], gate: Gate | None) -> dict[str, Any]:
    """Return the quantiles of both, how they differ, and whether this run is surely slower than the gate allows."""
    import numpy as np

    from stagetrace.analysis.bench import quantile
    from stagetrace.analysis.bench_objective import name_of
    from stagetrace.analysis.quantiles import quantile_difference

    before = np.array([np.inf if one is None else one for one in kept.latency_ms], dtype=np.float64)
    rows, is_slower = [], None
    for q in sorted({*_QUANTILES, *([gate.percentile] if gate else [])}):
        a, b = quantile(np.sort(before), q), quantile(np.sort(latency_ms), q)
        found = quantile_difference(_make_finite(before), _make_finite(latency_ms), q, alpha=_ALPHA, sequential=False)
        difference = None if not a or b is None else b / a - 1
        interval = [one if abs(one) < _UNKNOWN else None for one in found.interval]
        rows.append({"q": name_of(q), "a_ms": a, "b_ms": b, "difference": difference, "interval": interval})
        if gate is not None and q == gate.percentile:
            is_slower = found.interval[0] > gate.slower
    return {"baseline": kept.name, "saved_unix_nano": kept.saved_unix_nano, "quantiles": rows, "is_slower": is_slower}


def _make_finite(latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return latencies with those of failed requests far above all others, in place of infinite."""
    import numpy as np

    return np.where(np.isfinite(latency_ms), latency_ms, _FAILED_MS)


_TITLE: Final = "Benchmark"
_MOST: Final = 20  # baselines, the newest
_SAVED_QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def answer(zone: Zone) -> Answer:
    """Return the newest baselines, or how to make one."""
    paths = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for path in paths[:_MOST]:
        try:
            rows.append(_row(load(path.stem)))
        except UsageError as error:  # noqa: PERF203 -- each file for itself
            reasons.append(str(error).partition("\n")[0])
    if len(paths) > _MOST:
        reasons.append(f"the newest {_MOST} of {len(paths)} baselines are shown")
    if not rows:
        remedy = "stagetrace bench http://localhost:8000/predict --save NAME keeps the result here"
        sentence = f"No load was put on a service from this machine: {remedy}."
        return Answer(_TITLE, sentence, {"baselines": []}, reason=join_reasons(reasons))
    newest = rows[0]
    at = f"{shown(newest['saved_unix_nano'], zone, 0)} {zone.name}"
    p99 = milliseconds(newest["quantiles"]["p99"])
    sentence = f"{newest['url']} had a p99 of {p99} at {newest['rate']:g} requests/s ({newest['name']}, {at})."
    tails = [(f"{one['name']}, {one['rate']:g}/s", one["quantiles"]["p99"]) for one in rows]
    bars = Bars("p99 of each baseline", [(name, tail, milliseconds(tail)) for name, tail in tails])
    return Answer(_TITLE, sentence, {"baselines": rows}, [bars, _table(rows, zone)], reason=join_reasons(reasons))


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
        "quantiles": {name: quantile(latency_ms, q) for name, q in _SAVED_QUANTILES.items()},
    }


def _table(rows: list[dict[str, Any]], zone: Zone) -> Table:
    columns = [Column("baseline"), Column("URL"), *numbers("requests/s", "requests", "failed", *_SAVED_QUANTILES)]
    cells = []
    for one in rows:
        counts = [f"{one['rate']:g}", f"{one['requests']:,}", f"{one['failed']:,}"]
        quantiles = [milliseconds(one["quantiles"][name]) for name in _SAVED_QUANTILES]
        cells.append([one["name"], one["url"], *counts, *quantiles, shown(one["saved_unix_nano"], zone, 0)])
    return Table([*columns, Column(f"saved ({zone.name})")], cells)

"""The output of `stagetrace bench`: sentence, keys, tables and pictures, out of the measurement. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stagetrace.analysis.bench import (
    BROKEN,
    CONFIDENCE,
    GENERATOR,
    KEPT,
    OUTSIDE,
    Excess,
    Step,
    excess,
    parts_of,
    quantile,
)
from stagetrace.analysis.bench_objective import Objective, name_of
from stagetrace.output.answer import Answer, keys_of
from stagetrace.output.chart import Bars, Chart, Histogram
from stagetrace.output.table import Column, Table, numbers, numeric
from stagetrace.output.units import milliseconds, threshold

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stagetrace.cli.bench.load_run import RateRun, Result, ServerSide

_BINS: Final = 20
_SHOWN: Final = (0.5, 0.95, 0.99)
_WORDS: Final = {
    OUTSIDE: "outside the server",  # network, connecting, waiting to be accepted
    GENERATOR: "in the load generator",
}


class Report:
    """One result, with the server's side of it; `reasons_of_queue` gives the reasons of the queue stages of traces."""

    def __init__(self, result: Result, objective: Objective | None, joined: ServerSide) -> None:
        """Take the measurement; of several rates `main` is the one that the answer is about."""
        self.result = result
        self.objective = objective
        self.joined = joined
        self.main = _main(result)
        self.broken = _first_broken(result)
        self.queue_ms: Mapping[str, float] = {}
        of = self.broken or self.main
        self.excess = None if objective is None else self._excess(of, objective.limit_ms)

    def over(self) -> list[str]:
        """Return the trace ids of the requests whose excess is explained."""
        of = self.broken or self.main
        if self.objective is None or self.excess is None:
            return []
        limit = self.objective.limit_ms
        ids = zip(of.trace_ids, of.latency_ms, strict=True)
        return [one for one, latency in ids if latency > limit and one in self.joined.found]

    def _excess(self, of: RateRun, limit_ms: float) -> Excess | None:
        """Return where the excess lies; the baseline is taken from all rates up to this one."""
        steps = [one for one in self.result.steps if one.step.rate <= of.step.rate]
        latency = np.concatenate([one.latency_ms for one in steps])
        late = np.concatenate([one.late_ms for one in steps])
        own = np.concatenate([np.full(len(one.trace_ids), one is of) for one in steps])
        ids = [trace_id for one in steps for trace_id in one.trace_ids]
        known = np.array([one in self.joined.found for one in ids], dtype=bool) & np.isfinite(latency)
        known &= own | (latency <= limit_ms)
        server = [self.joined.found[one] for one, is_known in zip(ids, known, strict=True) if is_known]
        if not server:
            return None
        took, stages = _columns(server)
        return excess(latency[known], parts_of(latency[known], late[known], took, stages), limit_ms)

    def stages(self) -> dict[str, dict[str, float | None]]:
        """Return quantiles of each stage of the main rate's requests, in ms, and its share of the excess."""
        server = [self.joined.found[one] for one in self.main.trace_ids if one in self.joined.found]
        if not server:
            return {}
        took, stages = _columns(server)
        shares = self.excess.shares if self.excess is not None else None
        made = {}
        for name, values in {"(request)": took, **stages}.items():
            ordered = np.sort(values)
            share = None if shares is None or name == "(request)" else shares.get(name, 0.0)
            made[name] = {**{name_of(q): quantile(ordered, q) for q in _SHOWN}, "excess_share": share}
        return made


def _columns(server: Sequence[tuple[float, Mapping[str, float]]]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    names = dict.fromkeys(name for _, stages in server for name in stages)
    took = np.array([duration for duration, _ in server])
    return took, {name: np.array([stages.get(name, 0.0) for _, stages in server]) for name in names}


def _main(result: Result) -> RateRun:
    """Return the rate that the answer is about: the one that was found, or the highest that was kept, or the last."""
    steps = result.steps
    if result.found is not None and result.found.rate is not None:
        return next(one for one in reversed(steps) if one.step.rate == result.found.rate and one.full)
    kept = [one for one in steps if one.step.verdict == KEPT and one.step.valid]
    return max(kept, key=lambda one: one.step.rate, default=steps[-1])


def _first_broken(result: Result) -> RateRun | None:
    broken = [one for one in result.steps if one.step.verdict == BROKEN and not one.step.is_late]
    return min(broken, key=lambda one: one.step.rate, default=None)


def answer(report: Report, about: Mapping[str, Any], comparison: Mapping[str, Any] | None, notes: list[str]) -> Answer:
    """Return the answer; `about` are the keys of the run's settings."""
    step, result = report.main.step, report.result
    found, stages = result.found, report.stages()
    valid = step.valid if found is None else found.low is not None
    text = _sentence(report)
    said = [text if re.match(r"p[0-9]", text) else text[:1].upper() + text[1:]]  # a percentile keeps its small letter
    if comparison is not None:
        said.append(_compared(comparison))
    return Answer(
        "Benchmark",
        " ".join(f"{one}." for one in said),
        {
            **_keys(report.main),
            "valid": valid,
            "stages": {name: one for name, one in stages.items() if name != "(request)"},
            "server": stages.get("(request)"),
            "joined": sum(one in report.joined.found for one in report.main.trace_ids),
            "excess": _excess_keys(report),
            "objective": None
            if report.objective is None
            else {"objective": str(report.objective), **report.objective._asdict(), "verdict": step.verdict},
            "found": None if found is None else {"rate": found.rate, "interval": [found.low, found.high]},
            "steps": [{**_keys(one), "full": one.full} for one in result.steps],
            "comparison": comparison,
            "cpu_share": report.main.cpu_share,
            "notes": notes,
            **about,
        },
        [*_parts(report, comparison), *notes],
        not valid or (found is None and step.verdict == BROKEN) or bool(comparison and comparison["is_slower"]),
        reason=result.cut,
    )


def _keys(measured: RateRun) -> dict[str, Any]:
    step = measured.step
    return keys_of(
        step,
        *("quantiles_ms", "at_most_ms", "sure", "needed", "is_late", "is_growing"),
        achieved_rate=None if measured.stopped_early else step.achieved_rate,
        failed=step.failed,
        quantiles=step.quantiles_ms,
        quantiles_at_most=step.at_most_ms,
        growing=step.is_growing,
        stopped_early=measured.stopped_early,
        needed_queries=step.needed,
        confidence=CONFIDENCE,
    )


def _excess_keys(report: Report) -> dict[str, Any] | None:
    if report.excess is None:
        return None
    return {
        "rate": (report.broken or report.main).step.rate,
        "over": report.excess.over,
        "total_ms": report.excess.total_ms,
        "shares": dict(report.excess.shares),
        "queue_ms": dict(report.queue_ms),
    }


def _sentence(report: Report) -> str:
    step, objective, found = report.main.step, report.objective, report.result.found
    if objective is None:
        return _measured(step)
    p, limit = name_of(objective.percentile), threshold(objective.limit_ms)
    if found is not None:
        return _search_sentence(report, p, limit)
    if len(report.result.steps) > 1 and report.broken is not None and report.main.step.verdict == KEPT:
        return f"{p} keeps {limit} up to {_rate(step.rate)}; {_broken(report, report.broken, objective)}"
    if step.verdict == BROKEN:
        return _broken(report, report.main, objective)
    if not step.valid:
        return f"not enough requests to know whether {p} keeps {limit} at {_rate(step.rate)}: {'; '.join(step.reasons)}"
    surely = _at_most(step.at_most_ms[p])
    return f"at {_rate(step.rate)} {p} keeps the objective of {limit}: {_ms(step.quantiles_ms[p])}{surely}"


def _measured(step: Step) -> str:
    p50, p99 = step.quantiles_ms["p50"], step.quantiles_ms["p99"]
    text = f"at {_rate(step.rate)} p50 is {_ms(p50)} and p99 {_ms(p99)}"
    if not step.valid:
        return f"{text}, which is not established: {'; '.join(step.reasons)}"
    return text + _at_most(step.at_most_ms["p99"])


def _broken(report: Report, measured: RateRun, objective: Objective) -> str:
    step, p = measured.step, name_of(objective.percentile)
    text = f"at {_rate(step.rate)} {p} breaks the objective of {threshold(objective.limit_ms)}: "
    at = step.quantiles_ms[p]
    text += f"{step.over:,} of {step.requests:,} were over" if measured.stopped_early or at is None else _ms(at)
    return f"{text}; {_where(report)}" if report.excess is not None else text


def _where(report: Report) -> str:
    if report.excess is None:
        return ""
    part, share = next(iter(report.excess.shares.items()))
    reason = f" ({next(iter(report.queue_ms)).replace('_', ' ')})" if part == "queue" and report.queue_ms else ""
    return f"{100 * share:.0f} % of the excess is {_WORDS.get(part, part)}{reason}"


def _compared(comparison: Mapping[str, Any]) -> str:
    """Return how the run differs from the baseline, at each percentile."""
    differences = ", ".join(f"{one['q']} {_difference(one)}" for one in comparison["quantiles"])
    return f"Against the baseline {comparison['baseline']}: {differences}"


def _difference(one: Mapping[str, Any]) -> str:
    """Return a difference and its interval: `+4.1 % [-2.0, +9.9]`."""
    low, high = ("?" if end is None else f"{100 * end:+.1f}" for end in one["interval"])
    return "-" if one["difference"] is None else f"{100 * one['difference']:+.1f} % [{low}, {high}]"


def _search_sentence(report: Report, p: str, limit: str) -> str:
    found = report.result.found
    if found is None or found.rate is None:
        least = min(one.step.rate for one in report.result.steps)
        if report.broken is None or report.broken.step.rate > least:
            return f"the rate at which {p} keeps {limit} is unknown: none was tried for long enough"
        return f"no rate that was tried keeps {p} at {limit}: not even {_rate(least)}"
    low = "?" if found.low is None else f"{found.low:.4g}"
    if found.high is None:
        return f"{p} keeps {limit} up to {_rate(found.rate)} at least: no rate that was tried breaks it"
    text = f"{p} keeps {limit} up to {_rate(found.rate)} [{low}, {found.high:.4g}]"
    return f"{text}; above, {_where(report)}" if report.excess is not None else text


def _at_most(value: float | None) -> str:
    return "" if value is None else f", at most {milliseconds(value)} with {100 * CONFIDENCE:.0f} % confidence"


def _rate(rate: float) -> str:
    return f"{rate:.4g} requests/s" if rate < 1000 else f"{rate:,.0f} requests/s"  # noqa: PLR2004 -- four digits


def _ms(value: float | None) -> str:
    return "not known (failed requests)" if value is None else milliseconds(value)


def _parts(report: Report, comparison: Mapping[str, Any] | None) -> Iterator[str | Table | Chart]:
    steps = report.result.steps
    yield _steps_table(steps, report.objective)
    if len(steps) == 1:
        yield from _histogram(report)
    else:
        p = "p99" if report.objective is None else name_of(report.objective.percentile)
        ordered = sorted(steps, key=lambda one: one.step.rate)
        rows = [(f"{one.step.rate:.4g}/s", one.step.quantiles_ms[p], _ms(one.step.quantiles_ms[p])) for one in ordered]
        yield Bars(f"{p} by rate", rows)
    failures = report.main.step.failures
    if failures:
        most = sorted(failures.items(), key=lambda one: -one[1])
        reasons = ", ".join(f"{count} x {reason}" for reason, count in most)
        yield f"{report.main.step.failed} requests failed, and count as slower than any other: {reasons}"
    yield from _stage_parts(report)
    if comparison is not None:
        yield _comparison_table(comparison)


def _steps_table(steps: Sequence[RateRun], objective: Objective | None) -> Table:
    asked = list(dict.fromkeys(["p50", "p95", "p99", *([name_of(objective.percentile)] if objective else [])]))
    names = ["rate/s", "achieved/s", "requests", "failed", *asked, "max", "late (p99)"]
    columns = [numeric(name, 5 if name in ("max", "p95") else 0) for name in names]
    rows = []
    for measured in steps:
        one = measured.step
        times = map(milliseconds, (*(one.quantiles_ms[q] for q in asked), one.max_ms, one.late_ms))
        achieved = "-" if one.achieved_rate is None or measured.stopped_early else f"{one.achieved_rate:.4g}"
        verdict = f"{_verdict(one)}{', ended early' if measured.stopped_early else ''}"
        rows.append([f"{one.rate:.4g}", achieved, f"{one.requests:,}", f"{one.failed:,}", *times, verdict])
    return Table([*columns, Column("verdict")], rows)


def _verdict(step: Step) -> str:
    if step.is_late:
        return "late"
    if step.is_growing and step.verdict != BROKEN:
        return "growing"
    if step.verdict is None or (step.verdict == KEPT and not step.valid):
        return "valid" if step.valid else "not valid"
    return step.verdict


def _histogram(report: Report) -> Iterator[Chart]:
    latency = report.main.latency_ms
    answered = latency[np.isfinite(latency)]
    if not len(answered):
        return
    top = float(np.quantile(answered, 0.999))
    counts, edges = np.histogram(np.minimum(answered, top), bins=_BINS, range=(0, top or 1.0))
    marks = [(value, q) for q in ("p50", "p99") if (value := report.main.step.quantiles_ms[q]) is not None]
    if report.objective is not None:
        marks.append((report.objective.limit_ms, "limit"))
    yield Histogram("latency from the intended start", edges.tolist(), counts.tolist(), "ms", marks)


def _stage_parts(report: Report) -> Iterator[str | Table | Chart]:
    stages = report.stages()
    if stages:
        columns = [Column("stage"), *numbers(*map(name_of, _SHOWN))]
        rows = [[name, *(_ms(one[name_of(q)]) for q in _SHOWN)] for name, one in stages.items()]
        yield Table(columns, rows, f"the server's stages at {_rate(report.main.step.rate)}")
    if report.excess is not None:
        of = (report.broken or report.main).step
        rows_ = [
            (_WORDS.get(part, part), share, f"{100 * share:.1f} %") for part, share in report.excess.shares.items()
        ]
        yield Bars(f"where the excess of {report.excess.over:,} requests lies, at {_rate(of.rate)}", rows_)


def _comparison_table(comparison: Mapping[str, Any]) -> Table:
    columns = [Column(""), *numbers("before", "now", "difference")]
    rows = [[one["q"], _ms(one["a_ms"]), _ms(one["b_ms"]), _difference(one)] for one in comparison["quantiles"]]
    return Table(columns, rows, f"against the baseline {comparison['baseline']}")

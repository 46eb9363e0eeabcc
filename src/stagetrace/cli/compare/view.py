"""The output of `stagetrace compare`: the sentence, the tables, the pictures and the keys of `--json`."""

from __future__ import annotations

import argparse
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import next_command
from stagetrace.cli.compare.sentence import kind_text, percentile, sentence, size_text
from stagetrace.cli.compare.sides import Gate, gate_keys
from stagetrace.output.answer import Answer, keys_of
from stagetrace.output.chart import Chart, Histogram
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.units import Zone, milliseconds, window

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison, Part, Quantile
    from stagetrace.analysis.comparison_kinds import Kinds, SlowerKind
    from stagetrace.analysis.quantiles import Binned, QuantileDifference
    from stagetrace.cli.compare.sides import Side
    from stagetrace.store.base import Selection

TITLE: Final = "Comparison"
_SHOWN: Final = 20  # kinds of requests, to people
_BARS: Final = 12
_WHOLE_PERCENT: Final = 0.1
_NUMBERS: Final = numbers("a", "b", "difference", "interval")
_HOW: Final = {True: "however often one looks", False: "for one look, at a number of requests that was set before"}


def nothing(wanted: Selection, zone: Zone) -> Answer:
    """Return the answer where no two versions are there."""
    text = (
        f"No two versions of one model or service{window(wanted.since_ns, wanted.until_ns, zone)}; name two sides, as "
        "--a version=2 --b version=3 or --a period=2h..1h --b period=1h..1s."
    )
    keys: dict[str, Any] = {"quantiles": [], "enough_data": False}
    keys |= dict.fromkeys(("needed", "a", "b", "histogram")) | gate_keys([])
    lists: dict[str, Any] = {"stages": [], "strata": [], "routes": [], "kinds": [], "kinds_sampled": False}
    return Answer(TITLE, text, {**keys, **lists}, is_undecided=True)


def answer(
    sides: tuple[Side, Side],
    found: Comparison,
    kinds: Kinds,
    gates: list[tuple[Gate, str]],
    args: argparse.Namespace,
    reason: str | None,
) -> Answer:
    """Return a comparison in all its forms."""
    lacking = [one.needed for one in found.whole.quantiles if one.needed is not None]
    shares = [sum(one.requests[side] for one in found.strata) for side in (0, 1)]
    named = {
        name: {"name": one.name, "requests": round(count), "stored": stored, "selection": _selection_keys(one)}
        for name, one, count, stored in zip("ab", sides, shares, found.stored, strict=True)
    }
    keys = {
        **named,
        "quantiles": _quantile_keys(found.whole),
        "enough_data": not lacking,
        "needed": max(lacking, default=None),
        "stages": [{"stage": one.stage, "quantiles": _quantile_keys(one)} for one in found.stages],
        "adjusted": found.is_adjusted,
        "mix_differs": any(one.is_of_mix for one in found.whole.quantiles),
        "strata": [
            {**one.kind, **_counts(one.requests), "a_p50_ms": one.medians[0], "b_p50_ms": one.medians[1]}
            for one in found.strata
        ],
        "routes": [
            {"route": one.path, **_counts(one.requests), "quantiles": _quantile_keys(one.whole)} for one in found.routes
        ],
        "kinds": [_kind_keys(one, kinds) for one in kinds.slower],
        "kinds_sampled": kinds.is_part,
        "histogram": keys_of(found.shape),
        "left_out": {"a": found.left_out[0], "b": found.left_out[1]},
        "sampling_known": not found.is_unknown,
        "estimated": found.is_sampled,
        "sequential": not args.once,
        **gate_keys(gates),
    }
    failed = any(state == "fail" for _, state in gates)
    gated = "".join(_gate_text(gate, state, len(found.routes)) for gate, state in gates)
    text = sentence(sides, found, kinds) + gated + "."
    parts = [*_tables(sides, found, kinds), *_notes(found, args)]
    return Answer(
        TITLE,
        text,
        keys,
        parts,
        is_bad=failed,
        is_undecided=keys["gate"] == "undecided",
        reason=reason,
        steps=[next_command(args, "why")],
    )


def _gate_text(gate: Gate, state: str, routes: int) -> str:
    texts = {
        "fail": "fails: surely slower than that",
        "pass": "passes",
        "undecided": "is undecided: there are not enough requests",
    }
    return f"; gate {gate.text} {texts[state]}{f' (over all {routes} routes together)' if routes else ''}"


def _counts(requests: tuple[float, float]) -> dict[str, int]:
    return {"a_requests": round(requests[0]), "b_requests": round(requests[1])}


def _interval(found: tuple[float, float]) -> list[float | None] | None:
    ends = [end if isfinite(end) else None for end in found]
    return None if ends == [None, None] else ends


def _quantile_keys(part: Part) -> list[dict[str, Any]]:
    return [
        {
            "q": one.adjusted.q,
            **_difference_keys(one.adjusted),
            "shift_ms": _interval(one.adjusted.shift),
            "raw": _difference_keys(one.raw),
            "enough_data": one.enough_data,
            "needed": one.needed,
        }
        for one in part.quantiles
    ]


def _difference_keys(one: QuantileDifference) -> dict[str, Any]:
    return {"a_ms": one.a, "b_ms": one.b, "difference": one.difference, "interval": _interval(one.interval)}


def _selection_keys(side: Side) -> dict[str, Any]:
    """Return which requests a side has; without a period of its own, those of the time that both were asked for."""
    since_ns, until_ns = side.period or (None, None)
    found = {name: getattr(side.wanted, name) for name in ("service", "route", "model")}
    return {"since_unix_nano": since_ns, "until_unix_nano": until_ns, **found, "segments": dict(side.wanted.segments)}


def _kind_keys(one: SlowerKind, kinds: Kinds) -> dict[str, Any]:
    return {
        "kind": kind_text(one, kinds),
        "route": one.path,
        "key": one.key,
        "value": one.value,
        **_counts(one.requests),
        "of_b_requests": round(one.route_requests[1]),
        "a_p50_ms": one.p50.a,
        "b_p50_ms": one.p50.b,
        "difference": one.p50.difference,
        "interval": _interval(one.p50.interval),
        "rest_difference": one.rest.difference,
        "rest_interval": _interval(one.rest.interval),
        "stage": one.stage,
        "lost_ms": one.lost_ms,
    }


def _tables(sides: tuple[Side, Side], found: Comparison, kinds: Kinds) -> list[Table | Chart]:
    if min(found.stored) == 0:
        return []
    unadjusted = numbers("unweighted") if found.is_adjusted else []
    head = f"a: {sides[0].name} ({found.stored[0]:,} requests), b: {sides[1].name} ({found.stored[1]:,} requests)"
    routes = f"; all {len(found.routes)} routes together, each as frequent as in a" if found.routes else ""
    rows = [
        [part.stage or "(request)", *_cells(one), *([_relative(one.raw.difference)] if unadjusted else [])]
        for part in (found.whole, *found.stages)
        for one in part.quantiles
    ]
    made: list[Table | Chart] = []
    if kinds.slower:
        made.append(_slower(kinds))
    if found.routes:
        columns = [Column("route"), *numbers("a requests", "b requests"), Column("at"), *_NUMBERS]
        of_routes = [
            [one.path, *(f"{round(count):,}" for count in one.requests), *_cells(at)]
            for one in found.routes[:_SHOWN]
            for at in one.whole.quantiles
        ]
        made.append(Table(columns, of_routes, head))
    made.append(Table([Column("stage"), Column("at"), *_NUMBERS, *unadjusted], rows, head + routes))
    if found.is_adjusted:
        made.append(_kinds(found))
    made += [
        chart
        for side, bins in zip(sides, found.histograms, strict=True)
        if (chart := _histogram(side.name, bins, found.histograms)) is not None
    ]
    return made


def _slower(kinds: Kinds) -> Table:
    """Return the kinds that got slower than the rest of their route did."""
    several = len(kinds.routes) > 1
    columns = [*([Column("route")] if several else []), Column("requests")]
    columns += numbers("a", "b", "a p50", "b p50", "difference", "the rest")
    rows = [
        [
            *([one.path or "(all)"] if several else []),
            kind_text(one, kinds),
            *(f"{round(count):,}" for count in one.requests),
            *(milliseconds(value or 0.0) for value in (one.p50.a, one.p50.b)),
            _relative(one.p50.difference),
            _relative(one.rest.difference),
        ]
        for one in kinds.slower
    ]
    return Table(columns, rows, "Requests that got slower than the rest of their route")


def _cells(one: Quantile) -> list[str]:
    found = one.adjusted
    ends = [_relative(end) if isfinite(end) else "?" for end in found.interval]
    return [
        percentile(one),
        milliseconds(found.a),
        milliseconds(found.b),
        _relative(found.difference),
        f"[{ends[0]}, {ends[1]}]",
    ]


def _relative(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.{0 if abs(share) >= _WHOLE_PERCENT else 1}f} %"


def _kinds(found: Comparison) -> Table:
    columns = [*map(Column, found.strata[0].kind)]
    columns += numbers("a requests", "b requests", "a p50", "b p50", "difference")
    rows = []
    for one in sorted(found.strata, key=lambda one: -one.lost_ms)[:_SHOWN]:
        a, b = one.medians
        named = [
            "-" if value is None else size_text(value) if key == "input_size" else str(value)
            for key, value in one.kind.items()
        ]
        counts = [f"{round(count):,}" for count in one.requests]
        change = None if not a or b is None else b / a - 1
        rows.append([*named, *counts, milliseconds(a), milliseconds(b), _relative(change)])
    more = f"; {_SHOWN} of {len(found.strata)}" if len(found.strata) > _SHOWN else ""
    return Table(columns, rows, f"Kinds of requests, most time lost first{more}")


def _histogram(name: str, bins: Binned, both: tuple[Binned, Binned]) -> Chart | None:
    """Return how long requests of one side took, over the range that both take but for the slowest."""
    ends = [(one.quantile(0.001), one.quantile(0.999)) for one in both]
    low = min((end for end, _ in ends if end is not None), default=0)
    high = max((end for _, end in ends if end is not None), default=0)
    if not low < high or not bins.weight.size:
        return None
    edges = [low + (high - low) * step / _BARS for step in range(_BARS + 1)]
    middles = (bins.low + bins.high) / 2
    counts = [
        float(bins.weight[(middles >= start) & ((middles < end) | (end == high))].sum())
        for start, end in pairwise(edges)
    ]
    marks = [(value, f"p{100 * q:g}") for q in (0.5, 0.95, 0.99) if (value := bins.quantile(q)) is not None]
    return Histogram(f"Durations of {name}", edges, counts, "ms", marks)


def _notes(found: Comparison, args: argparse.Namespace) -> list[str]:
    count = len(found.whole.quantiles)
    those = f"all {count} percentiles of the whole request together, and again for those of all stages"
    notes = [f"Intervals hold with 95 % for {those}, {_HOW[not args.once]}; if requests are independent."]
    if found.is_adjusted:
        notes.append(
            "Requests of b are weighted so that each kind is as frequent as in a. Kinds that only one side has are "
            f"excluded: {100 * found.left_out[0]:.1f} % of the requests of a, {100 * found.left_out[1]:.1f} % of b."
        )
    if found.is_unknown:
        notes.append("It is not known how some of these requests were sampled: breaches are all there, others are not.")
    elif found.is_sampled:
        notes.append("Sampled requests count for as many as they stand for, which makes intervals approximate.")
    return notes

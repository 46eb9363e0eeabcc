"""The output of `stagetrace compare`: the sentence, the tables, the pictures and the keys of `--json`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.compare.gate import Gate, gate_keys
from stagetrace.output.answer import Answer
from stagetrace.output.chart import Chart, Histogram
from stagetrace.output.keys import keys_of
from stagetrace.output.table_layout import Column, Table
from stagetrace.output.times import since
from stagetrace.output.units import milliseconds

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison, Part, Quantile
    from stagetrace.analysis.quantiles import Binned
    from stagetrace.cli.compare.sides import Side
    from stagetrace.store.base import Selection

TITLE: Final = "Comparison"
_SHOWN: Final = 20  # kinds of requests, to people
_BARS: Final = 12
_WHOLE_PERCENT: Final = 0.1
_HOW: Final = {True: "however often one looks", False: "for one look, at a number of requests that was set before"}


def nothing(wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the answer where no two versions are there."""
    sentence = (
        f"No two versions of one model or service{since(wanted.since_ns, args.tz)}; name two sides, "
        "as --a version=2 --b version=3 or --a period=2h..1h --b period=1h..1s."
    )
    keys: dict[str, Any] = {
        "quantiles": [],
        "enough_data": False,
        "needed": None,
        "a": None,
        "b": None,
        "histogram": None,
    }
    return Answer(TITLE, sentence, {**keys, **gate_keys([]), "stages": [], "strata": []}, is_undecided=True)


def answer(
    sides: tuple[Side, Side],
    found: Comparison,
    gates: list[tuple[Gate, str]],
    args: argparse.Namespace,
    reason: str | None,
) -> Answer:
    """Return a comparison in all its forms."""
    names = _names(sides)
    lacking = [one.needed for one in found.whole.quantiles if one.needed is not None]
    shares = [sum(one.requests[side] for one in found.strata) for side in (0, 1)]
    keys = {
        **{
            name: {
                "name": one.name,
                "requests": round(count),
                "stored": stored,
                "selection": _selection_keys(one),
            }
            for name, one, count, stored in zip("ab", sides, shares, found.stored, strict=True)
        },
        "quantiles": _quantile_keys(found.whole),
        "enough_data": not lacking,
        "needed": max(lacking, default=None),
        "stages": [{"stage": one.stage, "quantiles": _quantile_keys(one)} for one in found.stages],
        "adjusted": found.is_adjusted,
        "mix_differs": any(one.is_of_mix for one in found.whole.quantiles),
        "strata": [
            {
                **one.kind,
                "a_requests": round(one.requests[0]),
                "b_requests": round(one.requests[1]),
                "a_p50_ms": one.medians[0],
                "b_p50_ms": one.medians[1],
            }
            for one in found.strata
        ],
        "histogram": keys_of(found.shape),
        "left_out": {"a": found.left_out[0], "b": found.left_out[1]},
        "sampling_known": not found.is_unknown,
        "estimated": found.is_sampled,
        "sequential": not args.once,
        **gate_keys(gates),
    }
    failed = any(state == "fail" for _, state in gates)
    sentence = _sentence(names, found) + "".join(_gate_text(gate, state) for gate, state in gates) + "."
    parts = [*_tables(sides, found), *_notes(found, args)]
    return Answer(TITLE, sentence, keys, parts, is_bad=failed, is_undecided=keys["gate"] == "undecided", reason=reason)


def _names(sides: tuple[Side, Side]) -> tuple[str, str, str]:
    """Return the common subject of both sides, and the name of each: `model churn `, `version 2`, `version 3`."""
    fields = ("model", "service", "route")
    alike = [
        one for one in fields if (value := getattr(sides[0].wanted, one)) and value == getattr(sides[1].wanted, one)
    ]
    subject = "".join(f"{one} {getattr(sides[0].wanted, one)} " for one in alike)
    return subject, sides[0].name, sides[1].name


def _sentence(names: tuple[str, str, str], found: Comparison) -> str:
    subject, a, b = names
    if min(found.stored) == 0:
        empty = [name for name, stored in zip((a, b), found.stored, strict=True) if stored == 0]
        return f"No requests of {' or '.join(empty)}: there is nothing to compare"
    if not any(one.is_compared for one in found.strata):
        return f"{a} and {b} have no requests alike: what one side was asked for, the other was not"
    quantiles = found.whole.quantiles
    sure = [one for one in quantiles if one.is_sure]
    lacking = [one for one in quantiles if not one.enough_data]
    if sure:
        text = f"{subject}{b} is {_faster(sure[-1])} at {_percentile(sure[-1])} than {a}{_mostly(found, sure[-1])}"
        if lacking:
            text += f"; not enough requests for {_listed(lacking)}{_enough(lacking)}"
    elif lacking:
        text = f"Not enough requests to tell {subject}{b} from {a} at {_listed(lacking)}{_enough(lacking)}"
        text += _of_a_stage(found)
    else:
        last = quantiles[-1]
        text = f"{subject}{b} is as fast as {a}, as far as these requests show: at {_percentile(last)} {_between(last)}"
    mixed = [one for one in quantiles if one.is_of_mix]
    if mixed:
        seems = f"{_faster(mixed[-1], raw=True)} at {_percentile(mixed[-1])}"
        text += f"; it is another mix of requests that makes it look {seems}"
    is_key = "." in text.partition(" ")[0]  # of an attribute: as it is written
    return text if is_key else text[:1].upper() + text[1:]


def _mostly(found: Comparison, at: Quantile) -> str:
    """Return the stage that has changed most, surely, in the same direction."""
    q, is_slower = at.adjusted.q, at.adjusted.shift[0] > 0
    changed = [
        (abs(_shift(one)), part.stage)
        for part in found.stages
        for one in part.quantiles
        if one.adjusted.q == q and one.is_sure and (one.adjusted.shift[0] > 0) == is_slower
    ]
    return f", mostly in {max(changed)[1]}" if changed else ""


def _of_a_stage(found: Comparison) -> str:
    """Return how the stage differs that surely does by the most time, where the whole request does not."""
    sure = [(abs(_shift(one)), part.stage, one) for part in found.stages for one in part.quantiles if one.is_sure]
    if not sure:
        return ""
    _, stage, one = max(sure, key=lambda each: each[0])
    return f"; but {stage} is {_faster(one)} at {_percentile(one)}"


def _shift(one: Quantile, *, raw: bool = False) -> float:
    found = one.raw if raw else one.adjusted
    return (found.b or 0) - (found.a or 0)


def _percentile(one: Quantile) -> str:
    return f"p{100 * one.adjusted.q:.10g}"


def _listed(some: Sequence[Quantile]) -> str:
    return " and ".join(filter(None, (", ".join(map(_percentile, some[:-1])), _percentile(some[-1]))))


def _enough(some: Iterable[Quantile]) -> str:
    return f" (about {max(one.needed or 0 for one in some):,} of each would be)"


def _faster(one: Quantile, *, raw: bool = False) -> str:
    """Return a difference in words: `41 % [35, 47] slower`."""
    found = one.raw if raw else one.adjusted
    word = "slower" if _shift(one, raw=raw) > 0 else "faster"
    if found.difference is None or not all(map(isfinite, found.interval)):
        return f"{milliseconds(abs(_shift(one, raw=raw)))} {word}"
    low, high = sorted(abs(end) if found.interval[0] * found.interval[1] > 0 else end for end in found.interval)
    if found.interval[0] * found.interval[1] <= 0 and word == "faster":
        low, high = -high, -low
    return f"{_number(abs(found.difference))} % [{_number(low)}, {_number(high)}] {word}"


def _between(one: Quantile) -> str:
    low, high = one.adjusted.interval
    ends = [f"{_number(abs(end))} % {'slower' if end > 0 else 'faster'}" for end in (low, high)]
    return f"between {ends[0]} and {ends[1]}"


def _number(share: float) -> str:
    return f"{100 * share:.{0 if abs(share) >= _WHOLE_PERCENT else 1}f}"


def _gate_text(gate: Gate, state: str) -> str:
    texts = {
        "fail": "fails: surely slower than that",
        "pass": "passes",
        "undecided": "is undecided: there are not enough requests",
    }
    return f"; gate {gate.text} {texts[state]}"


def _interval(found: tuple[float, float]) -> list[float | None] | None:
    ends = [end if isfinite(end) else None for end in found]
    return None if ends == [None, None] else ends


def _quantile_keys(part: Part) -> list[dict[str, Any]]:
    return [
        {
            "q": one.adjusted.q,
            "a_ms": one.adjusted.a,
            "b_ms": one.adjusted.b,
            "difference": one.adjusted.difference,
            "interval": _interval(one.adjusted.interval),
            "shift_ms": _interval(one.adjusted.shift),
            "raw": {
                "a_ms": one.raw.a,
                "b_ms": one.raw.b,
                "difference": one.raw.difference,
                "interval": _interval(one.raw.interval),
            },
            "enough_data": one.enough_data,
            "needed": one.needed,
        }
        for one in part.quantiles
    ]


def _selection_keys(side: Side) -> dict[str, Any]:
    """Return which requests a side has; without a period of its own, those of the time that both were asked for."""
    since_ns, until_ns = side.period or (None, None)
    found = {name: getattr(side.wanted, name) for name in ("service", "route", "model")}
    return {"since_unix_nano": since_ns, "until_unix_nano": until_ns, **found, "segments": dict(side.wanted.segments)}


def _tables(sides: tuple[Side, Side], found: Comparison) -> list[Table | Chart]:
    if min(found.stored) == 0:
        return []
    numbers = [Column(name, is_number=True) for name in ("a", "b", "difference", "interval")]
    unadjusted = [Column("of their own mix", is_number=True)] if found.is_adjusted else []
    head = f"a: {sides[0].name} ({found.stored[0]:,} requests), b: {sides[1].name} ({found.stored[1]:,} requests)"
    rows = [
        [part.stage or "(request)", *_cells(one), *([_relative(one.raw.difference)] if unadjusted else [])]
        for part in (found.whole, *found.stages)
        for one in part.quantiles
    ]
    made: list[Table | Chart] = [Table([Column("stage"), Column("at"), *numbers, *unadjusted], rows, head)]
    if found.is_adjusted:
        made.append(_kinds(found))
    made += [
        chart
        for side, bins in zip(sides, found.histograms, strict=True)
        if (chart := _histogram(side.name, bins, found.histograms)) is not None
    ]
    return made


def _cells(one: Quantile) -> list[str]:
    found = one.adjusted
    ends = [_relative(end) if isfinite(end) else "?" for end in found.interval]
    values = ["-" if value is None else milliseconds(value) for value in (found.a, found.b)]
    return [_percentile(one), *values, _relative(found.difference), f"[{ends[0]}, {ends[1]}]"]


def _relative(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.{0 if abs(share) >= _WHOLE_PERCENT else 1}f} %"


def _kinds(found: Comparison) -> Table:
    names = list(found.strata[0].kind)
    columns = [*(Column(name) for name in names)]
    columns += [Column(name, is_number=True) for name in ("a requests", "b requests", "a p50", "b p50")]
    rows = [
        [
            *(_value(key, value) for key, value in one.kind.items()),
            *(f"{round(count):,}" for count in one.requests),
            *("-" if value is None else milliseconds(value) for value in one.medians),
        ]
        for one in found.strata[:_SHOWN]
    ]
    more = len(found.strata) - _SHOWN
    return Table(
        columns, rows, "Kinds of requests" + (f", the most frequent of {len(found.strata)}" if more > 0 else "")
    )


def _value(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "input_size":
        return "0" if value < 0 else f"{4**value:,} to {4 ** (value + 1) - 1:,}"
    return str(value)


def _histogram(name: str, bins: Binned, both: tuple[Binned, Binned]) -> Chart | None:
    """Return how long requests of one side took, over the range that both take but for the slowest."""
    ends = [(one.quantile(0.001), one.quantile(0.999)) for one in both]
    lows, highs = ([end[place] for end in ends if end[place] is not None] for place in (0, 1))
    low, high = (
        min((end for end in lows if end is not None), default=0),
        max((end for end in highs if end is not None), default=0),
    )
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
    held = (
        f"Intervals hold with 95 % for all {count} percentiles of the whole request together, and again for those of "
        f"all stages, {_HOW[not args.once]}; if requests are independent."
    )
    notes = [held]
    if found.is_adjusted:
        out = f"{100 * found.left_out[0]:.1f} % of a, {100 * found.left_out[1]:.1f} % of b"
        notes.append(
            "Requests of b are weighted so that each kind is as frequent as in a. Excluded, since the other side has "
            f"none alike: {out}."
        )
    if found.is_unknown:
        notes.append("It is not known how some of these requests were sampled: breaches are all there, others are not.")
    elif found.is_sampled:
        notes.append("Sampled requests count for as many as they stand for, which makes intervals approximate.")
    return notes

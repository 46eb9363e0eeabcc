"""`stagetrace segments`: how tenants, tiers, regions, input sizes fare: breaches, latency, stages, against the rest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.analysis.base import rank
from stagetrace.cli.arguments import count, next_command, selection_options, utf8
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option
from stagetrace.output.answer import Answer, keys_of
from stagetrace.output.chart import Bars, Stacked
from stagetrace.output.objectives import requests
from stagetrace.output.table import Column, Table, numeric, table_of
from stagetrace.output.units import chance, milliseconds, percent

if TYPE_CHECKING:
    from stagetrace.analysis.cases import Cases
    from stagetrace.analysis.segments import Remedy, Segment, Segments
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Show how segments of the requests fare: by tenant, tier, region, model version, input size or any attribute. Of\n"
    "each: breaches, p50 and p99, where its time goes, its part of the time over the objectives, and whether it\n"
    "differs from the rest on the same routes. What is beyond the largest segments is summed."
)
EXAMPLE: Final = "stagetrace segments --by tenant.id --since 1d"
_ATTRIBUTES: Final = (
    "tenant.id", "tenant", "tenant.name", "user.tier", "tenant.tier", "tier", "customer.tier", "plan", "customer.id",
    "customer", "organization.id", "enduser.id", "user.id", "region", "cloud.region", "user.region",
    "geo.country.iso_code", "client.type", semconv.HTTP_REQUEST_BODY_SIZE, semconv.ML_BATCH_SIZE,
    semconv.ML_MODEL_VERSION, "service.version",
)  # fmt: skip
KNOWN: Final = tuple(sorted(_ATTRIBUTES, key=rank))  # those that a person knows best first
OPTIONS: Final = (
    *selection_options(cause=False),
    Option(
        "--by ATTRIBUTE",
        "attribute of the entry span or its resource, or a column of `requests`; numbers of many values become ranges; "
        f"default: the first of these that differs between requests: {', '.join(KNOWN)}",
        utf8,
    ),
    Option("--top N", "how many segments; default: 20, at most 200", count, 20),
    *PRINTED,
)
_NUMBERS: Final = 0.5  # of the values named, and of the requests: more are numbers, fewer are in the largest segments


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return how the segments of a selection fare."""
    from stagetrace.analysis import cases
    from stagetrace.analysis.segments import remedies, segments

    most = min(args.top, 200)
    with reader.relations(wanted) as relations:
        found = cases.ask(relations)
        if not found.rows:
            found = cases.ask_any(relations)
        by = args.by or _default(found)
        rows: Sequence[Mapping[str, Any]] = []
        names: list[str | None] = []
        ranges = False
        if by is not None and found.rows:
            rows = relations.reduce("segments", [by], most=most)
            names = _names(found, by)
            if _are_numbers(rows):
                names, rows, ranges = _ranges(found, names, most)
    shown = View(by, segments(rows), remedies(found, names) if names else {}, found, is_ranges=ranges)
    steps = [next_command(args, "causes")]
    return Answer("Segments", _sentence(shown), _keys(shown), _parts(shown), reason=relations.reason, steps=steps)


def _default(cases: Cases) -> str | None:
    """Return the best-known attribute of which requests have several values, or one that they have at all."""
    only = None
    for key in KNOWN:
        found = set(_names(cases, key))
        if len(found) > 1:
            return key
        if only is None and found and found != {None}:
            only = key
    return only


def _names(cases: Cases, by: str) -> list[str | None]:
    """Return the text of an attribute or a column of each request of the sample."""
    if cases.rows and by in cases.rows[0] and by not in ("attributes", "resource"):
        return [None if row[by] is None else str(row[by]) for row in cases.rows]
    return [row["attributes"].get(by, row["resource"].get(by)) for row in cases.rows]


def _are_numbers(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether most values are numbers, of which the largest segments have few requests."""
    from stagetrace.analysis.cases import number

    named = {row["segment"] for row in rows if row["place"]} - {None}
    beyond = sum(row["requests"] for row in rows if not row["place"])
    numbers = sum(number(name) is not None for name in named)
    return bool(named) and beyond > _NUMBERS * sum(row["requests"] for row in rows) and numbers > _NUMBERS * len(named)


def _ranges(cases: Cases, names: list[str | None], most: int) -> tuple[list[str | None], list[dict[str, Any]], bool]:
    """Return the range of each request of the sample, and the rows of the reduction for these, out of the sample."""
    from stagetrace.analysis.cases import coded
    from stagetrace.analysis.segments import of_cases

    made = coded(names, 1)
    if made is None:
        return names, of_cases(cases, names, most), False
    ranges = [made.values[code] if code < len(made.values) else None for code in made.codes.tolist()]
    return ranges, of_cases(cases, ranges, most), True


# --- The output of `stagetrace segments`: the sentence, tables, pictures, and the keys of JSON.

_ALPHA: Final = 0.05
_SURE_DIGITS: Final = 2  # times, from which on one decimal is enough
_OTHERS: Final = "(other segments)"
_NONE: Final = "(none)"


@dataclass(frozen=True)
class View:
    """All that is shown. `by` None: no known attribute is there."""

    by: str | None
    found: Segments
    fixed: Mapping[str | None, Remedy]
    cases: Cases
    is_ranges: bool  # estimated from the sample

    @property
    def segments(self) -> list[Segment]:
        """Return the segments, the largest first; ranges by their lower ends."""
        return sorted(self.found.segments, key=_low) if self.is_ranges else list(self.found.segments)


def _low(one: Segment) -> tuple[bool, float]:
    """Return where a range begins, by its text; absence comes last."""
    text = (one.segment or "").removeprefix("over ").split(" ")[0].rstrip(",")
    return one.segment is None, float(text or 0)


def _sentence(shown: View) -> str:
    found, by = shown.found, shown.by
    if by is None:
        return "No request here." if not shown.cases.rows else "No attribute known for segments is here: give --by."
    if not found.segments:
        return "No request here."
    count = len(found.segments) + found.other_segments
    if {one.segment for one in found.segments} == {None} and count == 1:
        return f"No request here has {by}: name another attribute with --by."
    different = found.different
    if not different:
        compared = "breaches" if found.share is not None else "latency"
        return (
            f"No segment by {by} differs from the others in {compared} ({requests(count, 'segment')}, "
            f"{'~' if found.is_estimate else ''}{found.requests:,.0f} requests)."
        )
    # Worse ones first; where none is, the best one.
    worse = [one for one in different if _is_worse(one)]
    first = (worse or list(different))[0]
    verb = "differs" if len(different) == 1 else "differ"
    return f"{_sentence_of(by, first)}; {len(different)} of {requests(count, 'segment')} {verb}."


def _is_worse(one: Segment) -> bool:
    if one.breach_share is None or one.rest_share is None:
        return one.is_longer
    return one.breach_share > one.rest_share


def _sentence_of(by: str, one: Segment) -> str:
    name = f"Requests {label(by, one.segment)}"
    if one.breach_share is None or one.rest_share is None:
        return f"{name} take {'longer' if one.is_longer else 'less long'} than the others"
    shares = f"({percent(one.breach_share)} against {percent(one.rest_share)})"
    if one.rest_share == 0 or one.breach_share == 0:
        return f"{name} miss their objective {'more' if one.breach_share else 'less'} often than the others {shares}"
    times = one.breach_share / one.rest_share
    shown = f"{times:.1f}" if times >= _SURE_DIGITS else f"{times:.2f}"
    return f"{name} miss their objective {shown} times as often as the others {shares}"


def label(by: str, segment: str | None) -> str:
    """Return a segment in words."""
    return f"without {by}" if segment is None else f"with {by} {segment}"


def _keys(shown: View) -> dict[str, Any]:
    found = shown.found
    return {
        "by": shown.by,
        "segments": [_segment(one, shown.fixed.get(one.segment)) for one in shown.segments],
        "others": None
        if found.others is None
        else {"segments": found.other_segments, **_segment(found.others, None), "segment": None},
        "different": len(found.different),
        "breach_share": found.share,
        "prior": None if found.prior is None else {"breaches": found.prior[0], "good": found.prior[1]},
        "ranges": shown.is_ranges,
        "sampled": {"requests": len(shown.cases.rows), "of": shown.cases.stored},
        "estimated": found.is_estimate or (shown.is_ranges and len(shown.cases.rows) < shown.cases.stored),
        "sampling_known": not found.is_unknown,
    }


def _segment(one: Segment, fixed: Remedy | None) -> dict[str, Any]:
    remedy = None if fixed is None else keys_of(fixed, "breaches", breaches_avoided=fixed.breaches)
    return keys_of(one, "is_longer", longer=one.is_longer, fixed=remedy)


def _parts(shown: View) -> list[Any]:
    found = shown.found
    if shown.by is None or not found.segments:
        return []
    if {one.segment for one in found.segments} == {None}:
        return []
    everyone = [*shown.segments, *([found.others] if found.others is not None else [])]
    names = {id(one): _NONE if one.segment is None else one.segment for one in found.segments}
    if found.others is not None:
        names[id(found.others)] = _OTHERS
    parts: list[Any] = [_table(shown, everyone, names)]
    if found.share is not None:
        bars = [(names[id(one)], one.breach_share, percent(one.breach_share)) for one in everyone]
        parts.append(Bars("Breaches of the judged requests", bars))
    stacked = [(names[id(one)], one.stages) for one in everyone if one.stages]
    if stacked:
        parts.append(Stacked("Where the time goes", stacked))
    fixed = [one for one in found.segments if shown.fixed.get(one.segment) is not None and _may_gain(one)]
    if fixed:
        parts.append(_remedy_table(shown, fixed, names))
    return [*parts, *_notes(shown)]


def _may_gain(one: Segment) -> bool:
    """Return whether a segment is slower than the rest, so that there is something to fix."""
    tests = [value for value in (one.q_value, one.latency_q_value) if value is not None]
    return bool(tests) and min(tests) <= _ALPHA and (_is_worse(one) or one.is_longer)


def _table(shown: View, everyone: list[Segment], names: Mapping[int, str]) -> Table:
    mark = "~" if shown.found.is_estimate else ""
    return table_of(
        everyone,
        (
            (Column(shown.by or "segment"), lambda one: names[id(one)]),
            (numeric("requests"), lambda one: f"{mark}{one.requests:,.0f}"),
            (numeric("breaches"), lambda one: f"{one.breaches:,.0f}" if one.judged else "-"),
            (numeric("share"), lambda one: percent(one.breach_share)),
            (numeric("95 %", 3), lambda one: " to ".join(map(percent, one.interval or (None,)))),
            (numeric("estimate", 2), lambda one: percent(one.shrunk)),
            (numeric("p50"), lambda one: milliseconds(one.p50_ms)),
            (
                numeric("p99"),
                lambda one: f"< {one.needed} requests" if one.p99_ms is None else milliseconds(one.p99_ms),
            ),
            (numeric("of the excess"), lambda one: percent(one.excess_share)),
            (numeric("by chance"), lambda one: chance(one.q_value)),
            (numeric("latency by chance", 1), lambda one: chance(one.latency_q_value)),
        ),
        "estimate: the share, nearer to that of all, the fewer requests the segment has; "
        "by chance: how likely its breaches, or latencies, differ so much where no segment does",
    )


def _remedy_table(shown: View, fixed: list[Segment], names: Mapping[int, str]) -> Table:
    return table_of(
        [(names[id(one)], shown.fixed[one.segment]) for one in fixed],
        (
            (Column(shown.by or "segment"), lambda one: one[0]),
            (Column("stage"), lambda one: one[1].stage),
            (numeric("others' median"), lambda one: milliseconds(one[1].median_ms)),
            (numeric("less time"), lambda one: milliseconds(one[1].gain_ms)),
            (numeric("fewer breaches"), lambda one: percent(one[1].breaches)),
        ),
        "If its slowest stage were no slower than the median of the others",
    )


def _notes(shown: View) -> list[str]:
    found, cases = shown.found, shown.cases
    notes = []
    if found.other_segments:
        notes.append(
            f"{_OTHERS}: {requests(found.other_segments, 'segment')} beyond the largest {len(found.segments)}."
        )
    if shown.is_ranges and len(cases.rows) < cases.stored:
        notes.append(f"Ranges are of a sample: {len(cases.rows):,} of {cases.stored:,} requests, weighed to all.")
    if found.is_unknown:
        notes.append("It is not known how requests were sampled: counts and shares are of what is stored.")
    elif found.is_estimate:
        notes.append("Requests were sampled when they were recorded: ~ are sums of weights.")
    return notes

"""`stagetrace slo`: whether each objective is kept, and how long its error budget lasts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, Final

from stagetrace.analysis.attainment import COLUMNS, Counts, Exact
from stagetrace.analysis.slo import SHOWN, Found, Objective
from stagetrace.cli.arguments import (
    EVER,
    POLICY,
    is_file,
    next_command,
    policy_if_any,
    selection_options,
    store_url,
    utf8,
)
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option
from stagetrace.output import objectives
from stagetrace.output.answer import Answer, join_reasons, keys_of
from stagetrace.output.chart import Bars
from stagetrace.output.table import COMMON, Column, Table, numbers, numeric
from stagetrace.output.units import Zone, rounded_percent, shown
from stagetrace.policy.objective import DEFAULT_WINDOW_S
from stagetrace.store.base import COUNTS, Reader, Selection

TITLE: Final = "Service level objectives"
DESCRIPTION: Final = (
    "Say of each objective, service and route whether it is kept: attainment with its 95 % interval, what is left of\n"
    "the error budget, how fast that burns, and which alerts of the policy fire. Each objective is taken over its own\n"
    "window (`over 28d`), which ends with --until, else now, of a file with its newest request; one of the calendar\n"
    "(`over month`) is the current month so far. With a policy (--policy, else that of the `up --sla` that fills the\n"
    "store, else $STAGETRACE_SLA), targets and alerts are its own, and the requests those that were recorded under\n"
    "its objectives. Exits with 1 if one is missed, with 2 if the result of one is unknown."
)
EXAMPLE: Final = "stagetrace slo --service api --by tenant.id"
_NS: Final = 10**9


def _attribute(text: str) -> str:
    """Return the key to group by."""
    if not text or text in (*COLUMNS, "attributes", "stages"):
        raise ValueError(f"{text!r} cannot be grouped by: name an attribute, as tenant.id")
    return utf8(text)


OPTIONS: Final = (
    *selection_options("the window of each objective", cause=False),
    Option("--by ATTRIBUTE", "each value of this attribute, or column of `requests`, by itself", _attribute),
    POLICY,
    *PRINTED,
)
SINCE: Final = EVER  # each objective has its own window


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the answer: of each objective's own window, or, where `--since` is given, from then on."""
    from stagetrace.analysis import slo
    from stagetrace.store import answers

    policy, unread = policy_if_any(args)
    since = wanted.since_ns if args.since else None
    end = wanted.until_ns if args.until else min(time.time_ns(), wanted.until_ns)
    is_recording = args.until is None and is_file(store_url(args))
    read = float(max((DEFAULT_WINDOW_S, *slo.BURNS.values(), *(one.long_s for one in slo.burn_alerts(policy)))))
    while True:
        earliest = end - round(read * _NS)
        start = 0 if is_recording else max(0, earliest if since is None else min(since, earliest))
        until = wanted.until_ns if is_recording else end
        with reader.relations(replace(wanted, since_ns=start, until_ns=until)) as relations:
            if is_recording:
                newest = answers.newest(relations)
                end = end if newest is None else newest + 1
            found = slo.ask(relations, end, since, args.by, _exact(reader, wanted, end, args.by), policy)
            reasons = [relations.reason, unread]
        if start == 0 or since is not None or found.longest_s <= read:
            break
        read = found.longest_s
    if found.left:
        reasons.append(f"{found.left:,} groups with fewer breaches are not listed: select fewer, or drop --by")
    is_told = bool(found.objectives) and not found.undetermined
    return Answer(
        TITLE,
        sentence(found) if found.objectives else f"{_nothing(found, reader, wanted, end, args.tz)}.",
        {
            "until_unix_nano": end,
            "told": is_told,
            "objectives": [as_json(one, args.by) for one in found.objectives],
            **({} if policy is None else {"unused": list(found.unused)}),
            "changes": [one._asdict() for one in found.changes],
            "unjudged": round(found.unjudged.requests - found.unjudged.excluded),
            "excluded": round(found.unjudged.excluded),
        },
        list(parts(found, args.by, args.tz)) if found.objectives else (),
        is_bad=bool(found.missed),
        is_undecided=not is_told,
        reason=join_reasons(reasons),
        steps=[_next(found.objectives[0], args)] if found.missed else (),
    )


def _next(worst: Objective, args: argparse.Namespace) -> str:
    return next_command(args, "why", service=worst.service, route=worst.route)


def _exact(reader: Reader, wanted: Selection, end: int, by: str | None) -> Exact | None:
    """Return a function for the counts that services have sent, if the store has any that match the selection."""
    if COUNTS not in reader.capabilities or by is not None or replace(wanted, service=None, route=None).is_filtered:
        return None

    @cache
    def counted(start: int) -> dict[tuple[str, str, str | None], Counts]:
        from stagetrace.analysis import routes_and_stages
        from stagetrace.analysis.attainment import Counts

        part = replace(wanted, since_ns=start, until_ns=end)
        own = reader.counted(part)  # type: ignore[attr-defined]
        if not own:
            return {}
        with reader.relations(part) as relations:
            found = routes_and_stages.exactly(relations, routes_and_stages.ask(relations), own)
        return {
            (one.service, one.route, one.objective): Counts(
                one.requests, one.judged - one.breaches, one.breaches, stored=one.sample.rows, is_counted=True
            )
            for one in found
            if one.sample.is_counted
        }

    return counted


def _nothing(found: Found, reader: Reader, wanted: Selection, end: int, zone: Zone) -> str:
    """Return why there is no answer, and the remedy."""
    window = f"up to {shown(end, zone, 0)} {zone.name}"
    if found.unjudged.requests:
        count = objectives.requests(found.unjudged.requests)
        if found.unjudged.excluded == found.unjudged.requests:
            return f"{count} {window}, and none judged: the policy excludes them"
        return f"{count} {window}, and none judged: no objective matches (STAGETRACE_SLA of the service)"
    newest = reader.breaches(replace(wanted, limit=1)).tally.newest_unix_nano
    if newest is None:
        return f"No request {window}, nor any of another time"
    later = shown(newest + _NS, zone, 0)
    return f"No request in the window {window}: give --until '{later}', when the newest one was"


# --- The output of `stagetrace slo`: a sentence, a table with bars, lines beneath, and the keys of `--json`.

_ROWS: Final = 50  # of the table
_BARS: Final = 12
_COLUMNS: Final = (
    Column("objective", kind=COMMON),
    *numbers("judged", "breaches", "attainment"),
    Column("95 %", leaves=1),
    *numbers("wanted", "budget left"),
    *(numeric(f"burn {name}", leaves) for name, leaves in zip(SHOWN, (3, 6, 2, 5), strict=True)),
    Column("lasts", leaves=4),
)


def sentence(found: Found) -> str:
    """Return the answer: the objective with the least budget left, and how many are missed."""
    worst, many, missed = found.objectives[0], len(found.objectives), len(found.missed)
    rest = []
    if missed or many > 1:
        of = "objective is" if many == 1 else "objectives is" if missed == 1 else "objectives are"
        rest.append(f"{missed or 'none'} of {many} {of} missed")
    if found.undetermined:
        rest.append(f"the result of {len(found.undetermined)} is unknown")
    return f"{'; '.join([_attainment_text(worst, many), *rest])}."


def _attainment_text(one: Objective, many: int) -> str:
    known, name = one.attained, _name(one, alone=many == 1)
    if known is None:
        return f"{name}: {_why_undetermined(one)}"
    about = "about " if known.is_estimate else ""
    share = f"{about}{objectives.percent(known.value)} {objectives.interval(known)}"
    return (
        f"{name}: {share} of its requests met it, {objectives.wanted(one.target.share)} are wanted; {_budget_text(one)}"
    )


def _name(one: Objective, *, alone: bool = False) -> str:
    name = (one.objective or one.route).partition(" within ")[0]
    name = name if one.route in name else f"{one.route} (objective {name})"
    return f"{name}{'' if alone else f' of service {one.service}'}{'' if one.segment is None else f', {one.segment}'}"


def _budget_text(one: Objective) -> str:
    left, held = one.budget_left, "" if one.is_held else f" ({_held_text(one)})"
    if left is None:
        return f"no breach is allowed, and there {objectives.breaches(one.counts.breaches)}{held}"
    if left < 0:
        return f"its error budget is spent {objectives.times(1 - left)}{held}"
    lasts = ""
    if one.lasts_s is not None and left > 0:
        lasts = f", at the rate of the last hour for {objectives.length(one.lasts_s)}"
    return f"{100 * left:.0f} % of its error budget is left{lasts}{held}"


def _held_text(one: Objective) -> str:
    return f"the store holds {objectives.length(one.held_s)} of {objectives.length(one.window_s)}"


def _why_undetermined(one: Objective) -> str:
    if one.counts.is_unknown:
        return f"it is not known how its {objectives.requests(one.counts.stored, 'stored request')} were sampled"
    return f"no request was judged in its window of {objectives.length(one.window_s)}"


def as_json(one: Objective, by: str | None) -> dict[str, Any]:
    """Return one objective as `--json` prints it."""
    known = one.attained
    unlisted = ["target_text", "counts", "attained", "first_unix_nano", "last_unix_nano"]
    unlisted += [] if by else ["segment"]
    unlisted += ["description", "is_in_policy"] if one.is_in_policy is None else []
    return keys_of(
        one,
        *unlisted,
        judged=round(one.counts.judged),
        breaches=round(one.counts.breaches),
        attainment=None if known is None else known.value,
        interval=None if known is None else [known.low, known.high],
        target=one.target.share,
        burn={name: None if burn is None else burn.rate for name, burn in one.burn.items()},
        alerts=[alert._asdict() for alert in one.alerts],
        window_s=one.window_s,
        stored=one.counts.stored,
        counted=one.counts.is_counted,
        estimated=known is not None and known.is_estimate,
        sampling_known=not one.counts.is_unknown,
    )


def parts(found: Found, by: str | None, zone: Zone) -> Iterator[str | Table | Bars]:
    """Yield the table, bars of the budgets, and lines."""
    listed = found.objectives[:_ROWS]
    heads = (Column("service", kind=COMMON), Column("route", leaves=7), *((Column(by),) if by else ()), *_COLUMNS)
    yield Table(heads, [_cells(one, is_segment=bool(by)) for one in listed])
    left = [(_name(one), one.budget_left) for one in listed[:_BARS] if one.budget_left is not None]
    if left:
        yield Bars("Error budget left", [(name, *objectives.budget_bar(part)) for name, part in left], whole=1.0)
    lines = list(_lines(found, zone))
    if len(found.objectives) > _ROWS:
        lines.append(f"These are {_ROWS} of {len(found.objectives):,}, those with the least left; --json has all.")
    yield from lines


def _cells(one: Objective, *, is_segment: bool) -> tuple[str, ...]:
    known = one.attained
    burns = (None if (burn := one.burn[name]) is None else burn.rate for name in SHOWN)
    return (
        one.service,
        one.route,
        *((one.segment or "-",) if is_segment else ()),
        one.whole_text,
        objectives.about(one.counts.judged, one.counts),
        f"{one.counts.breaches:,.0f}",
        "-" if known is None else f"{'~' if known.is_estimate else ''}{objectives.percent(known.value)}",
        "-" if known is None else objectives.interval(known),
        objectives.wanted(one.target.share),
        rounded_percent(one.budget_left),
        *("-" if rate is None else f"{rate:.3g}" for rate in burns),
        "-" if one.lasts_s is None else "spent" if one.lasts_s <= 0 else objectives.length(one.lasts_s),
    )


def _lines(found: Found, zone: Zone) -> Iterator[str]:
    """Yield the lines below the table."""
    for one in found.objectives[:_ROWS]:
        yield from _notes(one)
    if found.unused:
        listed = ", ".join(found.unused[:_ROWS])
        more = f" and {len(found.unused) - _ROWS:,} more" if len(found.unused) > _ROWS else ""
        yield f"No request under these objectives of the policy: {listed}{more}."
    for change in found.changes:
        at = f"{shown(change.at_unix_nano, zone, 0)} {zone.name}"
        yield f"{change.route} of {change.service} was under `{change.before}` before {at}, then `{change.after}`."
    if found.unjudged.requests:
        rest = found.unjudged.requests - found.unjudged.excluded
        yield f"Not judged: {found.unjudged.excluded:,.0f} excluded, {rest:,.0f} that no objective matches."


def _of_policy(one: Objective, name: str) -> Iterator[str]:
    if one.description:
        yield f"{name}: {one.description}"
    if one.is_in_policy is False:
        yield f"{name}: the policy has no such objective; the target is the recorded one."
    if one.target.calendar is not None:
        yield f"{name}: its window is the current {one.target.calendar.text}, {objectives.length(one.window_s)} so far."


def _notes(one: Objective) -> Iterator[str]:
    name = _name(one)
    yield from _of_policy(one, name)
    for alert in one.alerts:
        if alert.fires:
            rates = [f"{burn.rate:.3g} in {span}" for span in (alert.long, alert.short) if (burn := one.burn.get(span))]
            yield f"Alert: {name} has a burn rate of {' and '.join(rates)} (alert at {alert.factor:g})."
    if not one.is_held:
        yield f"{name}: {_held_text(one)}; share and budget are of these."
    if not one.target.is_from_policy:
        yield f"{name}: its target is not recorded; 99 % over 28 days are taken."
    if one.counts.is_counted:
        yield f"{name}: judged and breaches are as the service has counted them, before it sampled."
    elif one.attained is None:
        yield f"{name}: {_why_undetermined(one)}."
    elif one.attained.is_estimate:
        yield f"~ {name}: estimated out of {one.counts.stored:,} sampled requests (breaches are all there)."

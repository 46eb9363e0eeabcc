"""The output of `stagetrace slo`: a sentence, a table with bars, lines beneath, and the keys of `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from stagetrace.analysis.slo import SHOWN, Found, Objective
from stagetrace.output import objectives
from stagetrace.output.chart import Bars
from stagetrace.output.keys import keys_of
from stagetrace.output.table_layout import COMMON, Column, Table
from stagetrace.output.times import Zone, shown

_ROWS: Final = 50  # of the table
_BARS: Final = 12
_COLUMNS: Final = (
    Column("objective", kind=COMMON),
    *(Column(name, is_number=True) for name in ("judged", "breaches", "attainment")),
    Column("95 %", leaves=1),
    Column("wanted", is_number=True),
    Column("budget left", is_number=True),
    *(Column(f"burn {name}", is_number=True, leaves=leaves) for name, leaves in zip(SHOWN, (3, 6, 2, 5), strict=True)),
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
    return f"{'; '.join([_kept(worst, many), *rest])}."


def _kept(one: Objective, many: int) -> str:
    known, name = one.attained, _name(one, alone=many == 1)
    if known is None:
        return f"{name}: {_why_undetermined(one)}"
    about = "about " if known.is_estimate else ""
    share = f"{about}{objectives.percent(known.value)} {objectives.interval(known)}"
    return f"{name}: {share} of its requests met it, {objectives.wanted(one.target.share)} are wanted; {_left(one)}"


def _name(one: Objective, *, alone: bool = False) -> str:
    name = (one.objective or one.route).partition(" within ")[0]
    name = name if one.route in name else f"{one.route} (objective {name})"
    return f"{name}{'' if alone else f' of service {one.service}'}{'' if one.segment is None else f', {one.segment}'}"


def _left(one: Objective) -> str:
    left, held = one.budget_left, "" if one.is_held else f" ({_held(one)})"
    if left is None:
        return f"no breach is allowed, and there {objectives.breaches(one.counts.breaches)}{held}"
    if left < 0:
        return f"its error budget is spent {objectives.times(1 - left)}{held}"
    lasts = ""
    if one.lasts_s is not None and left > 0:
        lasts = f", at the rate of the last hour for {objectives.length(one.lasts_s)}"
    return f"{100 * left:.0f} % of its error budget is left{lasts}{held}"


def _held(one: Objective) -> str:
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
        yield Bars("Error budget left", [(name, max(0.0, part), f"{100 * part:.0f} %") for name, part in left])
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
        "-" if one.budget_left is None else f"{100 * one.budget_left:.0f} %",
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
            windows = f"in the last {alert.long} and the last {alert.short}"
            rate = "too fast" if alert.factor == 1 else f"over {alert.factor:g} times too fast"
            yield f"Alert: {name} spent its error budget {rate} {windows}."
    if not one.is_held:
        yield f"{name}: {_held(one)}; share and budget are of these."
    if not one.target.is_from_policy:
        yield f"{name}: its target is not recorded; 99 % over 28 days are taken."
    if one.counts.is_counted:
        yield f"{name}: judged and breaches are as the service has counted them, before it sampled."
    elif one.attained is None:
        yield f"{name}: {_why_undetermined(one)}."
    elif one.attained.is_estimate:
        yield f"~ {name}: estimated out of {one.counts.stored:,} sampled requests (breaches are all there)."

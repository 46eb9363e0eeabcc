"""`stagetrace report`: whether objectives were met in a period, with all that does not count, and why."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.report import LEAST, MOST_SHARE, Cause, Found, Incident, Line, Options, digest_of
from stagetrace.cli.arguments import (
    ABOVE_0,
    EVER,
    FINITE,
    POLICY,
    next_command,
    number_between,
    policy_if_any,
    selection_options,
    utf8,
)
from stagetrace.cli.ask import ALL, PRINTED, ask, run_all
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output import objectives
from stagetrace.output.answer import Answer, join_reasons, keys_of
from stagetrace.output.chart import Bars
from stagetrace.output.table import COMMON, TIME, Column, Table, numbers, numeric, table_of
from stagetrace.output.units import Moment, Zone, between, moment, shown
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from stagetrace.analysis.report import Tier
    from stagetrace.policy.policy import Policy
    from stagetrace.store.base import Reader

DESCRIPTION: Final = (
    "Report on a period: of each objective how many requests were judged, how many were breaches and whether it was\n"
    "met; what does not count, and why; credits; incidents with their causes; and digests, by which reports can be\n"
    "compared. The same requests give the same report on every run. Exits with 1 if an objective was missed, with 2\n"
    "if nothing was judged, or the result of one objective is unknown."
)
EXAMPLE: Final = "stagetrace report --period 2026-10 --tz Europe/Berlin --credits 99.9:10%,99:25% --format html"

# --- Calendar periods on the command line: `2026`, `2026-Q4`, `2026-10`, `2026-W48`, `2026-11-26`, in days of a zone.

_NS: Final = 10**9
_ALL: Final = 100
_PERCENT: Final = re.compile(r"\d{1,3}(\.\d{1,9})?|\.\d{1,9}", re.ASCII)
FORMS: Final = "a year (2026), quarter (2026-Q4), month (2026-10), ISO week (2026-W48) or day (2026-11-26)"
_MONTHS: Final = 12
_IN_QUARTER: Final = 3


class Period(NamedTuple):
    """Days from `first` up to `after`, which is not one of them."""

    name: str
    first: date
    after: date

    def at(self, zone: Zone) -> tuple[int, int]:
        """Return when it begins and ends in a zone, in ns since 1970: its days are as long as they were there."""
        midnights = (datetime.combine(day, datetime.min.time()) for day in (self.first, self.after))
        begin, end = map(zone.seconds, midnights)
        return max(0, begin) * _NS, max(0, end) * _NS


def period(text: str) -> Period:
    """Return the period of this name. Raise ValueError with the accepted forms."""
    try:
        if re.fullmatch(r"\d{4}", text, re.ASCII):
            return Period(text, date(int(text), 1, 1), date(int(text) + 1, 1, 1))
        if found := re.fullmatch(r"(\d{4})-[Qq]([1-4])", text, re.ASCII):
            first = date(int(found[1]), _IN_QUARTER * (int(found[2]) - 1) + 1, 1)
            return Period(f"{found[1]}-Q{found[2]}", first, _later(first, _IN_QUARTER))
        if found := re.fullmatch(r"(\d{4})-(\d\d)", text, re.ASCII):
            first = date(int(found[1]), int(found[2]), 1)
            return Period(text, first, _later(first, 1))
        if found := re.fullmatch(r"(\d{4})-[Ww](\d\d)", text, re.ASCII):
            first = date.fromisocalendar(int(found[1]), int(found[2]), 1)
            return Period(f"{found[1]}-W{found[2]}", first, first + timedelta(days=7))
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            first = date.fromisoformat(text)
            return Period(text, first, first + timedelta(days=1))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"there is no period {text!r}: {error}") from None
    raise ValueError(f"cannot read the period {text!r}: write {FORMS}")


def last_month(now_ns: int, zone: Zone) -> Period:
    """Return the calendar month before the one that it is now."""
    today = zone.wall(now_ns // _NS).date()
    first = (today.replace(day=1) - timedelta(days=1)).replace(day=1)
    return Period(f"{first:%Y-%m}", first, today.replace(day=1))


def _later(first: date, months: int) -> date:
    """Return the first day of the month so many months later."""
    years, month = divmod(first.month - 1 + months, _MONTHS)
    return date(first.year + years, month + 1, 1)


# --- The options.


def _exclusion(text: str) -> tuple[Moment, Moment, str]:
    """Return begin, end and reason of `SINCE..UNTIL=REASON`."""
    times, _, reason = utf8(text).partition("=")
    if not reason.strip():
        raise ValueError(f"{text!r} is not SINCE..UNTIL=REASON")
    return (*between(times), reason.strip())


def _tiers(text: str) -> tuple[Tier, ...]:
    """Return the tiers of `99.9:10%,99:25%`."""
    from stagetrace.analysis.report import Tier

    tiers = []
    for one in text.split(","):
        below, colon, credit = one.replace("%", "").partition(":")
        # Of `1e999999999` a fraction has as many digits.
        is_short = all(_PERCENT.fullmatch(number.strip()) for number in (below, credit))
        tier = Tier(*(Fraction(number.strip()) if is_short else Fraction(-1) for number in (below, credit)))
        if not colon or not all(0 <= number <= _ALL for number in tier):
            raise ValueError(f"{one!r} is not BELOW:CREDIT, both in percent, as 99.9:10%")
        tiers.append(tier)
    if len({tier.below for tier in tiers}) < len(tiers):
        raise ValueError(f"{text!r} names one attainment twice")
    return tuple(sorted(tiers, reverse=True))


def _gap(text: str) -> float:
    """Return a length of time in seconds."""
    found = moment(text)
    if not found.ago:
        raise ValueError(f"{text!r} is not a length of time, as 5m")
    return found.ns / _NS


OPTIONS: Final = (
    *selection_options("the period", cause=False),
    Option("--period NAME", f"{FORMS}, of the zone --tz; default: the last full month", period),
    Option(
        "--exclude SINCE..UNTIL=REASON",
        "time that does not count, such as maintenance; may be repeated, and where some overlap, the first has it",
        _exclusion,
        repeats=True,
    ),
    Option(
        "--credits BELOW:CREDIT,...",
        "credits by attainment: 99.9:10%,99:25% is 10 % below 99.9 %, and 25 % below 99 %",
        _tiers,
        (),
    ),
    Option(
        "--incident-burn RATE",
        "burn rate from which on a minute is part of an incident; default: 10",
        number_between(ABOVE_0, FINITE, "is not a number above 0"),
        10.0,
    ),
    Option(
        "--incident-gap DURATION", "such minutes that are no further apart are one incident; default: 5m", _gap, 300.0
    ),
    POLICY,
    *ALL,
    *PRINTED,
)


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    if args.all:
        return run_all(args)
    if args.options or args.bench:
        raise UsageError("--with and --bench go with --all\nadd it")
    return ask(args, answer, since=EVER)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the report of the period. Raise UsageError if options contradict each other."""
    from stagetrace.analysis import report

    now = time.time_ns()
    name, options = _options(args, wanted, now)
    wanted = replace(wanted, since_ns=options.since_ns, until_ns=options.until_ns)
    policy, unread = policy_if_any(args)
    with reader.relations(wanted) as relations:
        found = report.ask(relations, options, policy)
        reasons = [relations.reason, unread]
    if options.until_ns > now:
        reasons.append(f"the period is not over, it ends at {shown(options.until_ns, args.tz, 0)} {args.tz.name}")
    if found.lines_left:
        reasons.append(f"{found.lines_left:,} objectives and routes with fewer breaches are not listed")
    if found.incidents_left:
        reasons.append(f"{found.incidents_left:,} incidents with fewer breaches are not listed")
    reason = join_reasons(reasons)
    keys = json_keys(found, options, wanted, name, args.tz, policy)
    return Answer(
        f"Report of service levels: {name} ({args.tz.name})",
        sentence(found, name, args.tz),
        keys,
        list(parts(found, options, keys["digest"], reason, args.tz)),
        is_bad=bool(found.missed),
        is_undecided=not keys["told"],
        reason=reason,
        steps=[next_command(args, "slo")],
    )


def _options(args: argparse.Namespace, wanted: Selection, now: int) -> tuple[str, Options]:
    """Return the name of the period, and the options of the report."""
    from stagetrace.analysis.report import Options, Window

    zone: Zone = args.tz
    if args.period is not None and (args.since or args.until):
        raise UsageError("--period and --since or --until name two periods\ngive one of them")
    if args.until and not args.since:
        raise UsageError("--until without --since names no period\ngive both, or --period")
    if args.since:
        since, until = wanted.since_ns, wanted.until_ns if args.until else now
        name = f"{shown(since, zone, 0)} to {shown(until, zone, 0)}"
    else:
        meant = args.period or last_month(now, zone)
        name, (since, until) = meant.name, meant.at(zone)
    if since >= until:
        raise UsageError(f"the period {name} is empty: it begins in 1970 at the earliest, and not later than now")
    windows = []
    for begin, end, reason in args.exclude:
        first, last = begin.at(now, zone), end.at(now, zone)
        if first >= last:
            raise UsageError(f"--exclude of {reason!r} ends before it begins\nwrite SINCE..UNTIL=REASON")
        windows.append(Window(first, last, reason))
    return name, Options(since, until, tuple(windows), tuple(args.credits), args.incident_burn, args.incident_gap)


# --- The output of `stagetrace report`: a sentence, tables, digests, keys of `--json`. Nothing in it depends on now.

_DIGITS: Final = 12  # that are the same whatever the order in which a database sums up
_LISTED: Final = 100  # incidents in the table
_BARS: Final = 12
_NAMED: Final = 2  # causes of an incident in the table
_TRACES: Final = 3
_CONSTRUCTION: Final = (
    "SHA-256 of the options, of the number of requests, and of two sums, modulo 2^64, of the first and second quarter "
    "of each request's SHA-256 (trace id, span id, service, start, verdict, route, objective, target, and the verdicts "
    "of several objectives): order, copies and kind of store do not change it"
)


def sentence(found: Found, name: str, zone: Zone) -> str:
    """Return the report in one sentence."""
    period = f"{name} ({zone.name})"
    if not found.lines:
        return f"No request was judged in {period}, out of {objectives.requests(found.requests.requests)}."
    met = sum(one.missed is False for one in found.lines)
    judged = sum(one.counts.judged for one in found.lines)
    breaches = sum(one.counts.breaches for one in found.lines)
    many = len(found.lines)
    of = f"{met} of {objectives.requests(many, 'objective')} {'was' if many == 1 else 'were'} met in {period}"
    unknown = many - met - len(found.missed)
    rest = f"; {unknown} unknown" if unknown else ""
    about = "about " if any(one.counts.is_sampled for one in found.lines) else ""
    incidents = objectives.requests(len(found.incidents) + found.incidents_left, "incident")
    late = f"{round(breaches):,} breach{'' if round(breaches) == 1 else 'es'}"
    return f"{of}: {about}{objectives.requests(judged)} judged, {late}, {incidents}{rest}."


def json_keys(
    found: Found, options: Options, wanted: Selection, name: str, zone: Zone, policy: Policy | None = None
) -> dict[str, Any]:
    """Return the keys of `--json`; the digest of the result is of all others."""
    result = {
        "period": {
            "name": name,
            "zone": zone.name,
            "since_unix_nano": options.since_ns,
            "until_unix_nano": options.until_ns,
        },
        "told": bool(found.lines) and not found.undetermined,
        "requests": round(found.requests.requests),
        "judged": round(sum(one.counts.judged for one in found.lines)),
        "breaches": round(sum(one.counts.breaches for one in found.lines)),
        "excluded": _reasons(found.excluded),
        "unjudged": _reasons(found.unjudged),
        "objectives": [_line(one, options) for one in found.lines],
        **({} if policy is None else {"unused": list(found.unused)}),
        "incidents": [
            keys_of(one, "target_text", judged=round(one.judged), causes=[cause._asdict() for cause in one.causes])
            for one in found.incidents
        ],
        "stored": found.stored,
        "first_unix_nano": found.first_unix_nano,
        "last_unix_nano": found.last_unix_nano,
    }
    meant = {
        "since": options.since_ns,
        "until": options.until_ns,
        "excluded": [list(one) for one in options.excluded],
        "credits": [[str(part) for part in one] for one in options.tiers],
        "incidents": [options.burn, options.gap_s],
        **({} if policy is None else {"targets": [[one.name, one.target_text] for one in policy.objectives]}),
        "selection": [wanted.service, wanted.route, wanted.model, sorted(wanted.segments.items()), wanted.limit],
    }
    inputs = digest_of(meant, found.stored, [str(one) for one in found.sums])
    return {**result, "digest": {"inputs": inputs, "result": digest_of(result), "construction": _CONSTRUCTION}}


def _reasons(found: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"reason": reason, "requests": round(count)} for reason, count in found.items()]


def _line(one: Line, options: Options) -> dict[str, Any]:
    known = one.attained
    return keys_of(
        one,
        *("target_text", "counts", "attained", "credit"),
        *(("description", "is_in_policy") if one.is_in_policy is None else ()),
        target=one.target.share,
        judged=round(one.counts.judged),
        breaches=round(one.counts.breaches),
        attainment=None if known is None else round(known.value, _DIGITS),
        interval=None if known is None else [round(known.low, _DIGITS), round(known.high, _DIGITS)],
        credit_percent=None if one.credit is None or not options.tiers else float(one.credit),
        estimated=known is not None and known.is_estimate,
        sampling_known=not one.counts.is_unknown,
    )


def parts(
    found: Found, options: Options, digest: Mapping[str, str], reason: str | None, zone: Zone
) -> Iterator[str | Table | Bars]:
    """Yield the parts below the sentence."""
    ends = [f"{shown(at, zone, 0)} {zone.name}" for at in (options.since_ns, options.until_ns)]
    yield f"From {ends[0]} up to {ends[1]}, by the start of each request."
    yield from _caveats(found, reason)
    if found.first_unix_nano is not None and found.last_unix_nano is not None:
        first, last = (f"{shown(at, zone, 0)}" for at in (found.first_unix_nano, found.last_unix_nano))
        yield f"The store holds {objectives.requests(found.stored)} of this period, from {first} to {last} {zone.name}."
    if found.lines:
        yield _objectives(found, options)
        yield Bars("Error budget of the period that was spent", list(_spent(found)), whole=1.0)
        yield from _of_policy(found)
    counted = [(reason, count) for listed in (found.excluded, found.unjudged) for reason, count in listed.items()]
    if counted:
        rows = [(why, f"{count:,.0f}") for why, count in counted]
        yield Table((Column("requests that do not count"), numeric("requests")), rows)
    if found.incidents:
        yield _incidents(found.incidents[:_LISTED], zone)
        yield from _definition(found, options)
    elif found.lines:
        yield "No incident."
    yield f"Digest of the inputs: {digest['inputs']} ({_CONSTRUCTION})."
    yield f"Digest of the result: {digest['result']} (SHA-256 of the keys of --json)."


def _caveats(found: Found, reason: str | None) -> Iterator[str]:
    if reason is not None:
        yield f"Not complete: {reason}. Counts and digests are of what was there."
    estimated = [one for one in found.lines if one.attained is not None and one.attained.is_estimate]
    if estimated:
        of = objectives.requests(len(estimated), "objective")
        yield f"~ Of {of} counts are estimates out of sampled requests (breaches are all there)."
    if found.undetermined:
        of = objectives.requests(len(found.undetermined), "objective")
        yield f">= Of {of} it is not known how requests were sampled: the result is unknown."


def _objectives(found: Found, options: Options) -> Table:
    heads = [Column("service", kind=COMMON), Column("route", leaves=3), Column("objective")]
    heads += [*numbers("wanted", "judged", "breaches", "attainment"), Column("95 %", leaves=2), Column("met")]
    heads += numbers("credit") if options.tiers else []
    amounts = ["?" if one.credit is None else f"{float(one.credit):g} %" for one in found.lines]
    rows = [
        (*_cells(one), *([credit] if options.tiers else [])) for one, credit in zip(found.lines, amounts, strict=True)
    ]
    return Table(heads, rows)


def _of_policy(found: Found) -> Iterator[str]:
    """Yield what the policy says of the objectives, and where requests and policy have different ones."""
    described = {one.objective: one.description for one in found.lines if one.description}
    yield from (f"{name}: {description}" for name, description in described.items())
    gone = dict.fromkeys(one.objective or "" for one in found.lines if one.is_in_policy is False)
    if gone:
        yield f"The policy has no such objectives, and their targets are the recorded ones: {_names(gone)}."
    if found.unused:
        yield f"No request under these objectives of the policy: {_names(found.unused)}."


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed[:_LISTED])}{f' and {len(listed) - _LISTED:,} more' if len(listed) > _LISTED else ''}"


def _spent(found: Found) -> Iterator[tuple[str, float | None, str]]:
    for one in found.lines[:_BARS]:
        known = one.attained
        spent = None if known is None or one.target.budget <= 0 else (1 - known.value) / one.target.budget
        text = "?" if spent is None else objectives.spent(spent) if spent > 1 else f"{100 * spent:.0f} %"
        name = (one.objective or one.route).partition(" within ")[0]
        yield f"{name} of {one.service}", -spent if spent is not None and spent > 1 else spent, text


def _cells(one: Line) -> tuple[str, ...]:
    known = one.attained
    return (
        one.service,
        one.route,
        one.objective or "-",
        objectives.wanted(one.target.share),
        objectives.about(one.counts.judged, one.counts),
        f"{one.counts.breaches:,.0f}",
        "?" if known is None else f"{'~' if known.is_estimate else ''}{objectives.percent(known.value)}",
        "-" if known is None else objectives.interval(known),
        "?" if one.missed is None else "no" if one.missed else "yes",
    )


def _incidents(listed: tuple[Incident, ...], zone: Zone) -> Table:
    return table_of(
        listed,
        (
            (Column(f"incident from ({zone.name})", kind=TIME), lambda one: shown(one.since_unix_nano, zone, 0)),
            (numeric("minutes"), lambda one: f"{(one.until_unix_nano - one.since_unix_nano) / 60e9:.0f}"),
            (Column("service", kind=COMMON), lambda one: one.service),
            (Column("route"), lambda one: one.route),
            (numeric("judged"), lambda one: f"{one.judged:,.0f}"),
            (numeric("breaches"), lambda one: f"{one.breaches:,}"),
            (Column("stage: cause"), lambda one: ", ".join(_cause(each, one) for each in one.causes[:_NAMED]) or "-"),
            (
                Column("traces", leaves=1),
                lambda one: " ".join(dict.fromkeys(cause.trace_id for cause in one.causes[:_TRACES])) or "-",
            ),
        ),
    )


def _cause(cause: Cause, one: Incident) -> str:
    named = f"{cause.stage or '(no stage)'}: {cause.cause or 'unknown'}"
    return f"{named} {100 * cause.breaches / one.breaches:.0f} %"


def _definition(found: Found, options: Options) -> Iterator[str]:
    yield (
        f"An incident is a run of minutes, {objectives.length(options.gap_s)} apart at most, each with {LEAST} "
        f"breaches or more and a burn rate of {options.burn:g} or more (or {100 * MOST_SHARE:.0f} % breaches, where "
        "that is less)."
    )
    if len(found.incidents) > _LISTED:
        yield f"These are the first {_LISTED} of {len(found.incidents):,} incidents; --json has all."

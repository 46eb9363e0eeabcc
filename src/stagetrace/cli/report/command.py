"""`stagetrace report`: whether objectives were met in a period, with all that does not count, and why."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments.options import add_selection, selection, store_url, utf8
from stagetrace.cli.arguments.policy import add_policy, policy_if_any
from stagetrace.cli.ask import ask_store
from stagetrace.cli.base import UsageError
from stagetrace.cli.output.formats import add_format
from stagetrace.cli.report import view
from stagetrace.cli.report.all_answers import add_all, run_all
from stagetrace.cli.report.calendar_period import FORMS, last_month, period
from stagetrace.output.answer import Answer
from stagetrace.output.times import Moment, Zone, between, moment, shown

if TYPE_CHECKING:
    from stagetrace.analysis.report import Options, Tier
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Report on a period: of each objective how many requests were judged, how many were breaches and whether it was\n"
    "met; what does not count, and why; credits; incidents with their causes; and digests, by which reports can be\n"
    "compared. The same requests give the same report on every run. Exits with 1 if an objective was missed, with 2\n"
    "if nothing was judged, or the result of one objective is unknown."
)
EXAMPLE: Final = "stagetrace report --period 2026-10 --tz Europe/Berlin --credits 99.9:10%,99:25% --format html"
_NS: Final = 10**9
_ALL: Final = 100
_PERCENT: Final = re.compile(r"\d{1,3}(\.\d{1,9})?|\.\d{1,9}", re.ASCII)
_EVER: Final = Moment(0, ago=False)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser, "the period", cause=False)
    parser.add_argument(
        "--period", metavar="NAME", type=period, help=f"{FORMS}, of the zone --tz; default: the last full month"
    )
    parser.add_argument(
        "--exclude",
        metavar="SINCE..UNTIL=REASON",
        type=_excluded,
        action="append",
        default=[],
        help="time that does not count, such as maintenance; may be repeated, and where some overlap, the first has it",
    )
    parser.add_argument(
        "--credits",
        metavar="BELOW:CREDIT,...",
        type=_tiers,
        default=(),
        help="credits by attainment: 99.9:10%%,99:25%% is 10 %% below 99.9 %%, and 25 %% below 99 %%",
    )
    parser.add_argument(
        "--incident-burn",
        metavar="RATE",
        type=_rate,
        default=10.0,
        help="burn rate from which on a minute is part of an incident; default: 10",
    )
    parser.add_argument(
        "--incident-gap",
        metavar="DURATION",
        type=_gap,
        default=300.0,
        help="such minutes that are no further apart are one incident; default: 5m",
    )
    add_policy(parser)
    add_all(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    if args.all:
        url = store_url(args)
        return run_all(args, url, selection(args, url))
    if args.options or args.bench:
        raise UsageError("--with and --bench go with --all\nadd it")
    return ask_store(args, answer, _EVER)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the report of the period. Raise UsageError if options contradict each other."""
    from stagetrace.analysis import report

    now = time.time_ns()
    name, options = _options(args, wanted, now)
    wanted = replace(wanted, since_ns=options.since_ns, until_ns=options.until_ns)
    policy, unread = policy_if_any(args)
    with reader.relations(wanted) as relations:
        found = report.ask(relations, options, policy)
        reasons = [one for one in (relations.reason, unread) if one is not None]
    if options.until_ns > now:
        reasons.append(f"the period ends at {shown(options.until_ns, args.tz, 0)} {args.tz.name}, which is to come")
    if found.lines_left:
        reasons.append(f"{found.lines_left:,} objectives and routes with fewer breaches are not listed")
    if found.incidents_left:
        reasons.append(f"{found.incidents_left:,} incidents with fewer breaches are not listed")
    reason = "; ".join(reasons) or None
    keys = view.keys(found, options, wanted, name, args.tz, policy)
    return Answer(
        f"Report of service levels: {name} ({args.tz.name})",
        view.sentence(found, name, args.tz),
        keys,
        list(view.parts(found, options, keys["digest"], reason, args.tz)),
        is_bad=bool(found.missed),
        is_undecided=not keys["told"],
        reason=reason,
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


def _excluded(text: str) -> tuple[Moment, Moment, str]:
    """Return begin, end and reason of `SINCE..UNTIL=REASON`."""
    times, _, reason = utf8(text).partition("=")
    if not reason.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not SINCE..UNTIL=REASON")
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
            raise argparse.ArgumentTypeError(f"{one!r} is not BELOW:CREDIT, both in percent, as 99.9:10%")
        tiers.append(tier)
    if len({tier.below for tier in tiers}) < len(tiers):
        raise argparse.ArgumentTypeError(f"{text!r} names one attainment twice")
    return tuple(sorted(tiers, reverse=True))


def _rate(text: str) -> float:
    """Return a number above 0."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not isfinite(rate) or rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


def _gap(text: str) -> float:
    """Return a length of time in seconds."""
    found = moment(text)
    if not found.ago:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time, as 5m")
    return found.ns / _NS

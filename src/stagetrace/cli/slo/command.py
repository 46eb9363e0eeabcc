"""`stagetrace slo`: whether each objective is kept, and how long its error budget lasts."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from stagetrace.analysis.attainment import COLUMNS, Counts, Exact
from stagetrace.cli.arguments.options import add_selection, is_file, store_url, utf8
from stagetrace.cli.arguments.policy import add_policy, policy_if_any
from stagetrace.cli.output.formats import add_format
from stagetrace.cli.slo import view
from stagetrace.output import objectives
from stagetrace.output.answer import Answer
from stagetrace.output.times import Moment, Zone, shown
from stagetrace.sla.objective import DEFAULT_WINDOW_S
from stagetrace.store.base import COUNTS, Reader, Relations, Selection

if TYPE_CHECKING:
    from stagetrace.analysis.slo import Found

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
SINCE: Final = Moment(0, ago=False)  # each objective has its own window


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser, "the window of each objective", cause=False)
    parser.add_argument(
        "--by",
        metavar="ATTRIBUTE",
        type=_attribute,
        help="each value of this attribute, or column of `requests`, by itself",
    )
    add_policy(parser)
    add_format(parser)


def _attribute(text: str) -> str:
    """Return the key to group by."""
    if not text or text in (*COLUMNS, "attributes", "stages"):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be grouped by: name an attribute, as tenant.id")
    return utf8(text)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the answer: of each objective's own window, or, where `--since` is given, from then on."""
    from stagetrace.analysis import slo

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
                end = _newest(relations, end)
            found = slo.ask(relations, end, since, args.by, _exact(reader, wanted, end, args.by), policy)
            reasons = [] if relations.reason is None else [relations.reason]
        if start == 0 or since is not None or found.longest_s <= read:
            break
        read = found.longest_s
    if unread is not None:
        reasons.append(unread)
    if found.left:
        reasons.append(f"{found.left:,} groups with fewer breaches are not listed: select fewer, or drop --by")
    is_told = bool(found.objectives) and not found.undetermined
    return Answer(
        TITLE,
        view.sentence(found) if found.objectives else f"{_nothing(found, reader, wanted, end, args.tz)}.",
        {
            "until_unix_nano": end,
            "told": is_told,
            "objectives": [view.as_json(one, args.by) for one in found.objectives],
            **({} if policy is None else {"unused": list(found.unused)}),
            "changes": [one._asdict() for one in found.changes],
            "unjudged": round(found.unjudged.requests - found.unjudged.excluded),
            "excluded": round(found.unjudged.excluded),
        },
        list(view.parts(found, args.by, args.tz)) if found.objectives else (),
        is_bad=bool(found.missed),
        is_undecided=not is_told,
        reason="; ".join(reasons) or None,
    )


def _exact(reader: Reader, wanted: Selection, end: int, by: str | None) -> Exact | None:
    """Return a function for the counts that services have sent, if the store has any that match the selection."""
    if COUNTS not in reader.capabilities or by is not None or replace(wanted, service=None, route=None).is_filtered:
        return None

    @cache
    def counted(start: int) -> dict[tuple[str, str, str | None], Counts]:
        from stagetrace.analysis import routes
        from stagetrace.analysis.attainment import Counts

        part = replace(wanted, since_ns=start, until_ns=end)
        own = reader.counted(part)  # type: ignore[attr-defined]
        if not own:
            return {}
        with reader.relations(part) as relations:
            found = routes.exactly(relations, routes.ask(relations), own)
        return {
            (one.service, one.route, one.objective): Counts(
                one.requests, one.judged - one.breaches, one.breaches, stored=one.sample.rows, is_counted=True
            )
            for one in found
            if one.sample.is_counted
        }

    return counted


def _newest(relations: Relations, otherwise: int) -> int:
    """Return the end of the time of a file's requests."""
    from stagetrace.store import answers

    newest = answers.newest(relations)
    return otherwise if newest is None else newest + 1


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

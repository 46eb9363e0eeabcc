"""How many requests missed their objective, out of how many, and where the time went: in one or two sentences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from stagetrace.output import sampling
from stagetrace.output.times import UTC, Zone, shown, window
from stagetrace.printable import printable
from stagetrace.store.base import Lost, Selection, Tally

_CAUSES: Final = 5  # named one by one
_SERVICES: Final = 5
_AGO: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_FROM: Final = 2  # of a unit, or the smaller unit is used
_SECOND_MS: Final = 1000.0


def summary(tally: Tally, wanted: Selection, services: Sequence[str], zone: Zone = UTC) -> list[str]:
    """Return the answer in a sentence, and its subject: a selection, in these services."""
    if not services:
        return ["The store holds no spans of any service yet."]
    is_narrowed = replace(wanted, service=None, judged_by=None, limit=None, causes=(), codes=()).is_filtered
    of = f"{_listed(tally.services or services)}{window(wanted.since_ns, wanted.until_ns, zone)}"
    about = f"{'The selected' if is_narrowed else 'All'} requests of {of}"
    if not tally.requests:
        return [f"No requests in this window{_last(tally, zone)}.", f"{about}."]
    if not tally.judged:
        return [
            f"{tally.requests:,} request{'' if tally.requests == 1 else 's'}, none judged: {_why(tally)}.",
            f"{about}.",
        ]
    missed, of_how_many = _missed(tally)
    because = f" because of {' or '.join(wanted.causes)}" if wanted.causes else ""
    at = f" at {printable(' or '.join(wanted.codes))}" if wanted.codes else ""
    what = "their objective" if wanted.judged_by is None else printable(wanted.judged_by)
    rest = tally.requests - tally.judged - tally.excluded
    more = [f"{tally.excluded:,} excluded"] if tally.excluded else []
    more += [f"{rest:,} that no objective matches"] if rest else []
    unjudged = f"; not judged: {', '.join(more)}" if more else ""
    note = sampling.note("the count", tally.sample)
    return [
        f"{missed} missed {what}{because}{at}{_over(tally)}{of_how_many}.",
        f"{about}{unjudged}.",
        *([] if note is None else [f"{note}."]),
    ]


def _missed(tally: Tally) -> tuple[str, str]:
    """Return how many requests are breaches, and the end of the sentence: `of` a bound would read as a share."""
    judged = f"{sampling.mark(tally.sample)}{tally.judged:,} judged request{'' if tally.judged == 1 else 's'}"
    if tally.reason is None:
        return f"{tally.missed:,} of {sampling.mark(tally.sample)}{tally.judged:,} judged requests", ""
    missed = f"{tally.missed:,} request{'' if tally.missed == 1 else 's'}"
    return f"{'' if tally.all_missed else 'at least '}{missed}", f"; of how many is not known: only {judged} were read"


def _over(tally: Tally) -> str:
    """Return how much time was lost in all, and to which stages and causes, the most first."""
    if not tally.missed:
        return ""
    whole = tally.overrun_ms
    lost = f"{whole / _SECOND_MS:.1f} s" if whole >= _SECOND_MS else f"{whole:.1f} ms"
    if whole <= 0:
        return ""
    named = [f"{_kind(one)} {100 * one.overrun_ms / whole:.0f} %" for one in tally.lost[:_CAUSES]]
    rest = tally.lost[_CAUSES:]
    if rest:
        named.append(
            f"{len(rest)} other{'s' if len(rest) > 1 else ''} {100 * sum(one.overrun_ms for one in rest) / whole:.0f} %"
        )
    return f", {lost} over in all: {', '.join(named)}"


def _kind(one: Lost) -> str:
    return printable(f"{one.stage or '(no stage)'}/{one.cause or 'unknown'}")


def _why(tally: Tally) -> str:
    """Return why no request was judged."""
    if tally.excluded == tally.requests:
        return "the policy excludes them"
    rest = tally.requests - tally.excluded
    if not tally.recorded:
        return "their spans carry no verdict, which only stagetrace writes (STAGETRACE=1 and STAGETRACE_SLA)"
    besides = f"{tally.excluded:,} excluded, and of the other {rest:,} " if tally.excluded else ""
    return f"{besides}no objective matches (STAGETRACE_SLA of the service)"


def _last(tally: Tally, zone: Zone) -> str:
    """Return when there were requests, if ever."""
    if tally.newest_unix_nano is None:
        return ", nor at any other time"
    seconds = (time.time_ns() - tally.newest_unix_nano) // 10**9
    at = f"{shown(tally.newest_unix_nano, zone, 0)} {zone.name}"
    if seconds < 0:
        return f", the last one at {at}"
    size, unit = next((one for one in _AGO if seconds >= _FROM * one[0]), _AGO[-1])
    return f", the last one {seconds // size} {unit} ago, at {at}"


def _listed(services: Sequence[str]) -> str:
    more = f" and {len(services) - _SERVICES} more" if len(services) > _SERVICES else ""
    return f"{', '.join(map(printable, services[:_SERVICES]))}{more}"

"""`stagetrace why`: what is wrong now, in groups of breaches; with a trace, why that one request was late."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import ALONE, TRACE, next_command, selection_options, whole_id
from stagetrace.cli.ask import PRINTED, judged
from stagetrace.errors import UnknownTrace
from stagetrace.output.answer import Answer, completeness, join_reasons, keys_of
from stagetrace.output.breaches import (
    BREACH,
    NOT_JUDGED,
    blame_text,
    missed_keys,
    owners_of,
    stage_of,
    summary,
    total,
    verdict,
    verdict_of,
    worst_paths,
)
from stagetrace.output.table import COMMON, TIME, Column, Table, numeric, table_of
from stagetrace.output.units import Zone, milliseconds, percent, release_name, shown, since_text, values_text
from stagetrace.store.base import SERVER, Entry, Reader, Relations, Selection
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.analysis.breach_details import Owner
    from stagetrace.analysis.why import Explained, One, Usual
    from stagetrace.output.breaches import Verdict

DESCRIPTION: Final = (
    "Tell what is wrong now: how many requests missed their objective, and the largest groups of them, each with its\n"
    "stage, cause and line of code, who is hit, since when, and how much time is lost. With a trace, tell why that\n"
    "one request was late: what its verdict says, what its stages usually take, and how many others are like it."
)
EXAMPLE: Final = "stagetrace why --service api --since 15m"
OPTIONS: Final = (TRACE._replace(many="?", default=None), *selection_options(), *PRINTED)
TITLE: Final = "Why requests are late"
_GROUPS: Final = 5
_TOLD: Final = 10  # breaches, as `analysis.causes` needs to compare them
_HOUR_NS: Final = 3600 * 10**9
_TALLY: Final = ("requests", "judged", "missed", "overrun_ms")
_JUDGED: Final = ("objective", "threshold_ms", "overrun_ms", "severity", "stage")
_HIT: Final = ("values", "breached", "good", "relative_risk")


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what is wrong in a selection, or why one request was late."""
    return _of_trace(reader, args) if args.id is not None else _of_now(reader, wanted, args)


def _of_now(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    from stagetrace.analysis import why

    tally = reader.breaches(replace(wanted, limit=1)).tally
    text = " ".join(summary(reader, tally, wanted, args.tz))
    keys = {name: getattr(tally, name) for name in _TALLY} | {"different": 0, "groups": []}
    if not tally.missed:
        step = "stages" if tally.judged else "sla suggest" if tally.requests else "doctor"
        return Answer(TITLE, text, keys, reason=tally.reason, steps=[next_command(args, step)])
    with reader.relations(wanted) as relations:
        found, different = why.ask(relations, _GROUPS)
    paths = worst_paths(reader, [one.group for one in found])
    return Answer(
        TITLE,
        text,
        {**keys, "different": different, "groups": [_group(one, tally.missed) for one in found]},
        [_groups(found, paths, different, tally.missed, args.tz)],
        reason=join_reasons([relations.reason, tally.reason]),
        steps=[next_command(args, "why", one.group.worst_trace_id, **ALONE) for one in found[:1]],
    )


def _group(one: Explained, missed: int) -> dict[str, Any]:
    """Return a group as JSON has it; `missed`: how many breaches there are, of any group."""
    at, release = (None, None) if one.since is None else one.since
    return {
        **asdict(one.group),
        "share": one.group.breaches / missed,
        "hit": None if one.hit is None else {name: getattr(one.hit, name) for name in _HIT},
        "since_unix_nano": at,
        "since_release": release and release.keys(),
    }


def _groups(
    found: Sequence[Explained], paths: Mapping[tuple[str, str], str], different: int, missed: int, zone: Zone
) -> Table:
    return table_of(
        found,
        (
            (numeric("breaches"), lambda one: f"{one.group.breaches:,}"),
            (numeric("of all", 2), lambda one: percent(one.group.breaches / missed)),
            (numeric("over in all"), lambda one: total(one.group.lost_ms)),
            (Column("service", kind=COMMON, leaves=1), lambda one: one.group.service),
            (Column("request"), lambda one: one.group.route),
            (Column("stage"), lambda one: stage_of(one.group, paths)),
            (Column("line of code", kind=COMMON), lambda one: one.group.code or "-"),
            (Column("who is hit (how many of them)"), _who),
            (Column(f"since ({zone.name})", kind=TIME), lambda one: shown(_begin(one), zone, 0)),
            (Column("with", kind=COMMON, leaves=3), _release),
        ),
        None if different <= len(found) else f"The largest {len(found)} of {different:,} groups of breaches",
    )


def _who(one: Explained) -> str:
    if one.hit is None:
        return "all alike" if one.group.breaches >= _TOLD else "too few to tell"
    return f"{values_text(one.hit.values)} ({percent(one.hit.breached / (one.hit.breached + one.hit.good))})"


def _begin(one: Explained) -> int:
    return one.group.first_unix_nano if one.since is None else one.since.at_unix_nano


def _release(one: Explained) -> str:
    return "-" if one.since is None or one.since.release is None else release_name(one.since.release)


# --- Why one request was late: its verdict, the evidence, what its stages usually take, and how many are like it.


def _of_trace(reader: Reader, args: argparse.Namespace) -> Answer:
    from stagetrace.analysis import why

    meant = whole_id(reader, args.id, args.service, breached=False)
    trace = reader.trace(meant.trace_id)
    found = [verdict_of(span, trace.spans) for span in trace.spans if span.kind == SERVER]
    if not found:
        raise UnknownTrace(
            f"trace {meant.trace_id} has no request: no span of kind SERVER\ndraw it: stagetrace trace {meant.trace_id}"
        )
    near = judged(reader, _around(one.entry for one in found), args)
    if near.judging is not None:
        with reader.relations(near) as relations:
            found = [_afterwards(one, relations) for one in found]
    one = max(found, key=_harm)
    entry = one.entry
    kind = (entry.stage, entry.cause, entry.code) if one.word == BREACH else None
    route = request_text(entry.name, entry.route)
    near = replace(_around([entry]), service=entry.service, route=route, judging=near.judging)
    with reader.relations(near) as of:
        others = why.ask_one(of, kind)
    (owner,) = owners_of(reader, [entry])
    usual = {each.stage: each for each in others.usual}
    return Answer(
        TITLE,
        " ".join(_sentences(one, owner, usual, others, args.tz)),
        {
            "trace_id": entry.trace_id,
            "span_id": entry.span_id,
            "verdict": one.word,
            **keys_of(entry, "trace_id", "span_id", duration_ms=entry.duration_ms, missed=missed_keys(entry)),
            "owner": {**owner.last._asdict(), **completeness(owner.reason)},
            "usual": [each._asdict() for each in others.usual],
            "alike": None if others.alike is None else _group(others.alike, others.breaches),
        },
        [_stages(entry, usual)],
        reason=join_reasons([trace.reason, of.reason]),
        steps=[next_command(args, "trace", entry.trace_id, **ALONE)],
    )


def _around(entries: Iterable[Entry]) -> Selection:
    """Return the requests within an hour of these."""
    starts = [one.start_unix_nano for one in entries]
    return Selection(max(0, min(starts) - _HOUR_NS), max(starts) + _HOUR_NS)


def _afterwards(one: Verdict, relations: Relations) -> Verdict:
    """Return the verdict that `--sla` gives a request without one."""
    from stagetrace.store import answers

    row = answers.request(relations, one.entry) if one.word == NOT_JUDGED else None
    if row is None:
        return one
    entry = replace(one.entry, **{name: row[name] for name in _JUDGED})
    return verdict(entry, row["breached"], is_excluded=row["verdict"] == answers.EXCLUDED)


def _harm(one: Verdict) -> tuple[bool, float, float]:
    return one.word == BREACH, one.entry.overrun_ms or 0.0, one.entry.duration_ms


def _sentences(one: Verdict, owner: Owner, usual: Mapping[str | None, Usual], found: One, zone: Zone) -> Iterator[str]:
    """Yield the verdict, why it is so, and how many are like it."""
    entry = one.entry
    yield f"{one.word}: {one.sentence}."
    if one.word != BREACH:
        return
    at = f" at {entry.code}" if entry.code else ""
    took = "" if entry.stage not in entry.stages else f" took {milliseconds(entry.stages[entry.stage or ''])}"
    yield f"Stage {blame_text(entry, owner)}{at}{took}."
    if entry.evidence:
        yield f"{entry.evidence}."
    if entry.stage in usual:
        yield f"Usually {entry.stage} takes {milliseconds(usual[entry.stage].median_ms)}."
    if found.alike is not None and found.alike.group.breaches > 1:
        count, since = found.alike.group.breaches, found.alike.since
        begun = "all the time" if since is None else f"since {since_text(*since, zone)}"
        hit = "" if found.alike.hit is None else f", and hit {_who(found.alike)}"
        yield f"{count:,} of the {found.breaches:,} breaches of this route within an hour are like it, {begun}{hit}."


def _stages(entry: Entry, usual: Mapping[str | None, Usual]) -> Table:
    rows = [*entry.stages.items(), (None, entry.duration_ms)]
    return table_of(
        [(stage, took, usual.get(stage)) for stage, took in rows],
        (
            (
                Column("stage"),
                lambda one: (
                    "(request)" if one[0] is None else f"{one[0]}{' < culprit' if one[0] == entry.stage else ''}"
                ),
            ),
            (numeric("took"), lambda one: milliseconds(one[1])),
            (numeric("usually"), lambda one: milliseconds(one[2] and one[2].median_ms)),
            (numeric("95 % of good ones take up to"), lambda one: milliseconds(one[2] and one[2].p95_ms)),
        ),
    )

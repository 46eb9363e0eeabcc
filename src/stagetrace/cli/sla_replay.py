"""`stagetrace sla replay`: what a policy would have said of stored requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import POLICY, is_file, next_command, policy_of, selection_options, store_url
from stagetrace.cli.ask import PRINTED
from stagetrace.output import objectives
from stagetrace.output.answer import Answer, join_reasons, keys_of, no_requests
from stagetrace.output.table import COMMON, TRACE, Column, Table, numeric, table_of
from stagetrace.output.units import rounded_percent

if TYPE_CHECKING:
    import argparse

    from stagetrace.analysis.policy_replay import Change, Found, Outcome
    from stagetrace.store.base import Reader, Selection

TITLE: Final = "A policy over stored requests"
DESCRIPTION: Final = (
    "Show what each objective of a policy would have decided on stored requests: attainment with its 95 % interval,\n"
    "budget, breaches a day; and which verdicts differ from the recorded ones. A verdict that depends on what is not\n"
    "stored of a request (headers, baggage) is unknown. Of sampled requests, those that only this policy finds late\n"
    "were kept by chance; the interval allows for that. Exits with 1 if an objective is missed, with 2 if no request\n"
    "is judged."
)
EXAMPLE: Final = "stagetrace sla replay --policy sla.yaml --since 7d --service api"
OPTIONS: Final = (POLICY, *selection_options(cause=False, sla=False), *PRINTED)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what the policy says of the selected requests."""
    from stagetrace.analysis import policy_replay

    policy = policy_of(args)
    is_recording = args.until is None and is_file(store_url(args))
    until = None if is_recording else min(wanted.until_ns, time.time_ns())
    with reader.relations(wanted) as relations:
        found = policy_replay.ask(relations, policy, wanted.since_ns, until)
        reasons = [relations.reason]
    if found.left >= 1:
        reasons.append(f"{objectives.requests(found.left)} beyond the largest groups are not replayed: select fewer")
    is_told = any(one.judged for one in found.outcomes)
    return Answer(
        TITLE,
        sentence(found) if found.requests else no_requests(wanted, args.tz),
        keys(found),
        list(parts(found)) if found.requests else (),
        is_bad=any(one.missed for one in found.outcomes),
        is_undecided=not is_told,
        reason=join_reasons([*reasons, *policy.problems]),
        steps=[next_command(args, "slo")] if is_told else (),
    )


# --- The output of `stagetrace sla replay`: a sentence, a table of objectives, one of changes, the keys of `--json`.

_CHANGES: Final = 20
_NOT_JUDGED: Final = "not judged"


def sentence(found: Found) -> str:
    """Return the answer: how many objectives are kept, and how many verdicts differ."""
    asked = [one for one in found.outcomes if not one.objective.excludes]
    judged = [one for one in asked if one.attained is not None]
    missed = sum(one.missed is True for one in judged)
    open_ = sum(one.missed is None for one in judged)
    kept = f"{len(judged) - missed - open_} of {objectives.requests(len(asked), 'objective')} would be kept"
    rest = [f"{missed} missed"] if missed else []
    rest += [f"{open_} unknown"] if open_ else []
    rest += [f"{len(asked) - len(judged)} without a verdict"] if len(judged) < len(asked) else []
    differ = objectives.requests(sum(one.requests for one in found.changes), "verdict")
    of = objectives.requests(found.requests)
    return f"{', '.join([kept, *rest])}; out of {of}, {differ} would differ from what was recorded."


def keys(found: Found) -> dict[str, Any]:
    """Return the keys of `--json`."""
    return {
        "requests": round(found.requests),
        "stored": found.stored,
        "days": found.days,
        "unmatched": round(found.unmatched),
        "objectives": [_outcome(one) for one in found.outcomes],
        "changes": [keys_of(one, requests=round(one.requests), trace_ids=list(one.trace_ids)) for one in found.changes],
    }


def _outcome(one: Outcome) -> dict[str, Any]:
    known = one.attained
    return keys_of(
        one,
        *("attained", "is_estimate", "is_sampling_unknown", "hides"),
        objective=one.objective.name,
        target=one.target.share,
        window=one.objective.target_text.partition(" over ")[2],
        judged=round(one.judged),
        breaches=round(one.breaches),
        excluded=round(one.excluded),
        unknown=[{"reason": reason, "requests": round(count)} for reason, count in one.unknown.items()],
        recorded_breaches=round(one.recorded_breaches),
        attainment=None if known is None else known.value,
        interval=None if known is None else [known.low, known.high],
        estimated=one.is_estimate,
        sampling_known=not one.is_sampling_unknown,
        sampling_hides_breaches=one.hides,
    )


def parts(found: Found) -> Iterator[str | Table]:
    """Yield the tables, and lines beneath."""
    yield table_of(
        found.outcomes,
        (
            (Column("objective"), lambda one: one.objective.name),
            (numeric("judged"), lambda one: _about(one.judged, one)),
            (numeric("breaches"), lambda one: _about(one.breaches, one)),
            (numeric("recorded", 3), lambda one: f"{one.recorded_breaches:,.0f}"),
            (numeric("a day", 2), lambda one: f"{one.breaches_a_day:,.3g}"),
            (
                numeric("attainment"),
                lambda one: "-" if one.attained is None else objectives.percent(one.attained.value),
            ),
            (Column("95 %", leaves=1), lambda one: "-" if one.attained is None else objectives.interval(one.attained)),
            (numeric("wanted"), lambda one: objectives.wanted(one.target.share)),
            (numeric("budget left"), lambda one: rounded_percent(one.budget_left)),
            (numeric("unknown", 4), lambda one: f"{sum(one.unknown.values()):,.0f}"),
        ),
    )
    if found.changes:
        yield _changes(found.changes[:_CHANGES])
    if len(found.changes) > _CHANGES:
        yield f"These are {_CHANGES} of {len(found.changes):,} kinds of changes; --json has all."
    yield from _lines(found)


def _about(count: float, one: Outcome) -> str:
    return f"{'>=' if one.is_sampling_unknown else '~' if one.is_estimate else ''}{count:,.0f}"


def _changes(listed: tuple[Change, ...]) -> Table:
    return table_of(
        listed,
        (
            (Column("recorded as"), lambda one: one.was or _NOT_JUDGED),
            (Column("would be"), lambda one: one.now or _NOT_JUDGED),
            (numeric("requests"), lambda one: f"{one.requests:,.0f}"),
            (Column("by"), lambda one: one.objective or "no objective"),
            (Column("recorded under", kind=COMMON, leaves=1), lambda one: one.recorded or "-"),
            (Column("trace", kind=TRACE), lambda one: one.trace_ids[0]),
        ),
        "Verdicts that differ, each with the trace of the slowest request",
    )


def _lines(found: Found) -> Iterator[str]:
    if found.unmatched:
        yield f"No objective of this policy is about {objectives.requests(found.unmatched)}."
    for one in found.outcomes:
        for why, count in one.unknown.items():
            yield f"{one.objective.name}: the verdict on {objectives.requests(count)} is unknown: {why}."
        if one.is_sampling_unknown:
            yield f"{one.objective.name}: it is not known how its requests were sampled, so its attainment is unknown."
        elif one.hides:
            yield (
                f"~ {one.objective.name}: requests were sampled, and those that only this policy finds late were kept "
                "by chance; the interval allows for it."
            )
        elif one.is_estimate:
            yield f"~ {one.objective.name}: estimated out of sampled requests (its breaches are all there)."

"""`stagetrace sla explain`: why a request has its verdict."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv, settings
from stagetrace.analysis.replay import JUDGES, NO_MATCH, NOT_ASKED, UNKNOWN, Explained, Step
from stagetrace.cli.arguments import BREACHED, JSON, LATEST, POLICY, STORE, TRACE, ZONE, policy_of, store_url, whole_id
from stagetrace.cli.output import show_result
from stagetrace.cli.registry import UsageError
from stagetrace.output.answer import keys_of
from stagetrace.output.units import milliseconds, shown, threshold
from stagetrace.semconv import text
from stagetrace.store import open_store
from stagetrace.store.base import SERVER, SpanRow, Trace
from stagetrace.store.entries import segment

if TYPE_CHECKING:
    from stagetrace.analysis.replay import Request as Stored
    from stagetrace.output.breaches import Verdict
    from stagetrace.output.units import Zone
    from stagetrace.policy.policy import Policy

DESCRIPTION: Final = (
    "Explain the verdicts of a trace: of each request what was recorded, and with a policy which of its objectives\n"
    "are about it, which are not and why, what their bounds are and where these come from, and what the request took."
)
EXAMPLE: Final = "stagetrace sla explain 4bf92f35 --policy sla.yaml"

OPTIONS: Final = (TRACE, POLICY, STORE, BREACHED, ZONE, JSON)


def run(args: argparse.Namespace) -> int:
    """Print the explanation and return the exit code."""
    if args.id != LATEST and args.breached:
        raise UsageError("--breached chooses the latest, and an id is given\nleave it out")
    has_policy = args.policy is not None or bool(settings.SLA.read().strip())
    policy = policy_of(args) if has_policy else None
    with open_store(store_url(args)) as reader:
        trace = reader.trace(whole_id(reader, args.id, None, breached=args.breached).trace_id)
    found = [_request(one, trace, policy) for one in trace.spans if one.kind == SERVER]
    if not found:
        raise UsageError(f"trace {trace.trace_id} holds no request: no span of kind SERVER\nname another trace")
    keys = {
        "trace_id": trace.trace_id,
        "policy": None if policy is None else policy.source or "inline",
        "requests": [_request_json(one) for one in found],
    }
    return show_result(args, keys, parts(policy, found, args.tz), trace.reason)


def _request(span: SpanRow, trace: Trace, policy: Policy | None) -> Request:
    """Return one request, with what the policy says of it."""
    from stagetrace.analysis import replay
    from stagetrace.analysis.replay import stored
    from stagetrace.output.breaches import verdict_of

    verdict = verdict_of(span, trace.spans)
    request = stored(span, () if policy is None else policy.keys, partial(segment, span))
    found = None if policy is None else replay.explain(policy, request, verdict.entry.stages)
    return Request(span, verdict, request, found)


# --- The output of `stagetrace sla explain`: lines for each request, or one object of JSON.

_STEPS: Final = 20  # objectives that do not judge the request, of which each has a line
_NONE: Final = "not judged"
_RECORDED: Final = (
    ("all verdicts", semconv.SLA_VERDICTS),
    ("target", semconv.SLA_TARGET),
    ("segment", semconv.SLA_SEGMENT),
    ("excluded for", semconv.SLA_EXCLUDED_REASON),
    ("threshold from", semconv.SLA_DEADLINE_SOURCE),
    ("stages over their budget", semconv.SLA_OVER_BUDGET),
    ("judged otherwise", semconv.SLA_FALLBACK),
)


class Request(NamedTuple):
    """One request: its entry span, the recorded verdict, what is known of it, what the policy says, if there is one."""

    span: SpanRow
    recorded: Verdict
    stored: Stored
    explained: Explained | None


def parts(policy: Policy | None, found: Sequence[Request], zone: Zone) -> Iterator[str]:
    """Yield the lines."""
    for place, one in enumerate(found):
        if place:
            yield ""
        at = f"{shown(one.span.start_unix_nano, zone)} {zone.name}"
        yield f"{one.recorded.sentence} ({at}, trace {one.span.trace_id})"
        under = one.stored.recorded.objective
        yield f"  recorded: {one.recorded.word.lower()}{'' if under is None else f' by `{under}`'}"
        details = ((name, text(one.span.attributes, attribute)) for name, attribute in _RECORDED)
        reasons = ((name, value) for name, value in one.recorded.reasons if name != "objective")
        yield from (f"    {name}: {value}" for name, value in (*details, *reasons) if value is not None)
        if policy is None or one.explained is None:
            yield "  Give --policy to see which objectives are about it, and why."
            continue
        yield f"  by {policy.source or 'the policy given'}: {_now(one)}"
        yield from _steps(one.explained.steps)


def _now(one: Request) -> str:
    """Return the verdicts by the policy, and whether they are the recorded ones."""
    verdicts = () if one.explained is None else one.explained.verdicts
    if not verdicts:
        differs = "" if one.stored.recorded.word is None else ", which differs from what was recorded"
        return f"{_NONE}: no objective is about it{differs}"
    words = [f"{each.word} by `{each.objective.name}`{_why(each.excluded)}" for each in verdicts]
    differ = [each for each in verdicts if each.word not in (UNKNOWN, one.stored.recorded.of(each.objective.name))]
    return f"{'; '.join(words)}{', which differs from what was recorded' if differ else ''}"


def _why(excluded: str | None) -> str:
    return "" if excluded is None else f" ({excluded})"


def _steps(steps: Sequence[Step]) -> Iterator[str]:
    others = [step for step in steps if step.outcome in (NO_MATCH, NOT_ASKED)]
    left = {id(step) for step in others[_STEPS:]}
    for place, step in enumerate(steps, 1):
        if id(step) in left:
            continue
        kind = f" (override of {step.objective.base})" if step.objective.base is not None else ""
        reason = step.why
        if step.outcome == JUDGES and step.judged is not None:
            missed = step.judged.missed
            reason += f"{'' if missed is None else f': {missed.text}'}{_why(step.judged.excluded)}"
        yield f"    {place}. {step.objective.name}{kind}: {step.outcome}, {reason}"
        for looked in step.conditions:
            value = "not stored" if looked.holds is None else "absent" if looked.value is None else looked.value
            yield f"         {looked.key} is to be {looked.glob}: {value}"
        for bound in step.bounds:
            known = "not known" if bound.took_ms is None else milliseconds(bound.took_ms)
            word = {None: "", True: ", missed", False: ", met"}[bound.is_missed]
            yield f"         {bound.name}: {known} of {threshold(bound.allowed_ms)} that {bound.source} allows{word}"
        for stage, took, allowed in step.over_budget:
            yield f"         stage {stage}: {milliseconds(took)}, over its budget of {threshold(allowed)}"
    if left:
        yield f"    {len(left):,} more objectives are not about it; --json has all."


def _request_json(one: Request) -> dict[str, Any]:
    recorded, explained = one.stored.recorded, one.explained
    verdicts = () if explained is None else explained.verdicts
    return {
        "span_id": one.span.span_id,
        "service": one.span.service,
        "name": one.span.name,
        "method": one.stored.method,
        "route": one.stored.route,
        "start_unix_nano": one.span.start_unix_nano,
        "duration_ms": one.span.duration_ns / 1e6,
        "recorded": {
            "verdict": recorded.word,
            "objective": recorded.objective,
            "verdicts": dict(recorded.words),
            **{attribute: text(one.span.attributes, attribute) for _, attribute in _RECORDED},
            "reasons": dict(one.recorded.reasons),
        },
        "verdicts": [
            {
                "objective": each.objective.name,
                "verdict": each.word,
                "excluded": each.excluded,
                "unknown": list(each.why),
            }
            for each in verdicts
        ],
        "objectives": [_step_json(step) for step in (() if explained is None else explained.steps)],
    }


def _step_json(step: Step) -> dict[str, Any]:
    return keys_of(
        step,
        "judged",
        objective=step.objective.name,
        base=step.objective.base,
        conditions=[each._asdict() for each in step.conditions],
        bounds=[each._asdict() for each in step.bounds],
        over_budget=[
            {"stage": stage, "took_ms": took, "allowed_ms": allowed} for stage, took, allowed in step.over_budget
        ],
    )

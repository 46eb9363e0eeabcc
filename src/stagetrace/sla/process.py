"""The policy and the verdict counts of this process, which all its tracer providers share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from stagetrace import config, log
from stagetrace.errors import PolicyError

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy
    from stagetrace.sla.verdict_counter import VerdictCounter


@functools.cache
def counter() -> VerdictCounter:
    """Return the one counter of this process."""
    from stagetrace.sla.verdict_counter import VerdictCounter

    return VerdictCounter()


def policy() -> Policy | None:
    """Return the policy of STAGETRACE_SLA; None if there is none, or no rule of it can be read."""
    return _policy()[0]


def policy_problems() -> tuple[str, ...]:
    """Return what cannot be read in STAGETRACE_SLA, and why."""
    return _policy()[1]


def objectives_text() -> str:
    """Return the objectives in words, and which rules of STAGETRACE_SLA cannot be read (the reason is logged)."""
    used, problems = _policy()
    if used is None and not problems:
        return "no objective given (STAGETRACE_SLA)"
    names = "; ".join(rule.name for rule in used.objectives) if used else "no objective"
    return "; ".join([names, *(problem.partition(": ")[0] for problem in problems)])


@functools.cache
def _policy() -> tuple[Policy | None, tuple[str, ...]]:
    """Read STAGETRACE_SLA, and log once what of it cannot be read."""
    from stagetrace.sla.inline import HOW
    from stagetrace.sla.policy import Policy

    text = config.SLA.read()
    if not text:
        return None, ()
    try:
        found = Policy.readable(text)
    except PolicyError as error:
        log.once("policy", f"STAGETRACE_SLA is ignored, requests are traced without a verdict: {error}")
        return None, (error.problem,)
    if found.problems:
        what = "; ".join(found.problems)
        log.once("policy", f"STAGETRACE_SLA is used in part, what these rules are about is not judged: {what}.\n{HOW}")
    return found, found.problems

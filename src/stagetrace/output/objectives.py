"""Objectives in words: what they say, shares, counts, lengths of time. Pure."""

from __future__ import annotations

from math import ceil, log10
from typing import TYPE_CHECKING, Final

from stagetrace.policy.objective import BAD, EXCLUDED, IGNORED, MODEL_KEY, SERVICE_KEY, TIGHTEN
from stagetrace.policy.quantities import duration_text as duration
from stagetrace.policy.quantities import window_text as window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.analysis.attainment import Counts
    from stagetrace.analysis.estimates import Attainment
    from stagetrace.policy.alert_options import AlertOptions
    from stagetrace.policy.objective import Objective

# --- Text forms for objectives: shares, counts, lengths of time, and estimates.

_LENGTHS: Final = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_TWO: Final = 1.95  # of a unit, or the smaller one is used
_MOST_DIGITS: Final = 6


def percent(share: float) -> str:
    """Return a share near 1 with enough digits to show the missing part: 99.2 %, 99.995 %; 100 % means exactly all."""
    missing = 100 * abs(1 - share)
    digits = 1 if missing == 0 else min(_MOST_DIGITS, max(1, ceil(-log10(missing))))
    text = f"{100 * share:.{digits}f}"
    return "100 %" if share == 1 else f"{'> 99.999999' if text.startswith('100') and share < 1 else text} %"


def interval(known: Attainment) -> str:
    """Return the interval of an attainment."""
    return f"[{percent(known.low).removesuffix(' %')}, {percent(known.high).removesuffix(' %')}]"


def wanted(share: float) -> str:
    """Return a target as a policy has it."""
    return f"{100 * share:.12g} %"


def length(seconds: float) -> str:
    """Return a length of time in its unit: 6.1 days."""
    size, unit = next((one for one in _LENGTHS if seconds >= _TWO * one[0]), _LENGTHS[-1])
    if any(seconds == one for one, _ in _LENGTHS):
        size, unit = next(one for one in _LENGTHS if seconds == one[0])
    number = f"{seconds / size:.1f}".removesuffix(".0")
    return f"{number} {unit}{'' if number == '1' else 's'}"


def times(factor: float) -> str:
    """Return how many times over: 11 times over, 1.4 times over."""
    return f"{factor:.{0 if factor >= 10 else 1}f} times over"  # noqa: PLR2004 -- two digits


def spent(factor: float) -> str:
    """Return how many times an error budget is spent, shortly: 11 x spent, 1.4 x spent."""
    return f"{factor:,.{0 if factor >= 10 else 1}f} x spent"  # noqa: PLR2004 -- two digits


def budget_bar(left: float) -> tuple[float, str]:
    """Return the value of the bar of an error budget, negative where it is overspent, and the value in words."""
    return (left, f"{100 * left:.0f} %") if left >= 0 else (left, spent(1 - left))


def requests(count: float, what: str = "request") -> str:
    """Return a count in words: 1 request, 2,000 requests."""
    return f"{round(count):,} {what}{'' if round(count) == 1 else 's'}"


def breaches(count: float) -> str:
    """Return a count of breaches with its verb: is 1 breach, are 20 breaches."""
    return "is 1 breach" if round(count) == 1 else f"are {round(count):,} breaches"


def about(count: float, found: Counts) -> str:
    """Return a count, with `~` where it is an estimate and `>=` where more is not known."""
    return f"{'>=' if found.is_unknown else '~' if found.is_sampled and found.most > 1 else ''}{round(count):,}"


# --- What an objective says, in sentences; pure.

_BOUNDS = {
    "first_chunk": "the first chunk of a stream within {}",
    "per_chunk": "each further chunk within {}",
    "first_token": "the first token within {}",
    "per_token": "each further token within {} on average",
}


def lines(one: Objective) -> Iterator[str]:
    """Yield what it asks of which requests, and then what else it says."""
    if one.excludes:
        yield f"{_requests(one)} are not judged"
        return
    yield f"{_requests(one)}: {one.target_text.replace(' over ', f' within {duration(one.within_ns)}, over ')}"
    bounds = ((text, getattr(one, f"{key}_ns")) for key, text in _BOUNDS.items())
    parts = [text.format(duration(bound)) for text, bound in bounds if bound is not None]
    if parts:
        yield f"and {', '.join(parts)}"
    if one.deadline is not None:
        how = "where that is shorter" if one.deadline.mode == TIGHTEN else "in place of these bounds"
        yield f"a request's own deadline ({' or '.join(one.deadline.sources)}) counts {how}"
    if one.stages:
        yield f"budgets of stages: {', '.join(f'{stage} {duration(budget)}' for stage, budget in one.stages)}"
    if one.segment_by:
        yield f"counted by {', '.join(one.segment_by)}, up to {one.max_segments} segments"
    rules = list(_rules(one))
    if rules:
        yield "; ".join(rules)
    if one.alerts is not None:
        yield alerts(one.alerts)


def alerts(options: AlertOptions) -> str:
    """Return when there are alerts, in a line; not where they go, since that may hold a password."""
    burns = [
        f"{one.severity} at {one.factor:g} times the budget over {window(one.long_s)} and {window(one.short_s)}"
        for one in options.burns
    ]
    guard = [f"none with fewer than {options.min_requests} requests"] if burns else []
    if options.no_data_s:
        burns.append(f"after {window(options.no_data_s)} without a judged request")
    return f"alerts: {'; '.join([*burns, *guard]) or 'none'}"


def _rules(one: Objective) -> Iterator[str]:
    if one.errors != IGNORED:
        yield f"a server's error is {'a breach' if one.errors == BAD else 'excluded'}"
    if one.disconnect is not None:
        yield f"a client that disconnects is {'excluded' if one.disconnect == EXCLUDED else 'a breach'}"
    if one.warmup_s:
        yield f"the first {one.warmup_s:g} s of a process are excluded"
    if one.continues:
        yield "later objectives judge them, too"


def _requests(one: Objective) -> str:
    place = " ".join(filter(None, (one.method, one.route)))
    of = f"requests of {place}" if place != "*" else "all requests"
    names = {SERVICE_KEY: "service", MODEL_KEY: "model"}
    conditions = [f"with {names.get(condition.key, condition.key)} {condition.glob}" for condition in one.conditions]
    return f"{of} {', '.join(conditions)}".rstrip()

"""What an objective says, in sentences; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.sla.objective import BAD, EXCLUDED, IGNORED, MODEL_KEY, SERVICE_KEY, TIGHTEN
from stagetrace.sla.quantities import duration_text as duration
from stagetrace.sla.quantities import window_text as window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.alert_options import AlertOptions
    from stagetrace.sla.objective import Condition, Objective

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
    return " ".join([of, *filter(None, [", ".join(map(_condition, one.conditions))])])


def _condition(condition: Condition) -> str:
    key = {SERVICE_KEY: "service", MODEL_KEY: "model"}.get(condition.key, condition.key)
    return f"with {key} {condition.glob}"

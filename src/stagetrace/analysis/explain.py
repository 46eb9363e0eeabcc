"""Why has a request the verdict that a policy gives it? Each objective in order: whether it judges it, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from stagetrace.analysis.replay import UNKNOWN, Judged, Request, known_of, replay
from stagetrace.sla.objective import GRPC_TIMEOUT, NEVER_NS, OF_FIRST_TOKEN, Objective
from stagetrace.sla.policy import Policy
from stagetrace.sla.verdict import FIRST_CHUNK, FIRST_TOKEN, PER_CHUNK, PER_TOKEN, WITHIN

JUDGES: Final = "judges"
MAY_JUDGE: Final = "may judge"  # it depends on what is not stored
NO_MATCH: Final = "does not match"
NOT_ASKED: Final = "is not asked"
OF_POLICY: Final = "the policy"
_MS: Final = 1e6


class Looked(NamedTuple):
    """A condition of an objective, what the request has, and whether that fulfils it; None: unknown."""

    key: str
    glob: str
    value: str | None
    holds: bool | None


class Bound(NamedTuple):
    """A bound of an objective: what it allows, where that comes from, and what the request took, if that is known."""

    name: str
    allowed_ms: float
    source: str  # OF_POLICY, the name of a deadline's header, or `override of NAME`
    took_ms: float | None
    is_missed: bool | None


class Step(NamedTuple):
    """What became of one objective, and why; with its verdict and bounds if it judges the request."""

    objective: Objective
    outcome: str
    why: str
    conditions: tuple[Looked, ...] = ()
    judged: Judged | None = None
    bounds: tuple[Bound, ...] = ()
    over_budget: tuple[tuple[str, float, float], ...] = ()  # stage, what it took and what it may take in ms


class Explained(NamedTuple):
    """The steps for a request in the policy's order, and the verdicts that it has by the policy."""

    steps: tuple[Step, ...]
    verdicts: tuple[Judged, ...]


def explain(policy: Policy, request: Request, stages: Mapping[str, float]) -> Explained:
    """Return what became of each objective for a request with these totals of stages, in ms."""
    verdicts = replay(policy, request)
    known = known_of(policy, request)
    by_name = {one.objective.name: one for one in verdicts}
    candidates = {one.name for one in policy.candidates(request.method, request.route)}
    steps: list[Step] = []
    of_base: dict[str, str] = {}  # which of an objective and its overrides judges
    last = ""  # the objective that judges, and after which none does
    for objective in policy.objectives:
        looked = tuple(_looked(objective, known))
        judged, base = by_name.get(objective.name), objective.base or objective.name
        if judged is not None:
            steps.append(_judging(objective, judged, looked, request, stages))
            of_base.setdefault(base, objective.name)
            last = last or ("" if objective.continues else objective.name)
        elif objective.name not in candidates:
            steps.append(Step(objective, NO_MATCH, _other_request(objective, request)))
        elif any(one.holds is False for one in looked):
            steps.append(Step(objective, NO_MATCH, _unfulfilled(looked), looked))
        elif base in of_base:
            steps.append(Step(objective, NOT_ASKED, f"{of_base[base]}, another form of it, judges the request", looked))
        else:
            steps.append(Step(objective, NOT_ASKED, f"{last} judges the request, and does not continue", looked))
    return Explained(tuple(steps), verdicts)


def _judging(
    objective: Objective,
    judged: Judged,
    looked: tuple[Looked, ...],
    request: Request,
    stages: Mapping[str, float],
) -> Step:
    bounds, over = tuple(_bounds(objective, judged, request)), tuple(_over(objective, stages))
    if judged.word == UNKNOWN:
        return Step(objective, MAY_JUDGE, "; ".join(judged.why), looked, judged, bounds)
    return Step(objective, JUDGES, judged.word, looked, judged, bounds, over)


def _looked(objective: Objective, known: Mapping[str, str | None]) -> Iterator[Looked]:
    for one in objective.conditions:
        value = known.get(one.key)
        yield Looked(*one, value, one.holds(value) if one.key in known else None)


def _other_request(objective: Objective, request: Request) -> str:
    if objective.method not in (None, request.method):
        return f"it is about {objective.method}, and the request is {request.method or 'an RPC'}"
    return f"it is about {objective.route}, and the request has {request.route or 'no route'}"


def _unfulfilled(looked: Sequence[Looked]) -> str:
    found = [one for one in looked if one.holds is False]
    return ", ".join(f"{one.key} is {'absent' if one.value is None else one.value}, not {one.glob}" for one in found)


def _bounds(objective: Objective, judged: Judged, request: Request) -> Iterator[Bound]:
    """Yield the bounds of an objective; `judged` has them as the deadlines of the request set them."""
    bounded, tokens, streamed = judged.objective, request.tokens, request.streamed
    first_token = None if tokens is None else tokens.first_ns
    per_token = tokens.following_ns / tokens.following if tokens is not None and tokens.following else None
    gap = None if streamed is None else streamed.widest[1] - streamed.widest[0]
    first = None if streamed is None else streamed.first_ns
    times: dict[str, tuple[int | None, int | None, float | None]] = {
        WITHIN: (objective.within_ns, bounded.within_ns, request.duration_ns),
        FIRST_CHUNK: (objective.first_chunk_ns, bounded.first_chunk_ns, first),
        PER_CHUNK: (objective.per_chunk_ns, bounded.per_chunk_ns, gap),
        FIRST_TOKEN: (objective.first_token_ns, bounded.first_token_ns, first_token),
        PER_TOKEN: (objective.per_token_ns, bounded.per_token_ns, per_token),
    }
    for name, (own, allowed, took) in times.items():
        if allowed is not None and allowed != NEVER_NS:
            source = OF_POLICY if objective.base is None else f"an override of {objective.base}"
            if own != allowed:
                source = _deadline(name, request, allowed)
            is_missed = None if took is None else took > allowed
            yield Bound(name, allowed / _MS, source, None if took is None else took / _MS, is_missed)


def _deadline(bound: str, request: Request, allowed: int) -> str:
    """Return the source of a deadline that set a bound."""
    found = (one for one, ns in request.deadlines.items() if ns == allowed)
    return next((one for one in found if (one in OF_FIRST_TOKEN) == (bound != WITHIN)), GRPC_TIMEOUT)


def _over(objective: Objective, stages: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Yield the stages that exceeded their budget, the one with most excess first."""
    found = [(stage, stages.get(stage, 0.0), allowed / _MS) for stage, allowed in objective.stages]
    yield from sorted((one for one in found if one[1] > one[2]), key=lambda one: one[2] - one[1])

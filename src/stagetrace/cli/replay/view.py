"""The output of `stagetrace replay`: sentence, keys and table, out of the outcomes of its runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.replay_breach import MOST_ROUTES, Outcome, in_the_way
from stagetrace.output.answer import Answer
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.units import milliseconds, threshold

if TYPE_CHECKING:
    from stagetrace.analysis.replay_breach import Situation
    from stagetrace.cli.replay.runs import Result
    from stagetrace.store.base import Entry

TITLE: Final = "A breach, sent again"
_COLUMNS: Final = (Column("run"), *numbers("sent", "late", "failed", "median", "max", "others", "others failed"))


class About(NamedTuple):
    """What was sent, and against which threshold it was measured."""

    entry: Entry
    situation: Situation
    threshold_ms: float
    against: str
    before_s: float
    bodies: Mapping[str, bytes]
    filled: bool

    @property
    def filler_routes(self) -> list[str]:
        """Return the routes that got zeros for a body."""
        sent = {one.route for one in self.situation.requests if one.body_bytes} if self.filled else ()
        return sorted(set(sent) - set(self.bodies))


def answer(result: Result, about: About) -> Answer:
    """Return the answer: whether the load makes the request late, and which route of it."""
    ways = _ways(result, about)
    situation = about.situation
    notes = list(_notes(result, about))
    return Answer(
        TITLE,
        " ".join(_sentences(result, about, ways)),
        {
            "trace_id": about.entry.trace_id,
            "span_id": about.entry.span_id,
            "service": about.entry.service,
            "route": situation.request.route,
            "recorded_ms": about.entry.duration_ms,
            "threshold_ms": about.threshold_ms,
            "against": about.against,
            "others": len(situation.requests) - 1,
            "routes": situation.routes(),
            "filler": about.filler_routes,
            "alone": _keys(result.alone),
            "under_load": None if result.load is None else _keys(result.load),
            "without": [{"route": route, **_keys(one)} for route, one in result.without.items()],
            "late_under_load": None if _is_untold(result) else result.is_slower,
            "in_the_way": ways,
            "notes": notes,
        },
        [Table(_COLUMNS, [_row(name, one) for name, one in _named(result, about)]), *notes],
        is_undecided=_is_untold(result),
    )


def _ways(result: Result, about: About) -> list[str]:
    """Return the routes that are in the way; where there is one alone, to leave it out is to send the request alone."""
    routes = about.situation.routes()
    if _is_untold(result) or result.load is None or not result.is_slower:
        return []
    return in_the_way(result.load, result.without) if len(routes) > 1 else routes


def _is_untold(result: Result) -> bool:
    """Return whether the runs show nothing: the request was refused, or most of its load and it was not late."""
    if not result.alone.is_usable or (result.load is not None and not result.load.is_usable):
        return True
    return result.load is not None and not result.load.is_same_load and not result.is_slower


def _sentences(result: Result, about: About, ways: Sequence[str]) -> Iterator[str]:
    alone, load = result.alone, result.load
    if not alone.is_usable:
        yield f"Cannot tell: alone {_failed(alone)}. {_remedy(about)}"
        return
    text = f"Alone {alone.late} of {alone.answered} late"
    if load is None:
        yield f"{text}; the store has nothing that was around it."
    elif not load.is_usable:
        yield f"{text}; cannot tell under load: {_failed(load)}."
    else:
        end = _conclusion(result, about, ways)
        yield f"{text}, under the load around it {load.late} of {load.answered} late; {end}."
    limit = threshold(about.threshold_ms)
    took = milliseconds(about.entry.duration_ms)
    yield f"Late: over {limit} from when it was due to the end of its response, at this client; recorded: {took}."
    yield from _load(about)


def _conclusion(result: Result, about: About, ways: Sequence[str]) -> str:
    """Return what follows from the runs."""
    load, routes = result.load, about.situation.routes()
    if load is not None and not load.is_same_load:
        failed = f"{load.others_failed:,} of {load.others:,} others failed ({_reasons(load.others_failures)})"
        if not result.is_slower:
            return f"cannot tell, for it is not the same load: {failed}"
        return f"{_named_ways(result, about, ways)}, though {failed}"
    if not result.is_slower:
        if 2 * result.alone.late >= result.alone.answered:
            return "it is late by itself"
        return "here it is not surely late more often under load"
    if not ways:
        tried = routes[:MOST_ROUTES]
        return f"none of {len(tried)} routes left out one by one makes that surely better"
    return _named_ways(result, about, ways)


def _named_ways(result: Result, about: About, ways: Sequence[str]) -> str:
    if not ways:
        return "no one route is surely in the way"
    own = about.situation.request.route
    names = [_others(route, own) for route in ways]
    verb = "are" if len(ways) > 1 or ways[0] == own else "is"
    best = result.without.get(ways[0])
    proof = " (nothing else was around it)"
    if best is not None:
        proof = (
            f" (without {'it' if len(ways) == 1 and ways[0] != own else names[0]} {best.late} of {best.answered} late)"
        )
    return f"{' and '.join(names)} {verb} in the way{proof}"


def _others(route: str, own: str) -> str:
    """Return the name of the others of a route; `own`: the route of the request itself, which stays."""
    return f"other {route}" if route == own else route


def _load(about: About) -> Iterator[str]:
    """Yield what the load was."""
    situation = about.situation
    others = len(situation.requests) - 1
    if not others:
        return
    requests = "1 request" if others == 1 else f"{others:,} requests"
    of = "process" if situation.is_of_process else "service"
    yield f"The load: the {requests} of its {of} from {about.before_s:g} s before it to its end, as far apart as then."
    if about.filler_routes:
        yield f"Zeros for a body went to {', '.join(about.filler_routes)}."


def _remedy(about: About) -> str:
    if about.situation.request.route in about.bodies:
        return "Check the body, the headers, and that the test instance serves this route."
    return "Give what it needs: --body, or -H for a header; no body and no header is recorded."


def _failed(one: Outcome) -> str:
    return f"{sum(one.failures.values())} of {one.requests} failed ({_reasons(one.failures)})"


def _reasons(failures: Mapping[str, int]) -> str:
    most = sorted(failures.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count} x {reason}" for reason, count in most)


def _named(result: Result, about: About) -> Iterator[tuple[str, Outcome]]:
    yield "alone", result.alone
    if result.load is not None:
        yield "under load", result.load
    own = about.situation.request.route
    yield from ((f"without {_others(route, own)}", one) for route, one in result.without.items())


def _row(name: str, one: Outcome) -> list[str]:
    counts = [f"{number:,}" for number in (one.requests, one.late, sum(one.failures.values()))]
    times = [milliseconds(one.median_ms), milliseconds(one.max_ms)]
    return [name, *counts, *times, f"{one.others:,}", f"{one.others_failed:,}"]


def _keys(one: Outcome) -> dict[str, Any]:
    return {
        "requests": one.requests,
        "late": one.late,
        "failed": sum(one.failures.values()),
        "failures": dict(one.failures),
        "median_ms": one.median_ms,
        "max_ms": one.max_ms,
        "late_by_client": one.late_by_client,
        "others": one.others,
        "others_failed": one.others_failed,
        "others_failures": dict(one.others_failures),
    }


def _notes(result: Result, about: About) -> Iterator[str]:
    """Yield what else there is to know: what was not sent, and what failed."""
    situation = about.situation
    for reason, count in situation.left.most_common():
        yield f"{count:,} requests around it were not sent: {reason}"
    if situation.is_sampled:
        yield "the store holds a sample of the recorded requests: fewer are sent than were around it"
    if not situation.has_queries:
        yield "queries are not recorded (STAGETRACE_RECORD_QUERY): all is sent without one"
    for name, one in _named(result, about):
        if one.late_by_client:
            yield f"{name}: {one.late_by_client} late only since this client sent them late: is this machine busy?"
        if one.failures:
            yield f"{name}: the request failed, {_reasons(one.failures)}"
        if one.others_failures:
            yield f"{name}: others failed, {_reasons(one.others_failures)}"

"""The metrics of this process: of verdicts and of event loops; their names, and their points now."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.policy.objective import NEVER_NS
from stagetrace.semconv import SLA_BREACH_CAUSE, SLA_BREACH_STAGE, SLA_OBJECTIVE, SLA_SEGMENT, SLA_VERDICT
from stagetrace.sla import process
from stagetrace.sla.verdict_counter import MAX_POINTS, OVERFLOW, Collected, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from stagetrace.policy.objective import Objective
    from stagetrace.sla.verdict_counter import Counted, Timed

# --- The metrics of verdicts: their names, and their points now. All senders of metrics read them here.

OVERFLOWS: Final[Mapping[str, Any]] = {"otel.metric.overflow": True}  # OpenTelemetry's own name


class Numbers(NamedTuple):
    """A counter or a gauge; `read` returns the attributes and the value of each point."""

    name: str
    unit: str
    description: str
    read: Callable[[], Iterable[tuple[Mapping[str, Any], float]]]
    is_counter: bool


class Times(NamedTuple):
    """An exponential histogram of seconds; `read` returns each point, with its exemplars."""

    name: str
    description: str
    read: Callable[[], Iterable[tuple[Mapping[str, Any], Collected]]]


def attributes_of(key: Counted) -> dict[str, Any]:
    """Return the attributes of a point of `sla.requests`."""
    found: dict[str, Any] = {SLA_OBJECTIVE: key.objective, SLA_VERDICT: key.verdict}
    if key.route:
        found["http.route" if key.route.startswith("/") else "rpc.method"] = key.route
    if key.stage:
        found[SLA_BREACH_STAGE] = key.stage
    if key.segment:
        found[SLA_SEGMENT] = key.segment
    return {**found, **OVERFLOWS} if key.overflow else found


def _requests() -> Iterator[tuple[Mapping[str, Any], int]]:
    for key, count in process.counter().points().items():
        yield attributes_of(key), count


def _breaches() -> Iterator[tuple[Mapping[str, Any], int]]:
    for (objective, cause), count in process.counter().causes().items():
        yield {SLA_OBJECTIVE: objective, SLA_BREACH_CAUSE: cause}, count


def _segment_overflow() -> Iterator[tuple[Mapping[str, Any], int]]:
    for objective, count in process.counter().segment_overflow().items():
        yield {SLA_OBJECTIVE: objective}, count


def _unusable_deadlines() -> Iterator[tuple[Mapping[str, Any], int]]:
    for source, count in process.counter().unusable_deadlines().items():
        yield {semconv.SLA_DEADLINE_SOURCE: source}, count


def _objectives() -> Iterable[Objective]:
    """Return the objectives that judge requests, MAX_POINTS at most; of several with one name only the first judges."""
    used = process.policy()
    rules = [rule for rule in used.objectives if not rule.excludes and rule.problem is None] if used else []
    by_name: dict[str, Objective] = {}
    for rule in rules:
        by_name.setdefault(rule.name, rule)
    return islice(by_name.values(), MAX_POINTS)


def _info() -> Iterator[tuple[Mapping[str, Any], int]]:
    for rule in _objectives():
        bound = {} if rule.within_ns == NEVER_NS else {"threshold_ms": f"{rule.within_ns / 1e6:.12g}"}
        share, _, window = rule.target_text.partition(" over ")
        target = f"{float(share.removesuffix('%')) / 100:.12g}"
        yield {"objective": rule.name, "target": target, **bound, "window": window}, 1


def _targets() -> Iterator[tuple[Mapping[str, Any], float]]:
    for rule in _objectives():
        yield {SLA_OBJECTIVE: rule.name}, rule.target


def _thresholds() -> Iterator[tuple[Mapping[str, Any], float]]:
    for rule in _objectives():
        if rule.within_ns != NEVER_NS:
            yield {SLA_OBJECTIVE: rule.name}, rule.within_ns / 1e6


def _named(found: Mapping[Timed, Collected], of: str) -> Iterator[tuple[Mapping[str, Any], Collected]]:
    for key, collected in found.items():
        if collected.number:
            yield OVERFLOWS if key is OVERFLOW else {SLA_OBJECTIVE: key.objective, of: key.of}, collected


def _durations() -> Iterator[tuple[Mapping[str, Any], Collected]]:
    return _named(process.counter().durations(), SLA_VERDICT)


def _stage_durations() -> Iterator[tuple[Mapping[str, Any], Collected]]:
    return _named(process.counter().stage_durations(), semconv.ML_STAGE)


def _loop_lag() -> Iterator[tuple[Mapping[str, Any], Collected]]:
    found = loop_lags.collected()
    if found.number:
        yield {}, found


NUMBERS: Final = (
    Numbers(
        semconv.METRIC_REQUESTS, "{request}", "Judged requests by objective and verdict.", _requests, is_counter=True
    ),
    Numbers(semconv.METRIC_BREACHES, "{request}", "Breaches by objective and cause.", _breaches, is_counter=True),
    Numbers(
        semconv.METRIC_SEGMENT_OVERFLOW,
        "{request}",
        "Requests in the segment `other`, since their objective had as many segments as it may.",
        _segment_overflow,
        is_counter=True,
    ),
    Numbers(
        semconv.METRIC_UNUSABLE_DEADLINES,
        "{request}",
        "Requests whose deadline could not be read, by where it came from.",
        _unusable_deadlines,
        is_counter=True,
    ),
    Numbers(
        semconv.METRIC_INFO, "", "1 for each objective, whose attributes are what it demands.", _info, is_counter=False
    ),
    Numbers(
        semconv.METRIC_TARGET,
        "1",
        "The share of its requests that an objective wants good.",
        _targets,
        is_counter=False,
    ),
    Numbers(
        semconv.METRIC_THRESHOLD,
        "ms",
        "The time within which an objective wants a response.",
        _thresholds,
        is_counter=False,
    ),
)
TIMES: Final = (
    Times(semconv.METRIC_DURATION, "How long judged requests took by objective and verdict.", _durations),
    Times(semconv.METRIC_STAGE_DURATION, "How long stages of judged requests took by objective.", _stage_durations),
)
LOOP_LAG: Final = Times(semconv.METRIC_LOOP_LAG, "How late an event loop ran what was due.", _loop_lag)


class LoopLags:
    """The histogram of this process; a forked child has another one."""

    def __init__(self) -> None:
        self._histogram: Any = Histogram()

    def begin_again(self) -> None:
        """Begin anew, in a forked child."""
        self._histogram = Histogram()

    def add(self, took_ns: int) -> None:
        """Take one measurement."""
        self._histogram.add(took_ns, None, False)  # noqa: FBT003 -- of C, takes no names

    def collected(self) -> Collected:
        """Return all measurements."""
        return Collected(*self._histogram.collect())


loop_lags: Final = LoopLags()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=loop_lags.begin_again)

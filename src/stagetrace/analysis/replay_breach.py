"""Was a request late because of what was around it? The situation of one stored request, and runs of it compared. Pure.

The situation is sent again to a test instance: the request alone, among all that was around it, and with one route left
out. Whether it is late more often in one run than in another is asked of Fisher's exact test, for runs are short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from statistics import median
from typing import Any, Final, NamedTuple

from stagetrace.analysis.base import Source
from stagetrace.text import REDACTED

MOST_REQUESTS: Final = 5_000  # of one situation, the nearest to the end of the request
MOST_ROUTES: Final = 3  # that are left out, one by one
LEAST_REPEATS: Final = 4  # fewer could not show a difference
LOOK_BACK_NS: Final = 30 * 10**9  # how early what was in flight may have begun

_ALPHA: Final = 0.05
_UNSENT: Final = frozenset({"HEAD", "CONNECT"})  # their responses end otherwise
_OPEN: Final = "{<*:"  # a route with one of these is a template, no path
_WHOLE: Final = ("url.scheme", "url.query", "service.instance.id", "host.name", "process.pid")


class Sent(NamedTuple):
    """One recorded request as it can be sent again."""

    route: str  # with its method: `POST /predict`
    method: str
    path: str
    query: str
    body_bytes: int  # 0: none was recorded
    start_unix_nano: int
    took_ms: float


@dataclass(frozen=True)
class Situation:
    """A request and what was around it, by start; `place` is its own."""

    requests: tuple[Sent, ...]
    place: int
    left: Counter[str]  # why others are not sent
    is_sampled: bool
    is_of_process: bool  # the others are of its process alone, else of its service: their processes are not recorded
    has_queries: bool

    @property
    def request(self) -> Sent:
        """Return the request itself."""
        return self.requests[self.place]

    @property
    def alone(self) -> Situation:
        """Return the request without any other."""
        return replace(self, requests=(self.request,), place=0)

    def routes(self) -> list[str]:
        """Return the routes of all others, that with most time first."""
        took: dict[str, float] = {}
        for number, one in enumerate(self.requests):
            if number != self.place:
                took[one.route] = took.get(one.route, 0.0) + one.took_ms
        return sorted(took, key=lambda route: (-took[route], route))

    def without(self, route: str) -> Situation:
        """Return it without the others of a route."""
        kept = [one for number, one in enumerate(self.requests) if number == self.place or one.route != route]
        return replace(self, requests=tuple(kept), place=next(n for n, one in enumerate(kept) if one is self.request))


def ask(source: Source, trace_id: str, span_id: str, began: int, before_ns: int) -> Situation | str:
    """Return the situation of a request of a selection that ends with it, or why it cannot be sent again."""
    values = {"since": began - before_ns, "began": began, "most": MOST_REQUESTS + 1}
    rows = source.reduce("around", _WHOLE, **values)
    own = next((row for row in rows if (row["trace_id"], row["span_id"]) == (trace_id, span_id)), None)
    if own is None:
        is_full = len(rows) > MOST_REQUESTS
        return f"more than {MOST_REQUESTS:,} began while it was in flight" if is_full else "it is not there any more"
    sent = _sent(own)
    if isinstance(sent, str):
        return sent
    left: Counter[str] = Counter()
    if len(rows) > MOST_REQUESTS:
        left[f"there were more than {MOST_REQUESTS:,}, and the earliest are not sent"] = len(rows) - MOST_REQUESTS
        rows = [row for row in rows[:MOST_REQUESTS] if row is not own]
    found = [(own["start_unix_nano"], sent)]
    instance = _instance(own)
    for row in rows:
        if row is own:
            continue
        one = _sent(row) if _instance(row) == instance else "another instance served them"
        if isinstance(one, str):
            left[one] += 1
        else:
            found.append((row["start_unix_nano"], one))
    found.sort(key=lambda each: each[0])
    requests = tuple(one for _, one in found)
    place = next(number for number, one in enumerate(requests) if one is sent)
    is_sampled = any(row["weight"] != 1 for row in rows)
    return Situation(requests, place, left, is_sampled, instance is not None, any(one.query for one in requests))


def _sent(row: Mapping[str, Any]) -> Sent | str:
    """Return a row of `around` as it can be sent, or why it cannot."""
    method, route, path = row["method"], row["route"], row["url_path"]
    if method is None:
        return "they are no HTTP requests"
    if row["url.scheme"] in ("ws", "wss"):
        return "they are WebSockets"
    if method in _UNSENT or not method.isalpha():
        return f"{method} is not sent"
    if path is None and route is not None and not set(_OPEN) & set(route):
        path = route
    if path is None or not path.startswith("/"):
        return "their path was not recorded"
    if REDACTED in path or REDACTED in (row["url.query"] or ""):
        return "a secret in their path or query was not recorded"
    took_ms = max(0, row["end_unix_nano"] - row["start_unix_nano"]) / 1e6
    text = f"{method} {path if route is None else route}"
    return Sent(text, method, path, row["url.query"] or "", row["request_bytes"] or 0, row["start_unix_nano"], took_ms)


def _instance(row: Mapping[str, Any]) -> str | None:
    return row["service.instance.id"] or (":".join(filter(None, (row["host.name"], row["process.pid"]))) or None)


# --- Runs: how often the request was late, and whether that is more often than in another run.


@dataclass(frozen=True)
class Outcome:
    """One run: the request, sent `requests` times, and the others that were sent around it."""

    requests: int
    late: int  # took longer than the threshold, or did not end within the timeout
    failures: Mapping[str, int]  # of the request: reason -> how many
    median_ms: float | None
    max_ms: float | None
    late_by_client: int  # late only because this client sent them late
    others: int
    others_failures: Mapping[str, int]

    @property
    def answered(self) -> int:
        """Return how many of the request were answered, or not in time: those that show something."""
        return self.requests - sum(self.failures.values())

    @property
    def is_usable(self) -> bool:
        """Return whether at least half of them show something."""
        return self.answered > 0 and 2 * self.answered >= self.requests

    @property
    def others_failed(self) -> int:
        """Return how many of the others failed."""
        return sum(self.others_failures.values())

    @property
    def is_same_load(self) -> bool:
        """Return whether at least half of the others were served."""
        return 2 * self.others_failed <= self.others


class One(NamedTuple):
    """The request, sent once: `latency_ms` is infinite if it failed or timed out."""

    latency_ms: float
    late_by_ms: float  # of this client's sending
    failure: str | None  # None also where it timed out


def outcome(each: Sequence[One], threshold_ms: float, others: Iterable[str | None] = ()) -> Outcome:
    """Return the outcome of a run; `others`: of each other request why it failed, or None."""
    shown = [one for one in each if one.failure is None]
    took = [one.latency_ms for one in shown]
    late = [one for one in shown if one.latency_ms > threshold_ms]
    middle, most = (median(took), max(took)) if took else (inf, inf)
    reasons = list(others)
    return Outcome(
        len(each),
        len(late),
        Counter(one.failure for one in each if one.failure is not None),
        middle if isfinite(middle) else None,
        most if isfinite(most) else None,
        sum(one.latency_ms - one.late_by_ms <= threshold_ms for one in late),
        len(reasons),
        Counter(reason for reason in reasons if reason is not None),
    )


def is_more_often_late(one: Outcome, other: Outcome) -> bool:
    """Return whether the request was surely late more often in one run than in the other: by Fisher's exact test.

    The chance that so many of all late ones fall into this run, if both are alike, is then below 5 %.
    """
    import numpy as np
    from scipy.stats import fisher_exact

    table = np.array([[run.late, run.answered - run.late] for run in (one, other)])
    return bool(fisher_exact(table, alternative="greater").pvalue < _ALPHA)


def in_the_way(load: Outcome, without: Mapping[str, Outcome]) -> list[str]:
    """Return the routes without which the request is surely late less often, that which helps most first."""
    helping = [route for route, one in without.items() if one.is_usable and is_more_often_late(load, one)]
    return sorted(helping, key=lambda route: without[route].late / without[route].answered)

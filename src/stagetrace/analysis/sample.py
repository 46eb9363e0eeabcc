"""A sample of requests as arrays, by route: what a change of their latency does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.cases import Cases
from stagetrace.analysis.drift import Change, Looked
from stagetrace.analysis.onset import least_lasting
from stagetrace.analysis.tracks import group_of

_TINY_MS: Final = 1e-3
_METHODS: Final = ("http.request.method", "http.method")
# Share of the requests that a change of a quantile is taken to be one of.
_SHARES: Final = {"p50": 1.0, "p95": 0.1, "p99": 0.02}
Group = tuple[str, str, str | None]


class Harm(NamedTuple):
    """What a change did: see `Change`."""

    harm_ms: float
    breaches: float | None


class Sample:
    """The requests of a sample as arrays; `groups` has the places of those of each route and model, by time."""

    def __init__(self, cases: Cases, since_ns: int, until_ns: int) -> None:
        """Take the requests that began in a window; those that ended before they began count for nothing."""
        self.cases = cases
        self.starts = np.array([row["start_unix_nano"] for row in cases.rows], np.int64)
        self.took = np.array([row["duration_ms"] for row in cases.rows], float)
        self.logs = np.log(np.maximum(self.took, _TINY_MS))
        self.weights = np.asarray(cases.weights, float)
        self.over = np.array([row["overrun_ms"] or 0.0 for row in cases.rows], float)
        self.breached = np.array([row["overrun_ms"] is not None for row in cases.rows], float)
        self.least_ns = least_lasting(until_ns - since_ns)
        methods = next((cases.attributes[key] for key in _METHODS if key in cases.attributes), None)
        groups: dict[Group, list[int]] = {}
        for place in np.argsort(self.starts, kind="stable").tolist():
            if self.took[place] >= 0 and since_ns <= self.starts[place] <= until_ns:
                method = None if methods is None else methods[place]
                groups.setdefault(group_of({**cases.rows[place], "method": method}), []).append(place)
        self.groups = {group: np.array(places) for group, places in groups.items()}

    def median(self, places: Array) -> float:
        """Return the median duration of some requests, by weight, ms."""
        order = places[np.argsort(self.took[places], kind="stable")]
        upto = np.cumsum(self.weights[order])
        return float(self.took[order[np.searchsorted(upto, upto[-1] / 2)]])

    def count(self, places: Array) -> float:
        """Return how many requests some stand for."""
        return float(self.weights[places].sum())

    def harm(self, change: Change, before: Array, after: Array) -> Harm:
        """Return what a change did to the requests after it: no more than as many times its milliseconds."""
        count = self.count(after)
        grown = count * _SHARES.get(change.track.quantile, 1.0) * (change.after_ms - change.before_ms)
        is_judged = change.track.within_ms is not None
        longer = count * self._more(self.over if is_judged else self.took, before, after)
        breaches = count * self._more(self.breached, before, after) if is_judged else None
        return Harm(float(np.clip(longer, min(grown, 0.0), max(grown, 0.0))), breaches)

    def _more(self, values: Array, before: Array, after: Array) -> float:
        """Return by how much the weighted mean of some values is larger after a change than before it."""
        means = [
            float(np.average(values[places], weights=self.weights[places])) if len(places) else 0.0
            for places in (before, after)
        ]
        return means[1] - means[0]

    def weighed(self, looked: Sequence[Looked], kinds: Array) -> list[Looked]:
        """Return the changes of tracks with what they did, but to the requests of `kinds` that have their own."""
        return [replace(one, changes=tuple(self._weighed(one.changes, kinds))) for one in looked]

    def _weighed(self, changes: Sequence[Change], kinds: Array) -> list[Change]:
        edges = [0, *(one.at_unix_nano for one in changes), 2**63 - 1]
        made = []
        for place, one in enumerate(changes, 1):
            rows = np.setdiff1d(self.groups.get(one.track.group, np.empty(0, int)), kinds)
            starts = self.starts[rows]
            before, after = (
                rows[(starts >= low) & (starts < high)]
                for low, high in ((edges[place - 1], edges[place]), (edges[place], edges[place + 1]))
            )
            made.append(replace(one, requests=self.count(after), **self.harm(one, before, after)._asdict()))
        return made

"""Queues with k servers, simulated, and their requests as a store would reduce them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

from stagetrace.analysis.capacity import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Draw = Callable[[np.random.Generator, int], np.ndarray]

SERVICE_S = 0.02  # mean time in service
START_NS = 1_772_366_400_000_000_000


class Requests:
    """What `ask` asks for, computed of arrays: times in ns, and what each request stands for."""

    def __init__(
        self,
        start: np.ndarray,
        end: np.ndarray,
        weight: np.ndarray | None = None,
        *,
        queue_ms: np.ndarray | None = None,
        instance: np.ndarray | None = None,
        unknown: bool = False,
    ) -> None:
        self.start, self.end = np.asarray(start, np.int64), np.asarray(end, np.int64)
        self.weight = np.ones(len(self.start)) if weight is None else weight
        self.queue_ms = np.zeros(len(self.start)) if queue_ms is None else queue_ms
        self.instance = np.full(len(self.start), None) if instance is None else instance
        self.unknown = unknown

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        del by
        rows = []
        for instance in dict.fromkeys(self.instance.tolist()):
            some = np.array([one == instance for one in self.instance])
            made = self._work(some) if name == "stage_work" else self._in_flight(some, **values)
            rows += [{"service": "shop", "instance": instance, **row} for row in made]
        return rows

    def _work(self, some: np.ndarray) -> list[dict[str, Any]]:
        took, weight = (self.end - self.start)[some] / 1e6, self.weight[some]
        totals = {f"{stage}_ms": None for stage in STAGES}
        return [
            {
                **totals,
                "queue_ms": float((weight * self.queue_ms[some]).sum()),
                "stored": int(some.sum()),
                "reversed": 0,
                "sampled": bool((weight != 1).any()),
                "unknown": self.unknown,
                "first_ns": int(self.start[some].min()),
                "last_ns": int(self.end[some].max()),
                "requests": float(weight.sum()),
                "whole_ms": float((weight * took).sum()),
                "squares_ms": float((weight * took * took).sum()),
                "quantiles_ms": np.quantile(took, [0.05, 0.5, 0.99]).tolist(),
                "cpu_ms": None,
                "batched": None,
                "with_batch": 0.0,
            }
        ]

    def _in_flight(self, some: np.ndarray, width: int, within_ms: float, service: str = "shop") -> list[dict[str, Any]]:
        del service
        start, end, weight, waited = (one[some] for one in (self.start, self.end, self.weight, self.queue_ms))
        pairs, which = np.unique(np.stack([start // width, end // width], axis=1), axis=0, return_inverse=True)
        took = (end - start) / 1e6
        columns = {
            "requests": weight,
            "start_ns": weight * (start % width),
            "end_ns": weight * (end % width),
            "whole_ms": weight * took,
            "queue_ms": weight * waited,
            "inference_ms": 0 * weight,
            "within": weight * (took <= within_ms),
            "judged": 0 * weight,
            "breaches": 0 * weight,
            "cpu_ms": 0 * weight,
        }
        sums = {name: np.bincount(which.ravel(), values) for name, values in columns.items()}
        return [
            {"first": int(first), "last": int(last), **{name: float(values[at]) for name, values in sums.items()}}
            for at, (first, last) in enumerate(pairs)
        ]


def exponential(chance: np.random.Generator, count: int) -> np.ndarray:
    return chance.exponential(SERVICE_S, count)


def constant(_: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, SERVICE_S)


def lognormal(squared_variation: float) -> Draw:
    """Return what draws times in service with this squared coefficient of variation."""
    variance = np.log(1 + squared_variation)
    return lambda chance, count: chance.lognormal(np.log(SERVICE_S) - variance / 2, variance**0.5, count)


def queue(servers: int, loads: Sequence[float], each_s: float, draw: Draw, seed: int = 1) -> Requests:
    """Return the requests of a first-come-first-served queue, its load stepped: each one for so many seconds."""
    chance = np.random.default_rng(seed)
    arrivals = np.concatenate(
        [
            step * each_s + np.sort(chance.random(chance.poisson(load * servers / SERVICE_S * each_s))) * each_s
            for step, load in enumerate(loads)
        ]
    )
    took = draw(chance, len(arrivals))
    free, begun = [0.0] * servers, np.empty(len(arrivals))
    for place, arrival in enumerate(arrivals):
        begun[place] = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begun[place] + took[place])
    start, middle, end = (START_NS + np.round(one * 1e9).astype(np.int64) for one in (arrivals, begun, begun + took))
    return Requests(start, end, queue_ms=(middle - start) / 1e6)

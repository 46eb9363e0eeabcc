"""Utilisation of a service's resources, as far as its spans show it: time averages, and capacity where known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv

if TYPE_CHECKING:
    from stagetrace.analysis.capacity import Capacity
    from stagetrace.store.base import Relations

_MOST_READ: Final = 20_000  # requests whose attributes are read
_LONGEST_MS: Final = 1e15  # more is no CPU time, and sums of it are no numbers
_PER_S: Final = "requests/s"
_REQUESTS: Final = "requests"


def sampled_values(relations: Relations, one: Capacity, key: str) -> list[dict[str, Any]]:
    """Return how many requests of the busiest minute have which value of an attribute: that minute is quickly read."""
    since, until, one_in = _sample(one)
    return relations.reduce("sampled_values", [key], service=one.service, since=since, until=until, one_in=one_in)


def _sample(one: Capacity) -> tuple[int, int, int]:
    """Return begin and end of the busiest minute, and in which of how many requests attributes are read."""
    begin, seconds = one.busiest.start_unix_nano, one.busiest.seconds
    return begin, begin + round(seconds * 1e9), max(1, int(one.busiest.per_s * seconds) // _MOST_READ)


def utilisation(relations: Relations, one: Capacity) -> dict[str, dict[str, Any]]:
    """Return resource -> mean, in the busiest minute, `of` how much, used share; `why_not` where it is unknown."""
    working = max(0.0, one.in_flight - (one.stages["queue"] or 0))
    pool = _pool(relations, one)
    threads = None if pool is None else pool["pool_size"] * one.busiest.instances
    batched = _use("requests in a batch", one.batch) if one.batch else _unknown("no request carries ml.batch.size")
    cpu_ms = _cpu_ms(relations, one)
    return {
        "capacity": _use(_PER_S, one.per_s, one.busiest.per_s, one.peak_per_s),
        "workers": _use(_REQUESTS, working, one.busiest.working, one.saturation),
        "queue": _use(_REQUESTS, one.stages["queue"] or 0.0, one.busiest.waiting),
        "inference": _unknown("no request has this stage")
        if one.stages["inference"] is None
        else _use(_REQUESTS, one.stages["inference"], one.busiest.inferring),
        "thread_pool": _unknown("no wait of the busiest minute shows how many threads a pool has")
        if pool is None
        else {**_use("threads", working, one.busiest.working, threads), "pool": pool["reason"]},
        "event_loop": _unknown("spans do not show how long an event loop was busy"),
        "batches": batched,
        "cpu": _unknown("no request of the busiest minute carries stagetrace.cpu.time_ms")
        if cpu_ms is None
        else _use("CPUs", cpu_ms * one.per_s / 1e3, cpu_ms * one.busiest.per_s / 1e3),
    }


def _use(unit: str, mean: float, busiest: float | None = None, of: float | None = None) -> dict[str, Any]:
    return {
        "mean": mean,
        "busiest": busiest,
        "of": of,
        "utilisation": mean / of if of else None,
        "busiest_utilisation": busiest / of if of and busiest is not None else None,
        "unit": unit,
        "why_not": None,
    }


def _unknown(why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("mean", "busiest", "of", "utilisation", "busiest_utilisation", "unit"))
    return {**nothing, "why_not": why}


def _pool(relations: Relations, one: Capacity) -> dict[str, Any] | None:
    """Return the pool that was waited for most in the busiest minute, of those whose size is known."""
    from stagetrace.store.answers import pools

    return next((row for row in pools(relations, one.service, *_sample(one)) if row["pool_size"]), None)


def _cpu_ms(relations: Relations, one: Capacity) -> float | None:
    """Return how long a request's threads computed on average, by those of the busiest minute."""
    rows = sampled_values(relations, one, semconv.CPU_TIME_MS)
    known = [(float(row[semconv.CPU_TIME_MS]), row["requests"]) for row in rows if _is_cpu_ms(row[semconv.CPU_TIME_MS])]
    every = sum(row["requests"] for row in rows)
    return sum(took * count for took, count in known) / every if known else None


def _is_cpu_ms(text: str | None) -> bool:
    try:
        return text is not None and 0 <= float(text) < _LONGEST_MS
    except ValueError:
        return False

"""Utilisation of a service's resources, as far as its spans show it: time averages, and capacity where known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stagetrace.analysis.capacity import Capacity
    from stagetrace.store.base import Relations

_MOST_READ: Final = 20_000  # requests whose attributes are read
_PER_S: Final = "requests/s"
_REQUESTS: Final = "requests"


def sampled_values(relations: Relations, one: Capacity, *keys: str) -> list[dict[str, Any]]:
    """Return how many requests of the busiest minute have which values of attributes: that minute is quickly read."""
    since, until, one_in = _sample(one)
    return relations.reduce("sampled_values", keys, service=one.service, since=since, until=until, one_in=one_in)


def _sample(one: Capacity) -> tuple[int, int, int]:
    """Return begin and end of the busiest minute, and in which of how many requests attributes are read."""
    begin, seconds = one.busiest.start_unix_nano, one.busiest.seconds
    return begin, begin + round(seconds * 1e9), max(1, int(one.busiest.per_s * seconds) // _MOST_READ)


def utilisation(relations: Relations, one: Capacity, *, of_all: bool) -> dict[str, dict[str, Any]]:
    """Return resource -> mean, in the busiest minute, `of` how much, used share; `why_not` where it is unknown.

    `of_all`: the requests are all that the service had in that time.
    """
    working = max(0.0, one.in_flight - (one.stages["queue"] or 0))
    pool = _pool(relations, one)
    threads = None if pool is None else pool["pool_size"] * one.busiest.instances
    batched = _use("requests in a batch", one.batch) if one.batch else _unknown("no request carries ml.batch.size")
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
        "cpu": _cpu(one, of_all=of_all),
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


def _cpu(one: Capacity, *, of_all: bool) -> dict[str, Any]:
    """Return the CPUs that the processes of the service used, whatever for, from each one's first request on."""
    if not of_all:
        return _unknown("it is of a whole process, and only some of its requests are selected")
    if one.cpus is None:
        return _unknown("no request carries stagetrace.process.cpu_ms")
    return _use("CPUs", one.cpus, one.busiest.cpus)


def _unknown(why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("mean", "busiest", "of", "utilisation", "busiest_utilisation", "unit"))
    return {**nothing, "why_not": why}


def _pool(relations: Relations, one: Capacity) -> dict[str, Any] | None:
    """Return the pool that was waited for most in the busiest minute, of those whose size is known."""
    from stagetrace.store.answers import pools

    return next((row for row in pools(relations, one.service, *_sample(one)) if row["pool_size"]), None)

"""Requests in flight against brute force and simulated queues, and what is said of a limit against the queues' own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ciw
import numpy as np
import pytest

from analysis.queues import SERVICE_S, Requests, constant, exponential, lognormal, queue
from stagetrace.analysis.capacity import Capacity, ask, plan
from stagetrace.analysis.usl import Level, around, buckets

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.1)


def only(requests: Requests, within_ms: float | None = None) -> Capacity:
    (found,) = ask(requests, within_ms)
    return found


@pytest.mark.parametrize("width_ns", [1_000, 77_777, 10_000_000])
def test_requests_in_flight_as_by_brute_force(width_ns: int) -> None:
    """The overlap of each request with each bucket, summed, whatever its weight and however many buckets it spans."""
    chance = np.random.default_rng(width_ns)
    start = chance.integers(5_000_000, 6_000_000, 200)
    end = start + np.where(chance.random(200) < 0.1, chance.integers(0, 900_000, 200), chance.integers(0, 3_000, 200))
    weight = chance.choice([1.0, 1.0, 4.0, 10.0], 200)
    requests = Requests(start, end, weight)
    rows = requests.reduce("in_flight", width=width_ns, within_ms=-1.0)
    first = min(row["first"] for row in rows)
    count = max(row["last"] for row in rows) - first + 1
    found = buckets(rows, first, count, width_ns)
    for place in range(count):
        low, high = (first + place) * width_ns, (first + place + 1) * width_ns
        overlap = np.clip(np.minimum(end, high) - np.maximum(start, low), 0, None)
        assert found.in_flight[place] == pytest.approx((weight * overlap).sum() / width_ns, abs=1e-9)
        assert found.done[place] == weight[end // width_ns == first + place].sum()


@pytest.mark.parametrize("servers", [1, 4])
@pytest.mark.parametrize("load", [0.2, 0.6, 0.95])
def test_little_s_law_against_ciw(servers: int, load: float) -> None:
    """The mean number in the system as ciw itself tracks it, and that in service: the load, times the servers."""
    seconds = 60 / servers
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(load * servers / SERVICE_S)],
        service_distributions=[ciw.dists.Lognormal(np.log(SERVICE_S) - 0.5, 1)],
        number_of_servers=[servers],
    )
    ciw.seed(servers)
    simulation = ciw.Simulation(network, tracker=ciw.trackers.SystemPopulation())
    simulation.simulate_until_max_time(seconds)
    records = simulation.get_all_records()
    left = [one for node in simulation.nodes[1:-1] for one in node.all_individuals]  # cut off at the end
    start = np.array([one.arrival_date for one in [*records, *left]])
    end = np.array([*(one.exit_date for one in records), *([seconds] * len(left))])
    begun = np.array([one.service_start_date or seconds for one in [*records, *left]])
    found = only(Requests(start * 1e9, end * 1e9, queue_ms=(begun - start) * 1e3))
    shares = simulation.statetracker.state_probabilities(observation_period=(0, seconds))
    share = (found.until_ns - found.since_ns) / 1e9 / seconds  # there was nobody before the first one came
    assert found.in_flight * share == pytest.approx(sum(number * of for number, of in shares.items()), rel=1e-6)
    assert found.per_s * share == pytest.approx(len(start) / seconds)
    served = (found.in_flight - (found.stages["queue"] or 0)) * share
    assert served == pytest.approx(np.minimum(end, seconds).sum() / seconds - begun.sum() / seconds, rel=1e-6)
    assert served / servers == pytest.approx(load, rel=0.12)  # as far as 3000 requests come to their mean


LOADED: dict[str, tuple[int, Any]] = {
    "M/M/1": (1, exponential),
    "M/M/4": (4, exponential),
    "M/D/4": (4, constant),
    "M/G/1, lognormal": (1, lognormal(1)),
    "M/G/4, lognormal": (4, lognormal(1)),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", LOADED)
def test_the_peak_of_a_queue_driven_beyond_it(name: str, seed: int) -> None:
    """Servers over mean time in service, within 5 %; the busiest minute was past it."""
    servers, draw = LOADED[name]
    found = only(queue(servers, STEPS, 40, draw, seed))
    peak = servers / SERVICE_S
    assert found.law.identifiable
    assert found.peak_per_s == pytest.approx(peak, rel=0.05)
    assert found.interval is not None
    assert found.interval.low < peak * 1.03
    assert found.interval.high is not None
    assert found.interval.high > peak * 0.97
    assert found.headroom == pytest.approx(0, abs=0.07)
    assert found.saturation == pytest.approx(servers, abs=0.7)
    top = found.levels[-1]
    assert top.waiting > 0.8 * top.in_flight


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("loads", [(0.05, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,), (0.5,)], ids=str)
def test_no_peak_where_the_load_never_came_near(name: str, loads: Sequence[float], seed: int) -> None:
    servers, draw = LOADED[name]
    found = only(queue(servers, loads, 160 / len(loads), draw, seed))
    assert not found.law.identifiable
    assert (found.knee, found.peak_per_s, found.interval, found.headroom, found.saturation) == (None,) * 5
    assert found.law.reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variation", [0.5, 4])
def test_servers_without_end_have_no_peak(variation: float, seed: int) -> None:
    """Chance alone makes buckets with more in flight and no more throughput, which is no limit."""
    found = only(queue(500, (0.002, 0.004, 0.008, 0.016), 60, lognormal(variation), seed))
    assert (found.law.identifiable, found.peak_per_s) == (False, None)


def test_a_limit_in_doubt_keeps_its_law() -> None:
    """What is not known of the service is None, while the law still says what it says."""
    found = only(queue(4, (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1), 1, constant))
    assert (found.law.law, found.law.identifiable, found.peak_per_s, found.saturation) == ("limit", False, None, None)
    assert "did not go far enough" in str(found.law.reason)
    assert found.law.throughput([4, 1000]) == pytest.approx([found.law.throughput([4])[0], found.law.limit_per_s])


@pytest.mark.parametrize("seed", range(3))
def test_slow_spells_at_a_steady_rate_are_no_limit(seed: int) -> None:
    """A service downstream that is slow at times: more in flight at the same throughput."""
    chance = np.random.default_rng(seed)
    start = np.sort(chance.uniform(0, 600, 60_000))
    slow = (start // 60).astype(int) % 3 == 1
    took = chance.exponential(np.where(slow, 0.3, 0.02))
    found = only(Requests(start * 1e9 + 1e18, (start + took) * 1e9 + 1e18))
    assert found.levels[-1].in_flight > 8 * found.levels[0].in_flight
    assert (found.law.identifiable, found.peak_per_s) == (False, None)


@pytest.mark.parametrize("seed", range(3))
def test_slow_spells_of_a_rate_that_varies_are_no_limit(seed: int) -> None:
    """Over a day and a half, with the rate up and down, and a service downstream that is slow at times."""
    chance = np.random.default_rng(seed)
    arrivals = np.sort(chance.uniform(0, 3600, 120_000))
    start = arrivals[chance.random(len(arrivals)) < 0.55 - 0.45 * np.cos(arrivals / 3600 * 4 * np.pi)]
    slow = (start // 240).astype(int) % 4 == 1
    took = chance.exponential(np.where(slow, 0.2, 0.02))
    found = only(Requests(start * 1e9 + 1e18, (start + took) * 1e9 + 1e18))
    assert (found.law.identifiable, found.peak_per_s) == (False, None)


def closed(clients: Sequence[int], each_s: float, rate: Any) -> Requests:
    """Return the requests of so many clients each, who ask anew when they are answered: `rate(n)` a second of n."""
    start, end, now = [], [], 0.0
    for count in clients:
        took = count / rate(count)
        for round_ in range(int(each_s / took)):
            for client in range(count):
                begin = now + round_ * took + client * took / count
                start.append(begin)
                end.append(begin + took)
        now += each_s
    return Requests(np.array(start) * 1e9 + 1e18, np.array(end) * 1e9 + 1e18)


def test_a_service_whose_throughput_falls_has_its_knee() -> None:
    """Clients in closed loops against the law itself: knee and peak come back out of the requests."""
    sigma, kappa = 0.03, 0.002
    knee = ((1 - sigma) / kappa) ** 0.5

    def law(load: float) -> float:
        return 50 * load / (1 + sigma * (load - 1) + kappa * load * (load - 1))

    found = only(closed((1, 2, 4, 8, 12, 16, 20, 24, 30, 40), 20, law))
    assert found.law.law == "usl"
    assert found.knee == pytest.approx(knee, rel=0.05)
    assert found.peak_per_s == pytest.approx(law(knee), rel=0.02)


def test_seven_points_of_the_book_as_requests() -> None:
    """Clients in closed loops at the rates of Cisco's benchmark, a twentieth of them: its knee, out of the requests."""
    rates = {1: 955.16, 5: 4315.54, 10: 7867.61, 15: 9645.37, 20: 10798.52, 25: 12075.41, 30: 12118.04}
    found = only(closed(tuple(rates), 8, lambda clients: rates[clients] / 20))
    assert found.knee == pytest.approx(35.5, rel=0.05)
    assert found.peak_per_s == pytest.approx(12310 / 20, rel=0.02)


def together(parts: Sequence[Requests], names: list[str]) -> Requests:
    """Return the requests of several instances as those of one service."""
    start, end, waited = (
        np.concatenate([getattr(one, name) for one in parts]) for name in ("start", "end", "queue_ms")
    )
    return Requests(start, end, queue_ms=waited, instance=np.array(names, object))


def test_instances_are_counted_and_told_apart() -> None:
    """Two processes of one service: the law is of one of them, knee and peak of both."""
    one, other = queue(4, STEPS, 40, constant, 1), queue(4, STEPS, 40, constant, 2)
    names = ["a"] * len(one.start) + ["b"] * len(other.start)
    found = only(together([one, other], names))
    assert [instance.name for instance in sorted(found.instances)] == ["a", "b"]
    assert found.busiest.instances == 2
    assert found.law.peak_per_s == pytest.approx(200, rel=0.05)
    assert found.peak_per_s == pytest.approx(400, rel=0.05)
    assert sum(instance.in_flight for instance in found.instances) == pytest.approx(found.in_flight, rel=0.02)


def test_an_instance_that_joins_does_not_bend_the_law() -> None:
    """As load grows a second process takes half of it: throughput of each is what the law is of."""
    quiet, busy = queue(4, (0.1, 0.2, 0.4, 0.6, 0.8, 0.9), 40, constant, 1), queue(4, (0.7, 0.9, 1.05), 40, constant, 2)
    later = 240_000_000_000
    twin = queue(4, (0.7, 0.9, 1.05), 40, constant, 3)
    for one in (busy, twin):
        one.start, one.end = one.start + later, one.end + later
    names = ["a"] * (len(quiet.start) + len(busy.start)) + ["b"] * len(twin.start)
    found = only(together([quiet, busy, twin], names))
    assert found.busiest.instances == 2
    assert found.peak_per_s == pytest.approx(400, rel=0.06)


def test_sampled_requests_count_for_as_many_as_they_stand_for() -> None:
    whole = queue(4, STEPS, 40, exponential)
    kept = np.random.default_rng(1).random(len(whole.start)) < 0.25
    found = only(Requests(whole.start[kept], whole.end[kept], np.full(kept.sum(), 4.0)))
    assert found.sample.is_estimate
    assert found.in_flight == pytest.approx(only(whole).in_flight, rel=0.05)
    assert found.per_s == pytest.approx(only(whole).per_s, rel=0.05)
    assert found.peak_per_s is None or found.peak_per_s == pytest.approx(200, rel=0.1)


def test_a_sampling_that_is_not_known_gives_no_capacity() -> None:
    whole = queue(4, STEPS, 40, exponential)
    found = only(Requests(whole.start, whole.end, unknown=True))
    assert (found.peak_per_s, found.law.identifiable) == (None, False)
    assert "rate that is not known" in (found.law.reason or "")


def test_buckets_judged_by_their_neighbours() -> None:
    assert around(np.array([1.0, 2, 3, 4, 50, 6, 7])).tolist() == [2.5, 2.5, 14.25, 15.25, 5, 16.75, 28]
    assert around(np.array([1.0, 2, 3])).tolist() == [1, 2, 3]


def level(in_flight: float, per_s: float, good: float, requests: float = 10_000) -> Level:
    return Level(in_flight, per_s, 0, requests / per_s, requests, 10, 0, 0, good, good)


def test_a_plan_keeps_the_objective_at_each_load_up_to_it() -> None:
    """That a greater load kept it too, after one that did not, is chance."""
    found = only(queue(4, (0.1, 0.2, 0.3), 40, constant))
    levels = (level(1, 50, 1.0), level(2, 100, 0.995), level(3, 150, 0.98), level(4, 180, 0.999))
    given = plan(replace(found, levels=levels), 250, 0.99)
    assert (given.in_flight, given.per_s, given.replicas, given.at_most) == (2, 100, 3, False)
    assert "98 % kept it" in given.reason
    kept = plan(replace(found, levels=levels[:2]), 250, 0.99)
    assert (kept.per_s, kept.replicas, kept.at_most) == (100, 3, True)
    none = plan(replace(found, levels=levels[2:3]), 250, 0.99)
    assert (none.in_flight, none.per_s, none.replicas) == (None, None, None)
    few = (level(1, 50, 1.0), level(2, 100, 0.97, requests=100), level(3, 150, 1.0, requests=60))
    assert plan(replace(found, levels=few), 250, 0.99).per_s == 50  # neither three in a hundred nor sixty show p99
    nothing = plan(replace(found, levels=few[2:]), 250, 0.99)
    assert (nothing.in_flight, nothing.replicas) == (None, None)
    assert nothing.reason == "not enough data: 60 requests at one load at most, and 99 % take 100"


def test_a_plan_without_objective_is_seventy_percent_of_the_peak() -> None:
    found = only(queue(4, STEPS, 40, constant))
    given = plan(found, 1000)
    assert given.per_s == pytest.approx(140, rel=0.05)
    assert given.replicas == 8
    assert given.in_flight == pytest.approx(3.0, abs=0.5)
    assert not given.at_most


def test_a_plan_within_a_bound_counts_requests_exactly() -> None:
    """Of four servers of 20 ms, nine requests in ten are within 25 ms at low loads, and not at high ones."""
    found = only(queue(4, STEPS, 40, constant), 25.0)
    given = plan(found, 500, 0.9)
    met = [one for one in found.levels if one.within is not None and one.within >= 0.9]
    assert given.per_s == pytest.approx(max(one.per_s for one in met), rel=0.1)
    assert given.per_s is not None
    assert given.replicas == -(-500 // int(given.per_s))

"""Which service is to blame: faults that are injected into made microservices are found, and nothing is without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.microservices import FAULTS, Fault, System, window
from stagetrace.analysis.localise import LEAST, localise
from stagetrace.store.base import SpanRow

MS = 1_000_000


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (2, 3))])
@pytest.mark.parametrize("with_kinds", [True, False], ids=["kinds", "no kinds"])
@pytest.mark.parametrize("kind", FAULTS)
def test_the_service_with_the_fault_comes_first(kind: str, with_kinds: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = System(seed, with_kinds=with_kinds)
    target = str(rng.choice(system.reached()))
    found = localise(system.traces(90, rng, Fault(kind, target)), system.traces(90, rng))
    first = found.culprits[0]
    # Without kinds a call that nobody answers is the service's own work.
    wanted = f"db-of-{target}" if kind == "database" and with_kinds else target
    assert first.service == wanted
    assert first.q_value < 0.05
    if kind == "error":
        assert 0.1 < first.errors <= 1
    if kind in ("delay", "loss"):
        assert first.edge_ms > first.self_ms or not with_kinds


@pytest.mark.parametrize(("draws", "most"), [(2, 0), pytest.param(8, 1, marks=pytest.mark.thorough)])
def test_without_a_fault_no_service_is_named(draws: int, most: int) -> None:
    named = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        traces = System(seed).traces(100, rng)
        order = rng.permutation(100)
        named += bool(localise([traces[at] for at in order[:50]], [traces[at] for at in order[50:]]).culprits)
    assert named <= most


def test_what_services_add_is_what_the_whole_takes_more() -> None:
    """The critical path divides the duration, so that a fault's excess is not counted for those that wait for it."""
    rng = np.random.default_rng(5)
    system = System(5)
    target = system.reached()[0]
    found = localise(system.traces(120, rng, Fault("cpu", target, 3)), system.traces(120, rng))
    assert found.slow_ms is not None
    assert found.normal_ms is not None
    assert found.culprits[0].service == target
    assert found.culprits[0].excess_ms == pytest.approx(found.slow_ms - found.normal_ms, rel=0.35)


def _trace(number: int, gap_ms: float = 1, own_ms: float = 10, route: str = "GET /", skew_ms: int = 0) -> list[SpanRow]:
    """Return a call of `shop` to `stock`: with a gap on either side of what `stock` does."""

    def span(place: int, parent: str | None, service: str, kind: str, start: float, end: float) -> SpanRow:
        at = number * 1000 * MS + (skew_ms * MS if service == "stock" else 0)
        ids = (f"{number:032x}", f"{place:016x}", parent)
        return SpanRow(*ids, f"{route} {place}", service, kind, at + int(start * MS), at + int(end * MS), {})

    end = own_ms + 2 * gap_ms
    return [
        span(1, None, "shop", "SERVER", 0, end + 2),
        span(2, f"{1:016x}", "shop", "CLIENT", 1, end + 1),
        span(3, f"{2:016x}", "stock", "SERVER", 1 + gap_ms, 1 + gap_ms + own_ms),
    ]


def test_the_time_between_client_and_server_is_the_edges() -> None:
    slow = [_trace(number, gap_ms=20, skew_ms=3) for number in range(20)]
    (one,) = localise(slow, [_trace(number) for number in range(20, 40)]).culprits
    assert (one.service, one.operation, one.peers) == ("stock", "GET / 2", ("shop",))
    assert one.excess_ms == pytest.approx(38)
    assert one.edge_ms == pytest.approx(38)
    assert one.self_ms == pytest.approx(0)


def test_a_service_whose_calls_are_all_slow_is_to_blame_and_not_those_called() -> None:
    def calls(number: int, gap_ms: float) -> list[SpanRow]:
        spans = _trace(number, gap_ms)
        more = [replace(span, span_id=f"{9}{span.span_id[1:]}", start_unix_nano=span.start_unix_nano + 500 * MS,
                        end_unix_nano=span.end_unix_nano + 500 * MS) for span in spans[1:]]  # fmt: skip
        more[1] = replace(more[1], parent_span_id=more[0].span_id, service="prices")
        return [replace(spans[0], end_unix_nano=more[0].end_unix_nano + MS), *spans[1:], *more]

    slow, normal = ([calls(start + number, gap) for number in range(20)] for start, gap in ((0, 20.0), (20, 1.0)))
    first = localise(slow, normal).culprits[0]
    assert (first.service, first.peers) == ("shop", ("prices", "stock"))


def test_another_mix_of_routes_is_no_fault() -> None:
    """The slow route is asked for more often, and takes what it always does."""
    rng = np.random.default_rng(1)

    def some(first: int, slow: int) -> list[list[SpanRow]]:
        routes = [("GET /slow", 50.0)] * slow + [("GET /fast", 5.0)] * (60 - slow)
        return [_trace(first + at, 1, own * rng.lognormal(0, 0.1), route) for at, (route, own) in enumerate(routes)]

    assert localise(some(0, 50), some(100, 10)).culprits == ()


def test_a_service_that_few_traces_pass_is_compared_among_these() -> None:
    rng = np.random.default_rng(7)
    shares = {"stock": 1.0, "prices": 0.9, "refunds": 0.05}
    slow, normal = window(rng, 0, shares, refunds=2000), window(rng, 1000, shares)
    found = localise(slow, normal)
    assert [one.service for one in found.culprits] == ["refunds"]
    passing = sum(any(span.service == "refunds" for span in one) for one in slow) / len(slow)
    assert found.culprits[0].excess_ms == pytest.approx(2000 * passing, rel=0.05)
    assert found.services == {"shop", "stock", "prices", "refunds"}


@pytest.mark.thorough
def test_services_that_are_called_more_often_are_not_to_blame() -> None:
    """One vague route, of which other windows have other mixes: more calls, as long as ever."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        seldom = {"stock": 0.6, "prices": 0.2, "search": 0.1, "refunds": 0.3}
        often = {"stock": 0.6, "prices": 0.7, "search": 0.8, "refunds": 0.1}
        found = localise(window(rng, 0, often), window(rng, 1000, seldom))
        assert (found.culprits, found.stopped) == ((), ())
        found = localise(window(rng, 2000, often, prices=30), window(rng, 3000, seldom))
        assert [one.service for one in found.culprits] == ["prices"]


def test_calls_that_stopped_are_named() -> None:
    """They leave no time behind; what lies below the service that is no longer called stopped by that alone."""
    rng = np.random.default_rng(8)
    shares = {"stock": 1.0, "prices": 0.95, "refunds": 0.3}
    found = localise(window(rng, 0, {**shares, "prices": 0.05}), window(rng, 1000, shares))
    assert found.culprits == ()
    (one,) = found.stopped
    assert (one.caller, one.operation, one.callee) == ("shop", "POST /graphql", "prices")
    assert one.share < 0.1
    assert one.normal_share > 0.9


def test_a_few_traces_that_hang_do_not_hide_what_most_have() -> None:
    """A pause of a second in one trace of a hundred, on both sides, and 3 ms more in each of the slow ones."""
    rng = np.random.default_rng(6)

    def some(first: int, own_ms: float) -> list[list[SpanRow]]:
        hung = rng.random(300) < 0.01
        took = own_ms * rng.lognormal(0, 0.1, 300) + 1000 * hung
        return [_trace(first + at, own_ms=each) for at, each in enumerate(took)]

    slow, normal = some(0, 13), some(500, 10)
    first = localise(slow, normal).culprits[0]
    assert (first.service, first.operation) == ("stock", "GET / 3")


def test_few_traces_say_nothing_and_broken_ones_do_not_raise() -> None:
    few = [_trace(number) for number in range(LEAST - 1)]
    assert localise(few, few).culprits == ()
    circle = [replace(span, parent_span_id=f"{place % 3 + 1:016x}") for place, span in enumerate(_trace(1), 1)]
    backwards = [replace(span, end_unix_nano=span.start_unix_nano - MS) for span in _trace(2)]
    found = localise([circle, backwards, [], *few], [_trace(number) for number in range(50, 60)])
    assert (found.slow, found.normal, found.unrooted, found.culprits) == (LEAST - 1, 10, 3, ())

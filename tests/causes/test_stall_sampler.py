"""When a request is late, and at which times it is sampled then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stagetrace import Policy
from stagetrace.causes import stall_sampler as module
from stagetrace.causes.baseline import ENOUGH_FOR_P99, Baselines
from stagetrace.causes.cause import Breakdown
from stagetrace.causes.stall_sampler import MOST_SAMPLES, StallSampler, sample_times
from stagetrace.request.chunk_times import Stream
from stagetrace.request.in_flight import in_flight
from stagetrace.request.request import Request
from stagetrace.request.stalls import REQUEST, Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS = 1_000_000
START = 10**18
ROUTE = ("GET", "/x")


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StallSampler]]:
    """Return a function that makes a sampler by a policy, without a thread; it notes whom it samples."""
    monkeypatch.setattr(module, "start", lambda *_: None)
    monkeypatch.setattr(module, "_sample", lambda record, seen, _: record.add_stalls([Stall(seen.now, REQUEST, ())]))
    in_flight.stop()

    def make(policy: str, learned: Baselines | None = None) -> StallSampler:
        sampler = StallSampler()
        sampler.add(Policy.parse(policy), learned or Baselines())
        return sampler

    yield make
    in_flight.stop()


def request(method: str | None = "GET", route: str = "/x") -> Request:
    record = Request(start=START)
    record.protocol, record.method, record.route = "test", method, route
    return record


def times_of(sampler: StallSampler, record: Request, until_ms: int, act: Callable[[int], object] = int) -> list[int]:
    """Look each millisecond; return those in which the request was sampled. `act` is called before each."""
    for at in range(until_ms + 1):
        act(at)
        sampler.look(START + at * MS)
    return [(one.at - START) // MS for one in record.stalls]


def test_after_the_objective_distances_double() -> None:
    after = [(at - START) // MS for at in sample_times(START, 160 * MS, 160 * MS)]
    assert after == [160 + 10 * (2**step - 1) for step in range(MOST_SAMPLES)]


def test_between_p99_and_objective_are_three_of_the_samples() -> None:
    times = [(at - START) / MS for at in sample_times(START, 160 * MS, 20 * MS)]
    assert times[:5] == pytest.approx([20, 40, 80, 160, 170], rel=1e-6)
    assert len(times) == MOST_SAMPLES


def test_a_request_is_sampled_from_its_objective_on(sampled: Callable[..., StallSampler]) -> None:
    sampler = sampled("* within 160ms")
    assert times_of(sampler, request(), 400) == [160, 170, 190, 230, 310]


def test_a_request_in_time_or_without_an_objective_is_never_sampled(sampled: Callable[..., StallSampler]) -> None:
    sampler = sampled("GET /x within 500ms; GET /never excluded; GET /other within 10ms")
    for route in ("/x", "/never", "/unmatched"):
        assert times_of(sampler, request("GET", route), 400) == []


def test_a_request_whose_route_is_not_known_is_late_by_the_shortest_objective(
    sampled: Callable[..., StallSampler],
) -> None:
    sampler = sampled("GET /x within 500ms; GET /y within 160ms")
    assert times_of(sampler, request("GET", ""), 200)[0] == 160


def test_a_request_is_late_after_the_p99_of_its_route(sampled: Callable[..., StallSampler]) -> None:
    learned = Baselines()
    for _ in range(ENOUGH_FOR_P99):
        learned.add(ROUTE, START, Breakdown({"compute": 20 * MS}))
    sampler = sampled("* within 160ms", learned)
    assert times_of(sampler, request(), 170) == [20, 40, 80, 160, 170]


def test_each_late_chunk_is_sampled_anew(sampled: Callable[..., StallSampler]) -> None:
    """The response has a chunk every 10 ms, and twice after 60."""
    sampler = sampled("GET /x within 10s first_chunk 16ms per_chunk 32ms")
    record, stream = request(), Stream()
    chunks = {10, 20, 30, 90, 100, 160}

    def send(at: int) -> None:
        if at in chunks:
            record.stream = stream
            stream.add(START + at * MS, 1)

    times = times_of(sampler, record, 160, send)
    assert [at for at in times if at < 62] == []
    assert times[0] == 30 + 32
    assert [at for at in times if 90 <= at < 132] == []
    assert 100 + 32 in times

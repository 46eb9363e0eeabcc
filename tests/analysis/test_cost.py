"""The bill is divided to the last unit, and each part is what brute force gives."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stagetrace.analysis.cost import INSTANCE, STAGE, Costs, allocate, ask, divide
from stagetrace.analysis.prices import PriceError, prices

HOUR = 3600 * 10**9
SHOP = [{"service": "shop", "per_hour": 1}]


def test_parts_add_up_to_the_last_unit() -> None:
    """Random bills and weights, those of zero and very unequal ones included: no part is a unit off."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        total = int(rng.integers(0, 10 ** int(rng.integers(1, 14))))
        size = int(rng.integers(1, 40))
        weights = [float(one) for one in rng.pareto(0.5, size) * (rng.random(size) < 0.8)]
        parts = allocate(total, weights)
        assert sum(parts) == total
        whole = sum(map(Fraction, weights))
        if whole:
            assert all(abs(part - total * Fraction(one) / whole) < 1 for part, one in zip(parts, weights, strict=True))


def test_the_largest_remainders_get_what_is_left() -> None:
    assert allocate(100, [1, 1, 1]) == [34, 33, 33]
    assert allocate(10, [Fraction(61, 100), Fraction(26, 100), Fraction(13, 100)]) == [6, 3, 1]
    assert allocate(5, [0, 0]) == [3, 2]
    assert allocate(0, []) == []
    with pytest.raises(ValueError, match="needs weights"):
        allocate(1, [])
    with pytest.raises(ValueError, match="none may be negative"):
        allocate(1, [1, -1])


class Requests:
    """A source over requests in memory, which divides time by brute force: moment by moment."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self.requests = requests
        self.share: list[Fraction] = [Fraction(0)] * len(requests)
        groups = defaultdict(list)
        for place, one in enumerate(requests):
            groups[one["service"], one[INSTANCE]].append(place)
        for places in groups.values():
            edges = sorted({requests[place][end] for place in places for end in ("start", "end")})
            for begin, end in pairwise(edges):
                flying = [at for at in places if requests[at]["start"] <= begin and requests[at]["end"] >= end]
                for at in flying:
                    self.share[at] += Fraction(end - begin, len(flying))

    def reduce(self, name: str, by: Any = (), **values: Any) -> list[dict[str, Any]]:
        """Return rows as the SQL would; of any piece of time, all that has its start there."""
        if name == "versions":
            starts = [one["start"] for one in self.requests]
            first, last = min(starts, default=None), max(starts, default=None)
            return [{"requests": len(starts) or None, "first": first, "last": last}]
        by = (*by, "host.name", INSTANCE) if name == "busy" else by
        groups = defaultdict(list)
        for place, one in enumerate(self.requests):
            group = (*(one.get(key) for key in by), one["breached"])
            groups[group].append(place)
        rows = []
        for key, places in groups.items():
            if name == "busy":
                since, until = values["since"], values["until"]
                places[:] = [at for at in places if since <= self.requests[at]["start"] < until]
            if not places:
                continue
            found = [self.requests[place] for place in places]
            row = dict(zip((*by, "is_breach"), key, strict=True))
            if name == "busy":
                row |= {"weight": 1.0, "stored": len(places), "negative": 0}
                row |= {"sixteenths": int(16 * sum(self.share[place] for place in places))}
                row |= {"first": min(one["start"] for one in found), "last": max(one["end"] for one in found)}
            elif name == "tokens":
                row |= {"input": sum(one["in"] for one in found), "output": sum(one["out"] for one in found)}
            else:
                took = sum(one["end"] - one["start"] for one in found) / 1e6
                stages = ("network_receive", "queue", "preprocess", "handler", "postprocess", "network_send", "other")
                row |= {f"{stage}_total_ms": 0.0 for stage in stages}
                row |= {"inference_total_ms": 0.75 * took, "queue_total_ms": 0.125 * took, "rest_ms": 0.125 * took}
            rows.append(row)
        if name == "busy":
            rows.sort(key=lambda row: -row["sixteenths"])
        return rows[: values["most"]]


def made(seed: int, count: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 3600, count) * 10**9
    return [
        {
            "service": str(rng.choice(["shop", "search"])),
            INSTANCE: str(rng.choice(["a", "b"])),
            "host.type": "small",
            "model": str(rng.choice(["churn", "ranker"])),
            "tenant": str(rng.choice(["gold", "free", "none"])),
            "breached": bool(rng.random() < 0.2),
            "start": int(start),
            "end": int(start + rng.integers(1, 300) * 10**9),
            "in": int(rng.integers(0, 100)),
            "out": int(rng.integers(0, 100)),
        }
        for start in starts
    ]


def is_whole(costs: Costs) -> bool:
    """Tell whether all parts add up to the total, as whole numbers."""
    lines = sum((line.amount or 0) for line in costs.lines), sum((line.breach_amount or 0) for line in costs.lines)
    return lines[0] + (costs.idle or 0) + (costs.breach or 0) == costs.total and lines[1] == costs.breach


@pytest.mark.parametrize("by", [["model"], ["service", "tenant"], [], [STAGE], ["model", STAGE]])
def test_random_bills_are_divided_exactly(by: list[str]) -> None:
    rng = np.random.default_rng(2)
    for seed in range(12):
        bill = round(float(rng.lognormal(3, 2)), 6)
        for given in (
            {"bill": bill},
            {"per_hour": bill, "currency": "EUR"},
            {"per_hour": 3, "bill": 100 + bill, "per_1k_tokens": {"input": 0.5, "output": 1.7}},
            {"per_token": 0.0000123, "gpu_per_hour": 2.5, "gpus": 4},
            {"per_hour": 1, "instances": 6},
        ):
            costs = ask(Requests(made(seed)), by, prices(given))
            assert is_whole(costs)
            if "bill" in given:
                assert costs.total == round(Fraction(str(given["bill"])) * 10**6)


def test_each_part_is_that_of_brute_force() -> None:
    requests = made(3, 80)
    source = Requests(requests)
    costs = ask(source, ["model"], prices({"per_hour": 7.2, "per_token": {"input": 0.001, "output": 0.002}}))
    for line in costs.lines:
        for is_breach, amount in ((False, line.amount), (True, line.breach_amount)):
            key = (line.by["model"], is_breach)
            mine = [n for n, one in enumerate(requests) if (one["model"], one["breached"]) == key]
            time = sum(source.share[n] for n in mine) * 7_200_000 / HOUR
            tokens = sum(1000 * requests[n]["in"] + 2000 * requests[n]["out"] for n in mine)
            assert amount is not None
            assert abs(amount - time - tokens) < 2
        assert line.requests == sum(one["model"] == line.by["model"] for one in requests)
    paid = 0
    for place in {(one["service"], one[INSTANCE]) for one in requests}:
        found = [one for one in requests if (one["service"], one[INSTANCE]) == place]
        paid += max(one["end"] for one in found) - min(one["start"] for one in found)
    assert costs.paid_s == pytest.approx(paid / 1e9)
    assert costs.idle == pytest.approx((paid - sum(source.share)) * 7_200_000 / HOUR, abs=2)
    assert costs.idle_share == pytest.approx(1 - sum(source.share) / paid)


def test_two_at_once_share_a_moment_and_one_alone_has_it() -> None:
    one = {"service": "s", INSTANCE: "i", "breached": False, "in": 0, "out": 0}
    requests = [
        {**one, "model": "a", "start": 0, "end": HOUR},
        {**one, "model": "b", "start": HOUR // 2, "end": HOUR, "breached": True},
        {**one, "model": "b", "start": 2 * HOUR, "end": 3 * HOUR},
    ]
    costs = ask(Requests(requests), ["model"], prices({"per_hour": 1}))
    found = {line.by["model"]: (line.amount, line.breach_amount, line.busy_s) for line in costs.lines}
    assert found == {"a": (750_000, 0, 2700), "b": (1_000_000, 250_000, 4500)}
    assert (costs.idle, costs.breach, costs.total) == (1_000_000, 250_000, 3_000_000)
    assert [line.per_request for line in costs.lines] == [0.625, 0.75]


def test_stages_divide_a_group_as_its_time() -> None:
    costs = ask(Requests(made(4)), [STAGE], prices({"bill": 1}))
    shares = {line.by[STAGE]: line.share for line in costs.lines}
    assert shares == pytest.approx({"inference": 0.75, "queue": 0.125, "(no stage)": 0.125})
    assert {line.requests for line in costs.lines} == {60}


def test_without_prices_there_are_shares_and_no_amounts() -> None:
    costs = ask(Requests(made(5)), ["model"])
    assert (costs.idle, costs.breach, costs.total) == (None, None, None)
    assert {(line.amount, line.per_request) for line in costs.lines} == {(None, None)}
    assert sum(line.share or 0 for line in costs.lines) == pytest.approx(1)


def test_tokens_alone_leave_idle_time_unknown() -> None:
    costs = ask(Requests(made(6)), ["model"], prices({"per_token": 0.001}))
    assert costs.idle is None
    tokens = sum(one["in"] + one["out"] for one in made(6))
    assert costs.total == 1000 * tokens


def test_groups_beyond_the_costliest_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagetrace.analysis.cost.MOST", 8)
    source = Requests([{**one, "user": n} for n, one in enumerate(made(7))])
    costs = ask(source, ["user"], prices({"bill": 10, "per_token": 0.0001}))
    assert is_whole(costs)
    others = next(line for line in costs.lines if line.by["user"] == "(others)")
    assert others.requests == 60 - 8
    assert others.share == pytest.approx(1 - sum(line.share or 0 for line in costs.lines if line is not others))


def test_no_request_costs_nothing_and_one_of_no_length_is_no_error() -> None:
    nothing = divide([], ["model"], prices({"per_hour": 1}))
    assert (nothing.lines, nothing.idle_share, nothing.stored, nothing.total) == ((), None, 0, None)
    one = {"service": "s", INSTANCE: None, "breached": False, "model": None, "start": 5, "end": 5}
    alone = ask(Requests([one]), ["model"], prices({"bill": 3}))
    assert (alone.idle, alone.total, alone.unnamed, alone.idle_share) == (3_000_000, 3_000_000, 1, None)


def test_prices_fit_by_service_and_kind_the_first_one_first() -> None:
    given = prices(
        {
            "currency": "EUR",
            "prices": [
                {"service": "shop", "instance_type": "big", "per_hour": 4},
                {"instance_type": "big", "per_hour": 3, "gpu_per_hour": 2, "gpus": 2},
                {"model": "churn", "per_1k_tokens": {"output": 0.03}},
            ],
            "per_hour": 0.1,
        }
    )
    assert given.per_hour("shop", "big") == 4
    assert given.per_hour("search", "big") == 7
    assert given.per_hour("search", None) == Fraction(1, 10)
    assert given.per_token("shop", "churn") == (Fraction(0), Fraction(3, 100_000))
    assert given.per_token("shop", "ranker") is None


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([], "no table of prices"),
        ({}, "no price; write"),
        ({"currency": "EUR"}, "no price; write"),
        ({"per_hours": 1}, "the file has 'per_hours', which is no price"),
        ({"prices": [{"per_hour": 1, "servce": "x"}]}, "price 1 has 'servce'"),
        ({"prices": {"per_hour": 1}}, "no list of tables"),
        ({"prices": [{"service": "x"}]}, "price 1 has no price"),
        ({"per_hour": -1}, "per_hour of the file is -1; a price is not negative"),
        ({"per_hour": "1.20"}, "which is no number"),
        ({"per_hour": True}, "which is no number"),
        ({"per_hour": float("nan")}, "which is no number"),
        ({"bill": float("inf")}, "bill is inf, which is no number"),
        ({"bill": -3}, "bill is -3; a price is not negative"),
        ({"gpus": 2, "per_hour": 1}, "gpus and no gpu_per_hour"),
        ({"gpu_per_hour": 1, "gpus": 0}, "no whole number from 1 on"),
        ({"per_hour": 1, "instances": 1.5}, "no whole number from 1 on"),
        ({"per_token": 1, "per_1k_tokens": 1}, "give one of them"),
        ({"per_token": {"in": 1}}, "has 'in', which is no price"),
        ({"model": "churn", "per_hour": 1}, "an instance may serve several"),
        ({"per_hour": 1, "currency": 5}, "currency 5 is no name"),
        ({"service": 5, "per_hour": 1}, "service of the file is 5"),
    ],
)
def test_a_bad_price_file_is_refused(found: Any, wrong: str) -> None:
    with pytest.raises(PriceError, match=wrong) as error:
        prices(found)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"prices": SHOP}, "no price by the hour fits the instances of service 'search'"),
        ({"per_hour": 1, "instances": 2}, "instances = 2, but 4 were at work"),
        ({"bill": 0.001, "per_token": 1}, "more than the bill of 0.00"),
        ({"instances": 5, "prices": [*SHOP, {"service": "search", "per_hour": 2}]}, "several prices by the hour"),
    ],
)
def test_prices_that_do_not_fit_are_refused(found: Any, wrong: str) -> None:
    with pytest.raises(PriceError, match=wrong):
        ask(Requests(made(8)), ["model"], prices(found))

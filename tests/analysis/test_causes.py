"""What distinguishes breaches: planted causes are found under their name, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from stagetrace.analysis.base import rank, rank_of
from stagetrace.analysis.causes import Contrast, search
from stagetrace.analysis.statistics import Cells, benjamini_hochberg, one_sided

Columns = dict[str, list[str | None]]


def contrast(attributes: Any, breached: Any, weights: Any = None, strata: Any = None) -> list[Contrast]:
    """Return the findings."""
    return list(search(attributes, breached, weights, strata).contrasts)


def _columns(rng: np.random.Generator, size: int, keys: int = 8) -> Columns:
    """Return attributes that have nothing to do with anything, of 2 to 40 values."""
    return {f"k{key}": [f"v{value}" for value in rng.integers(0, rng.integers(2, 40), size)] for key in range(keys)}


def _choice(rng: np.random.Generator, size: int, **shares: float) -> list[str | None]:
    return [str(one) for one in rng.choice(list(shares), size, p=list(shares.values()))]


def _is(column: list[str | None], value: str) -> np.ndarray:
    return np.array([one == value for one in column])


def test_a_value_that_raises_the_risk_is_found_with_its_counts() -> None:
    rng = np.random.default_rng(1)
    columns = _columns(rng, 4000) | {"version": _choice(rng, 4000, a=0.8, b=0.2)}
    slow = _is(columns["version"], "b")
    breached = rng.random(4000) < np.where(slow, 0.2, 0.02)
    (found,) = contrast(columns, breached.tolist())
    assert found.values == {"version": "b"}
    assert (found.breached, found.good) == ((slow & breached).sum(), (slow & ~breached).sum())
    assert found.relative_risk == pytest.approx(breached[slow].mean() / breached[~slow].mean())
    table = np.array([[(a & b).sum() for b in (breached, ~breached)] for a in (slow, ~slow)])
    assert found.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue, rel=1e-6)
    assert found.interval[0] < 10 < found.interval[1]
    assert set(found.rows) == set(np.flatnonzero(slow & breached))


def test_a_pair_is_found_where_neither_value_alone_is_to_blame() -> None:
    rng = np.random.default_rng(2)
    columns = _columns(rng, 6000) | {
        "version": _choice(rng, 6000, a=0.7, b=0.3),
        "tenant": _choice(rng, 6000, gold=0.3, free=0.7),
    }
    both = _is(columns["version"], "b") & _is(columns["tenant"], "gold")
    (found,) = contrast(columns, (rng.random(6000) < np.where(both, 0.3, 0.01)).tolist())
    assert found.values == {"version": "b", "tenant": "gold"}
    assert {"version": "b"} in found.along


def test_two_causes_that_know_nothing_of_each_other_are_no_pair() -> None:
    rng = np.random.default_rng(3)
    columns = {"version": _choice(rng, 20_000, a=0.7, b=0.3), "tenant": _choice(rng, 20_000, gold=0.3, free=0.7)}
    one, other = _is(columns["version"], "b"), _is(columns["tenant"], "gold")
    breached = (rng.random(20_000) < 0.1 * one) | (rng.random(20_000) < 0.05 * other)
    assert [found.values for found in contrast(columns, breached.tolist())] == [{"version": "b"}, {"tenant": "gold"}]


def test_names_of_the_same_requests_are_one_finding() -> None:
    rng = np.random.default_rng(4)
    pods = _choice(rng, 3000, a=0.5, b=0.3, c=0.2)
    columns: Columns = {"host.name": [f"h-{pod}" for pod in pods], "k8s.pod.name": pods}
    (found,) = contrast(columns, (rng.random(3000) < np.where(_is(pods, "b"), 0.2, 0.02)).tolist())
    assert found.values == {"k8s.pod.name": "b"}
    assert found.also == ({"host.name": "h-b"},)


def test_what_only_goes_with_a_cause_is_none() -> None:
    """Version b runs in the east mostly, and it is slow everywhere; the east is not."""
    rng = np.random.default_rng(5)
    version = _choice(rng, 8000, a=0.7, b=0.3)
    east = rng.random(8000) < np.where(_is(version, "b"), 0.9, 0.3)
    columns: Columns = {"version": version, "region": ["east" if one else "west" for one in east]}
    (found,) = contrast(columns, (rng.random(8000) < np.where(_is(version, "b"), 0.2, 0.02)).tolist())
    assert found.values == {"version": "b"}
    assert {"region": "east"} in found.along


def test_a_mix_of_routes_is_no_cause() -> None:
    """Tenant gold asks for the slow route more often, and is no slower on either."""
    rng = np.random.default_rng(6)
    tenant = _choice(rng, 6000, gold=0.4, free=0.6)
    slow = rng.random(6000) < np.where(_is(tenant, "gold"), 0.8, 0.1)
    breached = (rng.random(6000) < np.where(slow, 0.3, 0.01)).tolist()
    assert contrast({"tenant": tenant}, breached, strata=slow.tolist()) == []
    assert [found.values for found in contrast({"tenant": tenant}, breached)] == [{"tenant": "gold"}]


def test_an_absent_attribute_is_a_value() -> None:
    rng = np.random.default_rng(7)
    cached: list[str | None] = [None if one else "hit" for one in rng.random(2000) < 0.2]
    found = contrast(
        {"cache": cached}, (rng.random(2000) < np.where([one is None for one in cached], 0.3, 0.02)).tolist()
    )
    assert [one.values for one in found] == [{"cache": None}]


def test_numbers_are_ranges_and_ids_are_left_alone() -> None:
    rng = np.random.default_rng(8)
    size = rng.lognormal(8, 1, 5000).astype(int)
    columns: Columns = {"size": [str(one) for one in size], "id": [f"{one:032x}" for one in range(5000)]}
    found = search(columns, (rng.random(5000) < np.where(size > np.quantile(size, 0.9), 0.3, 0.01)).tolist())
    assert found.skipped == ("id",)
    edge = int(np.quantile(size, 0.9, method="inverted_cdf"))
    assert [one.values for one in found.contrasts] == [{"size": f"over {edge}"}]


def test_sizes_of_few_values_are_in_an_order_too_and_versions_are_not() -> None:
    rng = np.random.default_rng(13)
    rows, version = rng.choice([1, 2, 4, 8, 16, 32], 4000), rng.choice([1, 2, 3, 4], 4000)
    columns: Columns = {"ml.batch.size": list(map(str, rows)), "ml.model.version": list(map(str, version))}
    slow = (rows > 4) | (version > 2)
    found = contrast(columns, (rng.random(4000) < np.where(slow, 0.4, 0.01)).tolist())
    assert {"ml.batch.size": "over 4"} in [one.values for one in found]
    assert not any("over" in str(one.values.get("ml.model.version")) for one in found)


@pytest.mark.parametrize("share", [1.0, 0.97], ids=["the same requests", "nearly the same"])
def test_a_release_is_named_rather_than_the_instance_that_ran_it(share: float) -> None:
    """The one of Turkish texts and the new release, whose instance, host and port are all its own."""
    rng = np.random.default_rng(14)
    version = _choice(rng, 8000, a=0.5, b=0.5)
    lang = _choice(rng, 8000, en=0.9, tr=0.1)
    new = _is(version, "b") & (rng.random(8000) < share)
    columns: Columns = {
        "service.instance.id": ["c7138bc9" if one else "1f0c2ab3" for one in new],
        "host.name": ["h-2" if one else "h-1" for one in new],
        "server.port": ["8001" if one else "8000" for one in new],
        "service.version": [f"1.{4 + one}.0" for one in _is(version, "b")],
        "http.response.body.size": ["114" if one else "99" for one in _is(lang, "tr")],
        "app.lang": lang,
    }
    slow = new & _is(lang, "tr")
    found = contrast(columns, (rng.random(8000) < np.where(slow, 0.6, 0.01)).tolist())
    assert [one.values for one in found] == [{"app.lang": "tr", "service.version": "1.5.0"}]
    assert {"app.lang": "tr", "service.instance.id": "c7138bc9"} in found[0].also


def test_what_a_response_has_in_common_does_not_hide_two_causes() -> None:
    """Responses of two causes are short; a host that alone is slow is named as such."""
    rng = np.random.default_rng(19)
    version = _choice(rng, 6000, a=0.7, b=0.3)
    rows, host = rng.choice([1, 2, 150], 6000, p=[0.4, 0.4, 0.2]), _choice(rng, 6000, h1=0.4, h2=0.4, h3=0.2)
    slow = _is(version, "b") | (rows > 2)
    columns: Columns = {
        "service.version": version,
        "http.request.body.size": [str(90 * one) for one in rows],
        "http.response.body.size": ["114" if one else "125" for one in slow | (rng.random(6000) < 0.3)],
        "host.name": host,
    }
    found = contrast(columns, (rng.random(6000) < np.where(slow, 0.9, 0.02)).tolist())
    known: list[dict[str, str]] = [{"service.version": "b"}, {"http.request.body.size": "13500"}]
    assert sorted(map(str, (one.values for one in found))) == sorted(map(str, known))
    found = contrast(columns, (rng.random(6000) < np.where(_is(host, "h3"), 0.5, 0.02)).tolist())
    assert [one.values for one in found] == [{"host.name": "h3"}]


def test_three_keys_are_found_where_two_do_not_say_it() -> None:
    rng = np.random.default_rng(15)
    columns = _columns(rng, 12_000) | {
        "version": _choice(rng, 12_000, a=0.7, b=0.3),
        "tenant": _choice(rng, 12_000, gold=0.3, free=0.7),
        "lang": _choice(rng, 12_000, en=0.6, tr=0.4),
    }
    slow = _is(columns["version"], "b") & _is(columns["tenant"], "gold") & _is(columns["lang"], "tr")
    found = contrast(columns, (rng.random(12_000) < np.where(slow, 0.4, 0.02)).tolist())
    assert [one.values for one in found] == [{"version": "b", "tenant": "gold", "lang": "tr"}]


def test_a_pair_with_a_lower_risk_than_the_others_is_no_finding() -> None:
    """Either value alone halves the risk three times over, and both together halve it once: more than both do alone."""
    rng = np.random.default_rng(16)
    columns = {"cache": _choice(rng, 60_000, hit=0.2, miss=0.8), "tier": _choice(rng, 60_000, gold=0.2, free=0.8)}
    one, other = _is(columns["cache"], "hit"), _is(columns["tier"], "gold")
    risk = 0.2 * np.where(one & other, 0.5, np.where(one | other, 0.12, 1.0))
    found = contrast(columns, (rng.random(60_000) < risk).tolist())
    assert {"cache": "hit", "tier": "gold"} not in [one.values for one in found]
    assert all(one.relative_risk > 1 for one in found)


def test_small_differences_are_no_finding_in_however_many_requests() -> None:
    rng = np.random.default_rng(17)
    size = 200_000
    columns: Columns = {"region": _choice(rng, size, eu=0.5, us=0.5), "version": _choice(rng, size, a=0.9, b=0.1)}
    risk = 0.05 * np.where(_is(columns["region"], "us"), 1.4, 1.0)
    assert contrast(columns, (rng.random(size) < risk).tolist()) == []
    worse = np.where(_is(columns["version"], "b"), 0.4, risk)
    assert [one.values for one in contrast(columns, (rng.random(size) < worse).tolist())] == [{"version": "b"}]


def test_what_one_finding_explains_is_not_found_again() -> None:
    """Names that go with version b, and parts of its requests: one finding, whatever else has more breaches by it."""
    rng = np.random.default_rng(18)
    version = _choice(rng, 20_000, a=0.7, b=0.3)
    slow = _is(version, "b")
    columns: Columns = {"version": version} | {
        f"k{share}": [f"v{one}" for one in np.where(rng.random(20_000) < share, slow, rng.integers(0, 4, 20_000))]
        for share in (0.2, 0.4, 0.6, 0.8)
    }
    found = contrast(columns, (rng.random(20_000) < np.where(slow, 0.3, 0.02)).tolist())
    assert [one.values for one in found] == [{"version": "b"}]


@pytest.mark.parametrize(("draws", "most"), [(10, 1), pytest.param(40, 2, marks=pytest.mark.thorough)])
def test_nothing_is_found_where_nothing_distinguishes_them(draws: int, most: int) -> None:
    """In at least 95 of 100 draws; here by route and not."""
    false = 0
    for seed in range(draws):
        rng = np.random.default_rng(100 + seed)
        route = rng.choice(3, 1500, p=[0.6, 0.3, 0.1])
        columns = _columns(rng, 1500, 5) | {"number": [str(one) for one in rng.integers(0, 10**6, 1500)]}
        breached = rng.random(1500) < np.array([0.01, 0.2, 0.5])[route]
        false += bool(contrast(columns, breached.tolist(), strata=route.tolist() if seed % 2 else None))
    assert false <= most


def test_the_test_is_exact_over_strata_too() -> None:
    """Against the sum of hypergeometric variables, added up."""
    rng = np.random.default_rng(9)
    compared = 0
    for _ in range(150):
        strata = int(rng.integers(1, 6))
        total = rng.integers(30, 400, strata)
        marked, draws = (np.maximum(1, (total * rng.uniform(0.02, 0.4, strata)).astype(int)) for _ in range(2))
        x = np.minimum(np.ceil(marked * draws / total) + rng.integers(0, 7, strata), np.minimum(marked, draws))
        whole = np.ones(1)
        for one in zip(total, marked, draws, strict=True):
            whole = np.convolve(whole, hypergeom.pmf(np.arange(min(one[1:]) + 1), *one))
        expected = whole[int(x.sum()) :].sum()
        with_it = Cells(x[:, None], (draws - x)[:, None])
        without = Cells((marked - x)[:, None], (total - marked - draws + x)[:, None])
        if expected < 0.0018:
            compared += 1
            assert one_sided(with_it, without)[0] == pytest.approx(expected, rel=1e-6)
    assert compared >= 20


def test_few_good_requests_kept_by_weight_give_the_risk_of_all() -> None:
    """Of the good ones every twentieth, as a sampler or a case-control sample has it."""
    rng = np.random.default_rng(10)
    size = 60_000
    slow = rng.random(size) < 0.3
    breached = rng.random(size) < np.where(slow, 0.04, 0.01)
    kept = breached | (rng.random(size) < 0.05)
    columns: Columns = {"version": ["b" if one else "a" for one in slow[kept]]}
    weights = np.where(breached[kept], 1.0, 20.0)
    (found,) = contrast(columns, breached[kept].tolist(), weights.tolist())
    assert found.good == pytest.approx((slow & ~breached).sum(), rel=0.1)
    assert found.interval[0] < breached[slow].mean() / breached[~slow].mean() < found.interval[1]
    (same,) = contrast(columns, breached[kept].tolist())
    assert found.p_value == pytest.approx(same.p_value, rel=1e-6)


def test_values_that_are_sampled_unevenly_are_no_finding() -> None:
    """Tenant a is kept to a hundredth, b whole: unweighed, a would seem to have a hundred times the breaches."""
    rng = np.random.default_rng(11)
    is_a = rng.random(40_000) < 0.5
    breached = rng.random(40_000) < 0.02
    kept = breached | ~is_a | (rng.random(40_000) < 0.01)
    columns: Columns = {"tenant": ["a" if one else "b" for one in is_a[kept]]}
    weights = np.where(is_a & ~breached, 100.0, 1.0)[kept].tolist()
    assert contrast(columns, breached[kept].tolist(), weights) == []
    assert contrast(columns, breached[kept].tolist())


def test_others_without_a_breach_leave_the_risk_finite() -> None:
    columns: Columns = {"version": [*["b"] * 40, *["a"] * 400]}
    (found,) = contrast(columns, [True] * 20 + [False] * 420)
    assert found.values == {"version": "b"}
    assert found.relative_risk == pytest.approx((20 / 40) / (0.5 / 400))
    assert found.interval[0] > 1


@pytest.mark.parametrize("breached", [[], [True] * 30, [False] * 30])
def test_without_two_kinds_there_is_nothing_to_compare(breached: list[bool]) -> None:
    assert contrast({"a": ["x"] * len(breached)}, breached) == []


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 requests, but columns of 3"):
        contrast({"a": ["x", "y", "z"]}, [True, False])
    with pytest.raises(ValueError, match="weights are positive"):
        contrast({"a": ["x", "y"] * 20}, [True, False] * 20, [0.0] * 40)


def test_a_test_without_a_p_value_shows_nothing_and_one_just_over_1_is_1() -> None:
    assert list(benjamini_hochberg([0.001, float("nan"), np.nextafter(1, 2)])) == pytest.approx([0.003, 1.0, 1.0])
    assert list(benjamini_hochberg([])) == []


# --- Which names a person knows: the order of the kinds of attributes.

IN_ORDER = (
    "service.version",
    "tenant.id",
    "ml.model.name",
    "app.lang",
    "http.route",
    "ml.batch.size",
    "http.request.body.size",
    "http.response.body.size",
    "service.instance.id",
    "host.name",
    "process.runtime.version",
    "server.port",
)


def test_kinds_of_attributes_are_in_the_order_in_which_a_person_knows_them() -> None:
    assert [rank(key) for key in IN_ORDER] == sorted({rank(key) for key in IN_ORDER})


def test_what_an_application_recorded_is_known_as_well_as_what_its_name_says() -> None:
    assert rank("http.request.header.x_tenant") == rank("tenant.id")
    assert rank("ml.model.version") == rank("service.version")
    assert rank("cache.outcome") == rank("app.lang") < rank("http.route")


def test_a_name_is_known_as_well_as_its_least_known_part() -> None:
    assert rank_of({"app.lang": "tr", "service.version": "2"}) < rank_of({"app.lang": "tr", "host.name": "h"})
    assert rank_of({"tenant.id": "a"}) < rank_of({"tenant.id": None})
    assert rank_of({"tenant.id": "a"}) < rank_of({"tenant.id": "a", "service.version": "2"})

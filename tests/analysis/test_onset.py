"""When the breach rate changed: at the moment that was planted, and never where none was."""

from __future__ import annotations

import numpy as np
import pytest

from stagetrace.analysis.onset import Release, Since, changes, of_rows, since, since_of

S = 1_000_000_000


def test_a_step_is_found_where_it_is() -> None:
    rng = np.random.default_rng(1)
    starts = np.sort(rng.integers(0, 3600 * S, 5000))
    breached = rng.random(5000) < np.where(starts >= 2400 * S, 0.15, 0.02)
    order = rng.permutation(5000)
    (one,) = changes(starts[order].tolist(), breached[order].tolist())
    assert abs(one.at_unix_nano - 2400 * S) < 40 * S
    assert one.before == pytest.approx(0.02, abs=0.01)
    assert one.after == pytest.approx(0.15, abs=0.02)


def test_an_incident_has_two_ends() -> None:
    rng = np.random.default_rng(2)
    starts = np.arange(6000) * S
    inside = (starts >= 2000 * S) & (starts < 2600 * S)
    found = changes(starts.tolist(), (rng.random(6000) < np.where(inside, 0.4, 0.01)).tolist())
    assert [round(one.at_unix_nano / S / 50) for one in found] == [40, 52]
    assert found[0].after == found[1].before


def test_nothing_changes_where_the_rate_is_the_same() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert changes(rng.integers(0, 10**12, 2000).tolist(), (rng.random(2000) < 0.1).tolist()) == []


def test_a_mix_of_routes_that_changes_is_no_change() -> None:
    rng = np.random.default_rng(3)
    starts = np.arange(6000)
    slow = rng.random(6000) < np.where(starts > 3000, 0.7, 0.1)
    breached = (rng.random(6000) < np.where(slow, 0.3, 0.01)).tolist()
    assert changes(starts.tolist(), breached, strata=slow.tolist()) == []
    assert changes(starts.tolist(), breached) != []


def test_a_blip_is_no_onset() -> None:
    """Six seconds in which a third of the requests are breaches, beside a rate that changes for good, or not."""
    rng = np.random.default_rng(4)
    starts = np.sort(rng.integers(0, 900 * S, 18_000))
    blip = (starts >= 690 * S) & (starts < 696 * S)
    assert changes(starts.tolist(), (rng.random(18_000) < np.where(blip, 0.35, 0.02)).tolist()) == []
    for_good = np.where(blip, 0.9, np.where(starts >= 430 * S, 0.06, 0.02))
    (one,) = changes(starts.tolist(), (rng.random(18_000) < for_good).tolist())
    assert abs(one.at_unix_nano - 430 * S) < 20 * S


def test_a_release_is_the_moment_where_nothing_tells_them_apart() -> None:
    """The version before the instance that started with it; not a release that is far off."""
    rng = np.random.default_rng(5)
    starts = np.sort(rng.integers(0, 3600 * S, 5000))
    breached = (rng.random(5000) < np.where(starts >= 2400 * S, 0.3, 0.02)).tolist()
    version = Release(2398 * S, "shop", "service.version", "1.5.0")
    instance = Release(2399 * S, "shop", "service.instance.id", "c7138bc9")
    other = Release(1200 * S, "shop", "service.version", "1.4.0")
    (one,) = changes(starts.tolist(), breached, releases=[other, version, instance])
    assert (one.release, one.at_unix_nano) == (version, 2398 * S)
    (one,) = changes(starts.tolist(), breached, releases=[other])
    assert one.release is None
    assert since(starts.tolist(), breached, [version], 0) == Since(2398 * S, version)


def test_since_when_of_a_finding() -> None:
    """The requests are those that the finding names, by their places."""
    rng = np.random.default_rng(6)
    rows = [{"start_unix_nano": place * S, "service": "shop"} for place in range(6000)]
    bad = [place >= 3000 and place % 10 == 7 and rng.random() < 0.8 for place in range(6000)]
    found = since_of(np.arange(7, 6000, 10), rows, bad, [])
    assert found is not None
    assert abs(found.at_unix_nano - 3000 * S) < 30 * S
    assert since_of(np.arange(6, 6000, 10), rows, bad, []) is None


def test_releases_are_what_was_not_there_at_the_beginning() -> None:
    """Two versions side by side are none; a version that came later is one, and so is its instance, after it."""
    rows = [
        {"service": "shop", "service.version": version, "service.instance.id": instance, "model": "churn",
         "model_version": model, "requests": 900.0, "first": first * S, "last": last * S}
        for version, instance, model, first, last in (
            ("1", "a", "7", 0, 430), ("1", "b", "7", 1, 431), ("2", "c", "7", 430, 900), ("2", "d", "8", 600, 900)
        )
    ]  # fmt: skip
    found = [(one.key, one.value, one.at_unix_nano // S) for one in of_rows(rows)]
    assert found == [
        ("service.version", "2", 430), ("service.instance.id", "c", 430), ("model_version", "8", 600),
        ("service.instance.id", "d", 600),
    ]  # fmt: skip


@pytest.mark.parametrize("starts", [[5] * 300, list(range(30)), []])
def test_without_two_sides_there_is_no_moment(starts: list[int]) -> None:
    assert changes(starts, [place % 3 == 0 for place in range(len(starts))]) == []
